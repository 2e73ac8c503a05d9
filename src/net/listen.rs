//! Addresses to listen on, and the sockets that do.
//!
//! ```text
//!   "unix:/run/a.sock" --parse--> Listen --bind--> Listener { fd, bound }   drop: fd closed, /run/a.sock removed
//!   LISTEN_FDS=1 ------------------inherited-----> Listener                 drop: fd closed, nothing removed
//! ```

use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// The port that IANA gave NBD.
pub const PORT: u16 = 10809;

/// vsock's "any" context id (`VMADDR_CID_ANY`) and the one that means this machine (`VMADDR_CID_LOCAL`).
const VSOCK_ANY: u32 = u32::MAX;
const VSOCK_LOCAL: u32 = 1;
/// vsock's way to let the kernel choose a port (`VMADDR_PORT_ANY`); there, 0 is a port like others.
const VSOCK_PORT_ANY: u32 = u32::MAX;

/// How long the ring of a killed server may keep its sockets: a supervisor restarts at once.
const DYING_MAX: Duration = Duration::from_millis(500);

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `tcp:HOST:PORT`; an empty host is every address of the machine, port 0 any free port.
    Tcp {
        /// A name or an address, IPv6 without its brackets.
        host: String,
        /// 0 until bound, if the kernel may choose.
        port: u16,
    },
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `vsock:CID:PORT`; the CID `any` is every address of the machine, port 0 any free port.
    Vsock {
        /// Context id.
        cid: u32,
        /// Port; vsock's are 32 bits. 0 until bound, if the kernel may choose.
        port: u32,
    },
}

/// Why an address is no use, for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Not one of the forms.
    #[error(
        "'{0}' is not an address to listen on: write HOST:PORT, [IPV6]:PORT, tcp:HOST:PORT, unix:PATH or vsock:CID:PORT"
    )]
    Syntax(String),
    /// `unix:` with a path that is empty or longer than the kernel takes (107 bytes).
    #[error("'{0}' cannot be the path of a unix socket: it must have 1 to 107 bytes; use a shorter path")]
    Path(String),
    /// Somebody listens on the unix socket.
    #[error("another server is listening on unix:{}: stop it, or choose another path", .0.display())]
    Taken(PathBuf),
    /// Something that is not a socket is in the way.
    #[error("{} exists and is not a socket: remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {address}: {source}{}", advice(.source))]
    Bind {
        /// What was asked for.
        address: String,
        /// What the kernel or the resolver said.
        source: io::Error,
    },
    /// An inherited descriptor does not listen for streams.
    #[error("inherited descriptor {0} is not a listening stream socket: check what sets LISTEN_FDS")]
    Inherited(usize),
    /// The variables LISTEN_FDS and LISTEN_PID make no sense.
    #[error("cannot take inherited sockets: {0}; check LISTEN_FDS and LISTEN_PID")]
    Environment(io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another server listens there: stop it, or choose another with --listen"
        }
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        io::ErrorKind::PermissionDenied => "; this user may not: choose a port above 1023, or another path",
        io::ErrorKind::NotFound => "; the directory does not exist: create it first",
        _ => "",
    }
}

