//! What is known of the source's holes, made into steps. No I/O.
//!
//! Steps begin and end at multiples of a granule, so that no block of the destination is changed by two of them: a stretch of
//! zeroes is shortened to whole granules, and what is left of it is read as data.

use std::ops::Range;

/// Zeroes at a time: so much of them is one request to a server, and one mark of progress.
pub(super) const ZEROES_MAX: u64 = 128 << 20;

/// A range, and whether it is known to read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) zero: bool,
}

impl Step {
    pub(super) const fn end(&self) -> u64 {
        self.offset + self.length
    }

    pub(super) const fn new(range: &Range<u64>, zero: bool) -> Self {
        Self { offset: range.start, length: range.end - range.start, zero }
    }
}

/// Cuts `stretches`, which follow each other from a multiple of `granule` on, into steps: data at multiples of `request`. `end`
/// is the end of the source. What lies behind the last whole granule is left for the next call, unless nothing or `end` is
/// before it. `granule` and `request` are powers of two.
pub(super) fn steps(stretches: &[Step], end: u64, granule: u64, request: u64) -> Vec<Step> {
    let (Some(first), Some(last)) = (stretches.first(), stretches.last()) else { return Vec::new() };
    let down = |at: u64| at & !(granule - 1);
    let up = |at: u64| at.checked_next_multiple_of(granule).map_or(end, |at| at.min(end));
    let told = last.end().min(end);
    let until = if told == end { end } else { down(told).max(up(first.offset + 1)) };
    let mut steps = Vec::new();
    let mut data_from = first.offset;
    for zeroes in stretches.iter().filter(|stretch| stretch.zero) {
        let start = up(zeroes.offset);
        let stop = if zeroes.end() >= end { end } else { down(zeroes.end()) }.min(until);
        // Between two that are shortened there may be nothing, or less than a granule that both leave.
        if start < stop {
            cut(&mut steps, data_from..start, false, request);
            cut(&mut steps, start..stop, true, ZEROES_MAX);
            data_from = stop;
        }
    }
    cut(&mut steps, data_from..until, false, request);
    steps
}

fn cut(steps: &mut Vec<Step>, range: Range<u64>, zero: bool, most: u64) {
    let mut at = range.start;
    while at < range.end {
        let boundary = (at & !(most - 1)).saturating_add(most);
        let stop = boundary.min(range.end);
        steps.push(Step::new(&(at..stop), zero));
        at = stop;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(range: Range<u64>, zero: bool) -> Step {
        Step::new(&range, zero)
    }

    #[test]
    fn zeroes_are_shortened_to_whole_granules() {
        let told = [step(0..5000, false), step(5000..20_000, true), step(20_000..30_000, false)];
        let expected = [step(0..8192, false), step(8192..16_384, true), step(16_384..30_000, false)];
        assert_eq!(steps(&told, 30_000, 4096, 1 << 18), expected);
    }

    #[test]
    fn zeroes_reach_an_odd_end() {
        let told = [step(0..4096, false), step(4096..9001, true)];
        assert_eq!(steps(&told, 9001, 4096, 1 << 18), told);
    }

    #[test]
    fn data_is_cut_where_requests_end_and_zeroes_where_they_get_long() {
        let told = [step(4096..20_480, false), step(20_480..ZEROES_MAX + 8192, true)];
        let expected = [
            step(4096..8192, false),
            step(8192..16_384, false),
            step(16_384..20_480, false),
            step(20_480..ZEROES_MAX, true),
            step(ZEROES_MAX..ZEROES_MAX + 8192, true),
        ];
        assert_eq!(steps(&told, ZEROES_MAX + 8192, 4096, 8192), expected);
    }

    #[test]
    fn an_answer_that_ends_between_granules_is_used_up_to_the_last_one() {
        assert_eq!(steps(&[step(0..9000, true)], 1 << 20, 4096, 8192), [step(0..8192, true)]);
        // What is less than a granule is not known to be zero as a whole.
        assert_eq!(steps(&[step(0..100, true)], 1 << 20, 4096, 8192), [step(0..4096, false)]);
    }

    proptest! {
        #[test]
        fn steps_cover_what_was_told_and_call_nothing_zero_that_is_not(
            lengths in prop::collection::vec(1..30_000u64, 1..40),
            first_zero: bool, ends: bool, granule in 9..14u32, request in 14..18u32,
        ) {
            let mut told = Vec::new();
            let (mut at, mut zero) = (0, first_zero);
            for length in lengths {
                told.push(step(at..at + length, zero));
                (at, zero) = (at + length, !zero);
            }
            let end = if ends { at } else { at + (1 << 20) };
            let (granule, request) = (1 << granule, 1 << request);
            let steps = steps(&told, end, granule, request);
            let mut reached = 0;
            for step in &steps {
                prop_assert_eq!(step.offset, reached);
                prop_assert!(step.length > 0 && (step.zero || step.length <= request));
                prop_assert!(step.offset % granule == 0);
                let within = |told: &&Step| told.offset < step.end() && told.end() > step.offset;
                prop_assert!(!step.zero || told.iter().filter(within).all(|told| told.zero));
                reached = step.end();
            }
            prop_assert!(reached == end || reached % granule == 0);
            let is_far_enough = if ends { reached == end } else { reached > 0 && reached + granule > at };
            prop_assert!(is_far_enough, "{} of {}", reached, at);
        }
    }
}
