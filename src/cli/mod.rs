//! The command line: one file per subcommand; around `serve`, one file for each thing it holds.
//!
//! ```text
//!   main --> serve ----> access     --allow and --deny into one list of rules
//!        |     |-------> start      options into a running server, its sockets and its pid file
//!        |     |           '------> descriptors   room for as many as the connections need
//!        |     '-------> watch      signals, the --run child, the server's end; what follows from each
//!        |                 |------> report   the table, .hgrm files and the interval log
//!        |                 '------> stats_socket   histograms for those who ask
//!        |-> bench                  load on a server, latency by percentile
//!        |-> copy                   a whole disk from one place to another
//!        |     '-------> progress   a bar, or lines for programs
//!        |-> info                   what a server exports, what can be done with it, where the data is
//!        |-> attach, detach         an export as a block device, by the kernel's NBD client
//!        |-> plot                   .hgrm files into a picture
//!        |-> completions, man       this command line, for shells and for man(1)
//! ```
//!
//! Exit codes: 0 all well; 1 the operator erred or the system refused, printed once with what, where and
//! what to do; 2 the words make no sense (clap's); with `serve --run`, the command's own.

mod access;
mod attach;
mod bench;
mod completions;
mod copy;
mod descriptors;
mod detach;
mod info;
mod log;
mod man;
mod pid_file;
mod plot;
mod report;
mod run;
mod serve;
mod start;
mod stats_socket;
mod tls;
mod value;
mod watch;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// An NBD storage node whose data path is io_uring from the socket to the disk
#[derive(Debug, Parser)]
#[command(
    name = "ringnbd",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  ringnbd serve disk.img                    serve a file on tcp:127.0.0.1:10809
  ringnbd serve --help                      all about exports and options
  ringnbd info --list nbd://127.0.0.1       ask what is served there
  ringnbd copy nbd://127.0.0.1 disk.img     fetch it"
)]
struct Arguments {
    #[command(subcommand)]
    subcommand: Words,
}

#[derive(Debug, Subcommand)]
enum Words {
    Serve(Box<serve::Serve>),
    Bench(Box<bench::Bench>),
    Info(info::Info),
    Copy(Box<copy::Copy>),
    Attach(attach::Attach),
    Detach(detach::Detach),
    Plot(plot::Plot),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Runs the program with the words it was started with.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().subcommand {
        Words::Serve(serve) => serve.run(),
        Words::Bench(bench) => bench.run(),
        Words::Info(info) => info.run(),
        Words::Copy(copy) => copy.run(),
        Words::Attach(attach) => attach.run(),
        Words::Detach(detach) => detach.run(),
        Words::Plot(plot) => plot.run(),
        Words::Completions(completions) => completions.run(),
        Words::Man(man) => man.run(),
    };
    result.unwrap_or_else(|error| {
        // The one place where an operator's error is printed; nothing to do if stderr is gone.
        let _ = writeln!(io::stderr(), "ringnbd: {}", sentence(&error));
        ExitCode::FAILURE
    })
}

/// An error and its causes; some of ours tell their cause themselves, with what to do about it.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Writes to standard output; a reader that left early (`| head`) is not an error.
fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use clap::CommandFactory;

    use super::{Arguments, sentence};

    #[test]
    fn a_cause_is_told_once() {
        let missing = || std::io::Error::from_raw_os_error(2);
        let refused =
            crate::net::listen::ListenError::Bind { address: "unix:/no/x".into(), source: missing() };
        assert_eq!(sentence(&refused.into()).matches("os error 2").count(), 1);
        let plain = Err::<(), _>(missing()).context("cannot open x").expect_err("is one");
        assert_eq!(sentence(&plain), "cannot open x: No such file or directory (os error 2)");
    }

    #[test]
    fn the_command_line_is_consistent_and_everything_has_help() {
        let mut command = Arguments::command();
        command.build();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
            assert!(subcommand.get_after_help().is_some(), "{} has no example", subcommand.get_name());
            for argument in subcommand.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {argument}", subcommand.get_name());
            }
        }
    }
}
