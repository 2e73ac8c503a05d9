//! Every NBD command on one screen.
//!
//! A request comes here admitted (`proto::Session::admit`), with its payload if it has one, and leaves answered. Nobody
//! below checks it again.

use std::borrow::Cow;

use super::conn::{Body, Pending, Piece};
use super::export::{CONTEXT_ALLOCATION, CONTEXT_DEPTH, Export};
use super::transport::Way;
use crate::backend::{Backend, Extent, Extents, Failure, Nbd, Runs, Zero};
use crate::proto::reply::{self, Head};
use crate::proto::{AllocationFlags, Command, CommandFlags, Dialect, Errno, Request, SelectedContext};
use crate::rt::{self, Buffer};

type Answer = Result<Body, Failure>;

/// Starts a request; it is answered when its task ends.
pub(super) fn start(pending: Pending, payload: Option<Buffer>) {
    match pending.request.command {
        Command::READ => answer_with(pending, read),
        Command::WRITE => answer_with(pending, async |pending| write(pending, payload).await),
        Command::FLUSH => answer_with(pending, flush),
        Command::TRIM => answer_with(pending, trim),
        Command::WRITE_ZEROES => answer_with(pending, write_zeroes),
        Command::CACHE => answer_with(pending, cache),
        Command::BLOCK_STATUS => answer_with(pending, block_status),
        command => fail(pending, &unadmitted(command)),
    }
}

/// One task for each request; each command has a task of its own size, so that none is boxed for the sake of another.
fn answer_with(pending: Pending, act: impl AsyncFnOnce(&Pending) -> Answer + 'static) {
    rt::spawn(async move {
        match act(&pending).await {
            Ok(body) => pending.answer(body),
            Err(failure) => fail(pending, &failure),
        }
    });
}

async fn read(pending: &Pending) -> Answer {
    let request = &pending.request;
    if request.flags.contains(CommandFlags::FUA) {
        let _timing = pending.timing();
        backend(pending).flush().await?;
    }
    let length = payload_length(request)?;
    if length == 0 {
        return Ok(done(pending));
    }
    if may_have_holes(pending, length)
        && let Some(runs) = Box::pin(holes(pending, length)).await
    {
        return Box::pin(read_sparse(pending, &runs)).await;
    }
    if let Backend::Nbd(nbd) = backend(pending)
        && tells_holes(pending)
    {
        return Box::pin(read_told(pending, nbd, length)).await;
    }
    if let Some(body) = cached(pending, length) {
        return Ok(body);
    }
    let buffer = match Buffer::try_acquire(length as usize) {
        Some(buffer) => buffer,
        None => Box::pin(pending.conn.payload(length as usize)).await,
    };
    let timing = pending.timing();
    let (result, mut buffer) = backend(pending).read(buffer, request.offset).await;
    drop(timing);
    result?;
    buffer.set_head(&reply::data(pending.conn.session.dialect, request, request.offset, length, true));
    Ok(Body::Buffer(buffer))
}

async fn write(pending: &Pending, payload: Option<Buffer>) -> Answer {
    let Some(buffer) = payload else { return Ok(done(pending)) };
    let _timing = pending.timing();
    backend(pending).write(buffer, pending.request.offset, fua(pending)).await.0?;
    Ok(done(pending))
}

async fn flush(pending: &Pending) -> Answer {
    let _timing = pending.timing();
    backend(pending).flush().await?;
    Ok(done(pending))
}

async fn trim(pending: &Pending) -> Answer {
    let Request { offset, length, .. } = pending.request;
    let _timing = pending.timing();
    if length > 0 {
        backend(pending).trim(offset, length, fua(pending)).await?;
    }
    Ok(done(pending))
}

async fn write_zeroes(pending: &Pending) -> Answer {
    let Request { offset, length, flags, .. } = pending.request;
    let how = Zero {
        may_punch: !flags.contains(CommandFlags::NO_HOLE),
        fast_only: flags.contains(CommandFlags::FAST_ZERO),
    };
    let _timing = pending.timing();
    if length > 0 {
        backend(pending).zero(offset, length, how, fua(pending)).await?;
    }
    Ok(done(pending))
}

