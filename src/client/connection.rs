//! A socket and a handshake on it.

use std::net::ToSocketAddrs;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use std::{io, mem};

use socket2::{Domain, SockAddr, SockRef, TcpKeepalive, Type};

use super::error::ConnectError;
use super::security::Credentials;
use super::uri::{Address, Uri};
use crate::net::tls::{self, Fault};
use crate::net::{Inbox, Line};
use crate::proto::{Command, CommandFlags, Dialed, Dialer, DialerConfig, Found, Link, Request, SurveyConfig};
use crate::rt;
use crate::rt::gather::Gather;
use crate::rt::net::Socket;

/// How long one of a name's addresses is tried before the next: half of the Internet's routes may be missing here.
const ADDRESS_MAX: Duration = Duration::from_secs(4);

/// A connection ready for requests, for those who make and judge these themselves (the load generator does: it has
/// neither a task nor a buffer for each request).
pub struct Connection {
    /// What was agreed on.
    pub link: Link,
    /// Replies.
    pub inbox: Inbox,
    /// Where requests go.
    pub line: Line,
}

impl Connection {
    /// Connects and negotiates, without a limit of time: to where the URI leads, under TLS or not as it says. What is opened
    /// there is up to `config`.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn open(uri: &Uri, config: DialerConfig) -> Result<Self, ConnectError> {
        let dialer = Dialer::new(DialerConfig { tls: uri.security.tls, ..config });
        let mut talk = Talk::begin(uri, dialer).await?;
        match talk.until_over().await? {
            Dialed::Linked(link) => Ok(Self { link: *link, inbox: talk.inbox, line: talk.line }),
            _ => Err(talk.ended()),
        }
    }

    /// As [`Connection::open`], with TCP keepalive and within `limit`.
    ///
    /// # Errors
    /// [`ConnectError`]; [`ConnectError::Slow`] when the time is over.
    pub async fn open_within(
        uri: &Uri,
        config: DialerConfig,
        limit: Duration,
        keepalive: Option<Duration>,
    ) -> Result<Self, ConnectError> {
        let connection = within(limit, uri, Self::open(uri, config)).await?;
        if let (Address::Tcp { .. }, Some(idle)) = (&uri.address, keepalive) {
            let keepalive =
                TcpKeepalive::new().with_time(idle).with_interval(idle / 4 + Duration::from_secs(1));
            // A socket without keepalive works as well, until the day it does not; no reason to refuse it.
            let _ =
                SockRef::from(connection.line.socket().fd()).set_tcp_keepalive(&keepalive.with_retries(4));
        }
        Ok(connection)
    }

    /// Gives the socket up to somebody else who speaks NBD from here on: the kernel, for one. Nothing receives on it any
    /// more.
    ///
    /// # Errors
    /// The errno of `recv(2)`; `InvalidData` if the server has sent what nobody asked for; `Unsupported` under TLS, whose keys
    /// stay here.
    pub async fn release(mut self) -> io::Result<(Link, OwnedFd)> {
        if self.line.is_secure() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if self.inbox.stop().await? > 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((self.link, self.line.socket().fd().try_clone()?))
    }

    /// Says goodbye; a server that is gone already needs none. What was agreed on stays known.
    pub async fn leave(self) -> Link {
        let (command, flags) = (Command::DISC, CommandFlags::NONE);
        let goodbye = Request { command, flags, cookie: 0, offset: 0, length: 0, payload: 0 };
        let mut gather = Box::new(Gather::new());
        gather.bytes(&goodbye.encode(self.link.dialect));
        let _ = self.line.send(gather).await;
        self.line.farewell().await;
        self.link
    }
}

/// Looks at what a server exports, opening none of it.
///
/// All of it takes no longer than `limit`.
///
/// # Errors
/// [`ConnectError`]; an export that is refused is no error, see [`Found::refused`].
///
/// # Examples
/// ```no_run
/// use std::time::Duration;
/// use ringnbd::client::{Uri, survey};
/// use ringnbd::proto::SurveyConfig;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let uri = Uri::parse("nbd://localhost")?;
/// let found = ringnbd::rt::block_on(async move {
///     survey(&uri, SurveyConfig::default(), Duration::from_secs(30)).await
/// })??;
/// for export in found {
///     println!("{:?} {:?}", export.name, export.export);
/// }
/// # Ok(())
/// # }
/// ```
pub async fn survey(uri: &Uri, config: SurveyConfig, limit: Duration) -> Result<Vec<Found>, ConnectError> {
    let survey = async {
        let dialer = Dialer::survey(SurveyConfig { tls: uri.security.tls, ..config });
        let mut talk = Talk::begin(uri, dialer).await?;
        match talk.until_over().await? {
            Dialed::Surveyed(found) => {
                talk.line.farewell().await;
                talk.line.shutdown();
                Ok(found)
            }
            _ => Err(talk.ended()),
        }
    };
    within(limit, uri, survey).await
}

/// What becomes of a handshake by a deadline.
async fn within<T>(
    limit: Duration,
    uri: &Uri,
    handshake: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let slow = |_| ConnectError::Slow { address: uri.address.to_string(), seconds: limit.as_secs() };
    rt::timer::deadline(limit, Box::pin(handshake)).await.map_err(slow)?
}

