//! The other end: an NBD client on the ring runtime.
//!
//! ```text
//!   uri ---> connect (socket) ---> dial (proto::Dialer) ---> Connection { link, inbox, socket }
//! ```
//!
//! May be imported by `load`, `backend`, `cli`; imports `net`, `proto`, `rt`, `sys`.

mod uri;

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

pub use uri::{Address, Uri, UriError};

use crate::net::Inbox;
use crate::proto::{DialError, Dialed, Dialer, DialerConfig, Link};
use crate::rt::gather::Gather;
use crate::rt::net::Socket;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be reached.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// The handshake failed.
    #[error("{address}: {error}")]
    Dial {
        /// Where.
        address: String,
        /// Why.
        error: DialError,
    },
    /// The connection broke during the handshake.
    #[error("{address}: the server ended the connection during the handshake{}", at(*.option))]
    Ended {
        /// Where.
        address: String,
        /// What was waited for.
        option: Option<crate::proto::OptionCode>,
    },
}

fn at(option: Option<crate::proto::OptionCode>) -> String {
    option.map(|option| format!(", at {option}")).unwrap_or_default()
}

/// A connection ready for requests.
pub struct Connection {
    /// What was agreed on.
    pub link: Link,
    /// Replies.
    pub inbox: Inbox,
    /// Where requests go.
    pub socket: Rc<Socket>,
}

impl Connection {
    /// Connects (blocking) and negotiates (on this shard's ring).
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn open(address: &Address, config: DialerConfig) -> Result<Self, ConnectError> {
        let name = address.to_string();
        let fd = connect(address).map_err(|error| ConnectError::Connect { address: name.clone(), error })?;
        let socket = Rc::new(Socket::new(fd));
        let mut inbox = Inbox::new(Rc::clone(&socket));
        let mut dialer = Dialer::new(config);
        let mut out = Vec::new();
        loop {
            let (consumed, dialed) = dialer
                .advance(inbox.bytes(), &mut out)
                .map_err(|error| ConnectError::Dial { address: name.clone(), error })?;
            inbox.consume(consumed);
            let ended = ConnectError::Ended { address: name.clone(), option: dialer.waits_for() };
            if !out.is_empty() {
                let mut gather = Box::new(Gather::new());
                gather.blob(std::mem::take(&mut out));
                if socket.send(gather).await.0.is_err() {
                    return Err(ended);
                }
            }
            if let Dialed::Linked(link) = dialed {
                return Ok(Self { link: *link, inbox, socket });
            }
            if !matches!(inbox.fill(usize::MAX).await, Ok(true)) {
                return Err(ended);
            }
        }
    }
}

fn connect(address: &Address) -> io::Result<OwnedFd> {
    match address {
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port))?;
            stream.set_nodelay(true)?;
            Ok(stream.into())
        }
        Address::Unix(path) => Ok(UnixStream::connect(path)?.into()),
        Address::Vsock { cid, port } => {
            let socket = socket2::Socket::new(socket2::Domain::VSOCK, socket2::Type::STREAM, None)?;
            socket.connect(&socket2::SockAddr::vsock(*cid, *port))?;
            Ok(socket.into())
        }
    }
}
