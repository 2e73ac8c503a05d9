//! A request in flight, as the client remembers it to judge the replies.

use smallvec::SmallVec;
use thiserror::Error;

use super::{Body, Reply};
use crate::proto::consts::{Command, CommandFlags};
use crate::proto::errno::Errno;
use crate::proto::request::Request;
use crate::proto::session::Dialect;
use crate::proto::violation::Violation;

/// Pieces of a read that may be apart at once. Servers answer in order or nearly so.
const FRAGMENTS_MAX: usize = 65_536;

/// A request whose reply has not ended.
#[derive(Clone, Debug)]
pub struct Pending {
    request: Request,
    dialect: Dialect,
    /// Ids of the meta contexts that must answer.
    contexts: SmallVec<[u32; 2]>,
    answered: SmallVec<[u32; 2]>,
    /// Ranges of the read that were told, sorted, never touching one another.
    covered: SmallVec<[(u64, u64); 2]>,
    chunks: bool,
    content: bool,
    over: bool,
    error: Option<ReplyError>,
}

/// What one reply brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Offset and length of the data that follows on the wire.
    pub data: Option<(u64, u64)>,
    /// How the request ended, if it did. Data that follows comes first.
    pub ended: Option<Result<(), ReplyError>>,
}

/// The server could not do what was asked. If it told several errors this is the first.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{errno}: {}", if text.is_empty() { errno.sentence() } else { text })]
pub struct ReplyError {
    /// Why.
    pub errno: Errno,
    /// In the server's words; may be empty.
    pub text: String,
    /// The byte it happened at, if told.
    pub at: Option<u64>,
}

impl Pending {
    /// `request` as it was sent; for BLOCK_STATUS with the ids of the contexts it asks.
    pub fn new(dialect: Dialect, request: Request, contexts: &[u32]) -> Self {
        Self {
            request,
            dialect,
            contexts: SmallVec::from_slice(contexts),
            answered: SmallVec::new(),
            covered: SmallVec::new(),
            chunks: false,
            content: false,
            over: false,
            error: None,
        }
    }

    /// The request.
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// Judges one reply with this request's cookie.
    pub fn accept(&mut self, reply: &Reply) -> Result<Progress, Violation> {
        if self.over {
            return Err(Violation::ReplyCookie(reply.cookie));
        }
        if reply.cookie != self.request.cookie {
            return Err(Violation::ReplyCookie(reply.cookie));
        }
        if reply.offset.is_some_and(|offset| offset != self.request.offset) {
            return Err(Violation::Reply("a chunk with another offset than its request"));
        }
        let mut progress = Progress { data: None, ended: None };
        match &reply.body {
            Body::Simple(errno) => return self.simple(*errno),
            Body::None => {}
            Body::Data { offset, length } => {
                self.cover(*offset, *length)?;
                progress.data = Some((*offset, *length));
            }
            Body::Hole { offset, length } => self.cover(*offset, *length)?,
            Body::Status { id, extents } => self.status(*id, extents)?,
            Body::Error { errno, text, at } => self.fail(*errno, text, *at)?,
        }
        self.chunks = true;
        if reply.done {
            progress.ended = Some(self.end()?);
        }
        Ok(progress)
    }

    fn simple(&mut self, errno: Errno) -> Result<Progress, Violation> {
        if self.chunks {
            return Err(Violation::Reply("a simple reply after a chunk"));
        }
        let read = self.request.command == Command::READ;
        if read && self.dialect != Dialect::Simple {
            return Err(Violation::Reply("a simple reply to a read under structured replies"));
        }
        if self.request.command == Command::BLOCK_STATUS && errno == Errno::OK {
            return Err(Violation::Reply("a block status that tells nothing"));
        }
        self.over = true;
        if errno != Errno::OK {
            let error = ReplyError { errno, text: String::new(), at: None };
            return Ok(Progress { data: None, ended: Some(Err(error)) });
        }
        let data = (read && self.request.length > 0).then_some((self.request.offset, self.request.length));
        Ok(Progress { data, ended: Some(Ok(())) })
    }

    /// A content chunk: within the request, and told for the first time.
    fn cover(&mut self, offset: u64, length: u64) -> Result<(), Violation> {
        if self.request.command != Command::READ {
            return Err(Violation::Reply("content for a request that is no read"));
        }
        if self.content && self.request.flags.contains(CommandFlags::DF) {
            return Err(Violation::Reply("a second content chunk in spite of DF"));
        }
        let Some(end) = offset.checked_add(length).filter(|end| {
            offset >= self.request.offset && self.request.end().is_some_and(|request_end| *end <= request_end)
        }) else {
            return Err(Violation::Reply("content outside the request"));
        };
        let at = self.covered.partition_point(|(start, _)| *start < offset);
        let before = at.checked_sub(1).and_then(|before| self.covered.get(before)).copied();
        let after = self.covered.get(at).copied();
        let overlaps =
            before.is_some_and(|(_, told)| told > offset) || after.is_some_and(|(start, _)| start < end);
        if overlaps {
            return Err(Violation::Reply("content that was told already"));
        }
        let joins_before = before.is_some_and(|(_, told)| told == offset);
        let joins_after = after.is_some_and(|(start, _)| start == end);
        match (joins_before, joins_after) {
            (true, true) => {
                let (_, told) = self.covered.remove(at);
                self.covered[at - 1].1 = told;
            }
            (true, false) => self.covered[at - 1].1 = end,
            (false, true) => self.covered[at].0 = offset,
            (false, false) if self.covered.len() >= FRAGMENTS_MAX => {
                return Err(Violation::Reply("a read answered in too many pieces"));
            }
            (false, false) => self.covered.insert(at, (offset, end)),
        }
        self.content = true;
        Ok(())
    }

    fn status(&mut self, id: u32, extents: &[(u64, u64)]) -> Result<(), Violation> {
        if self.request.command != Command::BLOCK_STATUS {
            return Err(Violation::Reply("extents for a request that did not ask"));
        }
        if !self.contexts.contains(&id) {
            return Err(Violation::Reply("extents of a meta context that was not asked"));
        }
        if self.answered.contains(&id) {
            return Err(Violation::Reply("extents of one meta context twice"));
        }
        self.answered.push(id);
        // Servers tell more than was asked, longer than was asked and in odd places: `Extents` repairs that.
        if extents.is_empty() {
            return Err(Violation::Reply("a block status without extents"));
        }
        Ok(())
    }

    fn fail(&mut self, errno: Errno, text: &str, at: Option<u64>) -> Result<(), Violation> {
        if let Some(at) = at {
            let inside = at >= self.request.offset && self.request.end().is_some_and(|end| at < end);
            if !inside {
                return Err(Violation::Reply("an error at an offset outside the request"));
            }
        }
        if self.error.is_none() {
            self.error = Some(ReplyError { errno, text: text.to_owned(), at });
        }
        Ok(())
    }

    /// The last chunk is there: success must have told everything.
    fn end(&mut self) -> Result<Result<(), ReplyError>, Violation> {
        self.over = true;
        if let Some(error) = self.error.take() {
            return Ok(Err(error));
        }
        match self.request.command {
            Command::READ if self.request.length > 0 => {
                let whole = (self.request.offset, self.request.offset.saturating_add(self.request.length));
                if self.covered.as_slice() != [whole] {
                    return Err(Violation::Reply("a read that succeeds without all of its content"));
                }
            }
            Command::BLOCK_STATUS if self.answered.len() != self.contexts.len() => {
                return Err(Violation::Reply("a block status that leaves a meta context out"));
            }
            _ => {}
        }
        Ok(Ok(()))
    }
}
