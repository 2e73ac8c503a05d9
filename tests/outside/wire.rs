//! A socket and big-endian bytes: what every raw test stands on.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Stream};
use socket2::{Domain, SockAddr, Socket, Type};

/// Where a server listens.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Bytes under construction, in network order.
#[derive(Clone, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend(bytes.as_ref());
        self
    }

    /// A string with its 32-bit length before it.
    pub(crate) fn string(self, text: &str) -> Self {
        self.u32(text.len() as u32).bytes(text)
    }
}

/// Reads `N` bytes of `bytes` at `at`, for the fixed fields of a header.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}

/// Big-endian numbers at a place in a header.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(field(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(bytes, at))
}

/// One blocking connection; every wait has a deadline.
pub(crate) struct Wire {
    socket: Socket,
    tls: Option<Box<ClientConnection>>,
}

impl Wire {
    /// Longer than a healthy server ever takes, shorter than a person's patience with a hung test.
    const TIMEOUT: Duration = Duration::from_secs(20);

    pub(crate) fn connect(address: &Address) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("connect to {address:?}: {error}"))
    }

    pub(crate) fn try_connect(address: &Address) -> io::Result<Self> {
        Self::try_connect_from(None, address)
    }

    /// From another address of this machine; all of 127.0.0.0/8 is.
    pub(crate) fn connect_from(source: &str, address: &Address) -> Self {
        let source = SocketAddr::new(source.parse().expect("an IP address"), 0);
        Self::try_connect_from(Some(source), address)
            .unwrap_or_else(|error| panic!("connect from {source} to {address:?}: {error}"))
    }

    fn try_connect_from(source: Option<SocketAddr>, address: &Address) -> io::Result<Self> {
        let (domain, address) = match address {
            Address::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
            Address::Tcp(address) => (Domain::for_address(*address), SockAddr::from(*address)),
        };
        let socket = Socket::new(domain, Type::STREAM, None)?;
        if let Some(source) = source {
            socket.bind(&source.into())?;
        }
        socket.connect(&address)?;
        if domain != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        socket.set_read_timeout(Some(Self::TIMEOUT))?;
        socket.set_write_timeout(Some(Self::TIMEOUT))?;
        Ok(Self { socket, tls: None })
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        if let Err(error) = self.try_send(bytes.as_ref()) {
            panic!("send: {error}");
        }
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => self.socket.write_all(bytes),
            Some(tls) => {
                let mut stream = Stream::new(&mut **tls, &mut self.socket);
                stream.write_all(bytes)?;
                stream.flush()
            }
        }
    }

    #[track_caller]
    pub(crate) fn receive(&mut self, length: usize) -> Vec<u8> {
        match self.try_receive(length) {
            Ok(bytes) => bytes,
            Err(error) => panic!("receive {length} bytes: {error}"),
        }
    }

    pub(crate) fn try_receive(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        match &mut self.tls {
            None => self.socket.read_exact(&mut bytes)?,
            Some(tls) => Stream::new(&mut **tls, &mut self.socket).read_exact(&mut bytes)?,
        }
        Ok(bytes)
    }

    /// Waits for the server's next word without taking it: bytes there, 0 at a close, nothing at a reset.
    pub(crate) fn try_peek(&self) -> Option<usize> {
        self.socket.peek(&mut [std::mem::MaybeUninit::uninit(); 1]).ok()
    }

    /// At most so many bytes, fewer if the server closes before.
    #[track_caller]
    pub(crate) fn rest_within(&mut self, length_max: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        match (&mut self.socket).take(length_max as u64).read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("receive: {error}"),
        }
        bytes
    }

    /// Everything until the server closes; a reset counts as a close.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let outcome = match &mut self.tls {
            None => self.socket.read_to_end(&mut bytes),
            // An end without close_notify is an error here.
            Some(tls) => Stream::new(&mut **tls, &mut self.socket).read_to_end(&mut bytes),
        };
        match outcome {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the server should have closed, but: {error}"),
        }
        bytes
    }

    /// The server must close now and say nothing more.
    #[track_caller]
    pub(crate) fn expect_close(&mut self, symptom: &str) {
        let rest = self.rest();
        assert!(
            rest.is_empty(),
            "{symptom}: expected a close, got {} bytes: {:02x?}",
            rest.len(),
            head(&rest)
        );
    }

    #[track_caller]
    pub(crate) fn expect(&mut self, bytes: &[u8], symptom: &str) {
        let got = self.receive(bytes.len());
        assert_eq!(got, bytes, "{symptom}: expected {:02x?}, got {:02x?}", head(bytes), head(&got));
    }

    /// Everything goes through TLS from here on.
    pub(crate) fn secure(&mut self, config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<()> {
        let mut tls = ClientConnection::new(config, name).expect("a client");
        while tls.is_handshaking() {
            tls.complete_io(&mut self.socket)?;
        }
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    /// Bytes past TLS.
    #[track_caller]
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("send");
    }

    /// Our last word in TLS.
    pub(crate) fn close_notify(&mut self) {
        let tls = self.tls.as_mut().expect("TLS has begun");
        tls.send_close_notify();
        tls.write_tls(&mut self.socket).expect("send");
    }

    /// No more bytes will come from us; the server may still answer.
    pub(crate) fn finish_sending(&self) {
        self.socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
    }

    /// Goes away without a FIN where the transport can (TCP), with unread data otherwise.
    pub(crate) fn vanish(self) {
        let _ = self.socket.set_linger(Some(Duration::ZERO));
    }

    /// Sends only while the server takes it; the number of bytes that went in before it stopped.
    pub(crate) fn stuff(&mut self, bytes: &[u8]) -> usize {
        self.socket.set_write_timeout(Some(Duration::from_millis(500))).expect("set a timeout");
        let mut sent = 0;
        while sent < bytes.len() {
            match self.socket.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => panic!("send: {error}"),
            }
        }
        self.socket.set_write_timeout(Some(Self::TIMEOUT)).expect("set a timeout");
        sent
    }

    pub(crate) fn shrink_receive_buffer(&self) {
        self.socket.set_recv_buffer_size(4096).expect("set SO_RCVBUF");
    }
}

/// Enough of a long answer to recognise it.
fn head(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(64)]
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
