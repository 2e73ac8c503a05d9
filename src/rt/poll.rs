//! Whether to look for completions a while before sleeping.
//!
//! At depth 1 most of a request's time is the wake-up of a thread that went to sleep a moment ago (on a virtual machine,
//! the wake-up of its processor). Looking at the ring for up to [`POLL_MAX`] instead saves it, if something comes; else
//! it burns processor time for nothing. So `Auto` learns:
//!
//! ```text
//!   sleeping --[a wait was short]--> polling --[fewer than half of TRIAL polls paid]--> sleeping,
//!      '---- the next try only after twice as many short waits as last time, up to COOLDOWN_MAX
//! ```
//!
//! A wait that is measured includes the wake-up itself, so what would have been found by polling shows as up to
//! [`SHORT_WAIT`]. A wait longer than [`LONG_WAIT`] means that the load has paused: polling ends at once and the next
//! burst is tried anew.

use std::time::Duration;

/// When a shard with nothing to do looks at its ring before it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// While it pays.
    #[default]
    Auto,
    /// Before every sleep.
    Always,
    /// Never.
    Never,
}

/// Longest look before one sleep.
pub(super) const POLL_MAX: Duration = Duration::from_micros(50);
/// Most SQEs whose submission is taken as part of a wait.
pub(super) const SUBMISSION_SMALL: usize = 4;
/// Completions since the last wait above which the next is not worth a look: so many share the price of a wake-up.
const SHARED_BY: usize = 16;
/// A sleep shorter than this would have been saved by polling.
const SHORT_WAIT: Duration = Duration::from_micros(125);
/// A sleep longer than this ends a burst.
const LONG_WAIT: Duration = Duration::from_millis(10);
/// Polls after which it is judged whether they pay.
const TRIAL: u32 = 32;
/// Short waits between a trial that failed and the next one, at most.
const COOLDOWN_MAX: u32 = 8192;

/// What the recent waits taught.
#[derive(Debug, Default)]
pub(super) struct Poller {
    mode: Poll,
    polling: bool,
    tried: u32,
    paid: u32,
    /// Short waits to let pass before the next trial.
    cooldown: u32,
    /// What `cooldown` starts from after the next trial that fails.
    cooldown_next: u32,
    /// Completions since the last wait.
    completed: usize,
}

impl Poller {
    pub(super) fn new(mode: Poll) -> Self {
        Self { mode, cooldown_next: 1, ..Self::default() }
    }

    /// Whether sleeps are worth measuring.
    pub(super) fn learns(&self) -> bool {
        self.mode == Poll::Auto
    }

    /// Whether to look before this sleep.
    pub(super) fn polls(&self) -> bool {
        match self.mode {
            Poll::Always => true,
            Poll::Never => false,
            Poll::Auto => self.polling && self.completed <= SHARED_BY,
        }
    }

    /// So many completions were reaped.
    pub(super) fn reaped(&mut self, count: usize) {
        self.completed += count;
    }

    /// There was nothing to do until something arrived.
    pub(super) fn waited(&mut self) {
        self.completed = 0;
    }

    /// The look found something, or did not.
    pub(super) fn polled(&mut self, paid: bool) {
        self.tried += 1;
        self.paid += u32::from(paid);
        if self.tried < TRIAL {
            return;
        }
        if self.paid * 2 < self.tried {
            self.polling = false;
            self.cooldown = self.cooldown_next;
            self.cooldown_next = (self.cooldown_next * 2).min(COOLDOWN_MAX);
        } else {
            self.cooldown_next = 1;
        }
        (self.tried, self.paid) = (0, 0);
    }

    /// A sleep took so long.
    pub(super) fn slept(&mut self, wait: Duration) {
        if wait > LONG_WAIT {
            (self.polling, self.tried, self.paid) = (false, 0, 0);
        } else if wait < SHORT_WAIT && !self.polling {
            self.cooldown = self.cooldown.saturating_sub(1);
            self.polling = self.cooldown == 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(80);

    #[test]
    fn short_waits_start_polling_and_a_pause_ends_it() {
        let mut poller = Poller::new(Poll::Auto);
        assert!(!poller.polls());
        poller.slept(Duration::from_millis(1));
        assert!(!poller.polls());
        poller.slept(SHORT);
        assert!(poller.polls());
        poller.slept(Duration::from_millis(1)); // one that did not pay, not yet a verdict
        assert!(poller.polls());
        poller.slept(Duration::from_secs(1));
        assert!(!poller.polls());
    }

    #[test]
    fn polls_that_pay_go_on_and_polls_that_do_not_become_rare() {
        let mut poller = Poller::new(Poll::Auto);
        poller.slept(SHORT);
        (0..10 * TRIAL).for_each(|index| poller.polled(index % 2 == 0));
        assert!(poller.polls());
        let mut polls = 0;
        for _ in 0..100_000 {
            if poller.polls() {
                poller.polled(false);
                polls += 1;
            }
            poller.slept(SHORT);
        }
        // 14 trials until the pause between them is at its longest, then one in 8,192 waits.
        assert!((300..1_000).contains(&polls), "{polls}");
    }

    #[test]
    fn always_and_never_do_not_learn() {
        for (mode, polls) in [(Poll::Always, true), (Poll::Never, false)] {
            let mut poller = Poller::new(mode);
            (0..TRIAL).for_each(|_| poller.polled(false));
            assert_eq!(poller.polls(), polls);
            poller.slept(SHORT);
            assert_eq!(poller.polls(), polls);
        }
    }
}
