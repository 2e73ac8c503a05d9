//! `ringnbd completions`: a completion script for a shell, on standard output.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringnbd completions bash > /usr/share/bash-completion/completions/ringnbd
  ringnbd completions fish > ~/.config/fish/completions/ringnbd.fish")]
pub(super) struct Completions {
    /// The shell that shall complete
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        generate(self.shell, &mut super::Arguments::command(), "ringnbd", &mut script);
        super::print(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
