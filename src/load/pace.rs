//! When requests are to start.
//!
//! ```text
//!   closed loop   as soon as there is a place              start = when it is sent
//!   open loop     start + k / rate, whatever the replies   start = when it was due
//! ```
//!
//! In the open loop a request that has to wait for a place, because the server is late with others, is late itself from
//! the moment it was due: no omission is coordinated with the server.

const SECOND_NS: u128 = 1_000_000_000;

/// The schedule of one connection, in nanoseconds on the shard's clock.
pub(super) enum Pace {
    /// Closed loop.
    Closed,
    /// Open loop.
    Open {
        /// When request 0 is due.
        start_ns: u64,
        /// Requests for each second.
        rate: u32,
        /// Requests begun.
        begun: u64,
    },
}

/// Whether a request may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Yes, and its latency counts from then.
    Since(u64),
    /// Not before then.
    At(u64),
}

impl Pace {
    /// The schedule of connection `number` of `connections`. Their requests interleave.
    pub(super) fn new(rate: Option<u32>, now_ns: u64, number: u32, connections: u32) -> Self {
        let Some(rate) = rate else { return Self::Closed };
        let rate = rate.max(1);
        let share = SECOND_NS * u128::from(number) / (u128::from(rate) * u128::from(connections.max(1)));
        let start_ns = now_ns.saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
        Self::Open { start_ns, rate, begun: 0 }
    }

    /// Whether the next request may start.
    pub(super) fn due(&self, now_ns: u64) -> Due {
        match self {
            Self::Closed => Due::Since(now_ns),
            Self::Open { start_ns, rate, begun } => match at(*start_ns, *rate, *begun) {
                due if due > now_ns => Due::At(due),
                due => Due::Since(due),
            },
        }
    }

    /// The next request has started.
    pub(super) fn begin(&mut self) {
        if let Self::Open { begun, .. } = self {
            *begun += 1;
        }
    }

    /// Requests that were due before `end_ns` and did not start.
    pub(super) fn unsent(&self, end_ns: u64) -> u64 {
        let Self::Open { start_ns, rate, begun } = self else { return 0 };
        let span = u128::from(end_ns.saturating_sub(*start_ns));
        let due = (span * u128::from(*rate)).div_ceil(SECOND_NS);
        u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(*begun)
    }
}

/// When request `k` is due. Computed anew for each, so that no rounding adds up.
fn at(start_ns: u64, rate: u32, k: u64) -> u64 {
    let after = u128::from(k) * SECOND_NS / u128::from(rate);
    start_ns.saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closed_loop_starts_when_it_is_asked() {
        let mut pace = Pace::new(None, 5, 0, 1);
        pace.begin();
        assert_eq!((pace.due(77), pace.unsent(u64::MAX)), (Due::Since(77), 0));
    }

    #[test]
    fn a_late_request_counts_from_when_it_was_due() {
        let mut pace = Pace::new(Some(1000), 10, 0, 1);
        assert_eq!(pace.due(9), Due::At(10));
        assert_eq!(pace.due(10), Due::Since(10));
        pace.begin();
        assert_eq!(pace.due(10), Due::At(1_000_010));
        // The server stalled for a second: a thousand requests are late, each by its own time.
        for late in 1..=1000 {
            assert_eq!(pace.due(1_000_000_010), Due::Since(10 + late * 1_000_000));
            pace.begin();
        }
        assert_eq!(pace.due(1_000_000_010), Due::At(1_001_000_010));
    }

    #[test]
    fn a_rate_that_divides_nothing_does_not_drift() {
        let mut pace = Pace::new(Some(3), 0, 0, 1);
        for _ in 0..3_000_000 {
            pace.begin();
        }
        assert_eq!(pace.due(0), Due::At(1_000_000_000_000_000));
    }

    #[test]
    fn connections_take_turns() {
        let starts: Vec<_> = (0..4).map(|number| Pace::new(Some(1000), 0, number, 4).due(0)).collect();
        assert_eq!(starts, [Due::Since(0), Due::At(250_000), Due::At(500_000), Due::At(750_000)]);
    }

    #[test]
    fn what_was_due_and_never_sent_is_counted() {
        let mut pace = Pace::new(Some(10), 0, 0, 1);
        pace.begin();
        assert_eq!(pace.unsent(0), 0);
        assert_eq!(pace.unsent(100_000_000), 0, "the second is due at the end, not before it");
        assert_eq!(pace.unsent(1_000_000_000), 9);
    }
}