async fn cache(pending: &Pending) -> Answer {
    let Request { offset, length, .. } = pending.request;
    let _timing = pending.timing();
    if length > 0 {
        backend(pending).cache(offset, length).await?;
    }
    Ok(done(pending))
}

async fn block_status(pending: &Pending) -> Answer {
    let (request, session) = (&pending.request, &pending.conn.session);
    let one = request.flags.contains(CommandFlags::REQ_ONE);
    let extents_max = if one { 1 } else { pending.conn.shard.limits.extents_max };
    let wanted = |id: u32| pending.filter.is_empty() || pending.filter.contains(&id);
    let contexts: Vec<_> = session.contexts.iter().filter(|context| wanted(context.id)).collect();
    let timing = pending.timing();
    let statuses = statuses(pending, &contexts, extents_max).await?;
    drop(timing);
    let mut bytes = Vec::new();
    for (index, (context, status)) in contexts.iter().zip(statuses).enumerate() {
        let last = index + 1 == contexts.len();
        reply::block_status(&mut bytes, session.dialect, request, context.id, &status, last);
    }
    Ok(Body::Bytes(bytes))
}

/// What each of the contexts says of the range.
async fn statuses(
    pending: &Pending,
    contexts: &[&SelectedContext],
    extents_max: usize,
) -> Result<Vec<Runs>, Failure> {
    let Request { offset, length, .. } = pending.request;
    let numbers = contexts.iter().map(|context| context.number);
    if let Backend::Nbd(nbd) = backend(pending) {
        let numbers: Vec<_> = numbers.collect();
        return Box::pin(nbd.status(&numbers, offset, length, extents_max)).await;
    }
    let extents = backend(pending).extents(offset, length, extents_max).await?;
    let of = |number| extents.iter().map(|extent| (extent.length, status_of(number, extent))).collect();
    Ok(numbers.map(of).collect())
}

/// An extent as a context sees it.
fn status_of(context: usize, extent: &Extent) -> u64 {
    match context {
        CONTEXT_ALLOCATION => {
            let hole = if extent.hole { AllocationFlags::HOLE.0 } else { 0 };
            let zero = if extent.zero { AllocationFlags::ZERO.0 } else { 0 };
            u64::from(hole | zero)
        }
        // One layer: allocated in it (1), or nowhere (0).
        CONTEXT_DEPTH => u64::from(!extent.hole),
        _ => 0,
    }
}

/// The answer as the page cache has it, for a read that is large enough.
fn cached(pending: &Pending, length: u32) -> Option<Body> {
    let (request, conn) = (&pending.request, &pending.conn);
    if length < conn.shard.limits.zero_copy_min || conn.link.way.get() == Way::Buffer {
        return None;
    }
    let cached = backend(pending).cached(request.offset, length as usize)?;
    Some(Body::Cached(reply::data(conn.session.dialect, request, request.offset, length, true), cached))
}

/// Whether the reply may tell of holes.
fn tells_holes(pending: &Pending) -> bool {
    pending.conn.session.dialect != Dialect::Simple && !pending.request.flags.contains(CommandFlags::DF)
}

/// Whether it pays to ask for holes before reading.
fn may_have_holes(pending: &Pending, length: u32) -> bool {
    length >= pending.conn.shard.limits.sparse_read_min
        && tells_holes(pending)
        && !backend(pending).known_data(pending.request.offset, u64::from(length))
}

/// The runs of the range, if at least one of them reads as zeroes without being read. Beyond `sparse_runs_max` all is
/// data.
async fn holes(pending: &Pending, length: u32) -> Option<Extents> {
    let runs_max = pending.conn.shard.limits.sparse_runs_max;
    let timing = pending.timing();
    // Whoever cannot tell holes from data reads everything; if that fails too, it says why.
    let mut runs =
        backend(pending).extents(pending.request.offset, u64::from(length), runs_max).await.ok()?;
    drop(timing);
    let mut left = u64::from(length);
    for run in &mut runs {
        run.length = run.length.min(left);
        left -= run.length;
    }
    runs.retain(|run| run.length > 0);
    if left > 0 {
        runs.push(Extent { length: left, hole: false, zero: false });
    }
    runs.iter().any(|run| run.zero).then_some(runs)
}

