//! The transmission phase: a task that receives, a task for each request, a task that sends.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use tokio::sync::{Notify, Semaphore};
use tokio_uring::buf::BoundedBuf;

use crate::Export;
use crate::stream::Stream;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const REQUEST: usize = 28;
const REPLY: usize = 16;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const FUA: u16 = 1;

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

/// `FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE`
const PUNCH_HOLE: i32 = 1 | 2;

/// Bytes that one receive may bring.
const RECEIVE: usize = 128 << 10;
/// What a request may carry, in either direction.
const PAYLOAD_MAX: u32 = 32 << 20;
/// Requests in flight on a connection; then its socket is not read.
const WINDOW: usize = 128;
/// Replies in one gathered write.
const GATHER: usize = 64;
/// Larger buffers are not worth keeping.
const POOLED_MAX: usize = (256 << 10) + REPLY;

struct Connection {
    stream: Stream,
    export: Rc<Export>,
    /// Whole replies, in the order in which they became ready.
    ready: RefCell<Vec<Vec<u8>>>,
    some_ready: Notify,
    window: Semaphore,
    /// Last in, first out: what is taken is what the processor's cache still has.
    pool: RefCell<Vec<Vec<u8>>>,
}

#[derive(Clone, Copy)]
struct Request {
    flags: u16,
    command: u16,
    cookie: [u8; 8],
    offset: u64,
    length: u32,
}

impl Request {
    fn parse(header: &[u8; REQUEST]) -> Option<Self> {
        let word = |at: usize| header[at..].first_chunk().copied().map(u32::from_be_bytes);
        let half = |at: usize| header[at..].first_chunk().copied().map(u16::from_be_bytes);
        (word(0)? == REQUEST_MAGIC).then_some(Self {
            flags: half(4)?,
            command: half(6)?,
            cookie: *header[8..].first_chunk()?,
            offset: u64::from_be_bytes(*header[16..].first_chunk()?),
            length: word(24)?,
        })
    }

    fn is_inside(&self, size: u64) -> bool {
        self.offset.checked_add(self.length.into()).is_some_and(|end| end <= size)
    }
}

/// Serves a connection until its client says goodbye or goes.
pub(crate) async fn serve(stream: Stream, export: Rc<Export>) -> io::Result<()> {
    let connection = Rc::new(Connection {
        stream,
        export,
        ready: RefCell::new(Vec::new()),
        some_ready: Notify::new(),
        window: Semaphore::new(WINDOW),
        pool: RefCell::new(Vec::new()),
    });
    let sender = tokio_uring::spawn(send(Rc::clone(&connection)));
    let result = receive(&connection).await;
    if result.is_ok() {
        // A request in flight has a permit: when all are here, all replies are sent, or the sender has given up.
        #[allow(clippy::cast_possible_truncation)]
        let _ = connection.window.acquire_many(WINDOW as u32).await;
    }
    connection.stream.shutdown();
    sender.abort();
    result
}

/// Takes requests from the socket, many at a time.
async fn receive(connection: &Rc<Connection>) -> io::Result<()> {
    let mut buf: Vec<u8> = Vec::with_capacity(RECEIVE);
    let mut at = 0;
    loop {
        while let Some(header) = buf.get(at..).and_then(<[u8]>::first_chunk::<REQUEST>) {
            let request = Request::parse(header).ok_or(io::ErrorKind::InvalidData)?;
            at += REQUEST;
            if request.command == DISC {
                return Ok(());
            }
            let carries = matches!(request.command, READ | WRITE);
            if carries && request.length > PAYLOAD_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match connection.window.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => return Ok(()),
            }
            let mut payload = connection.buffer(&request);
            if request.command == WRITE {
                let length = request.length as usize;
                let here = length.min(buf.len() - at);
                payload.extend_from_slice(&buf[at..at + here]);
                at += here;
                // What has not arrived is received into its place.
                let result;
                (result, payload) = connection.stream.append(payload, length - here).await;
                result?;
            }
            let connection = Rc::clone(connection);
            tokio_uring::spawn(async move { connection.answer(request, payload).await });
        }
        buf.drain(..at);
        at = 0;
        let start = buf.len();
        let (result, slice) = connection.stream.read(buf.slice(start..RECEIVE)).await;
        buf = slice.into_inner();
        result?;
    }
}

