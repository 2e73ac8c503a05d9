//! `ringnbd bench`: load from our own client, so that the server is measured and not the client.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{print, value};
use crate::backend::parse_size;
use crate::client::Uri;
use crate::load::{self, Pattern, Plan, Workload};

const EXAMPLES: &str = "\
Examples:
  ringnbd bench nbd://127.0.0.1/
  ringnbd bench --rw randwrite --bs 4k --iodepth 32 --runtime 10 'nbd+unix:///?socket=/run/nbd.sock'
  ringnbd bench --rw read --bs 256k --iodepth 16 --json nbd://127.0.0.1/";

/// Measure a server: requests in a closed loop, latency by percentile
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Bench {
    /// The export: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH
    #[arg(value_parser = Uri::parse)]
    uri: Uri,

    /// Which requests, in fio's words; those that write overwrite the export
    #[arg(long, value_enum, default_value = "randread")]
    rw: Rw,

    /// Bytes of each request
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = block_size)]
    bs: u32,

    /// Requests in flight on each connection
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=128))]
    iodepth: u32,

    /// Connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    numjobs: u32,

    /// Percentage of reads in randrw
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    rwmixread: u32,

    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = value::duration_above_zero)]
    runtime: Duration,

    /// How long to run before measuring
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = value::duration)]
    ramp: Duration,

    /// Seed of the random offsets
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
#[value(rename_all = "lowercase")]
#[allow(clippy::enum_variant_names)] // fio's words
enum Rw {
    Read,
    Write,
    RandRead,
    RandWrite,
    RandRw,
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let pattern = match self.rw {
            Rw::Read => Pattern::Read,
            Rw::Write => Pattern::Write,
            Rw::RandRead => Pattern::RandRead,
            Rw::RandWrite => Pattern::RandWrite,
            Rw::RandRw => Pattern::RandRw,
        };
        let report = load::run(Plan {
            uri: self.uri,
            workload: Workload { pattern, bs: self.bs, rwmixread: self.rwmixread, seed: self.seed },
            iodepth: self.iodepth,
            connections: self.numjobs,
            runtime: self.runtime,
            ramp: self.ramp,
        })?;
        let text = if self.json { report.json() } else { report.table() };
        print(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn block_size(text: &str) -> Result<u32, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    match u32::try_from(size) {
        Ok(size) if (1..=64 << 20).contains(&size) => Ok(size),
        _ => Err("must be between 1 byte and 64M".to_owned()),
    }
}
