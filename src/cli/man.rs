//! `ringnbd man`: the manual pages, made from the same definitions as `--help`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Command, CommandFactory};

/// Print a manual page, or write all of them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringnbd man serve | man -l -                            read it
  ringnbd man --dir /usr/local/share/man/man1             install ringnbd(1), ringnbd-serve(1), ...")]
pub(super) struct Man {
    /// The subcommand whose page to print; without one, ringnbd(1)
    subcommand: Option<String>,

    /// Write the pages of all subcommands into this directory, which is made if missing
    #[arg(long, value_name = "DIR", conflicts_with = "subcommand")]
    dir: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut command = super::Arguments::command().disable_help_subcommand(true);
        // Gives each subcommand its full name, "ringnbd-serve".
        command.build();
        if let Some(dir) = self.dir {
            write_all(&command, &dir).with_context(|| format!("cannot write into {}", dir.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        let command = match &self.subcommand {
            None => &command,
            Some(name) => match command.find_subcommand(name) {
                Some(found) => found,
                None => bail!("there is no subcommand '{name}': see ringnbd --help"),
            },
        };
        super::print(page(command)?.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn write_all(command: &Command, dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for command in std::iter::once(command).chain(command.get_subcommands()) {
        let name = clap_mangen::Man::new(command.clone()).get_filename();
        std::fs::write(dir.join(name), page(command)?)?;
    }
    Ok(())
}

/// The page of one command. clap_mangen calls what stands after the options "extra" and fills its lines;
/// ours are tables and examples, whose lines must stay.
fn page(command: &Command) -> io::Result<String> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    let Some((before, extra)) = text.split_once(".SH EXTRA\n") else { return Ok(text) };
    let (extra, after) = extra.find("\n.SH ").map_or((extra, ""), |end| extra.split_at(end + 1));
    Ok(format!("{before}.SH NOTES\n.nf\n{extra}.fi\n{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_keep_their_lines() {
        let mut command = super::super::Arguments::command();
        command.build();
        let serve = command.find_subcommand("serve").expect("exists");
        let page = page(serve).expect("renders");
        let notes = page.split_once(".SH NOTES\n.nf\n").expect("has notes").1;
        assert!(notes.contains("ringnbd serve a=disk1.img"), "{page}");
        assert!(notes.contains(".fi"), "{page}");
        assert!(page.contains("\\-\\-hdr\\-log"), "{page}");
    }
}
