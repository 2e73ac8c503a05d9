//! Where the log goes and how much of it: standard error as text or JSON lines, or the journal.

use std::io::{self, IsTerminal};

use anyhow::Context;
use clap::ValueEnum;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Lines for people, on standard error
    Text,
    /// One JSON object per line, on standard error
    Json,
    /// Fields for systemd's journal
    Journald,
}

/// Environment variable that overrides the level, in `tracing`'s filter syntax.
const FILTER: &str = "RINGNBD_LOG";

/// Sends the log to its place from now on. `verbosity`: -1 errors only, 0 information, 1 debug, 2 trace.
pub(super) fn start(format: Format, verbosity: i8) -> anyhow::Result<()> {
    let level = match verbosity {
        ..0 => LevelFilter::ERROR,
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        2.. => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).with_env_var(FILTER);
    let filter = filter.from_env().with_context(|| format!("{FILTER} is not a log filter"))?;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Text => {
            let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
            let lines = lines.with_ansi(io::stderr().is_terminal());
            registry.with(lines).try_init()
        }
        Format::Json => {
            let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).json().flatten_event(true);
            registry.with(lines).try_init()
        }
        Format::Journald => {
            let journal = tracing_journald::layer().context(
                "cannot reach systemd's journal (/run/systemd/journal/socket); use --log-format text",
            )?;
            registry.with(journal).try_init()
        }
    }
    .context("logging was already set up")
}
