//! What is asked for, in fio's words.

use super::sizes::Sizes;

/// fio's `rw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Sequential reads and writes, each with its own position, mixed by `rwmixread`.
    Rw,
    /// Random reads and writes, mixed by `rwmixread`.
    RandRw,
    /// Sequential trims.
    Trim,
    /// Random trims.
    RandTrim,
}

impl Pattern {
    /// Whether it writes data.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandWrite | Self::Rw | Self::RandRw)
    }

    /// Whether it trims.
    pub const fn trims(self) -> bool {
        matches!(self, Self::Trim | Self::RandTrim)
    }

    /// Whether offsets are drawn.
    pub const fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw | Self::RandTrim)
    }
}

/// How random offsets are spread over the window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Every block as likely as any other.
    Uniform,
    /// The block of rank `k` is drawn in proportion to `k^-theta`; the ranks are scattered over the window.
    Zipf(f64),
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Order and direction.
    pub pattern: Pattern,
    /// Bytes of each request.
    pub sizes: Sizes,
    /// Percentage of reads in the mixed patterns.
    pub rwmixread: u32,
    /// First byte of the window that requests stay in.
    pub offset: u64,
    /// Bytes of the window; `None` for all that follows `offset`.
    pub size: Option<u64>,
    /// Where random requests go.
    pub distribution: Distribution,
    /// A flush after so many writes of a connection; 0 for none.
    pub fsync: u32,
    /// Whether each write carries FUA.
    pub fua: bool,
    /// Whether blocks describe themselves and are checked when they are read.
    pub verify: bool,
    /// Seed; each connection draws its own sequence from it.
    pub seed: u64,
}