impl Listen {
    /// Parses `tcp:HOST:PORT`, `HOST:PORT`, `[IPV6]:PORT`, `unix:PATH` or `vsock:CID:PORT`.
    ///
    /// A TCP port that is left out is 10809.
    pub fn parse(text: &str) -> Result<Self, ListenError> {
        let syntax = || ListenError::Syntax(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            // sun_path holds 108 bytes, one of them the NUL.
            if path.is_empty() || path.len() > 107 || path.contains('\0') {
                return Err(ListenError::Path(path.to_owned()));
            }
            return Ok(Self::Unix(path.into()));
        }
        if let Some(rest) = text.strip_prefix("vsock:") {
            let (cid, port) = rest.split_once(':').ok_or_else(syntax)?;
            let cid = if cid == "any" { VSOCK_ANY } else { cid.parse().map_err(|_| syntax())? };
            return Ok(Self::Vsock { cid, port: port.parse().map_err(|_| syntax())? });
        }
        let rest = text.strip_prefix("tcp:").unwrap_or(text);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(syntax)?;
                Ipv6Addr::from_str(host).map_err(|_| syntax())?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(syntax)?) })
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let host_is_empty = host.is_empty() && port.is_none();
        if host_is_empty || host.contains(['/', ' ', '\0']) {
            return Err(syntax());
        }
        let port = port.map_or(Ok(PORT), |port| port.parse().map_err(|_| syntax()))?;
        Ok(Self::Tcp { host: host.to_owned(), port })
    }

    /// Listens: one socket, or one for each address that a host name stands for.
    ///
    /// `backlog` is how many connections the kernel keeps until they are accepted.
    pub fn bind(&self, backlog: i32) -> Result<Vec<Listener>, ListenError> {
        match self {
            Self::Tcp { host, port } => bind_tcp(host, *port, backlog).map_err(|source| self.refused(source)),
            Self::Unix(path) => bind_unix(path, backlog).map(|listener| vec![listener]),
            Self::Vsock { cid, port } => {
                let port = if *port == 0 { VSOCK_PORT_ANY } else { *port };
                let listener = listen(Domain::VSOCK, &SockAddr::vsock(*cid, port), backlog, None);
                listener.map(|listener| vec![listener]).map_err(|source| self.refused(source))
            }
        }
    }

    fn refused(&self, source: io::Error) -> ListenError {
        ListenError::Bind { address: self.to_string(), source }
    }

    /// The address of a bound socket.
    fn of(address: &SockAddr) -> Option<Self> {
        if let Some(address) = address.as_socket() {
            return Some(Self::Tcp { host: address.ip().to_string(), port: address.port() });
        }
        if let Some((cid, port)) = address.as_vsock_address() {
            return Some(Self::Vsock { cid, port });
        }
        address
            .is_unix()
            .then(|| Self::Unix(address.as_pathname().map(Path::to_path_buf).unwrap_or_default()))
    }

    /// The NBD URI by which a client on this machine reaches `export` here
    /// (NBD project, `doc/uri.md`): what `--print-uri` and `$uri` say.
    pub fn uri(&self, export: &str) -> String {
        let export = percent_encoded(export.as_bytes());
        match self {
            Self::Tcp { host, port } => {
                let host = match host.parse() {
                    Ok(IpAddr::V4(ip)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
                    Ok(IpAddr::V6(ip)) if ip.is_unspecified() => format!("[{}]", Ipv6Addr::LOCALHOST),
                    Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
                    _ if host.is_empty() => Ipv4Addr::LOCALHOST.to_string(),
                    _ => host.clone(),
                };
                format!("nbd://{host}:{port}/{export}")
            }
            Self::Unix(path) => {
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let path = percent_encoded(absolute.as_os_str().as_encoded_bytes());
                format!("nbd+unix:///{export}?socket={path}")
            }
            Self::Vsock { cid, port } => {
                let cid = if *cid == VSOCK_ANY { VSOCK_LOCAL } else { *cid };
                format!("nbd+vsock://{cid}:{port}/{export}")
            }
        }
    }
}

/// The form that [`Listen::parse`] takes.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid: VSOCK_ANY, port } => write!(f, "vsock:any:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        Self::parse(text)
    }
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    /// Blocking, close-on-exec.
    pub fd: OwnedFd,
    /// Where it listens, with the port that the kernel chose.
    pub bound: Listen,
    /// Removes a unix socket from the file system when the listener is dropped.
    pub guard: Option<PathGuard>,
}

impl Listener {
    /// The NBD URI of `export` here: see [`Listen::uri`].
    pub fn uri(&self, export: &str) -> String {
        self.bound.uri(export)
    }

    /// The same through TLS, for a client that verifies the server by what is in `certificates`.
    pub fn uri_with_tls(&self, export: &str, certificates: &Path) -> String {
        let plain = self.bound.uri(export);
        let separator = if plain.contains('?') { '&' } else { '?' };
        let directory = percent_encoded(certificates.as_os_str().as_encoded_bytes());
        format!("{}{separator}tls-certificates={directory}", plain.replacen("nbd", "nbds", 1))
    }
}

/// A unix socket's place in the file system: removed on drop, if what is there is still ours.
#[derive(Debug)]
pub struct PathGuard {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl PathGuard {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_path_buf(), device_and_inode: identity(path)? })
    }
}

