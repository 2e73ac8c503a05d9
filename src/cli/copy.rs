//! `ringnbd copy`: a whole disk from one place to another. Words are those of nbdcopy.

mod progress;

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::{print, value};
use crate::backend::parse_size;
use crate::copy::{self, Job, Place, QUEUE_MAX, REQUEST_MAX, REQUEST_MIN};
use progress::Bar;

/// Copy a disk: from or to a file, a block device, standard input or output, an NBD export
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringnbd copy nbd://127.0.0.1/disk disk.img
  ringnbd copy --flush --verify disk.img nbd://127.0.0.1/disk
  ringnbd copy nbd://old/disk 'nbd+unix:///disk?socket=/run/nbd.sock'
  ringnbd copy nbd://127.0.0.1/disk - | zstd > disk.zst
  zstdcat disk.zst | ringnbd copy --target-is-zero - nbd://127.0.0.1/disk

A file at the destination is emptied first and gets the size of the source; holes stay holes. An export or a device must
be at least as large as the source, and keeps what lies behind it. When a server goes away requests wait for it to come
back, and the copy goes on where it was; what the server may have lost is copied again.")]
pub(super) struct Copy {
    /// Where from: FILE, DEVICE, - for standard input, nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH
    #[arg(value_parser = OsStringValueParser::new().try_map(Place::parse))]
    source: Place,

    /// Where to: the same, - for standard output, or null: for nowhere
    #[arg(value_parser = OsStringValueParser::new().try_map(Place::parse))]
    destination: Place,

    /// Leave no holes at the destination
    #[arg(long)]
    allocated: bool,

    /// Connections to a server that allows several
    #[arg(short = 'C', long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,

    /// Take it for granted that the destination reads as zeroes, and leave the zeroes of the source out
    #[arg(long, alias = "destination-is-zero")]
    target_is_zero: bool,

    /// Make the copy durable before this ends
    #[arg(long)]
    flush: bool,

    /// Read both sides again after the copy, and compare them
    #[arg(long)]
    verify: bool,

    /// Read all of the source, also where it says that there is nothing
    #[arg(long)]
    no_extents: bool,

    /// Show a progress bar also if standard error is no terminal (as lines N/100), or write N/100 to a descriptor
    #[arg(short = 'p', long, value_name = "FD", num_args = 0..=1, require_equals = true, default_missing_value = "2")]
    progress: Option<RawFd>,

    /// No progress bar on a terminal
    #[arg(short, long, conflicts_with = "progress")]
    quiet: bool,

    /// Print what it came to as JSON
    #[arg(long)]
    json: bool,

    /// Bytes in flight, at most [default: 4M where both sides are on this machine, else 16M]
    #[arg(long, value_name = "BYTES", value_parser = queue_size)]
    queue_size: Option<u64>,

    /// Bytes of one request, at most: a power of two from 4K to 32M
    #[arg(long, value_name = "BYTES", default_value = "256K", value_parser = request_size)]
    request_size: u64,

    /// Requests in flight on each connection, at most
    #[arg(short = 'R', long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    requests: u16,

    /// Look for zeroes in what is read, in blocks of so many bytes; 0 for not at all. [default: 4096, or the destination's
    /// preferred block if that is larger]
    #[arg(short = 'S', long, value_name = "BYTES", value_parser = sparse)]
    sparse: Option<u64>,

    /// One request at a time, in order
    #[arg(long)]
    synchronous: bool,

    /// How long to wait for a server that went away to come back; 0 for not at all
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = value::duration)]
    reconnect_delay: Duration,

    /// How long to wait for a server that is not there yet
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = value::duration)]
    open_timeout: Duration,

    /// As if not given: one thread does it all
    #[arg(short = 'T', long, value_name = "N", hide = true)]
    threads: Option<OsString>,
}

impl Copy {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        ensure!(
            !(self.json && self.destination == Place::Standard),
            "--json prints to standard output, where the copy goes: leave it out, or name a file"
        );
        let mut bar = Bar::choose(self.progress, self.quiet, self.verify)?;
        let (connections, requests) =
            if self.synchronous { (1, 1) } else { (self.connections, self.requests) };
        let job = Job {
            source: self.source,
            destination: self.destination,
            connections: usize::from(connections),
            requests: usize::from(requests),
            request_bytes: self.request_size,
            queue_bytes: self.queue_size,
            sparse_bytes: self.sparse,
            allocated: self.allocated,
            target_is_zero: self.target_is_zero,
            extents: !self.no_extents,
            flush: self.flush,
            verify: self.verify,
            reconnect_delay: self.reconnect_delay,
            open_timeout: self.open_timeout,
        };
        let summary = copy::run(job, move |progress| bar.show(progress))?;
        if self.json {
            print(summary.json().as_bytes())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn queue_size(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    if (1..=QUEUE_MAX).contains(&bytes) { Ok(bytes) } else { Err("must be from 1 byte to 1G".to_owned()) }
}

fn request_size(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    let fits = bytes.is_power_of_two() && (REQUEST_MIN..=REQUEST_MAX).contains(&bytes);
    if fits { Ok(bytes) } else { Err("must be a power of two from 4K to 32M".to_owned()) }
}

fn sparse(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    let fits = bytes == 0 || (bytes.is_power_of_two() && (512..=REQUEST_MAX).contains(&bytes));
    if fits { Ok(bytes) } else { Err("must be 0, or a power of two from 512 to 32M".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_bounds() {
        assert_eq!((request_size("4k"), request_size("32M")), (Ok(4096), Ok(32 << 20)));
        assert_eq!((sparse("0"), sparse("512"), queue_size("1")), (Ok(0), Ok(512), Ok(1)));
        for text in ["0", "2k", "64M", "100k", "x"] {
            request_size(text).expect_err(text);
        }
        for text in ["1", "256", "5000", "64M", ""] {
            sparse(text).expect_err(text);
        }
        for text in ["0", "2G", "-1"] {
            queue_size(text).expect_err(text);
        }
    }
}
