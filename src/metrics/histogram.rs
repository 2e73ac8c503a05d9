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
