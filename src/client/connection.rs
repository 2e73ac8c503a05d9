//! A socket and a handshake on it.

use std::net::ToSocketAddrs;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use std::{io, mem};

use socket2::{Domain, SockAddr, SockRef, TcpKeepalive, Type};

use super::error::ConnectError;
use super::uri::Address;
use crate::net::Inbox;
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
    pub socket: Rc<Socket>,
}

impl Connection {
    /// Connects and negotiates, without a limit of time.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn open(address: &Address, config: DialerConfig) -> Result<Self, ConnectError> {
        let mut talk = Talk::begin(address, Dialer::new(config)).await?;
        match talk.until_over().await? {
            Dialed::Linked(link) => Ok(Self { link: *link, inbox: talk.inbox, socket: talk.socket }),
            _ => Err(talk.ended()),
        }
    }

    /// As [`Connection::open`], with TCP keepalive and within `limit`.
    ///
    /// # Errors
    /// [`ConnectError`]; [`ConnectError::Slow`] when the time is over.
    pub async fn open_within(
        address: &Address,
        config: DialerConfig,
        limit: Duration,
        keepalive: Option<Duration>,
    ) -> Result<Self, ConnectError> {
        let connection = within(limit, address, Self::open(address, config)).await?;
        if let (Address::Tcp { .. }, Some(idle)) = (address, keepalive) {
            let keepalive =
                TcpKeepalive::new().with_time(idle).with_interval(idle / 4 + Duration::from_secs(1));
            // A socket without keepalive works as well, until the day it does not; no reason to refuse it.
            let _ = SockRef::from(connection.socket.fd()).set_tcp_keepalive(&keepalive.with_retries(4));
        }
        Ok(connection)
    }

    /// Gives the socket up to somebody else who speaks NBD from here on: the kernel, for one. Nothing receives on it any
    /// more.
    ///
    /// # Errors
    /// The errno of `recv(2)`; `InvalidData` if the server has sent what nobody asked for.
    pub async fn release(mut self) -> io::Result<(Link, OwnedFd)> {
        if self.inbox.stop().await? > 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((self.link, self.socket.fd().try_clone()?))
    }

    /// Says goodbye; a server that is gone already needs none. What was agreed on stays known.
    pub async fn leave(self) -> Link {
        let (command, flags) = (Command::DISC, CommandFlags::NONE);
        let goodbye = Request { command, flags, cookie: 0, offset: 0, length: 0, payload: 0 };
        let mut gather = Box::new(Gather::new());
        gather.bytes(&goodbye.encode(self.link.dialect));
        let _ = self.socket.send(gather).await;
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
///     survey(&uri.address, SurveyConfig::default(), Duration::from_secs(30)).await
/// })??;
/// for export in found {
///     println!("{:?} {:?}", export.name, export.export);
/// }
/// # Ok(())
/// # }
/// ```
pub async fn survey(
    address: &Address,
    config: SurveyConfig,
    limit: Duration,
) -> Result<Vec<Found>, ConnectError> {
    let survey = async {
        let mut talk = Talk::begin(address, Dialer::survey(config)).await?;
        match talk.until_over().await? {
            Dialed::Surveyed(found) => {
                talk.socket.shutdown();
                Ok(found)
            }
            _ => Err(talk.ended()),
        }
    };
    within(limit, address, survey).await
}

/// What becomes of a handshake by a deadline.
async fn within<T>(
    limit: Duration,
    address: &Address,
    handshake: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let slow = |_| ConnectError::Slow { address: address.to_string(), seconds: limit.as_secs() };
    rt::timer::deadline(limit, Box::pin(handshake)).await.map_err(slow)?
}

/// A handshake on its socket.
struct Talk {
    address: String,
    dialer: Dialer,
    socket: Rc<Socket>,
    inbox: Inbox,
}

impl Talk {
    async fn begin(address: &Address, dialer: Dialer) -> Result<Self, ConnectError> {
        let name = address.to_string();
        let fd =
            connect(address).await.map_err(|error| ConnectError::Connect { address: name.clone(), error })?;
        let socket = Rc::new(Socket::new(fd));
        let inbox = Inbox::new(Rc::clone(&socket));
        Ok(Self { address: name, dialer, socket, inbox })
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
                Dialed::Receive => sent?,
                Dialed::Secure => return Err(ConnectError::Tls { address: self.address.clone() }),
                Dialed::Linked(_) | Dialed::Surveyed(_) => return Ok(dialed),
            }
            if !matches!(self.inbox.fill(usize::MAX).await, Ok(true)) {
                return Err(self.ended());
            }
        }
    }

    async fn send(&self, bytes: Vec<u8>) -> Result<(), ConnectError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut gather = Box::new(Gather::new());
        gather.blob(bytes);
        self.socket.send(gather).await.0.map_err(|_| self.ended())
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
