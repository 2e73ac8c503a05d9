//! The one shape of histogram we keep, so that any two can be merged and subtracted.

use hdrhistogram::Histogram;

/// Longest duration told apart, in nanoseconds: one hour. Longer ones are recorded as this.
pub(super) const HIGHEST_NS: u64 = 3_600_000_000_000;

/// Two significant digits: values are within 1 %, and a histogram is 36 KiB, of which a steady load
/// touches a few cache lines. Three digits would be 270 KiB and miss the cache.
const SIGNIFICANT_DIGITS: u8 = 2;

/// An empty histogram of nanoseconds. Never resizes, so recording never allocates.
pub fn new() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST_NS, SIGNIFICANT_DIGITS).expect("constant bounds are valid")
}

/// Equal durations in a row, not yet in their histogram.
///
/// The clock stands still during a turn of the loop, so requests that arrived and left together took equally long, to the
/// nanosecond: a batch of 32 costs one recording and 31 additions (`benches/null.rs`: 33 ns a request before, 10 ns now).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    value_ns: u64,
    count: u64,
}

impl Run {
    /// Adds one duration.
    #[inline]
    pub(super) fn record(&mut self, value_ns: u64, into: &mut Histogram<u64>) {
        if value_ns != self.value_ns {
            self.settle(into);
            self.value_ns = value_ns;
        }
        self.count += 1;
    }

    /// Moves what is held back into the histogram.
    pub(super) fn settle(&mut self, into: &mut Histogram<u64>) {
        if self.count > 0 {
            into.saturating_record_n(self.value_ns, self.count);
            self.count = 0;
        }
    }
}
