//! Operations that move much at once: one for each turn of the loop, and small ones go first.
//!
//! What is in the page cache, or fits into a socket, is copied while the ring is entered, and the shard stands still: some
//! 50 us for 256 KiB. A turn that did all that is asked for would let everybody wait for the sum of it, at each of the
//! three turns that a small request takes (its arrival, its read, its reply). So these operations stand in a line:
//!
//! ```text
//!   light: pushed as they come ------------------------------.
//!   heavy: [read 256k][send 256k][read 256k] --one, unless ---'--> io_uring_enter
//!                                              something light is there that has not gone first [`OVERTAKEN_MAX`] times
//! ```
//!
//! The line is one for all connections, so whoever asks for much waits until it is empty before asking for more
//! ([`super::line_empty`]); else a deep queue of one would be a long line for the others. And while others are there, what
//! is long goes in smaller pieces than is cheapest ([`Line::piece`]).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use io_uring::squeue;

/// Bytes from which on an operation is heavy: some 12 us of copying.
pub(super) const HEAVY_MIN: usize = 64 << 10;
/// Turns in a row that have light operations only while heavy ones wait: a small request's arrival, read and reply.
const OVERTAKEN_MAX: u32 = 3;

/// Bytes of one piece where nobody is kept waiting: 256k reads at depth 16 over TCP took 220 us of CPU each when a message
/// could have 1 MiB, 203 with 256 KiB, 151 with this.
const PIECE: usize = 128 << 10;
/// The same beside small requests: over TCP their p99 is 2.9 times what it is alone, and 3.6 times with [`PIECE`]; large reads
/// take a tenth more CPU.
const PIECE_BESIDE: usize = 64 << 10;
/// Heavy operations for which it is remembered that there was a small transfer.
const BESIDE_FOR: u32 = 256;

/// Heavy operations that are not submitted yet.
#[derive(Default)]
pub(super) struct Line {
    waiting: RefCell<VecDeque<squeue::Entry>>,
    overtaken: Cell<u32>,
    /// Heavy operations until small transfers are forgotten.
    beside: Cell<u32>,
}

impl Line {
    pub(super) fn push(&self, sqe: squeue::Entry) {
        self.waiting.borrow_mut().push_back(sqe);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Bytes after which what is long lets others in.
    pub(super) fn piece(&self) -> usize {
        if self.beside.get() > 0 { PIECE_BESIDE } else { PIECE }
    }

    /// There was a small transfer.
    pub(super) fn met_small(&self) {
        self.beside.set(BESIDE_FOR);
    }

    /// The heavy operation of this turn; `light` says that something else is to be submitted or to be reaped in it.
    pub(super) fn next(&self, light: bool) -> Option<squeue::Entry> {
        if self.is_empty() {
            return None;
        }
        let overtaken = self.overtaken.get();
        if light && overtaken < OVERTAKEN_MAX {
            self.overtaken.set(overtaken + 1);
            return None;
        }
        self.overtaken.set(0);
        self.beside.set(self.beside.get().saturating_sub(1));
        self.waiting.borrow_mut().pop_front()
    }
}

#[cfg(test)]
mod tests {
    use io_uring::opcode;

    use super::*;

    fn line(count: u64) -> Line {
        let line = Line::default();
        (0..count).for_each(|number| line.push(opcode::Nop::new().build().user_data(number)));
        line
    }

    fn next(line: &Line, light: bool) -> Option<u64> {
        line.next(light).map(|sqe| sqe.get_user_data())
    }

    #[test]
    fn light_operations_go_first_but_not_for_ever() {
        let line = line(2);
        let turns: Vec<_> = (0..8).map(|_| next(&line, true)).collect();
        assert_eq!(turns, [None, None, None, Some(0), None, None, None, Some(1)]);
        assert!(line.is_empty());
    }

    #[test]
    fn heavy_operations_alone_go_one_by_one_in_order() {
        let line = line(2);
        assert_eq!((next(&line, false), next(&line, false)), (Some(0), Some(1)));
        assert_eq!((next(&line, false), next(&line, true)), (None, None));
    }

    #[test]
    fn pieces_are_smaller_while_small_transfers_are_there() {
        let line = line(1000);
        next(&line, true);
        assert_eq!(line.piece(), PIECE, "what is light may belong to a heavy operation");
        line.met_small();
        assert_eq!(line.piece(), PIECE_BESIDE);
        for _ in 0..BESIDE_FOR + 2 {
            next(&line, false);
        }
        assert_eq!(line.piece(), PIECE);
    }
}
