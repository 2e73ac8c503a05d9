//! A session that has its keys: records in and out, and what TLS says beside the data.
//!
//! ```text
//!   open: data | alert (close_notify: Closed; else a fault) | handshake: KeyUpdate, tickets (dropped)
//!   seal: data, before it a KeyUpdate where one is owed or the key is worn
//! ```

use std::ops::Range;

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ConnectionTrafficSecrets, Error, ExtractedSecrets, ProtocolVersion};

use super::Side;
use super::fault::Fault;
use super::record::{self, Content, Key, PREFIX_MAX, SUFFIX_MAX};

/// Plaintext after which a key of AES-GCM is worn: 2^24 full records. TLS 1.3 then takes the next key; TLS 1.2 has no
/// next key, and the session ends.
const WEAR_MAX: u64 = 1 << 38;
/// Records in a row that hold no data. Each costs us more than the peer.
const IDLE_RECORDS_MAX: u32 = 1024;
/// Key updates without data between them: each costs a key derivation.
const UPDATES_MAX: u32 = 32;
/// Bytes of a handshake message in parts. A ticket, the only one that is not tiny, has at most 64 KiB and seldom one.
const MESSAGE_MAX: usize = 66 << 10;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// What a record was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Data, in this part of the record.
    Data(Range<usize>),
    /// Nothing for whoever reads.
    Nothing,
    /// The peer's last word (`close_notify`): what follows is not from it.
    Closed,
}

/// rustls, as far as it lives on: it derives the next keys.
pub(super) enum Kernel {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

/// A TLS session after its handshake.
pub struct Session {
    kernel: Kernel,
    version: ProtocolVersion,
    suite: &'static str,
    certificates: Vec<CertificateDer<'static>>,
    opener: Key,
    sealer: Key,
    wear_max: u64,
    /// The peer wants us to change our key before we send data again.
    owes_update: bool,
    message: Vec<u8>,
    idle_records: u32,
    updates: u32,
    /// The peer said close_notify.
    is_closed: bool,
    /// We said our last word.
    is_over: bool,
    fault: Option<Fault>,
}

impl Kernel {
    fn side(&self) -> Side {
        match self {
            Self::Server(_) => Side::Server,
            Self::Client(_) => Side::Client,
        }
    }

    fn next_opener(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Server(kernel) => kernel.update_rx_secret(),
            Self::Client(kernel) => kernel.update_rx_secret(),
        }
    }

    fn next_sealer(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Server(kernel) => kernel.update_tx_secret(),
            Self::Client(kernel) => kernel.update_tx_secret(),
        }
    }
}

impl Session {
    pub(super) fn new(
        secrets: ExtractedSecrets,
        kernel: Kernel,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, Fault> {
        let (version, suite) = match &kernel {
            Kernel::Server(kernel) => (kernel.protocol_version(), kernel.negotiated_cipher_suite()),
            Kernel::Client(kernel) => (kernel.protocol_version(), kernel.negotiated_cipher_suite()),
        };
        Ok(Self {
            opener: Key::new(version, secrets.rx)?,
            sealer: Key::new(version, secrets.tx)?,
            kernel,
            version,
            suite: suite.suite().as_str().unwrap_or("unknown"),
            certificates,
            wear_max: WEAR_MAX,
            owes_update: false,
            message: Vec::new(),
            idle_records: 0,
            updates: 0,
            is_closed: false,
            is_over: false,
            fault: None,
        })
    }

    /// The version and the cipher suite, for the log.
    pub fn describe(&self) -> String {
        let version = if self.version == ProtocolVersion::TLSv1_3 { "TLS 1.3" } else { "TLS 1.2" };
        format!("{version}, {}", self.suite)
    }

    /// The peer's certificate and what it sent to prove it, DER; empty if it showed none.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Whether the peer has said that nothing follows. An end of the stream without that cuts something off.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Takes a new key after so many bytes instead of 2^38: for tests.
    #[doc(hidden)]
    pub fn wear_out_after(&mut self, bytes: u64) {
        self.wear_max = bytes;
    }

    /// Bytes of the record that `bytes` begin with; `None` until there are enough to say.
    ///
    /// # Errors
    /// [`Fault`] when no record begins so.
    pub fn record_length(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        record::record_length(bytes).map_err(|fault| self.fail(fault))
    }

    /// Decrypts a whole record where it lies.
    ///
    /// # Errors
    /// [`Fault`]: the session is over. [`Session::farewell`] tells the peer what it has to be told.
    pub fn open(&mut self, record: &mut [u8]) -> Result<Opened, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        if self.is_closed {
            return Ok(Opened::Closed);
        }
        self.take(record).map_err(|fault| self.fail(fault))
    }

