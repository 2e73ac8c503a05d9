//! One direction's key, and the form of its records.
//!
//! ```text
//!   TLS 1.3   23 | 0x0303 | length | plaintext, its type     | tag       all behind the length encrypted
//!             '---- 5, the AAD ----'            '---- 1 -----'-- 16 -'
//!   TLS 1.2   type | 0x0303 | length | nonce | plaintext | tag           nonce: 8 bytes with AES-GCM, else none
//!             '------- 5 ------------'                   '- 16 -'        AAD: sequence, type, version, length
//!             '------------ prefix ----------'           '-suffix-'
//! ```
//!
//! RFC 8446 5.2, RFC 5246 6.2.3.3, RFC 5288, RFC 7905. The nonce is the IV with the sequence number added bit by bit; the
//! explicit one of TLS 1.2 is made the same way, and read as it comes.

use std::ops::Range;

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{AlertDescription, ConnectionTrafficSecrets, ProtocolVersion};

use super::fault::Fault;

/// Type, version and length.
pub(super) const HEADER: usize = 5;
/// Plaintext of the longest record.
pub(super) const PLAIN_MAX: usize = 16 << 10;
/// The longest record: what TLS 1.3 allows behind the header. TLS 1.2 allows more than any of its AEADs need.
pub(super) const RECORD_MAX: usize = HEADER + PLAIN_MAX + 256;
/// The longest prefix and the longest suffix.
pub(super) const PREFIX_MAX: usize = HEADER + EXPLICIT;
pub(super) const SUFFIX_MAX: usize = 1 + TAG;

const TAG: usize = 16;
const EXPLICIT: usize = 8;
const LEGACY_VERSION: [u8; 2] = [3, 3];

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content(pub(super) u8);

impl Content {
    pub(super) const CHANGE_CIPHER_SPEC: Self = Self(20);
    pub(super) const ALERT: Self = Self(21);
    pub(super) const HANDSHAKE: Self = Self(22);
    pub(super) const DATA: Self = Self(23);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Tls13,
    Tls12Gcm,
    Tls12ChaCha,
}

/// The key of one direction, with its place in the sequence.
pub(super) struct Key {
    aead: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    form: Form,
    /// Plaintext that this key has sealed.
    sealed: u64,
}

