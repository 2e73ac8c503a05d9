//! Every command, as a caller wants it: any length, any alignment, and what the server does not offer made up for where
//! that can be done.
//!
//! ```text
//!   range --past the end?--> not whole blocks? --widen--> longer than the maximum? --pieces--> exchange (all at once)
//! ```

use std::ops::Range;

use super::bounds::{SECTOR, pieces};
use super::error::Error;
use super::options::BelowMinimum;
use super::pipelined::{Ask, Told};
use super::{Buffer, Client};
use crate::proto::{Command, CommandFlags, TransmissionFlags};
use crate::rt;

/// Pieces of one call that are on their way at a time, so that a server with a tiny maximum does not make us hold many
/// copies.
const PIECES_MAX: usize = 64;

impl Client {
    /// Fills `buffer` with what the export holds from `offset` on; holes read as zeroes.
    ///
    /// The buffer comes back in any case; its content counts only with `Ok`. Dropping the future gives up waiting: the
    /// buffer then goes back to its pool when the server has answered.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn read(&self, offset: u64, buffer: Buffer) -> (Result<(), Error>, Buffer) {
        let (result, buffer) = self.read_sparse(offset, buffer, CommandFlags::NONE).await;
        (result.map(drop), buffer)
    }

    /// As [`Client::read`]; answers which ranges the server told to be holes, in order and joined. A server without
    /// structured replies tells of none. `flags` may be DF, where the server offers it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn read_sparse(
        &self,
        offset: u64,
        mut buffer: Buffer,
        flags: CommandFlags,
    ) -> (Result<Vec<Range<u64>>, Error>, Buffer) {
        let bounds = self.bounds();
        let length = buffer.len() as u64;
        let end = match bounds.end(Command::READ, offset, length) {
            Ok(end) => end,
            Err(error) => return (Err(error), buffer),
        };
        if length == 0 {
            return (Ok(Vec::new()), buffer);
        }
        let flags = self.without_unoffered_df(flags);
        if bounds.is_aligned(offset, end) && length <= bounds.payload_max {
            let ask = Ask { flags, ..ask(Command::READ, offset, length) };
            let (result, back) = self.exchange(&ask, Some(buffer)).await;
            let buffer = back.unwrap_or_else(|| Buffer::scratch(usize::try_from(length).unwrap_or(0)));
            return (result.map(|told| holes_within(told, offset..end)), buffer);
        }
        if let Err(error) = self.check_aligned(Command::READ, offset, end) {
            return (Err(error), buffer);
        }
        let all: Vec<_> = pieces(bounds.outward(offset..end), bounds.payload_max).collect();
        let mut holes = Told::default();
        for some in all.chunks(PIECES_MAX) {
            let read = rt::join_all(some.iter().map(|piece| self.read_piece(piece.clone(), flags))).await;
            for (piece, read) in some.iter().zip(read) {
                let (told, content) = match read {
                    Ok(read) => read,
                    Err(error) => return (Err(error), buffer),
                };
                let wanted = piece.start.max(offset)..piece.end.min(end);
                let from = within(&wanted, piece.start);
                buffer[within(&wanted, offset)].copy_from_slice(&content[from]);
                holes.holes.extend(told.holes);
            }
        }
        (Ok(holes_within(holes, offset..end)), buffer)
    }

    /// As [`Client::read`], for callers who count in sectors of 512 bytes and so round the size up: what of the last sector
    /// lies past the end reads as zeroes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn read_sectors(&self, offset: u64, mut buffer: Buffer) -> (Result<(), Error>, Buffer) {
        let length = buffer.len();
        let past = offset.saturating_add(length as u64).saturating_sub(self.size());
        let there = length.saturating_sub(usize::try_from(past).unwrap_or(usize::MAX));
        if past == 0 || past >= SECTOR || there == 0 {
            return self.read(offset, buffer).await;
        }
        buffer.set_len(there);
        let (result, mut buffer) = self.read(offset, buffer).await;
        buffer.set_len(length);
        buffer[there..].fill(0);
        (result, buffer)
    }

    /// Fills `target` with what the export holds from `offset` on, by way of buffers of the runtime's: one copy more than
    /// [`Client::read`].
    ///
    /// # Errors
    /// [`Error`]; `target` may have been written to.
    pub async fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), Error> {
        let end = self.bounds().end(Command::READ, offset, target.len() as u64)?;
        for piece in pieces(offset..end, self.bounds().payload_max) {
            let wanted = within(&piece, offset);
            let (result, buffer) = self.read(piece.start, Buffer::scratch(wanted.len())).await;
            result?;
            target[wanted].copy_from_slice(&buffer);
        }
        Ok(())
    }

    /// Writes `buffer` at `offset`. The buffer comes back in any case.
    ///
    /// A request whose connection broke may have been carried out. Dropping the future gives up waiting, not the request.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn write(&self, offset: u64, buffer: Buffer) -> (Result<(), Error>, Buffer) {
        self.write_with(offset, buffer, CommandFlags::NONE).await
    }

    /// As [`Client::write`]; with FUA, it is durable when this returns. Where the server has no FUA, a flush follows.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn write_with(
        &self,
        offset: u64,
        buffer: Buffer,
        flags: CommandFlags,
    ) -> (Result<(), Error>, Buffer) {
        let bounds = self.bounds();
        let length = buffer.len() as u64;
        let checked = self.check_writable(Command::WRITE);
        let end = match checked.and_then(|()| bounds.end(Command::WRITE, offset, length)) {
            Ok(end) => end,
            Err(error) => return (Err(error), buffer),
        };
        if length == 0 {
            return (Ok(()), buffer);
        }
        let (flags, flushes) = self.split_fua(flags);
        let (result, buffer) = if bounds.is_aligned(offset, end) && length <= bounds.payload_max {
            let ask = Ask { flags, ..ask(Command::WRITE, offset, length) };
            let (result, back) = self.exchange(&ask, Some(buffer)).await;
            (result.map(drop), back.unwrap_or_else(|| Buffer::scratch(0)))
        } else {
            (self.write_apart(offset, &buffer, flags).await, buffer)
        };
        match result {
            Ok(()) if flushes => (self.flush().await, buffer),
            result => (result, buffer),
        }
    }

    /// Writes a copy of `content` at `offset`.
    ///
    /// # Errors
    /// [`Error`]; a part may have been written.
    pub async fn write_at(&self, offset: u64, content: &[u8], flags: CommandFlags) -> Result<(), Error> {
        self.check_writable(Command::WRITE)?;
        let end = self.bounds().end(Command::WRITE, offset, content.len() as u64)?;
        for piece in pieces(offset..end, self.bounds().payload_max) {
            let buffer = copy(&content[within(&piece, offset)]);
            self.write_with(piece.start, buffer, flags).await.0?;
        }
        Ok(())
    }

    /// Makes all writes that have returned durable, whichever connection they went over, unless the server lost them before
    /// ([`Client::reconnects`]). A server that does not offer FLUSH has nothing to flush.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn flush(&self) -> Result<(), Error> {
        if !self.offers(TransmissionFlags::SEND_FLUSH) {
            return Ok(());
        }
        // With several connections the server has said that a flush on one covers all (CAN_MULTI_CONN).
        self.exchange(&ask(Command::FLUSH, 0, 0), None).await.0.map(drop)
    }

    /// Says that the range is not needed any more; what it reads as is up to the server. Advice: what is not made of whole
    /// blocks, or not offered, is left out.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Error> {
        self.check_writable(Command::TRIM)?;
        let end = self.bounds().end(Command::TRIM, offset, length)?;
        if !self.offers(TransmissionFlags::SEND_TRIM) {
            return Ok(());
        }
        self.effect(Command::TRIM, self.bounds().inward(offset..end), flags).await
    }

    /// Makes the range read as zeroes. `flags` may be NO_HOLE (leave it allocated) and FAST_ZERO (fail rather than take as
    /// long as writing would).
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the server has no WRITE_ZEROES or no FAST_ZERO: write zeroes then; else as others.
    pub async fn write_zeroes(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Error> {
        self.check_writable(Command::WRITE_ZEROES)?;
        let bounds = self.bounds();
        let end = bounds.end(Command::WRITE_ZEROES, offset, length)?;
        if !self.offers(TransmissionFlags::SEND_WRITE_ZEROES) {
            return Err(Error::NotOffered("WRITE_ZEROES"));
        }
        if flags.contains(CommandFlags::FAST_ZERO) && !self.offers(TransmissionFlags::SEND_FAST_ZERO) {
            return Err(Error::NotOffered("FAST_ZERO"));
        }
        if !bounds.is_aligned(offset, end) {
            self.check_aligned(Command::WRITE_ZEROES, offset, end)?;
            let whole = bounds.inward(offset..end);
            let (flags, flushes) = self.split_fua(flags);
            for edge in [offset..whole.start, whole.end..end] {
                self.write_edge(edge.clone(), |target| target.fill(0), flags).await?;
            }
            self.effect(Command::WRITE_ZEROES, whole, flags).await?;
            return if flushes { self.flush().await } else { Ok(()) };
        }
        self.effect(Command::WRITE_ZEROES, offset..end, flags).await
    }

    /// Says that the range will be wanted soon. Advice: a server that does not offer it is not asked.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        let end = self.bounds().end(Command::CACHE, offset, length)?;
        if !self.offers(TransmissionFlags::SEND_CACHE) {
            return Ok(());
        }
        self.effect(Command::CACHE, self.bounds().outward(offset..end), CommandFlags::NONE).await
    }

    /// A command without payload on whole blocks, in as many requests as it takes.
    async fn effect(&self, command: Command, range: Range<u64>, flags: CommandFlags) -> Result<(), Error> {
        let (flags, flushes) = self.split_fua(flags);
        let bounds = self.bounds();
        let most = if command == Command::WRITE_ZEROES { bounds.zeroes_max } else { bounds.effect_max };
        let one = |piece: Range<u64>| async move {
            let ask = Ask { flags, ..ask(command, piece.start, piece.end - piece.start) };
            self.exchange(&ask, None).await.0
        };
        let mut all = pieces(range, most).peekable();
        while all.peek().is_some() {
            for done in rt::join_all(all.by_ref().take(PIECES_MAX).map(one)).await {
                done?;
            }
        }
        if flushes { self.flush().await } else { Ok(()) }
    }

    async fn read_piece(&self, piece: Range<u64>, flags: CommandFlags) -> Result<(Told, Buffer), Error> {
        let length = piece.end - piece.start;
        let buffer = Buffer::scratch(usize::try_from(length).unwrap_or(usize::MAX));
        let ask = Ask { flags, ..ask(Command::READ, piece.start, length) };
        let (result, buffer) = self.exchange(&ask, Some(buffer)).await;
        Ok((result?, buffer.unwrap_or_else(|| Buffer::scratch(0))))
    }

    async fn write_piece(&self, offset: u64, content: &[u8], flags: CommandFlags) -> Result<(), Error> {
        let ask = Ask { flags, ..ask(Command::WRITE, offset, content.len() as u64) };
        self.exchange(&ask, Some(copy(content))).await.0.map(drop)
    }

    /// Writes what does not go in one request: whole blocks in pieces, edges by reading the rest of their block.
    async fn write_apart(&self, offset: u64, content: &[u8], flags: CommandFlags) -> Result<(), Error> {
        let bounds = self.bounds();
        let end = bounds.end(Command::WRITE, offset, content.len() as u64)?;
        let whole = if bounds.is_aligned(offset, end) {
            offset..end
        } else {
            self.check_aligned(Command::WRITE, offset, end)?;
            bounds.inward(offset..end)
        };
        for edge in [offset..whole.start, whole.end..end] {
            let part = &content[within(&edge, offset)];
            self.write_edge(edge, |target| target.copy_from_slice(part), flags).await?;
        }
        let all: Vec<_> = pieces(whole, bounds.payload_max).collect();
        for some in all.chunks(PIECES_MAX) {
            let piece =
                |piece: &Range<u64>| self.write_piece(piece.start, &content[within(piece, offset)], flags);
            for written in rt::join_all(some.iter().map(piece)).await {
                written?;
            }
        }
        Ok(())
    }

    /// Changes a part of a block, or of two neighbours. Only one at a time does so: two that change the same block would
    /// undo each other's work.
    async fn write_edge(
        &self,
        edge: Range<u64>,
        change: impl FnOnce(&mut [u8]),
        flags: CommandFlags,
    ) -> Result<(), Error> {
        if edge.is_empty() {
            return Ok(());
        }
        let _turn = self.turn_to_widen().await;
        let block = self.bounds().outward(edge.clone());
        let (_, mut content) = self.read_piece(block.clone(), CommandFlags::NONE).await?;
        change(&mut content[within(&edge, block.start)]);
        self.write_piece(block.start, &content, flags).await
    }

    fn check_writable(&self, command: Command) -> Result<(), Error> {
        if self.offers(TransmissionFlags::READ_ONLY) { Err(Error::ReadOnly(command)) } else { Ok(()) }
    }

    fn check_aligned(&self, command: Command, offset: u64, end: u64) -> Result<(), Error> {
        let bounds = self.bounds();
        if bounds.is_aligned(offset, end) || self.options().below_minimum == BelowMinimum::Widen {
            return Ok(());
        }
        let minimum = u32::try_from(bounds.minimum).unwrap_or(u32::MAX);
        Err(Error::Unaligned { command, offset, length: end - offset, minimum })
    }

    /// What can be asked of the server, and whether a flush must follow for the rest.
    fn split_fua(&self, flags: CommandFlags) -> (CommandFlags, bool) {
        let emulated = flags.contains(CommandFlags::FUA) && !self.offers(TransmissionFlags::SEND_FUA);
        if emulated { (flags.without(CommandFlags::FUA), true) } else { (flags, false) }
    }

    fn without_unoffered_df(&self, flags: CommandFlags) -> CommandFlags {
        if self.offers(TransmissionFlags::SEND_DF) { flags } else { flags.without(CommandFlags::DF) }
    }
}

pub(super) const fn ask(command: Command, offset: u64, length: u64) -> Ask<'static> {
    Ask { command, flags: CommandFlags::NONE, offset, length, contexts: &[], filter: false }
}

/// Where `range` lies in a buffer that begins at `start`.
fn within(range: &Range<u64>, start: u64) -> Range<usize> {
    let place = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
    place(range.start)..place(range.end)
}

fn copy(content: &[u8]) -> Buffer {
    let mut buffer = Buffer::scratch(content.len());
    buffer.copy_from_slice(content);
    buffer
}

/// Holes in order, joined, within the range.
fn holes_within(told: Told, range: Range<u64>) -> Vec<Range<u64>> {
    let mut holes = told.holes;
    holes.sort_unstable();
    let mut joined: Vec<Range<u64>> = Vec::new();
    for (offset, length) in holes {
        let hole = offset.max(range.start)..offset.saturating_add(length).min(range.end);
        match joined.last_mut() {
            Some(last) if last.end == hole.start => last.end = hole.end,
            _ if hole.is_empty() => {}
            _ => joined.push(hole),
        }
    }
    joined
}
