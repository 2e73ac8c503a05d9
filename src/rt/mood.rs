//! Whether a file system takes buffered writes at once, learned from how long they took.
//!
//! A write into the page cache is a copy of a few microseconds, less than a hand-over to a thread costs, until the file
//! system makes its writers wait: too much is dirty, a journal is full, the disk is dying. One write that was held up
//! shows it, and the writes after it go where they may wait:
//!
//! ```text
//!   calm --a write took STALL--> stalled for a pause: PAUSE, four times as long each time, up to PAUSE_MAX --> calm
//!     '--calm for ten times the last pause: the next one is PAUSE again
//! ```
//!
//! A thread that lost its processor for a moment looks the same, but only once: after a short pause the next write is
//! quick, whereas in a jam it is held up again.

use std::cell::Cell;

/// A write that takes longer was held up: the copy of the largest one that is tried takes some 50 us.
const STALL_NS: u64 = 1_000_000;
/// The first pause.
const PAUSE_NS: u64 = 20_000_000;
/// The longest pause: what a lasting jam costs the shard is one stall in so long.
const PAUSE_MAX_NS: u64 = 60_000_000_000;

/// What is known of one file.
#[derive(Debug, Default)]
pub(super) struct Mood {
    stalled_until_ns: Cell<u64>,
    pause_ns: Cell<u64>,
}

impl Mood {
    /// Whether writes return at once, as far as is known.
    pub(super) fn is_calm(&self, now_ns: u64) -> bool {
        now_ns >= self.stalled_until_ns.get()
    }

    /// A write took from `start_ns` to `end_ns`.
    pub(super) fn took(&self, start_ns: u64, end_ns: u64) {
        if end_ns - start_ns < STALL_NS {
            return;
        }
        let calm_ns = start_ns.saturating_sub(self.stalled_until_ns.get());
        let last_ns = if calm_ns < 10 * self.pause_ns.get() { self.pause_ns.get() } else { 0 };
        let pause_ns = (last_ns * 4).clamp(PAUSE_NS, PAUSE_MAX_NS);
        self.pause_ns.set(pause_ns);
        self.stalled_until_ns.set(end_ns + pause_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1_000 * MS;

    /// Writes held up whenever they are tried; when each was tried, in milliseconds.
    fn stalls(mood: &Mood, mut now_ns: u64, until_ns: u64) -> Vec<u64> {
        let mut seen = Vec::new();
        while now_ns < until_ns {
            if mood.is_calm(now_ns) {
                mood.took(now_ns, now_ns + 2 * MS);
                seen.push(now_ns / MS);
            }
            now_ns += 10 * MS;
        }
        seen
    }

    #[test]
    fn quick_writes_leave_it_calm() {
        let mood = Mood::default();
        mood.took(0, STALL_NS / 2);
        assert!(mood.is_calm(STALL_NS));
    }

    #[test]
    fn a_lasting_jam_is_tried_ever_more_rarely_and_a_new_one_soon_again() {
        let mood = Mood::default();
        let tried = stalls(&mood, 0, 200 * SECOND);
        assert_eq!(tried, [0, 30, 120, 450, 1_740, 6_870, 27_360, 87_370, 147_380]);
        let later_ns = 1_000 * SECOND;
        mood.took(later_ns, later_ns + 2 * MS);
        assert!(!mood.is_calm(later_ns + 10 * MS));
        assert!(mood.is_calm(later_ns + 30 * MS));
    }

    #[test]
    fn a_processor_lost_now_and_then_is_no_jam() {
        let mood = Mood::default();
        for second in 1..100 {
            mood.took(second * SECOND, second * SECOND + 4 * MS);
            assert!(mood.is_calm(second * SECOND + 25 * MS), "after {second} of them");
        }
    }
}