/// Holes as OFFSET_HOLE, data as OFFSET_DATA; each run of data is read into a buffer of its own that is sent as it is.
async fn read_sparse(pending: &Pending, runs: &Extents) -> Answer {
    let (request, dialect) = (&pending.request, pending.conn.session.dialect);
    let lengths: Vec<_> =
        runs.iter().filter(|run| !run.zero).filter_map(|run| run.length.try_into().ok()).collect();
    let buffers = if lengths.is_empty() { Vec::new() } else { pending.conn.payloads(&lengths).await };
    let mut buffers = buffers.into_iter();
    let mut pieces = Vec::with_capacity(runs.len());
    let mut offset = request.offset;
    for (index, run) in runs.iter().enumerate() {
        let last = index + 1 == runs.len();
        let length = u32::try_from(run.length).unwrap_or(u32::MAX);
        let buffer = if run.zero { None } else { buffers.next() };
        match buffer {
            Some(buffer) => {
                let timing = pending.timing();
                let (result, mut buffer) = backend(pending).read(buffer, offset).await;
                drop(timing);
                result?;
                buffer.set_head(&reply::data(dialect, request, offset, length, last));
                pieces.push(Piece::Buffer(buffer));
            }
            None => pieces.push(Piece::Head(reply::hole(dialect, request, offset, length, last))),
        }
        offset += run.length;
    }
    Ok(Body::Pieces(pieces))
}

/// Holes as another server tells them while it is read: no question before, no zeroes after.
async fn read_told(pending: &Pending, nbd: &Nbd, length: u32) -> Answer {
    let (request, dialect) = (&pending.request, pending.conn.session.dialect);
    let buffer = pending.conn.payload(length as usize).await;
    let timing = pending.timing();
    let (result, mut buffer) = nbd.read_sparse(buffer, request.offset).await;
    drop(timing);
    let holes = result?;
    if holes.is_empty() {
        buffer.set_head(&reply::data(dialect, request, request.offset, length, true));
        return Ok(Body::Buffer(buffer));
    }
    let end = request.offset + u64::from(length);
    let mut parts = Vec::with_capacity(2 * holes.len() + 1);
    let mut at = request.offset;
    let none = end..end;
    for hole in holes.iter().chain([&none]) {
        let (before, inside) = (short(hole.start - at), short(hole.end - hole.start));
        if before > 0 {
            let start = short(at - request.offset) as usize;
            let last = hole.start == end;
            let head = reply::data(dialect, request, at, before, last);
            parts.push((head, start..start + before as usize));
        }
        if inside > 0 {
            parts.push((reply::hole(dialect, request, hole.start, inside, hole.end == end), 0..0));
        }
        at = hole.end;
    }
    Ok(Body::Parts(buffer, parts))
}

/// A length within a request's own.
fn short(length: u64) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn backend(pending: &Pending) -> &Backend {
    &export(pending).backend
}

fn export(pending: &Pending) -> &Export {
    pending.conn.export()
}

/// Whether the change has to be durable before its reply.
fn fua(pending: &Pending) -> bool {
    export(pending).writethrough || pending.request.flags.contains(CommandFlags::FUA)
}

fn done(pending: &Pending) -> Body {
    let head: Head = reply::done(pending.conn.session.dialect, &pending.request);
    Body::Head(head)
}

/// Admission keeps reads to the maximum payload, which has 32 bits.
fn payload_length(request: &Request) -> Result<u32, Failure> {
    u32::try_from(request.length).map_err(|_| Failure {
        errno: libc::EOVERFLOW,
        text: Cow::Borrowed("the read is too long"),
        at: None,
    })
}

fn unadmitted(command: Command) -> Failure {
    Failure {
        errno: libc::EINVAL,
        text: Cow::Owned(format!("{command} is not a command of this server")),
        at: None,
    }
}

/// Tells the client as much as the wire can say, and the operator the cause.
fn fail(pending: Pending, failure: &Failure) {
    let Request { command, offset, length, .. } = pending.request;
    let cause = std::io::Error::from_raw_os_error(failure.errno);
    pending.conn.shard.warn_of_failure(format_args!(
        "{}: {command} of {length} bytes at {offset}: {} ({cause})",
        pending.conn.link.peer, failure.text
    ));
    pending.refuse(Errno::from_os(failure.errno), &failure.text, failure.at);
}
