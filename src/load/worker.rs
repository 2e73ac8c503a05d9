//! One connection under load: a task that sends what is free to be sent, a task that takes replies.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use hdrhistogram::Histogram;

use super::Plan;
use super::workload::Sequence;
use crate::client::Connection;
use crate::net::Inbox;
use crate::proto::{Command, CommandFlags, Dialect, Errno, Reply, ReplyBody, Request};
use crate::rt::gather::Gather;
use crate::rt::net::Socket;
use crate::rt::sync::{Event, Queue};
use crate::rt::{self, Buffer};

/// What all connections of a run add up to.
pub(super) struct Tally {
    pub(super) reads: RefCell<Histogram<u64>>,
    pub(super) writes: RefCell<Histogram<u64>>,
    pub(super) bytes: Cell<u64>,
    workers: Cell<u32>,
    counting: Cell<bool>,
    stopping: Cell<bool>,
    fault: RefCell<Option<(u32, String)>>,
}

impl Tally {
    pub(super) fn new(workers: u32) -> Self {
        let histogram = || RefCell::new(crate::metrics::histogram());
        Self {
            reads: histogram(),
            writes: histogram(),
            bytes: Cell::new(0),
            workers: Cell::new(workers),
            counting: Cell::new(false),
            stopping: Cell::new(false),
            fault: RefCell::new(None),
        }
    }

    pub(super) fn start_counting(&self) {
        self.counting.set(true);
    }

    /// No further requests; what is in flight is not counted.
    pub(super) fn stop(&self) {
        self.counting.set(false);
        self.stopping.set(true);
    }

    pub(super) fn workers_left(&self) -> u32 {
        self.workers.get()
    }

    pub(super) fn fault(&self) -> Option<(u32, String)> {
        self.fault.borrow().clone()
    }

    fn record(&self, command: Command, ns: u64, bytes: u64) {
        if self.counting.get() {
            let histogram = if command == Command::READ { &self.reads } else { &self.writes };
            histogram.borrow_mut().saturating_record(ns);
            self.bytes.set(self.bytes.get() + bytes);
        }
    }
}

/// A request in flight; its index is its cookie.
#[derive(Clone, Copy)]
struct Slot {
    command: Command,
    started_ns: u64,
    in_flight: bool,
}

struct Worker {
    number: u32,
    bs: u32,
    dialect: Dialect,
    socket: Rc<Socket>,
    sequence: RefCell<Sequence>,
    slots: RefCell<Vec<Slot>>,
    free: Queue<usize>,
    in_flight: Cell<usize>,
    tally: Rc<Tally>,
}

/// Starts a connection's two tasks; `done` is notified when both have ended.
pub(super) fn start(number: u32, connection: Connection, plan: &Plan, tally: Rc<Tally>, done: Rc<Event>) {
    let Connection { link, inbox, socket } = connection;
    let idle = Slot { command: Command::READ, started_ns: 0, in_flight: false };
    let worker = Rc::new(Worker {
        number,
        bs: plan.workload.bs,
        dialect: link.dialect,
        socket,
        sequence: RefCell::new(Sequence::new(plan.workload, link.size, number, plan.connections)),
        slots: RefCell::new(vec![idle; plan.iodepth as usize]),
        free: Queue::new(),
        in_flight: Cell::new(0),
        tally,
    });
    for slot in 0..plan.iodepth as usize {
        worker.free.push(slot);
    }
    rt::spawn(send(Rc::clone(&worker)));
    rt::spawn(async move {
        if let Err(fault) = receive(&worker, inbox).await {
            worker.tally.fault.borrow_mut().get_or_insert((worker.number, fault));
        }
        worker.tally.workers.set(worker.tally.workers.get() - 1);
        done.notify();
    });
}

async fn send(worker: Rc<Worker>) {
    let mut gather = Box::new(Gather::new());
    loop {
        worker.free.ready(|| worker.tally.stopping.get()).await;
        if worker.tally.stopping.get() {
            break;
        }
        let now = rt::clock_ns();
        while let Some(slot) = worker.free.pop() {
            let (command, offset) = worker.sequence.borrow_mut().draw();
            worker.slots.borrow_mut()[slot] = Slot { command, started_ns: now, in_flight: true };
            worker.in_flight.set(worker.in_flight.get() + 1);
            let length = u64::from(worker.bs);
            let payload = if command == Command::WRITE { length } else { 0 };
            let request =
                Request { command, flags: CommandFlags::NONE, cookie: slot as u64, offset, length, payload };
            let head = request.encode(worker.dialect);
            if command == Command::WRITE {
                let mut buffer = Buffer::scratch(worker.bs as usize);
                buffer.set_head(&head);
                gather.buffer(buffer);
            } else {
                gather.bytes(&head);
            }
        }
        let (result, back) = worker.socket.send(gather).await;
        gather = back;
        gather.clear();
        if result.is_err() {
            return; // the receiving side says what happened
        }
    }
    if worker.in_flight.get() == 0 {
        worker.socket.shutdown();
    }
}

async fn receive(worker: &Worker, mut inbox: Inbox) -> Result<(), String> {
    while !worker.tally.stopping.get() || worker.in_flight.get() > 0 {
        let decoded =
            Reply::decode(worker.dialect, inbox.bytes()).map_err(|violation| violation.to_string())?;
        let Some((reply, length)) = decoded else {
            match inbox.fill(inbox.bytes().len().max(31) + 1).await {
                Ok(true) => continue,
                Ok(false) if worker.in_flight.get() == 0 => return Ok(()),
                Ok(false) => return Err("the server ended the connection".to_owned()),
                Err(error) => return Err(format!("cannot receive: {error}")),
            }
        };
        inbox.consume(length);
        take(worker, &mut inbox, reply).await?;
    }
    // The send task may wait for a free slot: it ends when it looks.
    worker.free.notify();
    let disconnect = Request {
        command: Command::DISC,
        flags: CommandFlags::NONE,
        cookie: 0,
        offset: 0,
        length: 0,
        payload: 0,
    };
    let mut gather = Box::new(Gather::new());
    gather.bytes(&disconnect.encode(worker.dialect));
    // A server that is gone already needs no goodbye.
    let _ = worker.socket.send(gather).await;
    Ok(())
}

async fn take(worker: &Worker, inbox: &mut Inbox, reply: Reply) -> Result<(), String> {
    let index = usize::try_from(reply.cookie).unwrap_or(usize::MAX);
    let slot = worker.slots.borrow().get(index).copied().filter(|slot| slot.in_flight);
    let slot =
        slot.ok_or_else(|| format!("a reply with cookie {:#x}, which is not in flight", reply.cookie))?;
    let data = match reply.body {
        ReplyBody::Simple(Errno::OK) if slot.command == Command::READ => u64::from(worker.bs),
        ReplyBody::Simple(Errno::OK)
        | ReplyBody::None
        | ReplyBody::Hole { .. }
        | ReplyBody::Status { .. } => 0,
        ReplyBody::Data { length, .. } => length,
        ReplyBody::Simple(errno) => return Err(format!("{} failed: {errno}", slot.command)),
        ReplyBody::Error { errno, text, .. } => {
            return Err(format!("{} failed: {errno}: {text}", slot.command));
        }
    };
    inbox.skip(data).await.map_err(|error| format!("cannot receive: {error}"))?;
    if reply.done {
        worker.slots.borrow_mut()[index].in_flight = false;
        worker.in_flight.set(worker.in_flight.get() - 1);
        worker.tally.record(slot.command, rt::now_ns().saturating_sub(slot.started_ns), worker.bs.into());
        worker.free.push(index);
    }
    Ok(())
}
