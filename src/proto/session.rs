//! What was negotiated, and which requests it admits.
//!
//! Who may do what is decided here once, before storage is touched. Refusals come in the order
//! of this table; the first that applies is the answer:
//!
//! ```text
//! DISC                        no reply, whatever else the header says
//! payload beyond all measure  EINVAL, close               (extended headers only)
//! change on a read-only export  EPERM
//! command not advertised      EINVAL
//! flag not for this command   EINVAL
//! range past the end          ENOSPC (WRITE, WRITE_ZEROES) or EINVAL
//! too long                    EOVERFLOW (READ) or EINVAL (WRITE)
//! not aligned, export strict  EINVAL
//! ```
//!
//! A length of 0 is served: the specification leaves it open, and there is nothing to fail.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use smallvec::SmallVec;

use super::consts::{Command, CommandFlags, PAYLOAD_TOLERATED, TransmissionFlags};
use super::cursor::Cursor;
use super::errno::Errno;
use super::export::{BlockSizes, ExportInfo};
use super::request::Request;
use super::violation::Violation;

/// Which headers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies.
    Extended,
}

/// A meta context that the client may ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectedContext {
    /// Its id on the wire.
    pub id: u32,
    /// Its number: the index in [`ExportInfo::contexts`].
    pub number: usize,
}

/// The rules of one connection in transmission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// [`ExportInfo::id`] of the export in use.
    pub export: usize,
    /// Headers in use.
    pub dialect: Dialect,
    /// Flags as they were advertised, DF and BLOCK_STATUS_PAYLOAD included.
    pub flags: TransmissionFlags,
    /// Bytes of the export.
    pub size: u64,
    /// Its block sizes.
    pub block: BlockSizes,
    /// Refuse what is not aligned to `block.minimum`.
    pub strict: bool,
    /// Meta contexts selected for this export, in order of their number.
    pub contexts: SmallVec<[SelectedContext; 2]>,
    /// The client asked for the block sizes and so promised to keep to them.
    pub alignment_agreed: bool,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Carry it out.
    Serve,
    /// The client is leaving: answer what is in flight, then close. No reply.
    Disconnect,
    /// Drop `payload` bytes of input, send the error, live on. Close instead if that is more
    /// than the caller is willing to drop.
    Refuse(Refusal),
    /// Send the error if possible, then close.
    Close(Refusal),
}

/// An error for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For its program.
    pub errno: Errno,
    /// For its user.
    pub text: Cow<'static, str>,
}

impl Session {
    /// The session of a client that chose `export`.
    pub fn new(export: &ExportInfo, dialect: Dialect, contexts: SmallVec<[SelectedContext; 2]>) -> Self {
        let flags = session_flags(export, dialect, !contexts.is_empty());
        Self {
            export: export.id,
            dialect,
            flags,
            size: export.size,
            block: export.block,
            strict: export.strict,
            contexts,
            alignment_agreed: false,
        }
    }

    /// Reads one request header from the front of `input` and says how long it was; `None` asks
    /// for more bytes.
    #[inline]
    pub fn decode(&self, input: &[u8]) -> Result<Option<(Request, usize)>, Violation> {
        Request::decode(self.dialect, input)
    }

    /// Every check of a request that needs no storage.
    #[inline]
    pub fn admit(&self, request: &Request) -> Admission {
        let extended = self.dialect == Dialect::Extended;
        if request.command == Command::DISC {
            return Admission::Disconnect;
        }
        if extended && request.payload > self.payload_tolerated() {
            return Admission::Close(oversized(self, request));
        }
        let verdict = match request.command {
            Command::READ => self.admit_read(request),
            Command::WRITE => self.admit_write(request),
            Command::FLUSH => self.admit_flush(request),
            Command::TRIM => self.admit_trim(request),
            Command::WRITE_ZEROES => self.admit_write_zeroes(request),
            Command::CACHE => self.admit_cache(request),
            Command::BLOCK_STATUS => self.admit_block_status(request),
            command => Err(unknown(command)),
        };
        match verdict {
            Ok(()) => Admission::Serve,
            Err(refusal) => Admission::Refuse(refusal),
        }
    }