/// A handshake on its socket.
struct Talk {
    address: String,
    dialer: Dialer,
    credentials: Option<Credentials>,
    line: Line,
    inbox: Inbox,
}

impl Talk {
    async fn begin(uri: &Uri, dialer: Dialer) -> Result<Self, ConnectError> {
        let credentials = Credentials::load(uri).await?;
        let address = uri.address.to_string();
        let connected = connect(&uri.address).await;
        let fd = connected.map_err(|error| ConnectError::Connect { address: address.clone(), error })?;
        let socket = Rc::new(Socket::new(fd));
        let inbox = Inbox::new(Rc::clone(&socket));
        Ok(Self { address, dialer, credentials, line: Line::new(socket), inbox })
    }

    async fn until_over(&mut self) -> Result<Dialed, ConnectError> {
        let mut out = Vec::new();
        loop {
            let advanced = self.dialer.advance(self.inbox.bytes(), &mut out);
            if let Ok((consumed, _)) = &advanced {
                self.inbox.consume(*consumed);
            }
            // An error may come with a last word to the server, which is not waited for.
            let sent = self.send(mem::take(&mut out)).await;
            let (_, dialed) =
                advanced.map_err(|error| ConnectError::Dial { address: self.address.clone(), error })?;
            match dialed {
                // A server may have said why it does not listen any more.
                Dialed::Receive if sent.is_err() && !self.line.is_secure() => return Err(self.ended()),
                Dialed::Receive => self.fill().await?,
                Dialed::Secure => {
                    sent.map_err(|_| self.ended())?;
                    Box::pin(self.secure()).await?;
                    self.dialer.secured(&mut out);
                }
                Dialed::Linked(_) | Dialed::Surveyed(_) => return Ok(dialed),
            }
        }
    }

    /// Brings up TLS. What the server sent so far was read by the dialer, to the last byte.
    async fn secure(&mut self) -> Result<(), ConnectError> {
        let Some(Credentials { certificates, name }) = self.credentials.take() else {
            return Err(self.ended());
        };
        let address = self.address.clone();
        let failed = |fault: Fault| ConnectError::Tls { address: address.clone(), fault };
        let mut handshake = tls::Handshake::client(certificates.current(), name).map_err(failed)?;
        let mut out = Vec::new();
        let mut advanced = handshake.advance(&[], &mut out);
        loop {
            // What tells the server of a fault goes out as well.
            let sent = self.send(mem::take(&mut out)).await;
            let is_done = advanced.map_err(failed)?;
            if is_done {
                sent.map_err(|_| self.ended())?;
                break;
            }
            self.fill().await?;
            let bytes = self.inbox.bytes();
            advanced = handshake.advance(bytes, &mut out);
            let count = bytes.len();
            self.inbox.consume(count);
        }
        let finished = handshake.finish().map_err(failed)?;
        tracing::debug!("{address}: {}", finished.session.describe());
        self.line.secure(self.inbox.secure(finished));
        Ok(())
    }

    /// Waits for more of what the server says.
    async fn fill(&mut self) -> Result<(), ConnectError> {
        match self.inbox.fill(usize::MAX).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.ended()),
            Err(error) => Err(match error.get_ref().and_then(|fault| fault.downcast_ref::<Fault>()) {
                Some(fault) => ConnectError::Tls { address: self.address.clone(), fault: fault.clone() },
                None => self.ended(),
            }),
        }
    }

    async fn send(&self, bytes: Vec<u8>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut gather = Box::new(Gather::new());
        gather.blob(bytes);
        self.line.send(gather).await.0
    }

    fn ended(&self) -> ConnectError {
        ConnectError::Ended { address: self.address.clone(), option: self.dialer.waits_for() }
    }
}

async fn connect(address: &Address) -> io::Result<OwnedFd> {
    match address {
        Address::Tcp { host, port } => {
            let (host, port) = (host.clone(), *port);
            let found = rt::blocking(move || {
                Ok::<_, io::Error>((host.as_str(), port).to_socket_addrs()?.collect::<Vec<_>>())
            });
            let found = found.await?;
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for (number, address) in found.iter().enumerate() {
                let socket = socket2::Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                socket.set_tcp_nodelay(true)?;
                let attempt = rt::connect(socket.into(), (*address).into());
                let limit = if number + 1 < found.len() { ADDRESS_MAX } else { Duration::MAX };
                match rt::timer::deadline(limit, attempt).await {
                    Ok(Ok(fd)) => return Ok(fd),
                    Ok(Err(error)) => last = error,
                    Err(_) => last = io::ErrorKind::TimedOut.into(),
                }
            }
            Err(last)
        }
        Address::Unix(path) => {
            let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
            rt::connect(socket.into(), SockAddr::unix(path)?).await
        }
        Address::Vsock { cid, port } => {
            let socket = socket2::Socket::new(Domain::VSOCK, Type::STREAM, None)?;
            rt::connect(socket.into(), SockAddr::vsock(*cid, *port)).await
        }
    }
}