impl Key {
    /// The key that rustls hands over, from its place in the sequence on.
    pub(super) fn new(
        version: ProtocolVersion,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Fault> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return Err(Fault::silent("rustls negotiated a cipher that is not known here")),
        };
        let form = match (version, algorithm == &aead::CHACHA20_POLY1305) {
            (ProtocolVersion::TLSv1_3, _) => Form::Tls13,
            (ProtocolVersion::TLSv1_2, true) => Form::Tls12ChaCha,
            (ProtocolVersion::TLSv1_2, false) => Form::Tls12Gcm,
            _ => return Err(Fault::silent("rustls negotiated a version that is not known here")),
        };
        let misshapen = || Fault::silent("rustls handed over a key of another length");
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| misshapen())?;
        let iv = iv.as_ref().try_into().map_err(|_| misshapen())?;
        Ok(Self { aead: LessSafeKey::new(key), iv, sequence, form, sealed: 0 })
    }

    /// Bytes before the plaintext.
    pub(super) fn prefix_length(&self) -> usize {
        match self.form {
            Form::Tls13 | Form::Tls12ChaCha => HEADER,
            Form::Tls12Gcm => PREFIX_MAX,
        }
    }

    /// Bytes behind the plaintext.
    pub(super) fn suffix_length(&self) -> usize {
        match self.form {
            Form::Tls13 => SUFFIX_MAX,
            Form::Tls12Gcm | Form::Tls12ChaCha => TAG,
        }
    }

    /// Whether the key can be exchanged for another.
    pub(super) fn is_tls13(&self) -> bool {
        self.form == Form::Tls13
    }

    /// Bytes of plaintext that the key has sealed.
    pub(super) fn sealed(&self) -> u64 {
        self.sealed
    }

    /// Whether how much is sealed with one key matters: 2^24.5 full records of AES-GCM (RFC 8446 5.5).
    pub(super) fn wears(&self) -> bool {
        self.aead.algorithm() != &aead::CHACHA20_POLY1305
    }

    /// Encrypts `plain`, at most [`PLAIN_MAX`] bytes, where it lies, and writes what goes before and behind it.
    ///
    /// `prefix` and `suffix` are as long as [`Key::prefix_length`] and [`Key::suffix_length`] say.
    pub(super) fn seal(
        &mut self,
        content: Content,
        plain: &mut [u8],
        prefix: &mut [u8],
        suffix: &mut [u8],
    ) -> Result<(), Fault> {
        let failed = |_| Fault::silent("a record cannot be encrypted");
        let (nonce, sequence) = self.next()?;
        self.sealed += plain.len() as u64;
        let length = length_field(prefix.len() - HEADER + plain.len() + suffix.len())?;
        let outer = if self.form == Form::Tls13 { Content::DATA } else { content };
        let header = [outer.0, LEGACY_VERSION[0], LEGACY_VERSION[1], length[0], length[1]];
        let (header_place, explicit) = prefix.split_at_mut(HEADER);
        header_place.copy_from_slice(&header);
        explicit.copy_from_slice(&nonce[12 - explicit.len()..]);
        let unique = Nonce::assume_unique_for_key(nonce);
        if self.form == Form::Tls13 {
            return self
                .aead
                .seal_in_place_scatter(unique, Aad::from(header), plain, &[content.0], suffix)
                .map_err(failed);
        }
        let aad = Aad::from(tls12_aad(sequence, content, length_field(plain.len())?));
        let tag = self.aead.seal_in_place_separate_tag(unique, aad, plain).map_err(failed)?;
        suffix.copy_from_slice(tag.as_ref());
        Ok(())
    }

    /// Decrypts a whole record where it lies: what it holds, and where in `record`.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(Content, Range<usize>), Fault> {
        let Some((header, body)) = record.split_first_chunk_mut::<HEADER>() else {
            return Err(undecryptable());
        };
        let outer = Content(header[0]);
        let (mut nonce, sequence) = self.next()?;
        let start = self.prefix_length();
        let range = match self.form {
            Form::Tls13 => {
                if outer != Content::DATA {
                    let text = "a record that is not encrypted, in the middle of a session";
                    return Err(Fault::of_peer(text, AlertDescription::UnexpectedMessage));
                }
                let unique = Nonce::assume_unique_for_key(nonce);
                let inner =
                    self.aead.open_in_place(unique, Aad::from(*header), body).map_err(|_| undecryptable())?;
                // Behind the type there may be any number of zeroes (RFC 8446 5.4).
                let Some(at) = inner.iter().rposition(|byte| *byte != 0) else {
                    let text = "a record without a type";
                    return Err(Fault::of_peer(text, AlertDescription::UnexpectedMessage));
                };
                let content = Content(inner[at]);
                return within(content, start..start + at);
            }
            Form::Tls12Gcm => {
                let Some((explicit, body)) = body.split_first_chunk_mut::<EXPLICIT>() else {
                    return Err(undecryptable());
                };
                nonce[12 - EXPLICIT..].copy_from_slice(explicit);
                start..start + self.open_tls12(nonce, sequence, outer, body)?
            }
            Form::Tls12ChaCha => start..start + self.open_tls12(nonce, sequence, outer, body)?,
        };
        within(outer, range)
    }

    fn open_tls12(
        &self,
        nonce: [u8; 12],
        sequence: u64,
        content: Content,
        body: &mut [u8],
    ) -> Result<usize, Fault> {
        let Some(length) = body.len().checked_sub(TAG) else { return Err(undecryptable()) };
        let aad = Aad::from(tls12_aad(sequence, content, length_field(length)?));
        let plain = self.aead.open_in_place(Nonce::assume_unique_for_key(nonce), aad, body);
        Ok(plain.map_err(|_| undecryptable())?.len())
    }

    /// The nonce of the next record, and its sequence number: each once.
    fn next(&mut self) -> Result<([u8; 12], u64), Fault> {
        let sequence = self.sequence;
        self.sequence =
            sequence.checked_add(1).ok_or_else(|| Fault::silent("the sequence numbers are used up"))?;
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= number;
        }
        Ok((nonce, sequence))
    }
}

/// Bytes of the record that `bytes` begin with, its header included; `None` until there are enough to say.
pub(super) fn record_length(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let length = HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
    let known = Content::CHANGE_CIPHER_SPEC.0..=Content::DATA.0;
    if !known.contains(&header[0]) || header[1] != LEGACY_VERSION[0] {
        return Err(Fault::of_peer("bytes that are not a record", AlertDescription::UnexpectedMessage));
    }
    if length > RECORD_MAX {
        return Err(Fault::of_peer("a record that is too long", AlertDescription::RecordOverflow));
    }
    Ok(Some(length))
}

fn within(content: Content, range: Range<usize>) -> Result<(Content, Range<usize>), Fault> {
    if range.len() > PLAIN_MAX {
        return Err(Fault::of_peer("a record that is too long", AlertDescription::RecordOverflow));
    }
    Ok((content, range))
}

fn undecryptable() -> Fault {
    Fault::of_peer(
        "a record cannot be decrypted: it was changed, or is not meant for us",
        AlertDescription::BadRecordMac,
    )
}

fn length_field(length: usize) -> Result<[u8; 2], Fault> {
    let length = u16::try_from(length).map_err(|_| Fault::silent("a record that is too long"))?;
    Ok(length.to_be_bytes())
}

fn tls12_aad(sequence: u64, content: Content, length: [u8; 2]) -> [u8; 13] {
    let mut aad = [0; 13];
    aad[..8].copy_from_slice(&sequence.to_be_bytes());
    aad[8] = content.0;
    aad[9..11].copy_from_slice(&LEGACY_VERSION);
    aad[11..].copy_from_slice(&length);
    aad
}
