//! One connection under load: a task that sends what may be sent, a task that takes replies.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::job::{Job, Next};
use super::run::{Phase, Run};
use crate::client::{Connection, Inbox, Line};
use crate::proto::{Command, CommandFlags, Dialect, Reply, Request};
use crate::rt::gather::Gather;
use crate::rt::sync::{Event, select};
use crate::rt::{self, Buffer, timer};

/// Bytes gathered for one send, so that the first request of a large batch does not wait for the last.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Longest reply header without text, which replies that fit nowhere else are received for.
const REPLY_HEAD_MAX: usize = 32;

pub(super) struct Worker {
    number: u32,
    dialect: Dialect,
    pub(super) line: Line,
    pub(super) job: RefCell<Job>,
    run: Rc<Run>,
    /// A reply has ended a request.
    ended: Event,
}

/// Starts a connection's two tasks; [`Run::leave`] is called when the connection has ended.
pub(super) fn start(number: u32, connection: Connection, job: Job, run: Rc<Run>, payload: u32) -> Rc<Worker> {
    let Connection { link, inbox, line } = connection;
    let worker = Rc::new(Worker {
        number,
        dialect: link.dialect,
        line,
        job: RefCell::new(job),
        run,
        ended: Event::new(),
    });
    rt::spawn(send(Rc::clone(&worker), payload));
    let receiving = Rc::clone(&worker);
    rt::spawn(async move {
        let result = receive(&receiving, inbox).await;
        receiving.run.leave(receiving.number, result);
    });
    worker
}

async fn send(worker: Rc<Worker>, payload: u32) {
    let mut gather = Box::new(Gather::new());
    // What writes carry when nobody checks it: random once, so that no server takes it for zeroes.
    let mut payload = random_payload(payload);
    loop {
        // Taken before anything is looked at: what happens meanwhile is not missed.
        let (ended, changed) = (worker.ended.wait(), worker.run.changed.wait());
        let idle = worker.gather(&mut gather, &mut payload);
        if gather.is_empty() {
            match idle {
                Next::Leave => break,
                Next::WaitUntil(at_ns) => {
                    let left = Duration::from_nanos(at_ns.saturating_sub(rt::clock_ns()));
                    select(select(ended, changed), timer::sleep(left)).await;
                }
                Next::Wait | Next::Send(_) => {
                    select(ended, changed).await;
                }
            }
            continue;
        }
        let (result, back) = worker.line.send(gather).await;
        gather = back;
        if worker.run.ledger.is_none() {
            payload = gather.reclaim().or(payload);
        }
        gather.clear();
        if result.is_err() {
            return; // the receiving side says what happened
        }
    }
    let (command, flags) = (Command::DISC, CommandFlags::NONE);
    let goodbye = Request { command, flags, cookie: 0, offset: 0, length: 0, payload: 0 };
    gather.bytes(&goodbye.encode(worker.dialect));
    // A server that is gone already needs no goodbye.
    let _ = worker.line.send(gather).await;
    worker.line.farewell().await;
}

impl Worker {
    /// Gathers all that may be sent now, and says what ended that.
    fn gather(&self, gather: &mut Gather, payload: &mut Option<Buffer>) -> Next {
        let mut job = self.job.borrow_mut();
        let now_ns = rt::clock_ns();
        loop {
            if gather.len() >= BATCH_BYTES_MAX {
                return Next::Wait;
            }
            let request = match job.next(now_ns) {
                Next::Send(request) => request,
                idle => return idle,
            };
            let head = request.encode(self.dialect);
            let length = usize::try_from(request.payload).unwrap_or(0);
            match &self.run.ledger {
                _ if length == 0 => gather.bytes(&head),
                Some(ledger) => {
                    let mut buffer = Buffer::scratch(length);
                    ledger.borrow().fill(request.offset, &mut buffer);
                    buffer.set_head(&head);
                    gather.buffer(buffer);
                }
                None => {
                    if let Some(payload) = payload.take() {
                        gather.hold(payload);
                    }
                    gather.bytes(&head);
                    gather.part(0..length);
                }
            }
        }
    }
}

fn random_payload(length: u32) -> Option<Buffer> {
    (length > 0).then(|| {
        let mut buffer = Buffer::scratch(length as usize);
        SplitMix64::seed_from_u64(u64::from(length)).fill_bytes(&mut buffer);
        buffer
    })
}

async fn receive(worker: &Worker, mut inbox: Inbox) -> Result<(), String> {
    loop {
        let decoded =
            Reply::decode(worker.dialect, inbox.bytes()).map_err(|violation| violation.to_string())?;
        if let Some((reply, length)) = decoded {
            inbox.consume(length);
            take(worker, &mut inbox, &reply).await?;
            continue;
        }
        let want = inbox.bytes().len().max(REPLY_HEAD_MAX - 1) + 1;
        match inbox.fill(want).await {
            Ok(true) => {}
            _ if worker.run.phase() == Phase::Leaving => return Ok(()),
            Ok(false) => {
                let in_flight = worker.job.borrow().in_flight();
                return Err(format!("the server ended the connection ({in_flight} requests in flight)"));
            }
            Err(error) => return Err(format!("cannot receive: {error}")),
        }
    }
}

async fn take(worker: &Worker, inbox: &mut Inbox, reply: &Reply) -> Result<(), String> {
    let (data, ends) = worker.job.borrow_mut().accept(reply)?;
    if let Some((offset, length)) = data {
        let content = worker.job.borrow_mut().take_content(reply.cookie);
        let result = match content {
            None => inbox.skip(length).await,
            Some((content, start)) => {
                let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
                let range = at..at + usize::try_from(length).unwrap_or(usize::MAX);
                let (result, content) = inbox.read_exact(content, range).await;
                worker.job.borrow_mut().put_content(reply.cookie, content);
                result
            }
        };
        result.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "the server ended the connection within a reply".to_owned(),
            _ => format!("cannot receive: {error}"),
        })?;
    }
    if ends {
        worker.job.borrow_mut().end(reply.cookie, rt::now_ns())?;
        worker.ended.notify();
    }
    Ok(())
}
