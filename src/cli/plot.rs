//! `ringnbd plot`: latency by percentile as a picture, one curve for each `.hgrm` file.
//!
//! The horizontal axis counts nines, `log10(1 / (1 - percentile))`: each step to the right leaves out nine
//! tenths of the requests that were left, so that the slow ones get as much room as the many.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use plotters::coord::ranged1d::{AsRangedCoord, KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::metrics::{Curve, read_hgrm};

/// Draw .hgrm files as a picture (SVG): latency by percentile
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringnbd plot latency/*.hgrm -o latency.svg
  ringnbd plot before/disk.read.hgrm after/disk.read.hgrm --linear --title 'with and without direct=on'
  ringnbd plot nbdkit=1.hgrm ringnbd=2.hgrm --colours 2,1")]
pub(super) struct Plot {
    /// Percentile files, in microseconds, as --hgrm writes them; one curve each, with a label or the file's name. A FILE
    /// with = in its name needs a / before it
    #[arg(required = true, value_name = "[LABEL=]FILE")]
    files: Vec<PathBuf>,

    /// The picture to write
    #[arg(short, long, value_name = "FILE", default_value = "latency.svg")]
    output: PathBuf,

    /// Text above the picture
    #[arg(long, value_name = "TEXT", default_value = "Latency by percentile")]
    title: String,

    /// Numbers of the curves' colours, from 1, so that a thing has the same in several pictures; there are 7, after which
    /// they come round with thinner lines
    #[arg(
        long,
        alias = "colors",
        value_name = "N,...",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u8).range(1..)
    )]
    colours: Vec<u8>,

    /// Draw latencies to a linear scale instead of a logarithmic one
    #[arg(long)]
    linear: bool,
}

const SIZE: (u32, u32) = (1000, 600);

/// Okabe and Ito's colours: told apart by colour-blind people too.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// One line of the picture: points of (nines, microseconds).
struct Line {
    label: String,
    style: ShapeStyle,
    points: Vec<(f64, f64)>,
}

impl Plot {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if !self.colours.is_empty() && self.colours.len() != self.files.len() {
            bail!("--colours has {} for {} files", self.colours.len(), self.files.len());
        }
        let (labels, files): (Vec<_>, Vec<_>) = self.files.iter().map(|word| labelled(word)).unzip();
        let mut lines = Vec::with_capacity(files.len());
        for (index, path) in files.iter().enumerate() {
            let text = std::fs::read_to_string(path);
            let curve = text.and_then(|text| read_hgrm(&text));
            let curve = curve.with_context(|| format!("cannot plot {}", path.display()))?;
            let label = labels[index].clone().unwrap_or_else(|| label(path, &files));
            let colour = self.colours.get(index).map_or(index, |number| usize::from(*number) - 1);
            lines.push(Line { label, style: style(colour), points: points(&curve) });
        }
        if lines.iter().all(|line| line.points.iter().all(|(_, us)| *us <= 0.0)) {
            bail!("there is nothing to draw: every latency in these files is 0");
        }
        let picture =
            draw(&lines, &self.title, self.linear).map_err(|error| anyhow!("cannot draw: {error}"))?;
        std::fs::write(&self.output, picture)
            .with_context(|| format!("cannot write {}", self.output.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// `LABEL=FILE`, or a file alone: a label has no slash.
fn labelled(word: &Path) -> (Option<String>, PathBuf) {
    match word.to_str().and_then(|word| word.split_once('=')) {
        Some((label, file)) if !label.is_empty() && !label.contains('/') => {
            (Some(label.to_owned()), file.into())
        }
        _ => (None, word.to_path_buf()),
    }
}

fn style(colour: usize) -> ShapeStyle {
    COLOURS[colour % COLOURS.len()].stroke_width(if colour < COLOURS.len() { 3 } else { 1 })
}

/// The file's name without `.hgrm`, after its directory's where two files have the same name.
fn label(path: &Path, all: &[PathBuf]) -> String {
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let own = stem(path);
    match path.parent().and_then(Path::file_name) {
        Some(dir) if all.iter().filter(|other| stem(other) == own).count() > 1 => {
            format!("{}/{own}", dir.to_string_lossy())
        }
        _ => own,
    }
}

/// The slowest request has no finite place on the axis: it goes where half of one request would be left.
fn points(curve: &Curve) -> Vec<(f64, f64)> {
    let nines = |quantile: f64| -(1.0 - quantile).log10();
    let last =
        curve.iter().map(|(quantile, _)| *quantile).filter(|quantile| *quantile < 1.0).fold(0.0, f64::max);
    let end = nines(last) + 2_f64.log10();
    curve.iter().map(|(quantile, us)| (if *quantile < 1.0 { nines(*quantile) } else { end }, *us)).collect()
}

fn draw(lines: &[Line], title: &str, linear: bool) -> Result<String, Box<dyn std::error::Error>> {
    let all = || lines.iter().flat_map(|line| line.points.iter());
    let right = all().map(|(nines, _)| *nines).fold(1.0, f64::max);
    let highest = all().map(|(_, us)| *us).fold(0.0, f64::max);
    let lowest = all().map(|(_, us)| *us).filter(|us| *us > 0.0).fold(highest, f64::min);
    let mut picture = String::new();
    let root = SVGBackend::with_string(&mut picture, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    if linear {
        draw_on(&root, lines, title, right, 0.0..highest * 1.05)?;
    } else {
        // Whole decades, or the one or two that there are stay without a labelled line.
        let (low, high) = (10_f64.powf(lowest.log10().floor()), 10_f64.powf(highest.log10().ceil()));
        draw_on(&root, lines, title, right, (low..high.max(low * 10.0)).log_scale())?;
    }
    root.present()?;
    drop(root);
    Ok(picture)
}

fn draw_on<Y>(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    lines: &[Line],
    title: &str,
    right: f64,
    latencies: Y,
) -> Result<(), Box<dyn std::error::Error>>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(root)
        .caption(title, ("sans-serif", 24))
        .margin(20)
        .x_label_area_size(55)
        .y_label_area_size(90)
        .build_cartesian_2d(Nines { right }, latencies)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.15))
        .label_style(("sans-serif", 16))
        .axis_desc_style(("sans-serif", 18))
        .x_desc("percentile")
        .y_desc("latency")
        .y_labels(12)
        .y_label_formatter(&|us| time(*us))
        .draw()?;
    for line in lines {
        let style = line.style;
        let points = line.points.iter().copied().filter(|(_, us)| *us > 0.0);
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(line.label.as_str())
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

    /// 0, 50, 75, 90, 95 %, then one mark for each nine.
    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        let few = [0.0, 0.5, 0.75, 0.9, 0.95].into_iter().map(|quantile: f64| -(1.0 - quantile).log10());
        few.chain((2..=9).map(f64::from)).filter(|nines| *nines <= self.right).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.right
    }
}

impl ValueFormatter<f64> for Nines {
    fn format(nines: &f64) -> String {
        percent(*nines)
    }
}

/// `2` nines is `99%`, `0.301` is `50%`.
fn percent(nines: f64) -> String {
    let percentile = 100.0 * (1.0 - 10_f64.powf(-nines));
    let text = format!("{percentile:.7}");
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Microseconds in the largest unit that leaves a number above one.
fn time(us: f64) -> String {
    let (value, unit) = match us {
        us if us >= 1e6 => (us / 1e6, "s"),
        us if us >= 1e3 => (us / 1e3, "ms"),
        us => (us, "\u{b5}s"),
    };
    let text = format!("{value:.2}");
    format!("{} {unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_times_are_written_as_people_say_them() {
        assert_eq!(percent(0.0), "0%");
        assert_eq!(percent(0.5_f64.log10().abs()), "50%");
        assert_eq!(percent(1.0), "90%");
        assert_eq!(percent(4.0), "99.99%");
        assert_eq!((time(0.0), time(50.0), time(1500.0), time(2e6)), {
            ("0 \u{b5}s".into(), "50 \u{b5}s".into(), "1.5 ms".into(), "2 s".into())
        });
    }

    #[test]
    fn a_picture_has_a_curve_and_a_name_for_each_file() {
        let curve = vec![(0.0, 10.0), (0.5, 20.0), (0.99, 300.0), (1.0, 5000.0)];
        let line = |label: &str| Line { label: label.into(), style: style(0), points: points(&curve) };
        let lines = [line("disk.read"), line("disk.write")];
        for linear in [false, true] {
            let picture = draw(&lines, "a title", linear).expect("drawable");
            for text in ["a title", "disk.read", "disk.write", "99%", "percentile"] {
                assert!(picture.contains(text), "{text} is missing (linear: {linear})");
            }
        }
        let flat =
            [Line { label: "null".into(), style: style(9), points: points(&vec![(0.0, 1.0), (1.0, 1.0)]) }];
        draw(&flat, "one value only", false).expect("drawable");
    }

    #[test]
    fn a_label_stands_before_the_file() {
        for (word, label, file) in [
            ("nbdkit=a/b.hgrm", Some("nbdkit"), "a/b.hgrm"),
            ("a b=c=d.hgrm", Some("a b"), "c=d.hgrm"),
            ("./a=b.hgrm", None, "./a=b.hgrm"),
            ("=b.hgrm", None, "=b.hgrm"),
            ("b.hgrm", None, "b.hgrm"),
        ] {
            assert_eq!(labelled(Path::new(word)), (label.map(str::to_owned), file.into()), "{word}");
        }
    }

    #[test]
    fn files_of_the_same_name_are_told_apart_by_their_directory() {
        let files = ["a/disk.read.hgrm", "b/disk.read.hgrm", "disk.write.hgrm"].map(PathBuf::from);
        let labels = files.each_ref().map(|path| label(path, &files));
        assert_eq!(labels, ["a/disk.read", "b/disk.read", "disk.write"]);
    }
}
