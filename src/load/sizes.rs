//! The sizes of requests: one, or several with percentages (fio's `bssplit`).

/// Sizes in bytes with the share of requests that each has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Size, and the percentages of it and of all before it together; the last one's is 100.
    steps: Vec<(u32, u32)>,
}

impl Sizes {
    /// One size for all requests.
    pub fn one(size: u32) -> Self {
        Self { steps: vec![(size, 100)] }
    }

    /// Sizes with percentages. Those without one share evenly what the others leave of 100, as in fio.
    ///
    /// # Errors
    /// A sentence: no size at all, one of 0 bytes, or percentages that are not 100 together.
    pub fn split(parts: &[(u32, Option<u32>)]) -> Result<Self, String> {
        if parts.is_empty() || parts.iter().any(|(size, _)| *size == 0) {
            return Err("a size is at least 1 byte".to_owned());
        }
        let told = parts.iter().fold(0u32, |sum, (_, percent)| sum.saturating_add(percent.unwrap_or(0)));
        let open = u32::try_from(parts.iter().filter(|(_, percent)| percent.is_none()).count()).unwrap_or(0);
        let Some(rest) = 100_u32.checked_sub(told) else {
            return Err(format!("the percentages are {told} together, more than 100"));
        };
        if rest > 0 && open == 0 {
            return Err(format!("the percentages are {told} together, not 100: leave one out for the rest"));
        }
        let mut steps = Vec::with_capacity(parts.len());
        let (mut sum, mut shared) = (0, 0);
        for (size, percent) in parts {
            sum += percent.unwrap_or_else(|| {
                shared += 1;
                rest * shared / open - rest * (shared - 1) / open
            });
            steps.push((*size, sum));
        }
        Ok(Self { steps })
    }

    /// The size for a number that is drawn from 0 to 99.
    pub(super) fn pick(&self, percentile: u32) -> u32 {
        let step = self.steps.iter().find(|(_, below)| percentile < *below).or_else(|| self.steps.last());
        step.map_or(0, |(size, _)| *size)
    }

    /// Whether there is one size only, so that nothing need be drawn.
    pub(super) fn is_one(&self) -> bool {
        self.steps.len() == 1
    }

    /// All sizes.
    pub(super) fn each(&self) -> impl Iterator<Item = u32> + '_ {
        self.steps.iter().map(|(size, _)| *size)
    }

    /// The smallest, which is what offsets are multiples of (fio's `blockalign`).
    pub(super) fn smallest(&self) -> u32 {
        self.each().min().unwrap_or(1)
    }

    /// The largest.
    pub(super) fn largest(&self) -> u32 {
        self.each().max().unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each size comes up in a hundred.
    fn shares(parts: &[(u32, Option<u32>)]) -> Vec<(u32, usize)> {
        let sizes = Sizes::split(parts).unwrap();
        let count = |size| (0..100).filter(|draw| sizes.pick(*draw) == size).count();
        sizes.each().map(|size| (size, count(size))).collect()
    }

    #[test]
    fn what_the_percentages_leave_is_shared_by_those_without() {
        assert_eq!(shares(&[(4096, Some(50)), (262_144, Some(50))]), [(4096, 50), (262_144, 50)]);
        assert_eq!(
            shares(&[(4096, Some(50)), (1024, None), (32768, None)]),
            [(4096, 50), (1024, 25), (32768, 25)]
        );
        assert_eq!(shares(&[(1, None), (2, None), (3, None)]), [(1, 33), (2, 33), (3, 34)]);
        assert_eq!(shares(&[(512, Some(100)), (1024, None)]), [(512, 100), (1024, 0)]);
        assert_eq!(shares(&[(512, None)]), [(512, 100)]);
    }

    #[test]
    fn percentages_that_do_not_add_up_are_refused_with_their_sum() {
        let too_many = Sizes::split(&[(1, Some(60)), (2, Some(60))]).unwrap_err();
        assert!(too_many.contains("120"), "{too_many}");
        let too_few = Sizes::split(&[(1, Some(60)), (2, Some(30))]).unwrap_err();
        assert!(too_few.contains("90"), "{too_few}");
        Sizes::split(&[(1, Some(u32::MAX)), (2, Some(u32::MAX))]).unwrap_err();
        Sizes::split(&[(0, None)]).unwrap_err();
        Sizes::split(&[]).unwrap_err();
    }
}
