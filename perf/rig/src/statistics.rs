//! Medians, spreads, and ratios within a round.

use crate::figures::Figures;
use crate::samples::{Cell, Results};
use crate::servers::{Kind, Server};

/// The middle of some values and how far they reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` of no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let odd = values.len() % 2 == 1;
        let median = if odd { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
        Some(Self { median, min, max })
    }
}

/// A figure that servers are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    Iops,
    ServerCpu,
    P50,
    P99,
}

impl Measure {
    pub(crate) const ALL: [Self; 4] = [Self::Iops, Self::ServerCpu, Self::P50, Self::P99];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::ServerCpu => "CPU/request",
            Self::P50 => "p50",
            Self::P99 => "p99",
        }
    }

    pub(crate) fn of(self, figures: &Figures) -> f64 {
        match self {
            Self::Iops => figures.iops,
            Self::ServerCpu => figures.server_cpu_us,
            Self::P50 => figures.slower(|latency| latency.p50_us),
            Self::P99 => figures.slower(|latency| latency.p99_us),
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        self == Self::Iops
    }

    /// Whether a ratio of ours to theirs is not in our favour.
    pub(crate) fn is_lost(self, ratio: f64) -> bool {
        if self.more_is_better() { ratio < 1.0 } else { ratio > 1.0 }
    }
}

/// Ours to another's, in one round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) round: u32,
    pub(crate) ratio: f64,
    pub(crate) other: &'static str,
}

/// The subject against the best of a kind in each round in which both were measured.
pub(crate) fn ratios(results: &Results, cell: &Cell, measure: Measure, kind: Kind) -> Vec<Ratio> {
    let Some(subject) = results.named(Kind::Subject).next() else { return Vec::new() };
    ratios_of(subject.name, results, cell, measure, |server| server.kind == kind)
}

/// One server against the best of some others.
pub(crate) fn ratios_of(
    subject: &str,
    results: &Results,
    cell: &Cell,
    measure: Measure,
    is_other: impl Fn(&Server) -> bool,
) -> Vec<Ratio> {
    let figure = |server: &str, round| {
        let sample = results.round(cell, server, round)?;
        sample.figures.as_ref().map(|figures| measure.of(figures))
    };
    let of_round = |round| {
        let ours = figure(subject, round)?;
        let others = results.servers.iter().filter(|server| is_other(server));
        let others = others.filter_map(|server| Some((figure(server.name, round)?, server.name)));
        let (theirs, other) = others.reduce(|best, next| {
            let better = if measure.more_is_better() { next.0 > best.0 } else { next.0 < best.0 };
            if better { next } else { best }
        })?;
        // A time too short for the clock is no measure.
        (theirs > 0.0).then(|| Ratio { round, ratio: ours / theirs, other })
    };
    (1..=results.settings.rounds).filter_map(of_round).collect()
}

/// Whom most of the ratios are to; the first of those with as many.
pub(crate) fn usual(ratios: &[Ratio]) -> Option<&'static str> {
    let count = |name: &str| ratios.iter().filter(|ratio| ratio.other == name).count();
    let most = ratios.iter().map(|ratio| count(ratio.other)).max()?;
    ratios.iter().map(|ratio| ratio.other).find(|name| count(name) == most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_between_the_two_in_the_middle() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]).map(|spread| spread.median), Some(2.5));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn each_round_has_its_own_best_peer() {
        let results = crate::report::tests::results();
        let cell = results.cells[0];
        let ratios = ratios(&results, &cell, Measure::Iops, Kind::Peer);
        let plain: Vec<_> = ratios.iter().map(|ratio| (ratio.round, ratio.ratio, ratio.other)).collect();
        assert_eq!(plain, [(1, 2.0, "nbdkit"), (2, 1.5, "qemu-nbd")]);
        assert_eq!(usual(&ratios), Some("nbdkit"));
    }

    #[test]
    fn more_iops_and_less_time_are_won() {
        assert!(Measure::Iops.is_lost(0.99) && !Measure::Iops.is_lost(1.2));
        assert!(Measure::P99.is_lost(1.01) && !Measure::ServerCpu.is_lost(0.4));
    }
}
