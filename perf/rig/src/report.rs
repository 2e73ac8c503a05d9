//! The report: Markdown for people. First what was won and lost, then every cell with all its figures.

use std::fmt::Write;

use crate::figures::{Figures, Latency, float};
use crate::samples::{Cell, Results, Sample};
use crate::servers::Kind;
use crate::statistics::{Measure, Spread, ratios, usual};
use crate::targets;

/// The whole report; `pictures` are files beside it.
pub(crate) fn markdown(results: &Results, pictures: &[(Cell, String)]) -> String {
    let mut text = String::from("# ringnbd beside other NBD servers\n\n");
    text.push_str(&circumstances(results));
    let targets = targets::table(results);
    if !targets.is_empty() {
        let _ = write!(text, "\n## Targets\n\nRatios to the best peer, median of the rounds. {targets}");
    }
    text.push_str("\n## Won and lost\n\n");
    text.push_str(
        "ringnbd's figure to the best peer's figure in the same round, median of the rounds; the best peer is \
         sought for each figure by itself, and the one that it was most often is named. More IOPS is better, less \
         of the rest. Then the same to the server on tokio-uring, and to the floor.\n\n",
    );
    text.push_str(&won_and_lost(results));
    text.push_str("\n## Every cell\n\n");
    text.push_str(
        "Median of the rounds, in brackets the least and the most. Times in microseconds; CPU time, user and system, \
         for each request; context switches for each 1000 requests. What the columns mean: `perf/README.md`.\n",
    );
    for cell in &results.cells {
        let _ = write!(text, "\n### {}\n\n{}", cell.title(), table(results, cell));
        for (_, file) in pictures.iter().filter(|(of, _)| of == cell) {
            let _ = write!(text, "\n![{}]({file})\n", cell.title());
        }
    }
    text
}

/// What was won and lost, for a terminal.
pub(crate) fn summary(results: &Results) -> String {
    won_and_lost(results).lines().filter(|line| !line.starts_with("|---")).collect::<Vec<_>>().join("\n")
}

fn circumstances(results: &Results) -> String {
    let (machine, settings) = (&results.machine, &results.settings);
    let mut text = String::new();
    let mut line = |what: &str, value: String| {
        let _ = writeln!(text, "| {what} | {value} |");
    };
    line("date", format!("{} UTC", results.date));
    line("---", "---".to_owned());
    line("commit", results.commit.clone());
    line("processors", format!("{} x {}", machine.processors, machine.cpu));
    let governor = machine.governor.as_deref().unwrap_or("none that the kernel knows of");
    line("frequency governor", governor.to_owned());
    line("kernel", machine.kernel.clone());
    line("memory", format!("{} MiB", machine.memory_mib));
    let cached = "random bytes, in the page cache";
    line("file", format!("{} MiB on {}, {cached}", settings.file_mib, machine.file_system));
    let cores = if machine.server_core == machine.client_core {
        format!("server and client share processor {}: there is only one", machine.server_core)
    } else {
        format!("server on processor {}, client on {}", machine.server_core, machine.client_core)
    };
    line("pinned", cores);
    line("rounds", format!("{}, {} s for each sample", settings.rounds, settings.seconds));
    let counted = results.samples.iter();
    let noisy = counted.filter(|sample| sample.noisy).count();
    let limit = settings.noise_max_pct;
    let all = results.samples.len();
    line("noisy samples", format!("{noisy} of {all} (foreign load above {limit} % of a processor)"));
    text.push_str("\n| server | what | version |\n|---|---|---|\n");
    for server in &results.servers {
        let version = results.versions.iter().find(|version| version.server == server.name);
        let version = version.map_or("this tree", |version| version.version.as_str());
        let _ = writeln!(text, "| {} | {} | {version} |", server.name, server.what);
    }
    text
}

fn won_and_lost(results: &Results) -> String {
    let mut text = String::from("| workload |");
    let floor = [Measure::Iops, Measure::ServerCpu, Measure::P50];
    let groups = [
        (Kind::Peer, Measure::ALL.as_slice(), "best peer"),
        (Kind::Baseline, &[Measure::Iops, Measure::ServerCpu, Measure::P99], "tokio-uring"),
        (Kind::Floor, &floor, "floor"),
    ];
    let present = || groups.iter().filter(|(kind, ..)| results.named(*kind).next().is_some());
    for (_, measures, to) in present() {
        for measure in *measures {
            let _ = write!(text, " {} to {to} |", measure.name());
        }
    }
    text.push_str(" noisy rounds |\n|---|");
    present().for_each(|(_, measures, _)| text.push_str(&"---|".repeat(measures.len())));
    text.push_str("---|\n");
    for cell in &results.cells {
        let _ = write!(text, "| {} |", cell.title());
        for (kind, measures, _) in present() {
            for measure in *measures {
                let _ = write!(text, " {} |", ratio(results, cell, *measure, *kind));
            }
        }
        let noisy = (1..=results.settings.rounds).filter(|round| is_noisy(results, cell, *round)).count();
        let _ = writeln!(text, " {noisy} |");
    }
    text
}

