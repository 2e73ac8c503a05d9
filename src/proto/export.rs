//! What the handshake needs to know of an export; the caller looks it up.

use super::consts::TransmissionFlags;

/// Smallest, best and largest sizes of a request, in bytes ("Size constraints").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Power of two, 1..=65536: what the storage can address.
    pub minimum: u32,
    /// Power of two, at least 512 and `minimum`.
    pub preferred: u32,
    /// Largest payload of one request; at least `preferred`.
    pub maximum: u32,
}

impl Default for BlockSizes {
    /// What a client may assume when nothing was advertised.
    fn default() -> Self {
        Self { minimum: 1, preferred: 4096, maximum: 1 << 25 }
    }
}

/// The facts of one export.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ExportInfo {
    /// Its identity: the index in the server's table.
    pub id: usize,
    /// Canonical name.
    pub name: String,
    /// For a person.
    pub description: Option<String>,
    /// Bytes.
    pub size: u64,
    /// What it can do, without DF and BLOCK_STATUS_PAYLOAD: those depend on the session, which
    /// adds them.
    pub flags: TransmissionFlags,
    /// Its sizes.
    pub block: BlockSizes,
    /// Refuse unaligned requests instead of serving them.
    pub strict: bool,
    /// Names of its meta contexts; the index is the context's number.
    pub contexts: Vec<String>,
}

impl ExportInfo {
    /// The same export for a client that may not change it.
    #[must_use]
    pub fn read_only(&self) -> Self {
        let changes = TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::SEND_FAST_ZERO;
        let flags = (self.flags | TransmissionFlags::READ_ONLY).without(changes);
        Self { flags, ..self.clone() }
    }
}

/// What becomes of the name that a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// The export, as this client may use it.
    Found(&'a ExportInfo),
    /// There is no such export, or this client must not learn that there is.
    Unknown,
    /// The client may know of it and not open it.
    Forbidden,
    /// It is there for those who come through TLS, and this client does not (SELECTIVETLS).
    TlsRequired,
}

impl<'a> From<Option<&'a ExportInfo>> for Lookup<'a> {
    fn from(found: Option<&'a ExportInfo>) -> Self {
        found.map_or(Self::Unknown, Self::Found)
    }
}

/// One line of a list of exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Name to open it by.
    pub name: String,
    /// For a person.
    pub description: Option<String>,
}
