//! `ringnbd bench`: load from our own client, so that the server is measured and not the client.

mod files;
mod split;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::{print, value};
use crate::client::Uri;
use crate::load::{self, Distribution, Pattern, Plan, Sizes, Workload};
use files::Files;
use split::Split;

const EXAMPLES: &str = "\
Examples:
  ringnbd bench nbd://127.0.0.1/
  ringnbd bench --rw randwrite --bs 4k --iodepth 32 --runtime 10 'nbd+unix:///?socket=/run/nbd.sock'
  ringnbd bench --rw randrw --rwmixread 70 --fsync 32 --bs 4k/80:64k --numjobs 4 --json nbd://127.0.0.1/
  ringnbd bench --rw randread --rate_iops 20000 --hgrm read.hgrm --hlog read.hlog nbd://127.0.0.1/
  ringnbd bench --rw randrw --verify --random_distribution zipf:1.1 --size 1G nbd://127.0.0.1/
  ringnbd serve disk.img --stats-socket s --run 'ringnbd bench --stats-socket s \"$uri\"'

The open loop (--rate_iops) measures latency from when a request was due, not from when it could be sent: a server
that stalls is late with every request of the schedule meanwhile, as it would be for its users.

--verify writes blocks that describe themselves (offset, generation, seed, checksum), checks what is read of them
while the load runs, and reads all of them back after it. With an --rw that only reads, every block must have been
written by an earlier run with the same --seed and --bs. The first block that is wrong ends the run, explained.";

/// Measure a server: requests in a closed or an open loop, latency by percentile
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Bench {
    /// The export: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH; nbds for TLS, with tls-certificates=DIR
    #[arg(value_parser = Uri::parse)]
    uri: Uri,

    /// Which requests, in fio's words; those that write or trim destroy what the export holds
    #[arg(long, alias = "readwrite", value_enum, default_value = "randread")]
    rw: Rw,

    /// Bytes of each request; several sizes with their percentages as 4k/50:256k/50, where those without one share
    /// the rest. Offsets are multiples of the smallest
    #[arg(long, alias = "bssplit", value_name = "SIZE", default_value = "4k", value_parser = words::sizes)]
    bs: Sizes,

    /// Requests in flight on each connection, at most
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    iodepth: u32,

    /// Connections. Sequential ones start spread over the window
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    numjobs: u32,

    /// Percentage of reads in rw and randrw
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    rwmixread: u32,

    /// Send a flush after every N writes of a connection; 0 for none
    #[arg(long, value_name = "N", default_value_t = 0)]
    fsync: u32,

    /// Each write asks for FUA: its reply says that it is on stable storage
    #[arg(long)]
    fua: bool,

    /// Where the window of the export begins that requests stay in
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = words::bytes)]
    offset: u64,

    /// How large the window is; all that follows --offset if left out
    #[arg(long, value_name = "BYTES", value_parser = words::bytes_above_zero)]
    size: Option<u64>,

    /// How random requests spread over the window: random, or zipf:THETA (a few blocks often; THETA above 0)
    #[arg(
        long = "random_distribution",
        alias = "random-distribution",
        value_name = "LAW",
        default_value = "random",
        value_parser = words::distribution
    )]
    random_distribution: Distribution,

    /// Open loop: start so many requests a second on each connection (as fio, per job), whatever the replies. Latency
    /// counts from when they were due
    #[arg(
        long = "rate_iops",
        alias = "rate-iops",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000)
    )]
    rate_iops: Option<u32>,

    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = value::duration_above_zero)]
    runtime: Duration,

    /// How long to run before measuring
    #[arg(
        long,
        aliases = ["ramp_time", "ramp-time"],
        value_name = "TIME",
        default_value = "500ms",
        value_parser = value::duration
    )]
    ramp: Duration,

    /// Seed of what is drawn: the same seed makes the same requests
    #[arg(long, alias = "randseed", value_name = "NUMBER", default_value_t = 1)]
    seed: u64,

    /// Write blocks that describe themselves, and check them
    #[arg(long)]
    verify: bool,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// Say where the requests' time went, by asking the server (ringnbd serve --stats-socket PATH) before and after them
    ///
    /// The export should be nobody else's meanwhile. The ramp then is a run of its own, with connections of its own.
    #[arg(long, value_name = "PATH", conflicts_with = "verify")]
    stats_socket: Option<PathBuf>,

    /// Write latency by percentile to FILE, in microseconds; with several commands one file each, FILE with the
    /// command's name before its extension
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,

    /// Write an HdrHistogram interval log (V2) to FILE, with a line for each second and command
    #[arg(long, value_name = "FILE")]
    hlog: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lowercase")]
#[allow(clippy::enum_variant_names)] // fio's words
enum Rw {
    Read,
    Write,
    RandRead,
    RandWrite,
    #[value(alias = "readwrite")]
    Rw,
    RandRw,
    Trim,
    RandTrim,
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let pattern = self.pattern();
        self.check(pattern)?;
        let mut files = Files::open(self.hgrm, self.hlog)?;
        let mut plan = Plan {
            uri: self.uri,
            workload: Workload {
                pattern,
                sizes: self.bs,
                rwmixread: self.rwmixread,
                offset: self.offset,
                size: self.size,
                distribution: self.random_distribution,
                fsync: self.fsync,
                fua: self.fua,
                verify: self.verify,
                seed: self.seed,
            },
            iodepth: self.iodepth,
            connections: self.numjobs,
            rate_iops: self.rate_iops,
            runtime: self.runtime,
            ramp: self.ramp,
            intervals: files.intervals(),
        };
        let split = match self.stats_socket {
            Some(path) => {
                split::warm_up(&plan)?;
                plan.ramp = Duration::ZERO;
                Some(Split::begin(path, &plan.uri.export)?)
            }
            None => None,
        };
        let report = load::run(plan)?;
        let parts = split.map(|split| split.end(&report)).transpose()?;
        let text = match (self.json, parts) {
            (true, parts) => report.json(&parts.map_or_else(String::new, |parts| split::json(&parts))),
            (false, parts) => report.table() + &parts.map_or_else(String::new, |parts| split::table(&parts)),
        };
        print(text.as_bytes())?;
        files.end(&report)?;
        Ok(ExitCode::SUCCESS)
    }

    fn pattern(&self) -> Pattern {
        match self.rw {
            Rw::Read => Pattern::Read,
            Rw::Write => Pattern::Write,
            Rw::RandRead => Pattern::RandRead,
            Rw::RandWrite => Pattern::RandWrite,
            Rw::Rw => Pattern::Rw,
            Rw::RandRw => Pattern::RandRw,
            Rw::Trim => Pattern::Trim,
            Rw::RandTrim => Pattern::RandTrim,
        }
    }

    /// Options that would go without effect, or that exclude each other.
    fn check(&self, pattern: Pattern) -> anyhow::Result<()> {
        use clap::ValueEnum;
        let rw = self.rw.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        if self.fua && !pattern.writes() {
            bail!("--fua goes with writes, and --rw {rw} makes none");
        }
        if self.fsync > 0 && !pattern.writes() {
            bail!("--fsync counts writes, and --rw {rw} makes none");
        }
        if self.verify && pattern.trims() {
            bail!("--verify has nothing to check with --rw {rw}: what a trimmed block holds is left open");
        }
        if self.random_distribution != Distribution::Uniform && !pattern.is_random() {
            bail!("--random_distribution goes with random requests, and --rw {rw} makes sequential ones");
        }
        Ok(())
    }
}