/// Whether a sample that counts in this round is noisy.
fn is_noisy(results: &Results, cell: &Cell, round: u32) -> bool {
    let samples = results.servers.iter().filter_map(|server| results.round(cell, server.name, round));
    samples.into_iter().any(|sample| sample.noisy)
}

/// `0.42 (nbdkit)`, marked where it is lost; nobody loses to the floor.
fn ratio(results: &Results, cell: &Cell, measure: Measure, kind: Kind) -> String {
    let ratios = ratios(results, cell, measure, kind);
    let Some(spread) = Spread::of(ratios.iter().map(|ratio| ratio.ratio)) else { return "-".to_owned() };
    let mut text = format!("{:.2}x", spread.median);
    if kind != Kind::Floor && measure.is_lost(spread.median) {
        text = format!("**{text} lost**");
    }
    match usual(&ratios) {
        Some(name) if kind == Kind::Peer => format!("{text} ({name})"),
        _ => text,
    }
}

/// A column of a cell's table: its heading and what it holds.
type Column = (&'static str, fn(&Figures) -> Option<f64>, usize);

const COLUMNS: &[Column] = &[
    ("IOPS", |figures| Some(figures.iops), 0),
    ("MB/s", |figures| Some(figures.mb_s), 0),
    ("read p50", |figures| figures.read.map(|read| read.p50_us), 1),
    ("read p99", |figures| figures.read.map(|read| read.p99_us), 1),
    ("read p99.9", |figures| figures.read.map(|read| read.p99_9_us), 1),
    ("read max", |figures| figures.read.map(|read| read.max_us), 0),
    ("write p50", |figures| figures.write.map(|write| write.p50_us), 1),
    ("write p99", |figures| figures.write.map(|write| write.p99_us), 1),
    ("write p99.9", |figures| figures.write.map(|write| write.p99_9_us), 1),
    ("write max", |figures| figures.write.map(|write: Latency| write.max_us), 0),
    ("server CPU", |figures| Some(figures.server_cpu_us), 2),
    ("client CPU", |figures| Some(figures.client_cpu_us), 2),
    ("memory MiB", |figures| Some(float(figures.memory_kib) / 1024.0), 1),
    ("waits", |figures| Some(per_thousand(figures.voluntary_switches, figures)), 1),
    ("preemptions", |figures| Some(per_thousand(figures.involuntary_switches, figures)), 1),
];

fn per_thousand(count: u64, figures: &Figures) -> f64 {
    float(count) * 1000.0 / float(figures.requests.max(1))
}

fn table(results: &Results, cell: &Cell) -> String {
    let all: Vec<(_, Vec<&Sample>)> =
        results.servers.iter().map(|server| (*server, results.rounds(cell, server.name))).collect();
    let is_there = |column: &&Column| {
        let mut figures =
            all.iter().flat_map(|(_, samples)| samples).filter_map(|sample| sample.figures.as_ref());
        figures.any(|figures| column.1(figures).is_some())
    };
    let columns: Vec<&Column> = COLUMNS.iter().filter(is_there).collect();
    let mut text = String::from("| server |");
    columns.iter().for_each(|(heading, ..)| {
        let _ = write!(text, " {heading} |");
    });
    let _ = writeln!(text, " noisy |\n|---|{}---|", "---|".repeat(columns.len()));
    let mut remarks = String::new();
    for (server, samples) in all {
        let mut remark = |why: &str| {
            let _ = writeln!(remarks, "\n{}: {why}", server.name);
        };
        if let Some(why) = (server.cannot)(cell.workload) {
            remark(&format!("not measured, it {why}"));
            continue;
        }
        if let Some((why, times)) = results.failures(cell, server.name) {
            let tries = if times == 1 { "try" } else { "tries" };
            remark(&format!("**failed** in {times} {tries}: {why}"));
        }
        if samples.is_empty() {
            continue;
        }
        let _ = write!(text, "| {} |", server.name);
        for (_, get, digits) in &columns {
            let values = samples.iter().filter_map(|sample| get(sample.figures.as_ref()?));
            let _ = write!(text, " {} |", spread(Spread::of(values), *digits));
        }
        let noisy = samples.iter().filter(|sample| sample.noisy).count();
        let _ = writeln!(text, " {noisy} |");
    }
    text + &remarks
}

/// `12.5 (11.0–14.2)`, or `12.5` of one round.
fn spread(spread: Option<Spread>, digits: usize) -> String {
    let Some(Spread { median, min, max }) = spread else { return "-".to_owned() };
    if min >= max {
        return format!("{median:.digits$}");
    }
    format!("{median:.digits$} ({min:.digits$}\u{2013}{max:.digits$})")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::address::Transport;
    use crate::generator::Generator;
    use crate::machine::Machine;
    use crate::samples::{Noise, Settings, Version};
    use crate::servers::SERVERS;
    use crate::workloads::WORKLOADS;

    /// Two rounds of four servers: ringnbd has twice the IOPS of the best peer in the first, 1.5 times in the other.
    pub(crate) fn results() -> Results {
        let workload = WORKLOADS.iter().find(|row| row.name == "randread-4k-32").expect("a row");
        let cell = Cell { workload, transport: Transport::Unix, generator: Generator::Bench };
        let names = ["ringnbd", "nbdkit", "qemu-nbd", "floor"];
        let sample = |server, round, attempt, iops: f64, foreign_pct| Sample {
            workload: workload.name,
            transport: cell.transport,
            generator: cell.generator,
            server,
            round,
            attempt,
            noisy: foreign_pct > 10.0,
            noise: Some(Noise { foreign_pct, steal_pct: 0.0 }),
            figures: Some(figures(iops)),
            failure: None,
            curve: Some(format!("10 0.0\n{} 0.5\n{} 0.99\n5000 1.000000\n", 5e6 / iops, 9e6 / iops)),
        };
        let mut failed = sample("floor", 2, 1, 1.0, 0.0);
        (failed.figures, failed.failure) = (None, Some("did not start: no such file".to_owned()));
        Results {
            date: "2026-01-02-0304".to_owned(),
            commit: "abcdef0".to_owned(),
            machine: Machine {
                cpu: "A B".to_owned(),
                processors: 2,
                kernel: "6.18".to_owned(),
                governor: None,
                memory_mib: 4096,
                file_system: "ext4".to_owned(),
                server_core: 0,
                client_core: 1,
            },
            settings: Settings { rounds: 2, seconds: 1, file_mib: 64, noise_max_pct: 10.0, repeats: 1 },
            versions: vec![Version { server: "nbdkit", version: "nbdkit 1.32".to_owned() }],
            samples: vec![
                sample("ringnbd", 1, 1, 200_000.0, 1.0),
                sample("nbdkit", 1, 1, 50_000.0, 40.0),
                sample("nbdkit", 1, 2, 100_000.0, 2.0),
                sample("qemu-nbd", 1, 1, 40_000.0, 1.0),
                sample("floor", 1, 1, 400_000.0, 1.0),
                sample("ringnbd", 2, 1, 150_000.0, 30.0),
                sample("nbdkit", 2, 1, 90_000.0, 1.0),
                sample("qemu-nbd", 2, 1, 100_000.0, 1.0),
                failed,
            ],
            servers: SERVERS.iter().filter(|server| names.contains(&server.name)).collect(),
            cells: vec![cell],
        }
    }

    fn figures(iops: f64) -> Figures {
        let latency =
            Latency { p50_us: 5e6 / iops, p99_us: 9e6 / iops, p99_9_us: 1e7 / iops, max_us: 5000.0 };
        Figures {
            requests: 1000,
            iops,
            mb_s: iops * 0.004_096,
            read: Some(latency),
            write: None,
            server_cpu_us: 1e6 / iops / if iops > 100_000.0 { 2.0 } else { 1.0 },
            client_cpu_us: 1.5,
            memory_kib: 2048,
            voluntary_switches: 20,
            involuntary_switches: 1,
        }
    }

    #[test]
    fn a_report_reads_the_same_each_time() {
        let results = results();
        let text = markdown(&results, &[(results.cells[0], "a.svg".to_owned())]);
        assert_eq!(text, markdown(&results, &[(results.cells[0], "a.svg".to_owned())]));
        for line in [
            "| commit | abcdef0 |",
            "| noisy samples | 2 of 9 (foreign load above 10 % of a processor) |",
            "| 4k random read, 32 in flight, unix | 1.75x (nbdkit) | 0.29x (nbdkit) | 0.58x (nbdkit) | 0.58x (nbdkit) \
             | 0.50x | 2.00x | 2.00x | 1 |",
            "| nbdkit | 95000 (90000\u{2013}100000) | 389 (369\u{2013}410) |",
            "floor: **failed** in 1 try: did not start: no such file",
            "![4k random read, 32 in flight, unix](a.svg)",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_lost_cell_says_so() {
        let mut results = results();
        for sample in results.samples.iter_mut().filter(|sample| sample.server == "ringnbd") {
            sample.figures = Some(figures(50_000.0));
        }
        let text = won_and_lost(&results);
        assert!(text.contains("**0.50x lost** (nbdkit)"), "{text}");
        assert!(summary(&results).lines().count() == 2);
    }
}
