//! Pictures (SVG): latency by percentile with a curve for each server, which `ringnbd plot` draws, and bars of CPU time
//! for each request.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::hgrm;
use crate::samples::{Cell, Results, Sample};
use crate::servers::SERVERS;
use crate::statistics::{Measure, Spread};

const WIDTH: u32 = 1000;
/// Bars of one picture.
const BARS_TOP: i32 = 90;
const BARS_STEP: i32 = 46;

/// Okabe and Ito's colours, told apart by colour-blind people too: those of `ringnbd plot`, in its order.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// A server has one colour in all pictures: its row's, from 0.
fn row_of(server: &str) -> usize {
    SERVERS.iter().position(|row| row.name == server).unwrap_or(0)
}

/// A server's name with what is drawn for it.
type Named<T> = (&'static str, T);

/// Latency by percentile, as `ringnbd` draws it; `None` where nothing was measured.
pub(crate) fn latency(results: &Results, cell: &Cell, ringnbd: &Path) -> anyhow::Result<Option<String>> {
    let home = tempfile::tempdir()?;
    let Some(words) = plot_words(results, cell, home.path())? else { return Ok(None) };
    let output = Command::new(ringnbd).args(words).current_dir(home.path()).output();
    let output = output.with_context(|| format!("cannot start {}", ringnbd.display()))?;
    ensure!(output.status.success(), "cannot draw: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(Some(fs::read_to_string(home.path().join(PICTURE))?))
}

const PICTURE: &str = "latency.svg";

/// What `ringnbd plot` is asked in `home`, where the curves are put.
fn plot_words(results: &Results, cell: &Cell, home: &Path) -> anyhow::Result<Option<Vec<String>>> {
    let (mut colours, mut files) = (Vec::new(), Vec::new());
    for server in &results.servers {
        let sample = typical(results.rounds(cell, server.name));
        let Some(curve) = sample.and_then(curve) else { continue };
        let file = format!("{}.hgrm", server.name);
        fs::write(home.join(&file), curve)?;
        colours.push((row_of(server.name) + 1).to_string());
        files.push(format!("{}={file}", server.name));
    }
    if files.is_empty() {
        return Ok(None);
    }
    let (title, colours) = (cell.title(), colours.join(","));
    let options = ["plot", "--output", PICTURE, "--title", &title, "--colours", &colours].map(str::to_owned);
    Ok(Some(options.into_iter().chain(files).collect()))
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
    drawn((WIDTH, height), |root| draw_bars(root, &bars, &cell.title())).map(Some)
}

/// The round whose p99 is in the middle speaks for a server: percentiles of several rounds do not add up.
fn typical(mut samples: Vec<&Sample>) -> Option<&Sample> {
    let p99 = |sample: &Sample| sample.figures.as_ref().map_or(0.0, |figures| Measure::P99.of(figures));
    samples.sort_by(|a, b| p99(a).total_cmp(&p99(b)));
    samples.get(samples.len().checked_sub(1)? / 2).copied()
}

/// The sample's own curve, or the percentiles that every generator prints.
fn curve(sample: &Sample) -> Option<String> {
    let of_percentiles = || {
        let figures = sample.figures.as_ref()?;
        Some(hgrm::of_percentiles(&figures.read.or(figures.write)?))
    };
    sample.curve.clone().or_else(of_percentiles)
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
        let (top, colour) = (BARS_TOP + row * BARS_STEP, COLOURS[row_of(name) % COLOURS.len()]);
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

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS_THERE: [&str; 4] = ["ringnbd", "nbdkit", "qemu-nbd", "floor"];

    #[test]
    fn every_server_that_was_measured_has_a_curve_of_its_colour() {
        let mut results = crate::report::tests::results();
        for with_curve in [true, false] {
            let home = tempfile::tempdir().expect("a directory");
            let words = plot_words(&results, &results.cells[0], home.path()).expect("writable");
            let words = words.expect("something to draw");
            assert_eq!(
                words[..5],
                ["plot", "--output", PICTURE, "--title", "4k random read, 32 in flight, unix"]
            );
            let colours: Vec<usize> =
                words[6].split(',').map(|word| word.parse().expect("a number")).collect();
            for ((server, colour), file) in SERVERS_THERE.iter().zip(colours).zip(&words[7..]) {
                assert_eq!(SERVERS[colour - 1].name, *server);
                assert_eq!(*file, format!("{server}={server}.hgrm"));
                let text = fs::read_to_string(home.path().join(format!("{server}.hgrm"))).expect("written");
                assert!(text.contains("1.000000"), "{server}, curve: {with_curve}: {text}");
            }
            assert_eq!(words.len(), 7 + SERVERS_THERE.len());
            results.samples.iter_mut().for_each(|sample| sample.curve = None);
        }
        results.samples.clear();
        let home = tempfile::tempdir().expect("a directory");
        assert!(plot_words(&results, &results.cells[0], home.path()).expect("writable").is_none());
    }

    #[test]
    fn every_server_that_was_measured_has_a_bar() {
        let mut results = crate::report::tests::results();
        let svg = cpu(&results, &results.cells[0]).expect("drawable").expect("something to draw");
        for text in SERVERS_THERE.iter().chain(&["4k random read, 32 in flight, unix"]) {
            assert!(svg.contains(text), "{text} is missing");
        }
        results.samples.clear();
        assert!(cpu(&results, &results.cells[0]).expect("drawable").is_none());
    }
}