    fn take(&mut self, record: &mut [u8]) -> Result<Opened, Fault> {
        let (content, range) = self.opener.open(record)?;
        let is_data = content == Content::DATA;
        if is_data && !range.is_empty() && self.message.is_empty() {
            self.idle_records = 0;
            self.updates = 0;
            return Ok(Opened::Data(range));
        }
        self.idle_records += 1;
        if self.idle_records > IDLE_RECORDS_MAX {
            let text = "one record after the other without data";
            return Err(Fault::of_peer(text, AlertDescription::UnexpectedMessage));
        }
        match content {
            Content::DATA if self.message.is_empty() => Ok(Opened::Nothing),
            Content::ALERT => self.heed(&record[range]),
            Content::HANDSHAKE if self.opener.is_tls13() => {
                self.listen(&record[range])?;
                Ok(Opened::Nothing)
            }
            Content::HANDSHAKE => {
                let text = "the peer wants to negotiate again, which is not done here";
                Err(Fault::of_peer(text, AlertDescription::NoRenegotiation))
            }
            _ => {
                let text = "a record that has no place in a session";
                Err(Fault::of_peer(text, AlertDescription::UnexpectedMessage))
            }
        }
    }

    fn heed(&mut self, alert: &[u8]) -> Result<Opened, Fault> {
        let &[level, code] = alert else {
            return Err(Fault::of_peer("an alert of another length", AlertDescription::DecodeError));
        };
        let alert = AlertDescription::from(code);
        match alert {
            AlertDescription::CloseNotify => {
                self.is_closed = true;
                Ok(Opened::Closed)
            }
            AlertDescription::UserCanceled => Ok(Opened::Nothing),
            // A warning of TLS 1.2; TLS 1.3 has only ends (RFC 8446 6).
            _ if level == 1 && !self.opener.is_tls13() => Ok(Opened::Nothing),
            _ => Err(Fault::told(alert, self.kernel.side())),
        }
    }