    /// Reads the payload of a BLOCK_STATUS request: the length of the range, and the wire ids of
    /// the contexts asked about, each selected and none twice.
    ///
    /// The caller then sets `request.length` to that length.
    pub fn parse_status_payload(
        &self,
        request: &Request,
        payload: &[u8],
    ) -> Result<(u64, SmallVec<[u32; 4]>), Refusal> {
        let mut cursor = Cursor::new(payload);
        let Some(length) = cursor.u64() else {
            return Err(status_payload_shape());
        };
        let mut ids = SmallVec::new();
        while let Some(id) = cursor.u32() {
            if !self.contexts.iter().any(|context| context.id == id) {
                return Err(refuse(Errno::EINVAL, format!("meta context {id} was not selected")));
            }
            if ids.contains(&id) {
                return Err(refuse(Errno::EINVAL, format!("meta context {id} is asked for twice")));
            }
            ids.push(id);
        }
        if !cursor.is_empty() || ids.is_empty() {
            return Err(status_payload_shape());
        }
        self.check_status_range(&Request { length, ..*request })?;
        Ok((length, ids))
    }

    /// Larger payloads are not drained with extended headers: the specification asks for a
    /// disconnect beyond the maximum, but never below 32 MiB.
    fn payload_tolerated(&self) -> u64 {
        u64::from(self.block.maximum).max(PAYLOAD_TOLERATED)
    }

    #[inline]
    fn admit_read(&self, request: &Request) -> Result<(), Refusal> {
        self.check_flags(request, self.flag_if(TransmissionFlags::SEND_DF, CommandFlags::DF))?;
        self.check_range(request, Errno::EINVAL)?;
        if request.length > u64::from(self.block.maximum) {
            return Err(read_too_long(self, request));
        }
        Ok(())
    }

    #[inline]
    fn admit_write(&self, request: &Request) -> Result<(), Refusal> {
        self.check_writable(request)?;
        // Only the extended header has a payload length; PAYLOAD_LEN in a compact one is a stray bit.
        let payload =
            if self.dialect == Dialect::Extended { CommandFlags::PAYLOAD_LEN } else { CommandFlags::NONE };
        self.check_flags(request, payload)?;
        self.check_range(request, Errno::ENOSPC)?;
        if request.length > u64::from(self.block.maximum) {
            return Err(oversized(self, request));
        }
        Ok(())
    }

    fn admit_flush(&self, request: &Request) -> Result<(), Refusal> {
        self.check_advertised(request, TransmissionFlags::SEND_FLUSH)?;
        self.check_flags(request, CommandFlags::NONE)?;
        if request.offset != 0 || request.length != 0 {
            return Err(refuse(Errno::EINVAL, "offset and length of a flush are reserved and must be 0"));
        }
        Ok(())
    }

    fn admit_trim(&self, request: &Request) -> Result<(), Refusal> {
        self.check_writable(request)?;
        self.check_advertised(request, TransmissionFlags::SEND_TRIM)?;
        self.check_flags(request, CommandFlags::NONE)?;
        self.check_range(request, Errno::EINVAL)
    }

    fn admit_write_zeroes(&self, request: &Request) -> Result<(), Refusal> {
        self.check_writable(request)?;
        self.check_advertised(request, TransmissionFlags::SEND_WRITE_ZEROES)?;
        let fast = self.flag_if(TransmissionFlags::SEND_FAST_ZERO, CommandFlags::FAST_ZERO);
        self.check_flags(request, CommandFlags::NO_HOLE | fast)?;
        self.check_range(request, Errno::ENOSPC)
    }

    fn admit_cache(&self, request: &Request) -> Result<(), Refusal> {
        self.check_advertised(request, TransmissionFlags::SEND_CACHE)?;
        self.check_flags(request, CommandFlags::NONE)?;
        self.check_range(request, Errno::EINVAL)
    }

    fn admit_block_status(&self, request: &Request) -> Result<(), Refusal> {
        if self.contexts.is_empty() {
            return Err(refuse(Errno::EINVAL, "no meta context was selected for this export"));
        }
        let payload = self.flag_if(TransmissionFlags::BLOCK_STATUS_PAYLOAD, CommandFlags::PAYLOAD_LEN);
        self.check_flags(request, CommandFlags::REQ_ONE | payload)?;
        if request.flags.contains(CommandFlags::PAYLOAD_LEN) {
            // More ids than contexts cannot all be distinct and known, so nothing longer need be buffered.
            let ids = request.payload.saturating_sub(8);
            let most = 4 * u64::try_from(self.contexts.len()).unwrap_or(u64::MAX / 4);
            return if ids == 0 || !ids.is_multiple_of(4) || ids > most {
                Err(status_payload_shape())
            } else {
                Ok(())
            };
        }
        self.check_status_range(request)
    }

    fn check_status_range(&self, request: &Request) -> Result<(), Refusal> {
        if request.length == 0 {
            // The reply must hold an extent, and an extent cannot be empty.
            return Err(refuse(Errno::EINVAL, "block status of an empty range cannot be told"));
        }
        self.check_range(request, Errno::EINVAL)
    }

