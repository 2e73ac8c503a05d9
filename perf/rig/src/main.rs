//! The rig behind `perf/compare` and `perf/against-nbdkit`, which measure NBD servers side by side, and behind
//! `perf/curves`, which asks how ringnbd's costs grow.
//!
//! ```text
//!   compare  against          words of the command line, and what is asked
//!        \    /
//!        rounds ------------- servers in turn, each measured alone; samples, good or bad
//!       /   |   \
//! servers workloads           the two tables
//!  disk  generator  child  procfs  machine  interrupt      what a sample needs
//!        |
//!   statistics -> report, picture, results                 what samples come to
//!
//!   floor                     the least that the machine needs, a row among the servers
//!   curves                    its own table of questions, and its report
//! ```
//!
//! Everything that it starts ends with it: children are killed when their handle goes, when the rig dies, and what
//! they leave behind is swept.

mod address;
mod against;
mod certificates;
mod child;
mod compare;
mod curves;
mod disk;
mod figures;
mod floor;
mod generator;
mod hgrm;
mod interrupt;
mod machine;
mod picture;
mod procfs;
mod report;
mod rounds;
mod samples;
mod servers;
mod session;
mod statistics;
mod targets;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Measure NBD servers side by side
#[derive(Debug, Parser)]
#[command(name = "ringnbd-rig", version)]
enum Cli {
    Compare(compare::Compare),
    AgainstNbdkit(against::Against),
    Curves(curves::Curves),
    /// Become another program, pinned, for as long as the rig lives
    #[command(hide = true)]
    Launch {
        #[arg(long, value_delimiter = ',')]
        cores: Vec<usize>,
        #[arg(long)]
        parent: u32,
        #[arg(required = true, last = true)]
        words: Vec<String>,
    },
    /// Ask for the extents of an export again and again
    #[command(hide = true)]
    Walk {
        address: address::Address,
        #[arg(long)]
        seconds: f64,
    },
    /// Move bytes with as little work as can be
    #[command(hide = true)]
    Floor {
        address: address::Address,
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Compare(compare) => compare.run(),
        Cli::AgainstNbdkit(against) => against.run(),
        Cli::Curves(curves) => curves.run(),
        Cli::Launch { cores, parent, words } => {
            child::launch(&cores, parent, &words).map(|()| ExitCode::SUCCESS)
        }
        Cli::Walk { address, seconds } => {
            curves::walk(&address, std::time::Duration::from_secs_f64(seconds)).map(|()| ExitCode::SUCCESS)
        }
        Cli::Floor { address, file } => floor::serve(&address, &file).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("ringnbd-rig: {error:#}");
        // What a shell says of a program that ctrl-C ended.
        if error.is::<interrupt::Interrupted>() { ExitCode::from(130) } else { ExitCode::FAILURE }
    })
}
