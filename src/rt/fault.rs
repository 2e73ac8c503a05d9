//! Faults on purpose: any operation can come back short, interrupted, refused or late, from a printed seed.
//!
//! A plan is part of a shard's [`super::Config`]; without one the cost is a branch per operation. What a plan injects
//! is what kernels do: short transfers, `EINTR`, `EAGAIN`, `EIO`, `ENOSPC`, completions that come late and so in another
//! order.

use std::cell::Cell;
use std::time::Duration;

/// How often what happens, in operations out of 1,000, and the seed that decides which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Seed of the sequence; print it with every failure.
    pub seed: u64,
    /// Transfers cut to a random part of their length.
    pub short: u32,
    /// Operations answered `EINTR` or `EAGAIN` without being done.
    pub interrupted: u32,
    /// File operations answered `EIO` (reads, fsync) or `ENOSPC` (writes, fallocate) without being done.
    pub failed: u32,
    /// Operations that complete up to a millisecond late, after others that were submitted behind them.
    pub late: u32,
}

/// What an operation does to storage or network; decides which faults fit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Sync,
    Allocate,
    Receive,
    Send,
}

/// The verdict on one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Do it, but at most so many bytes.
    Transfer(usize),
    /// Do not do it; answer this errno.
    Refuse(i32),
    /// Wait, then ask again.
    Late(Duration),
}

/// A plan at work on one shard.
pub(super) struct Faults {
    plan: Plan,
    state: Cell<u64>,
}

impl Faults {
    pub(super) fn new(plan: Plan) -> Self {
        Self { plan, state: Cell::new(plan.seed) }
    }

    /// SplitMix64: one 64-bit state, every seed is good.
    fn draw(&self) -> u64 {
        let state = self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.state.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn judge(&self, kind: Kind, length: usize) -> Verdict {
        let plan = &self.plan;
        let is_file = !matches!(kind, Kind::Receive | Kind::Send);
        let transfers = matches!(kind, Kind::Read | Kind::Write | Kind::Receive | Kind::Send);
        let mut dice = u32::try_from(self.draw() % 1000).unwrap_or_default();
        let mut falls_in = |share: u32| {
            let inside = dice < share;
            dice = dice.wrapping_sub(share);
            inside
        };
        if falls_in(plan.late) {
            return Verdict::Late(Duration::from_micros(1 + self.draw() % 1000));
        }
        if falls_in(plan.interrupted) {
            return Verdict::Refuse(if self.draw() & 1 == 0 { libc::EINTR } else { libc::EAGAIN });
        }
        if is_file && falls_in(plan.failed) {
            let full = matches!(kind, Kind::Write | Kind::Allocate);
            return Verdict::Refuse(if full { libc::ENOSPC } else { libc::EIO });
        }
        if transfers && length > 1 && falls_in(plan.short) {
            let part = usize::try_from(self.draw()).unwrap_or(usize::MAX) % (length - 1);
            return Verdict::Transfer(part + 1);
        }
        Verdict::Transfer(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        let plan = Plan { seed: 7, short: 200, interrupted: 200, failed: 200, late: 100 };
        let (one, two) = (Faults::new(plan), Faults::new(plan));
        let mut seen = [0; 3];
        for _ in 0..1000 {
            let verdict = one.judge(Kind::Write, 4096);
            assert_eq!(verdict, two.judge(Kind::Write, 4096));
            match verdict {
                Verdict::Transfer(n) => {
                    assert!((1..=4096).contains(&n));
                    seen[0] += 1;
                }
                Verdict::Refuse(errno) => {
                    assert!([libc::EINTR, libc::EAGAIN, libc::ENOSPC].contains(&errno));
                    seen[1] += 1;
                }
                Verdict::Late(_) => seen[2] += 1,
            }
        }
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
    }

    #[test]
    fn without_a_plan_nothing_happens() {
        let faults = Faults::new(Plan::default());
        assert!((0..1000).all(|_| faults.judge(Kind::Read, 512) == Verdict::Transfer(512)));
    }
}