    #[inline]
    fn check_writable(&self, request: &Request) -> Result<(), Refusal> {
        if self.flags.contains(TransmissionFlags::READ_ONLY) {
            return Err(read_only(request.command));
        }
        Ok(())
    }

    #[inline]
    fn check_advertised(&self, request: &Request, flag: TransmissionFlags) -> Result<(), Refusal> {
        if self.flags.contains(flag) { Ok(()) } else { Err(not_advertised(request.command)) }
    }

    /// FUA is for every command once it is advertised.
    #[inline]
    fn check_flags(&self, request: &Request, allowed: CommandFlags) -> Result<(), Refusal> {
        let allowed = allowed | self.flag_if(TransmissionFlags::SEND_FUA, CommandFlags::FUA);
        let stray = request.flags.without(allowed);
        if stray.is_empty() { Ok(()) } else { Err(stray_flags(request.command, stray)) }
    }

    #[inline]
    fn check_range(&self, request: &Request, errno: Errno) -> Result<(), Refusal> {
        match request.end() {
            Some(end) if end <= self.size => {}
            _ => return Err(past_the_end(self, request, errno)),
        }
        if self.strict && self.is_unaligned(request) {
            return Err(unaligned(self, request));
        }
        Ok(())
    }

    /// The last bytes of an export whose size is no multiple of the block stay reachable.
    fn is_unaligned(&self, request: &Request) -> bool {
        let mask = u64::from(self.block.minimum.max(1)) - 1;
        let at_the_end = request.end() == Some(self.size);
        request.offset & mask != 0 || (request.length & mask != 0 && !at_the_end)
    }

    #[inline]
    const fn flag_if(&self, advertised: TransmissionFlags, flag: CommandFlags) -> CommandFlags {
        if self.flags.contains(advertised) { flag } else { CommandFlags::NONE }
    }
}

/// The flags to advertise: those of the export, and those that the session makes true.
pub(super) fn session_flags(
    export: &ExportInfo,
    dialect: Dialect,
    contexts_selected: bool,
) -> TransmissionFlags {
    let mut flags = (export.flags | TransmissionFlags::HAS_FLAGS)
        .without(TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD);
    if dialect != Dialect::Simple {
        flags |= TransmissionFlags::SEND_DF;
    }
    if dialect == Dialect::Extended && contexts_selected {
        flags |= TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    }
    if !flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
        flags = flags.without(TransmissionFlags::SEND_FAST_ZERO);
    }
    flags
}

fn refuse(errno: Errno, text: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal { errno, text: text.into() }
}

#[cold]
fn unknown(command: Command) -> Refusal {
    refuse(Errno::EINVAL, format!("{command} is not a command of this server"))
}

#[cold]
fn not_advertised(command: Command) -> Refusal {
    refuse(Errno::EINVAL, format!("{command} was not advertised for this export"))
}

#[cold]
fn read_only(command: Command) -> Refusal {
    refuse(Errno::EPERM, format!("{command} refused: the export is read-only"))
}

#[cold]
fn stray_flags(command: Command, stray: CommandFlags) -> Refusal {
    refuse(Errno::EINVAL, format!("{command} does not take the flags {stray} in this session"))
}

#[cold]
fn past_the_end(session: &Session, request: &Request, errno: Errno) -> Refusal {
    let Request { command, offset, length, .. } = request;
    let size = session.size;
    refuse(errno, format!("{command} of {length} bytes at {offset} goes past the end at {size}"))
}

#[cold]
fn read_too_long(session: &Session, request: &Request) -> Refusal {
    let (length, maximum) = (request.length, session.block.maximum);
    refuse(Errno::EOVERFLOW, format!("a read of {length} bytes is over the maximum of {maximum}; split it"))
}

#[cold]
fn oversized(session: &Session, request: &Request) -> Refusal {
    let (command, payload, maximum) = (request.command, request.payload, session.block.maximum);
    refuse(
        Errno::EINVAL,
        format!("{command} with a payload of {payload} bytes is over the maximum of {maximum}"),
    )
}

#[cold]
fn unaligned(session: &Session, request: &Request) -> Refusal {
    let Request { command, offset, length, .. } = request;
    let minimum = session.block.minimum;
    let text =
        format!("{command} of {length} bytes at {offset} is not aligned to the block size of {minimum}");
    refuse(Errno::EINVAL, text)
}

#[cold]
fn status_payload_shape() -> Refusal {
    refuse(
        Errno::EINVAL,
        "a block status payload is an 8-byte length and the 4-byte ids of selected meta contexts, each once",
    )
}
