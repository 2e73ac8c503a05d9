//! Where random requests go: a number of a block, drawn uniformly or by Zipf's law.

use rand_distr::{Distribution as _, Zipf};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::Rng;

use super::workload::Distribution;

/// Draws blocks.
pub(super) enum Places {
    /// All alike.
    Uniform,
    /// Few often.
    Zipf(Box<Ranked>),
}

/// Zipf's law over `blocks` ranks, and which block has which rank.
pub(super) struct Ranked {
    law: Zipf<f64>,
    blocks: u64,
    /// Neighbours in rank lie this many blocks apart, about the golden section: hot blocks share no neighbourhood. It has
    /// no factor in common with `blocks`, so that every block has one rank (fio's hash lets some have several and others none).
    stride: u64,
    /// The block of rank 0; the seed of the run moves it.
    first: u64,
}

impl Places {
    /// Over `blocks` blocks, at least one. All connections of a run agree on which blocks are hot.
    #[allow(clippy::cast_precision_loss)] // beyond 2^53 blocks the last ranks share their chances
    pub(super) fn new(distribution: Distribution, blocks: u64, seed: u64) -> Self {
        let Distribution::Zipf(theta) = distribution else { return Self::Uniform };
        // A theta that is no number, which the command line refuses, is no law: all alike.
        let Ok(law) = Zipf::new(blocks as f64, theta) else { return Self::Uniform };
        let first = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks;
        Self::Zipf(Box::new(Ranked { law, blocks, stride: coprime(blocks), first }))
    }

    /// A block below `limit`, which is at most the number of blocks.
    #[inline]
    pub(super) fn draw(&self, limit: u64, random: &mut SplitMix64) -> u64 {
        match self {
            Self::Uniform => scale(random.next_u64(), limit),
            // The few blocks where a large request would end behind the window stand for the last that fits.
            Self::Zipf(ranked) => ranked.draw(random).min(limit - 1),
        }
    }
}

impl Ranked {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // ranks are whole numbers from 1
    fn draw(&self, random: &mut SplitMix64) -> u64 {
        let rank = (self.law.sample(random) as u64).clamp(1, self.blocks) - 1;
        let block = u128::from(rank) * u128::from(self.stride) + u128::from(self.first);
        u64::try_from(block % u128::from(self.blocks)).unwrap_or(0)
    }
}

/// A random number below `limit`, from one below 2^64.
#[inline]
pub(super) fn scale(random: u64, limit: u64) -> u64 {
    u64::try_from((u128::from(random) * u128::from(limit)) >> 64).unwrap_or(0)
}

/// A number near the golden section of `blocks` that has no factor in common with it.
fn coprime(blocks: u64) -> u64 {
    let golden = (u128::from(blocks) * 0x9e37_79b9_7f4a_7c15) >> 64;
    let mut stride = u64::try_from(golden).unwrap_or(1).max(1);
    while common_factor(stride, blocks) > 1 {
        stride += 1;
    }
    stride
}

/// Euclid's.
fn common_factor(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // small numbers
mod tests {
    use rand_xoshiro::rand_core::SeedableRng;

    use super::*;

    const BLOCKS: u64 = 1000;

    fn counts(theta: f64, seed: u64) -> Vec<u32> {
        let places = Places::new(Distribution::Zipf(theta), BLOCKS, seed);
        let mut random = SplitMix64::seed_from_u64(7);
        let mut counts = vec![0; BLOCKS as usize];
        for _ in 0..200_000 {
            counts[places.draw(BLOCKS, &mut random) as usize] += 1;
        }
        counts
    }

    #[test]
    fn shares_follow_zipfs_law() {
        for theta in [0.5, 1.0, 1.1, 2.0] {
            let mut counts = counts(theta, 1);
            counts.sort_unstable_by(|a, b| b.cmp(a));
            let sum: f64 = (1..=BLOCKS).map(|rank| (rank as f64).powf(-theta)).sum();
            for rank in [1_u32, 2, 5] {
                let expected = 200_000.0 * f64::from(rank).powf(-theta) / sum;
                let found = f64::from(counts[rank as usize - 1]);
                let slack = 6.0 * expected.sqrt() + if rank > 1 { 0.15 * expected } else { 0.0 };
                assert!((found - expected).abs() < slack, "{theta}: rank {rank}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn hot_blocks_lie_apart_and_the_seed_moves_them() {
        let hottest = |counts: &[u32]| {
            let mut blocks: Vec<usize> = (0..counts.len()).collect();
            blocks.sort_by_key(|block| std::cmp::Reverse(counts[*block]));
            blocks[..5].to_vec()
        };
        let first = hottest(&counts(1.5, 1));
        for (a, b) in first.iter().zip(&first[1..]) {
            assert!(a.abs_diff(*b) > 50, "{first:?}");
        }
        assert_ne!(first, hottest(&counts(1.5, 2)));
    }

    #[test]
    fn every_block_has_exactly_one_rank() {
        for blocks in [1, 2, 3, 8, 64, 99, 1000, 1021] {
            let stride = coprime(blocks);
            let mut seen: Vec<_> = (0..blocks).map(|rank| rank * stride % blocks).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..blocks), "{blocks}: {stride}");
        }
    }

    #[test]
    fn huge_and_tiny_windows_stay_inside() {
        let mut random = SplitMix64::seed_from_u64(1);
        for blocks in [1, 2, 1 << 52, u64::MAX >> 9] {
            for distribution in [Distribution::Uniform, Distribution::Zipf(0.9), Distribution::Zipf(3.0)] {
                let places = Places::new(distribution, blocks, u64::MAX);
                assert!((0..1000).all(|_| places.draw(blocks, &mut random) < blocks));
            }
        }
    }
}
