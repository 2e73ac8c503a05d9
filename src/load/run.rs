//! What the connections of one run share, and the phases they go through together.
//!
//! ```text
//!   Running ---> Draining ---> ReadingBack ---> Leaving
//!   requests     replies       with --verify    DISC, end of the stream
//! ```
//!
//! One conductor (`drive`) changes the phase and wakes all; a phase ends when nothing is in flight on any connection. So no
//! connection has to guess whether another reply will come.

use std::cell::{Cell, RefCell};

use super::tally::Tally;
use super::verify::Ledger;
use crate::rt::sync::Event;

/// What connections do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Make requests.
    Running,
    /// Take replies.
    Draining,
    /// Read what was written.
    ReadingBack,
    /// Say goodbye.
    Leaving,
}

/// Shared by all connections of a run.
pub(super) struct Run {
    pub(super) tally: Tally,
    pub(super) ledger: Option<RefCell<Ledger>>,
    phase: Cell<Phase>,
    in_flight: Cell<u64>,
    /// Replies that ended a request, so that the conductor sees whether the server still answers.
    answered: Cell<u64>,
    connected: Cell<u32>,
    /// Connections that wait for a block that another request uses.
    blocked: Cell<u32>,
    fault: RefCell<Option<(u32, String)>>,
    /// For the connections: a new phase, or a block that is free again.
    pub(super) changed: Event,
    /// For the conductor: nothing in flight, a fault, or a connection that ended.
    pub(super) turned: Event,
}

impl Run {
    pub(super) fn new(connections: u32, ledger: Option<Ledger>) -> Self {
        Self {
            tally: Tally::new(),
            ledger: ledger.map(RefCell::new),
            phase: Cell::new(Phase::Running),
            in_flight: Cell::new(0),
            answered: Cell::new(0),
            connected: Cell::new(connections),
            blocked: Cell::new(0),
            fault: RefCell::new(None),
            changed: Event::new(),
            turned: Event::new(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.changed.notify();
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.get()
    }

    /// Whether nothing is in flight and, in the phase that reads back, nothing is left to be read.
    pub(super) fn is_settled(&self) -> bool {
        let is_read_back = || self.ledger.as_ref().is_none_or(|ledger| ledger.borrow_mut().is_read_back());
        self.in_flight.get() == 0 && (self.phase.get() != Phase::ReadingBack || is_read_back())
    }

    pub(super) fn answered(&self) -> u64 {
        self.answered.get()
    }

    pub(super) fn connected(&self) -> u32 {
        self.connected.get()
    }

    /// A request is on its way.
    pub(super) fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// A request was answered.
    pub(super) fn end(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.answered.set(self.answered.get() + 1);
        if self.phase.get() != Phase::Running && self.in_flight.get() == 0 {
            self.turned.notify();
        }
        if self.blocked.replace(0) > 0 {
            self.changed.notify();
        }
    }

    /// A connection found its next request's blocks in use; it is woken when any request ends.
    pub(super) fn block(&self) {
        self.blocked.set(self.blocked.get() + 1);
    }

    /// A connection has ended, well or not.
    pub(super) fn leave(&self, number: u32, result: Result<(), String>) {
        if let Err(fault) = result {
            self.fault.borrow_mut().get_or_insert((number, fault));
        }
        self.connected.set(self.connected.get() - 1);
        self.turned.notify();
    }

    /// The first fault, and the connection that had it.
    pub(super) fn fault(&self) -> Option<(u32, String)> {
        self.fault.borrow().clone()
    }
}