impl Drop for PathGuard {
    fn drop(&mut self) {
        // Another server may have replaced it since; then it is not ours to remove.
        if identity(&self.path).is_ok_and(|now| now == self.device_and_inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The sockets that LISTEN_FDS passes to this process: systemd and libnbd start servers so.
pub fn inherited() -> Result<Vec<Listener>, ListenError> {
    let fds = crate::sys::socket::inherited().map_err(ListenError::Environment)?;
    fds.into_iter()
        .enumerate()
        .map(|(number, fd)| {
            let socket = Socket::from(fd);
            let listens = socket.is_listener().unwrap_or(false) && socket.r#type().ok() == Some(Type::STREAM);
            let bound = socket.local_addr().ok().filter(|_| listens).and_then(|address| Listen::of(&address));
            // sd_listen_fds(3): the first one is descriptor 3.
            let bound = bound.ok_or(ListenError::Inherited(3 + number))?;
            Ok(Listener { fd: socket.into(), bound, guard: None })
        })
        .collect()
}

fn bind_tcp(host: &str, port: u16, backlog: i32) -> io::Result<Vec<Listener>> {
    if host.is_empty() {
        // One socket for both families; a machine without IPv6 has the other.
        let any = |ip: IpAddr| bind_address(SocketAddr::new(ip, port), false, backlog);
        let listener = any(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| any(Ipv4Addr::UNSPECIFIED.into()))?;
        return Ok(vec![listener]);
    }
    let mut listeners: Vec<Listener> = Vec::new();
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut port = port;
    for mut address in (host, port).to_socket_addrs()? {
        address.set_port(port);
        match bind_address(address, true, backlog) {
            Ok(listener) => {
                // Every address of a name gets the port that the first one got.
                if let Listen::Tcp { port: chosen, .. } = listener.bound {
                    port = chosen;
                }
                listeners.push(listener);
            }
            // A name may stand for an address whose family this machine lacks; a taken port is an error.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => refused = error,
        }
    }
    if listeners.is_empty() { Err(refused) } else { Ok(listeners) }
}

/// Takes an address; from a server that was killed as soon as its ring lets go of it.
fn bind_address(address: SocketAddr, v6_only: bool, backlog: i32) -> io::Result<Listener> {
    let v6_only = (address.is_ipv6()).then_some(v6_only && !address.ip().is_unspecified());
    let take = || listen(Domain::for_address(address), &address.into(), backlog, v6_only);
    match take() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_let_go(address) => take(),
        other => other,
    }
}

/// Connects to whoever listens there. A socket that nobody accepts from any more takes the connection too, and breaks it when
/// it is closed; a server that lives greets, or is silent for [`DYING_MAX`].
fn is_let_go(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, DYING_MAX) else { return true };
    let heard = stream.set_read_timeout(Some(DYING_MAX)).and_then(|()| stream.read(&mut [0]));
    match heard {
        Ok(count) => count == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

fn bind_unix(path: &Path, backlog: i32) -> Result<Listener, ListenError> {
    let refused = |source| ListenError::Bind { address: format!("unix:{}", path.display()), source };
    remove_stale(path)?;
    let address = SockAddr::unix(path).map_err(refused)?;
    let mut listener = match listen(Domain::UNIX, &address, backlog, None) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            return Err(ListenError::Taken(path.to_path_buf()));
        }
        other => other.map_err(refused)?,
    };
    listener.guard = Some(PathGuard::of(path).map_err(refused)?);
    Ok(listener)
}

/// Removes a unix socket that nobody listens on, as a killed server leaves it.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let refused = |source| ListenError::Bind { address: format!("unix:{}", path.display()), source };
    let metadata = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(refused)?,
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_path_buf()));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(refused)?;
    // Not blocking: a live server whose backlog is full would hold us here (it answers EAGAIN).
    probe.set_nonblocking(true).map_err(refused)?;
    match probe.connect(&SockAddr::unix(path).map_err(refused)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Ok(()) if listener_is_dead(&probe) => {}
        _ => return Err(ListenError::Taken(path.to_path_buf())),
    }
    // Dropping the guard removes the socket that was asked, not one that took its place meanwhile.
    drop(PathGuard { path: path.to_path_buf(), device_and_inode: (metadata.dev(), metadata.ino()) });
    Ok(())
}

/// Whether the process that called listen(2) is gone. Its ring still holds the socket then, for some milliseconds, and
/// nobody will accept from it.
fn listener_is_dead(connected: &Socket) -> bool {
    let Ok(credentials) = crate::sys::socket::peer_credentials(connected) else { return false };
    let Some(listener) = credentials.pid else { return false };
    rustix::process::test_kill_process(listener) == Err(rustix::io::Errno::SRCH)
}

fn listen(domain: Domain, address: &SockAddr, backlog: i32, v6_only: Option<bool>) -> io::Result<Listener> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    if let Some(v6_only) = v6_only {
        socket.set_only_v6(v6_only)?;
    }
    if matches!(domain, Domain::IPV4 | Domain::IPV6) {
        // A restarted server must not wait for its old connections' TIME_WAIT.
        socket.set_reuse_address(true)?;
    }
    socket.bind(address)?;
    socket.listen(backlog)?;
    let bound = Listen::of(&socket.local_addr()?);
    let bound = bound.ok_or_else(|| io::Error::other("the kernel gave an address of another family"))?;
    Ok(Listener { fd: socket.into(), bound, guard: None })
}

/// RFC 3986: everything but unreserved characters and `/` as `%XX`.
pub(crate) fn percent_encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests;
