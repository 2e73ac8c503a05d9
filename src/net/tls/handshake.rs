//! The handshake, by rustls: the only file that knows its unbuffered API, which the next rustls does not have.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};

use super::Side;
use super::fault::Fault;
use super::session::{Kernel, Session};

/// Bytes that are kept until rustls makes something of them: its longest message is a certificate chain of 64 KiB.
pub(super) const HANDSHAKE_MAX: usize = 256 << 10;

enum Conn {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// One end of a TLS handshake.
pub struct Handshake {
    conn: Conn,
    incoming: Vec<u8>,
    early: Vec<u8>,
    fault: Option<Fault>,
}

/// A session, and what came with the last bytes of its handshake.
pub struct Finished {
    /// The session.
    pub session: Session,
    /// Data that rustls has decrypted already.
    pub plaintext: Vec<u8>,
    /// Bytes of records that follow.
    pub ciphertext: Vec<u8>,
}

enum Turn {
    Again,
    Blocked,
    Traffic,
    Closed,
}

impl Handshake {
    /// A server's end.
    ///
    /// # Errors
    /// [`Fault`] when the configuration cannot be used.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, Fault> {
        let conn = UnbufferedServerConnection::new(config)
            .map_err(|error| Fault::of_handshake(&error, Side::Server))?;
        Ok(Self::new(Conn::Server(conn)))
    }

    /// A client's end; the server's certificate has to be made for `name`.
    ///
    /// # Errors
    /// [`Fault`] when the configuration cannot be used.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Fault> {
        let conn = UnbufferedClientConnection::new(config, name)
            .map_err(|error| Fault::of_handshake(&error, Side::Client))?;
        Ok(Self::new(Conn::Client(conn)))
    }

    fn new(conn: Conn) -> Self {
        Self { conn, incoming: Vec::new(), early: Vec::new(), fault: None }
    }

    /// Takes bytes from the peer (none, to begin as a client) and appends to `out` what has to be sent. True when both
    /// ends are done: then send `out` and call [`Handshake::finish`].
    ///
    /// # Errors
    /// [`Fault`]; `out` then holds the alert that tells the peer.
    pub fn advance(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<bool, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        if self.incoming.len() + bytes.len() > HANDSHAKE_MAX {
            return Err(Fault::silent("a handshake that is too long"));
        }
        self.incoming.extend_from_slice(bytes);
        loop {
            match self.turn(out) {
                Ok(Turn::Again) => {}
                Ok(Turn::Blocked) => return Ok(false),
                Ok(Turn::Traffic) => return Ok(!self.state().is_handshaking()),
                Ok(Turn::Closed) => return Err(Fault::silent("the peer closed it during the handshake")),
                Err(error) => {
                    let fault = Fault::of_handshake(&error, self.side());
                    self.fault = Some(fault.clone());
                    // Its alert is queued, and comes before rustls looks at bytes again. After that it must not be asked: it
                    // would refuse the same once more, and does not expect to.
                    while self.state().wants_write() && matches!(self.turn(out), Ok(Turn::Again)) {}
                    return Err(fault);
                }
            }
        }
    }

    /// The session that both ends agreed on.
    ///
    /// # Errors
    /// [`Fault`] before [`Handshake::advance`] said that it is done.
    pub fn finish(self) -> Result<Finished, Fault> {
        let side = self.side();
        let certificates = self.state().peer_certificates().unwrap_or_default().to_vec();
        let extracted = match self.conn {
            Conn::Server(conn) => conn
                .dangerous_into_kernel_connection()
                .map(|(secrets, kernel)| (secrets, Kernel::Server(kernel))),
            Conn::Client(conn) => conn
                .dangerous_into_kernel_connection()
                .map(|(secrets, kernel)| (secrets, Kernel::Client(kernel))),
        };
        let (secrets, kernel) = extracted.map_err(|error| Fault::of_handshake(&error, side))?;
        let session = Session::new(secrets, kernel, certificates)?;
        Ok(Finished { session, plaintext: self.early, ciphertext: self.incoming })
    }

    fn side(&self) -> Side {
        match self.conn {
            Conn::Server(_) => Side::Server,
            Conn::Client(_) => Side::Client,
        }
    }

    fn state(&self) -> &CommonState {
        match &self.conn {
            Conn::Server(conn) => conn,
            Conn::Client(conn) => conn,
        }
    }

    fn turn(&mut self, out: &mut Vec<u8>) -> Result<Turn, Error> {
        let (discard, turn) = match &mut self.conn {
            Conn::Server(conn) => handle(conn.process_tls_records(&mut self.incoming), out, &mut self.early),
            Conn::Client(conn) => handle(conn.process_tls_records(&mut self.incoming), out, &mut self.early),
        };
        self.incoming.drain(..discard);
        turn
    }
}

fn handle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut Vec<u8>,
    early: &mut Vec<u8>,
) -> (usize, Result<Turn, Error>) {
    let mut discard = status.discard;
    let turn = match status.state {
        Err(error) => Err(error),
        Ok(ConnectionState::EncodeTlsData(mut encode)) => {
            let start = out.len();
            if let Err(EncodeError::InsufficientSize(short)) = encode.encode(&mut []) {
                out.resize(start + short.required_size, 0);
            }
            let written = encode.encode(&mut out[start..]).unwrap_or(0);
            out.truncate(start + written);
            Ok(Turn::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            // Whoever calls sends it before anything else.
            transmit.done();
            Ok(Turn::Again)
        }
        // What the peer sent behind its last handshake message came in the same piece.
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            let mut outcome = Ok(Turn::Again);
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        early.extend_from_slice(record.payload);
                    }
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
            }
            outcome
        }
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Turn::Traffic),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Turn::Closed),
        Ok(ConnectionState::BlockedHandshake) => Ok(Turn::Blocked),
        Ok(_) => Err(Error::General("rustls wants what was not offered".to_owned())),
    };
    (discard, turn)
}