    /// Handshake messages after the handshake (RFC 8446 4.6): several in a record, or one in several.
    fn listen(&mut self, part: &[u8]) -> Result<(), Fault> {
        if part.is_empty() || self.message.len() + part.len() > MESSAGE_MAX {
            let text = "a handshake message that is empty or too long";
            return Err(Fault::of_peer(text, AlertDescription::UnexpectedMessage));
        }
        self.message.extend_from_slice(part);
        while let Some(&[kind, a, b, c]) = self.message.first_chunk() {
            let end = 4 + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c));
            if end > MESSAGE_MAX {
                let text = "a handshake message that is too long";
                return Err(Fault::of_peer(text, AlertDescription::DecodeError));
            }
            if self.message.len() < end {
                return Ok(());
            }
            match (kind, self.kernel.side()) {
                (KEY_UPDATE, _) => {
                    // Nothing of the old key may follow in the same record (RFC 8446 5.1).
                    if self.message.len() != end || end != 5 {
                        let text = "a key update that is not one";
                        return Err(Fault::of_peer(text, AlertDescription::UnexpectedMessage));
                    }
                    self.update_opener(self.message[4])?;
                }
                // Sessions are not resumed: a connection lives for hours.
                (NEW_SESSION_TICKET, Side::Client) => {}
                _ => {
                    let text = "a handshake message that has no place in a session";
                    return Err(Fault::of_peer(text, AlertDescription::UnexpectedMessage));
                }
            }
            self.message.drain(..end);
        }
        // Parts came to an end, and so does their memory: one session in 10,000 may rest for long.
        if self.message.is_empty() {
            self.message = Vec::new();
        }
        Ok(())
    }

    fn update_opener(&mut self, request: u8) -> Result<(), Fault> {
        self.updates += 1;
        if self.updates > UPDATES_MAX {
            let text = "one key update after the other";
            return Err(Fault::of_peer(text, AlertDescription::UnexpectedMessage));
        }
        self.owes_update |= match request {
            0 => false,
            1 => true,
            _ => {
                return Err(Fault::of_peer(
                    "a key update that is not one",
                    AlertDescription::IllegalParameter,
                ));
            }
        };
        let secrets = self.kernel.next_opener().map_err(|error| Fault::silent(error.to_string()))?;
        self.opener = Key::new(self.version, secrets)?;
        Ok(())
    }

    /// Bytes before and behind the plaintext of a record that is sealed now.
    pub fn overhead(&self) -> (usize, usize) {
        (self.sealer.prefix_length(), self.sealer.suffix_length())
    }

    /// Encrypts data, at most 16 KiB, where it lies, and writes what goes before and behind it.
    ///
    /// Call [`Session::prepare`] before, and send what it says first.
    ///
    /// # Errors
    /// [`Fault`] when the session has come to an end.
    pub fn seal(&mut self, plain: &mut [u8], prefix: &mut [u8], suffix: &mut [u8]) -> Result<(), Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        if self.is_over {
            return Err(Fault::silent("the session is closed"));
        }
        self.sealer.seal(Content::DATA, plain, prefix, suffix).map_err(|fault| self.fail(fault))
    }

    /// Says what has to be said before data is sealed: seldom anything, else a change of our key. [`Session::overhead`]
    /// stays as it is.
    ///
    /// # Errors
    /// [`Fault`] when the key is worn and there is no other (TLS 1.2).
    #[inline]
    pub fn prepare(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let is_worn = self.sealer.sealed() >= self.wear_max && self.sealer.wears();
        if is_worn || self.owes_update { self.update_sealer(out) } else { Ok(()) }
    }

    #[cold]
    fn update_sealer(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        if !self.sealer.is_tls13() {
            return Err(self.fail(Fault::silent("its key has encrypted 256 GiB, and TLS 1.2 has no other")));
        }
        self.owes_update = false;
        self.say(Content::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], out)?;
        let next = self.kernel.next_sealer().map_err(|error| Fault::silent(error.to_string()));
        match next.and_then(|secrets| Key::new(self.version, secrets)) {
            Ok(key) => self.sealer = key,
            Err(fault) => return Err(self.fail(fault)),
        }
        Ok(())
    }

    /// Our last word: an alert after a fault of the peer's, else close_notify. Only once.
    pub fn farewell(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let (level, alert) = match &self.fault {
            None => (1, AlertDescription::CloseNotify),
            Some(fault) => match fault.alert() {
                Some(alert) => (2, alert),
                None if self.is_closed => (1, AlertDescription::CloseNotify),
                None => return,
            },
        };
        // A key that cannot say this much cannot say anything; the peer sees the stream end.
        let _ = self.say(Content::ALERT, &[level, u8::from(alert)], out);
    }

    /// Seals a short record that is not data.
    fn say(&mut self, content: Content, words: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        let (mut prefix, mut suffix) = ([0; PREFIX_MAX], [0; SUFFIX_MAX]);
        let prefix = &mut prefix[..self.sealer.prefix_length()];
        let suffix = &mut suffix[..self.sealer.suffix_length()];
        let start = out.len() + prefix.len();
        out.extend_from_slice(prefix);
        out.extend_from_slice(words);
        if let Err(fault) = self.sealer.seal(content, &mut out[start..], prefix, suffix) {
            out.truncate(start - prefix.len());
            return Err(self.fail(fault));
        }
        out[start - prefix.len()..start].copy_from_slice(prefix);
        out.extend_from_slice(suffix);
        Ok(())
    }

    /// Nothing is opened or sealed from now on.
    fn fail(&mut self, fault: Fault) -> Fault {
        self.fault.get_or_insert(fault).clone()
    }
}