/// Sends replies: all that are ready with one write.
async fn send(connection: Rc<Connection>) {
    loop {
        let mut replies = connection.ready.take();
        if replies.is_empty() {
            connection.some_ready.notified().await;
            continue;
        }
        while !replies.is_empty() {
            let rest = replies.split_off(replies.len().min(GATHER));
            let count = replies.len();
            if connection.send_gathered(replies).await.is_err() {
                connection.stream.shutdown();
                // Nobody waits for what can not be sent.
                connection.window.close();
                return;
            }
            connection.window.add_permits(count);
            replies = rest;
        }
    }
}

impl Connection {
    /// A buffer that begins with the reply's header and has room for the payload.
    fn buffer(&self, request: &Request) -> Vec<u8> {
        let carries = matches!(request.command, READ | WRITE);
        let length = REPLY + if carries { request.length as usize } else { 0 };
        let mut buf = self.pool.borrow_mut().pop().unwrap_or_default();
        buf.clear();
        buf.reserve(length);
        buf.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
        buf.extend_from_slice(&[0; 4]);
        buf.extend_from_slice(&request.cookie);
        buf
    }

    fn recycle(&self, buf: Vec<u8>) {
        let mut pool = self.pool.borrow_mut();
        if buf.capacity() <= POOLED_MAX && pool.len() < WINDOW {
            pool.push(buf);
        }
    }

    async fn answer(&self, request: Request, buf: Vec<u8>) {
        let (result, mut buf) = self.carry_out(request, buf).await;
        if let Err(errno) = result {
            buf.truncate(REPLY);
            buf[4..8].copy_from_slice(&errno.to_be_bytes());
        }
        self.ready.borrow_mut().push(buf);
        self.some_ready.notify_one();
    }

    /// Leaves a whole reply in the buffer, but for the error.
    async fn carry_out(&self, request: Request, mut buf: Vec<u8>) -> (Result<(), u32>, Vec<u8>) {
        let file = &self.export.file;
        let end = REPLY + request.length as usize;
        if request.command != FLUSH && !request.is_inside(self.export.size) {
            return (Err(if request.command == READ { EINVAL } else { ENOSPC }), buf);
        }
        let mut result = match request.command {
            READ | WRITE if request.length == 0 => Ok(()),
            READ => {
                let (result, slice) = file.read_exact_at(buf.slice(REPLY..end), request.offset).await;
                buf = slice.into_inner();
                result
            }
            WRITE => {
                let (result, slice) = file.write_all_at(buf.slice(REPLY..end), request.offset).await;
                buf = slice.into_inner();
                buf.truncate(REPLY);
                result
            }
            FLUSH => file.sync_data().await,
            TRIM => file.fallocate(request.offset, request.length.into(), PUNCH_HOLE).await,
            _ => return (Err(ENOTSUP), buf),
        };
        if result.is_ok() && request.flags & FUA != 0 && matches!(request.command, WRITE | TRIM) {
            result = file.sync_data().await;
        }
        (result.map_err(|error| errno(&error)), buf)
    }

    /// Writes until all is sent; short writes happen with long replies.
    async fn send_gathered(&self, mut replies: Vec<Vec<u8>>) -> io::Result<()> {
        loop {
            let result;
            (result, replies) = self.stream.writev(replies).await;
            let mut sent = result?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let whole = replies.iter().take_while(|reply| {
                let fits = reply.len() <= sent;
                sent -= if fits { reply.len() } else { 0 };
                fits
            });
            let whole = whole.count();
            replies.drain(..whole).for_each(|reply| self.recycle(reply));
            if replies.is_empty() {
                return Ok(());
            }
            // A reply that went out in part is finished by itself, without moving its bytes.
            let mut first = replies.remove(0);
            while sent < first.len() {
                let (result, mut slices) = self.stream.writev(vec![first.slice(sent..)]).await;
                first = slices.pop().map(|slice| slice.into_inner()).unwrap_or_default();
                sent += result?;
            }
            self.recycle(first);
            if replies.is_empty() {
                return Ok(());
            }
        }
    }
}

/// What the wire has a word for.
fn errno(error: &io::Error) -> u32 {
    match error.raw_os_error() {
        Some(22) => EINVAL,
        Some(28 | 122) => ENOSPC,
        Some(95) => ENOTSUP,
        _ => EIO,
    }
}
