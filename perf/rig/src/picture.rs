//! Pictures (SVG): latency by percentile with a curve for each server, and bars of CPU time for each request.
//!
//! The horizontal axis of the curves counts nines, `log10(1 / (1 - percentile))`, so that the slow requests get as
//! much room as the many.

use std::error::Error;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::samples::{Cell, Curve, Results, Sample};
use crate::servers::SERVERS;
use crate::statistics::{Measure, Spread};

const SIZE: (u32, u32) = (1000, 600);
/// Bars of one picture.
const BARS_TOP: i32 = 90;
const BARS_STEP: i32 = 46;

/// Okabe and Ito's colours, told apart by colour-blind people too; thin where they come round again.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// A server has one colour in all pictures: its row's.
fn style(server: &str) -> ShapeStyle {
    let row = SERVERS.iter().position(|row| row.name == server).unwrap_or(0);
    COLOURS[row % COLOURS.len()].stroke_width(if row < COLOURS.len() { 3 } else { 1 })
}

/// A server's name with what is drawn for it.
type Named<T> = (&'static str, T);

/// Latency by percentile; `None` where nothing was measured.
pub(crate) fn latency(results: &Results, cell: &Cell) -> anyhow::Result<Option<String>> {
    let servers = results.servers.iter();
    let lines = servers.filter_map(|server| {
        let sample = typical(results.rounds(cell, server.name))?;
        Some((server.name, points(&curve(sample)?)))
    });
    let lines: Vec<Named<Vec<(f64, f64)>>> = lines.filter(|(_, points)| !points.is_empty()).collect();
    if lines.is_empty() {
        return Ok(None);
    }
    drawn(SIZE, |root| draw_curves(root, &lines, &cell.title())).map(Some)
}

/// CPU time of the server for each request; `None` where nothing was measured.
pub(crate) fn cpu(results: &Results, cell: &Cell) -> anyhow::Result<Option<String>> {
    let bars = results.servers.iter().filter_map(|server| {
        let samples = results.rounds(cell, server.name).into_iter();
        Some((
            server.name,
            Spread::of(samples.filter_map(|sample| Some(sample.figures.as_ref()?.server_cpu_us)))?,
        ))
    });
    let bars: Vec<Named<Spread>> = bars.collect();
    if bars.iter().all(|(_, spread)| spread.max <= 0.0) {
        return Ok(None);
    }
    let rows = u32::try_from(bars.len())?;
    let height = BARS_TOP.unsigned_abs() + rows * BARS_STEP.unsigned_abs();
    drawn((SIZE.0, height), |root| draw_bars(root, &bars, &cell.title())).map(Some)
}

/// The round whose p99 is in the middle speaks for a server: percentiles of several rounds do not add up.
fn typical(mut samples: Vec<&Sample>) -> Option<&Sample> {
    let p99 = |sample: &Sample| sample.figures.as_ref().map_or(0.0, |figures| Measure::P99.of(figures));
    samples.sort_by(|a, b| p99(a).total_cmp(&p99(b)));
    samples.get(samples.len().checked_sub(1)? / 2).copied()
}

/// The sample's own curve, or the percentiles that every generator prints.
fn curve(sample: &Sample) -> Option<Curve> {
    let of_percentiles = || {
        let figures = sample.figures.as_ref()?;
        let latency = figures.read.or(figures.write)?;
        let points = [(0.5, latency.p50_us), (0.99, latency.p99_us), (0.999, latency.p99_9_us)];
        Some(points.into_iter().chain([(1.0, latency.max_us)]).collect())
    };
    sample.curve.clone().or_else(of_percentiles)
}

/// The slowest request has no finite place on the axis: it goes where half of one request would be left.
fn points(curve: &Curve) -> Vec<(f64, f64)> {
    let nines = |quantile: f64| -(1.0 - quantile).log10();
    let finite = curve.iter().map(|(quantile, _)| *quantile).filter(|quantile| *quantile < 1.0);
    let end = nines(finite.fold(0.0, f64::max)) + 2_f64.log10();
    let place = |(quantile, us): &(f64, f64)| (if *quantile < 1.0 { nines(*quantile) } else { end }, *us);
    curve.iter().map(place).filter(|(_, us)| *us > 0.0).collect()
}

fn drawn(
    size: (u32, u32),
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn Error>>,
) -> anyhow::Result<String> {
    let mut picture = String::new();
    let root = SVGBackend::with_string(&mut picture, size).into_drawing_area();
    let result = root.fill(&WHITE).map_err(Box::from).and_then(|()| draw(&root));
    result.and_then(|()| Ok(root.present()?)).map_err(|error| anyhow!("cannot draw: {error}"))?;
    drop(root);
    Ok(picture)
}

fn draw_curves(
    root: &DrawingArea<SVGBackend<'_>, Shift>,
    lines: &[Named<Vec<(f64, f64)>>],
    title: &str,
) -> Result<(), Box<dyn Error>> {
    let all = || lines.iter().flat_map(|(_, points)| points);
    let right = all().map(|(nines, _)| *nines).fold(1.0, f64::max);
    let highest = all().map(|(_, us)| *us).fold(0.0, f64::max);
    let lowest = all().map(|(_, us)| *us).fold(highest, f64::min);
    // Whole decades, or the one or two that there are stay without a labelled line.
    let (low, high) = (10_f64.powf(lowest.log10().floor()), 10_f64.powf(highest.log10().ceil()));
    let mut chart = ChartBuilder::on(root)
        .caption(title, ("sans-serif", 24))
        .margin(20)
        .x_label_area_size(55)
        .y_label_area_size(90)
        .build_cartesian_2d(Nines { right }, (low..high.max(low * 10.0)).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.15))
        .label_style(("sans-serif", 16))
        .axis_desc_style(("sans-serif", 18))
        .x_desc("percentile")
        .y_desc("latency at the client")
        .y_label_formatter(&|us| time(*us))
        .draw()?;
    for (name, points) in lines {
        let style = style(name);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 25, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .margin(15)
        .legend_area_size(35)
        .label_font(("sans-serif", 17))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// Lying bars: names are longer than figures. Rectangles and text need no axis.
fn draw_bars(
    root: &DrawingArea<SVGBackend<'_>, Shift>,
    bars: &[Named<Spread>],
    title: &str,
) -> Result<(), Box<dyn Error>> {
    const LEFT: i32 = 220;
    const WIDTH: f64 = 600.0;
    let most = bars.iter().map(|(_, spread)| spread.max).fold(0.0, f64::max);
    #[allow(clippy::cast_possible_truncation)] // a pixel's place, between the limits
    let place = |us: f64| LEFT + (WIDTH * us / most).round() as i32;
    let font = |size| ("sans-serif", size).into_font();
    root.draw(&Text::new(title.to_owned(), (40, 20), font(24)))?;
    let what = "server CPU time for each request, \u{b5}s: median, least and most";
    root.draw(&Text::new(what, (40, 52), font(17)))?;
    for (row, (name, spread)) in (0_i32..).zip(bars) {
        let (top, colour) = (BARS_TOP + row * BARS_STEP, style(name).color);
        let middle = top + 14;
        root.draw(&Text::new(*name, (40, top + 5), font(18)))?;
        root.draw(&Rectangle::new([(LEFT, top), (place(spread.median), top + 28)], colour.filled()))?;
        let reach = [(place(spread.min), middle), (place(spread.max), middle)];
        root.draw(&PathElement::new(reach, BLACK.stroke_width(2)))?;
        let figure = format!("{:.2}", spread.median);
        root.draw(&Text::new(figure, (place(spread.max) + 10, top + 5), font(18)))?;
    }
    Ok(())
}

/// The horizontal axis: nines from 0 to `right`.
struct Nines {
    right: f64,
}

impl Ranged for Nines {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    #[allow(clippy::cast_possible_truncation)] // a pixel's place, between the limits
    fn map(&self, nines: &f64, (left, right): (i32, i32)) -> i32 {
        left + (f64::from(right - left) * nines / self.right).round() as i32
    }

    /// 0, 50, 75 %, then one mark for each nine.
    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        let few = [0.0, 0.5, 0.75].into_iter().map(|quantile: f64| -(1.0 - quantile).log10());
        few.chain((1..=9).map(f64::from)).filter(|nines| *nines <= self.right).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.right
    }
}

impl ValueFormatter<f64> for Nines {
    fn format(nines: &f64) -> String {
        let text = format!("{:.7}", 100.0 * (1.0 - 10_f64.powf(-nines)));
        format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Microseconds in the largest unit that leaves a number of one or more.
fn time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", us / 1e6),
        us if us >= 1e3 => format!("{} ms", us / 1e3),
        us => format!("{us} \u{b5}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_that_was_measured_is_in_both_pictures() {
        let mut results = crate::report::tests::results();
        for with_curve in [true, false] {
            for picture in [latency, cpu] {
                let svg = picture(&results, &results.cells[0]).expect("drawable").expect("something to draw");
                for text in ["4k random read, 32 in flight, unix", "ringnbd", "nbdkit", "qemu-nbd", "floor"] {
                    assert!(svg.contains(text), "{text} is missing (curve: {with_curve})");
                }
            }
            results.samples.iter_mut().for_each(|sample| sample.curve = None);
        }
        results.samples.clear();
        assert!(latency(&results, &results.cells[0]).expect("drawable").is_none());
        assert!(cpu(&results, &results.cells[0]).expect("drawable").is_none());
    }

    #[test]
    fn the_slowest_request_has_a_place() {
        let points = points(&vec![(0.0, 1.0), (0.9, 2.0), (1.0, 9.0)]);
        assert_eq!(points.len(), 3);
        assert!((points[1].0 - 1.0).abs() < 1e-9 && points[2].0 > 1.0 && points[2].0.is_finite());
    }
}
