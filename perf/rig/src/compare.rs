//! `perf/compare`: every server, every workload, both transports; a report, its figures and its pictures.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::address::Transport;
use crate::servers::{SERVERS, Server};
use crate::session::{self, Options};
use crate::workloads::{WORKLOADS, Workload};
use crate::{picture, report};

/// Measure all servers in turn and report on them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  perf/compare                                              # everything: more than an hour
  perf/compare --quick                                      # does it work? one round of a second
  perf/compare --servers ringnbd,nbdkit,floor --workloads randread-4k-32 --transports unix")]
pub(crate) struct Compare {
    #[command(flatten)]
    options: Options,

    /// Only these servers
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    servers: Vec<String>,

    /// Only these workloads
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    workloads: Vec<String>,

    /// Only these transports
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "unix,tcp")]
    transports: Vec<Transport>,

    /// Leave out what fio drives
    #[arg(long)]
    no_fio: bool,

    /// One round of one second: shows that everything works, and no figure that counts
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,

    /// Print the names of servers and workloads, and end
    #[arg(long)]
    list: bool,
}

impl Compare {
    pub(crate) fn run(mut self) -> anyhow::Result<ExitCode> {
        if self.list {
            SERVERS.iter().for_each(|server| println!("server    {:22} {}", server.name, server.what));
            WORKLOADS
                .iter()
                .for_each(|workload| println!("workload  {:22} {}", workload.name, workload.title));
            return Ok(ExitCode::SUCCESS);
        }
        if self.quick {
            (self.options.rounds, self.options.seconds) = (1, 1);
        }
        let servers = chosen(SERVERS, &self.servers, |server: &Server| server.name)?;
        let workloads = chosen(WORKLOADS, &self.workloads, |workload: &Workload| workload.name)?;
        let cells = session::cells(&workloads, &self.transports, !self.no_fio);
        let results = self.options.measure(servers, cells)?;

        let mut pictures = Vec::new();
        for cell in &results.cells {
            for (name, drawn) in
                [("latency", self.options.draw(&results, cell)), ("cpu", picture::cpu(&results, cell))]
            {
                let Some(svg) = drawn? else { continue };
                let name = format!("{}-{name}.svg", cell.name());
                self.options.write(&results, &name, &svg)?;
                pictures.push((*cell, name));
            }
        }
        let json = self.options.write(&results, "compare.json", &results.json()?)?;
        let markdown = self.options.write(&results, "compare.md", &report::markdown(&results, &pictures))?;
        println!("{}", report::summary(&results));
        println!("report   {}\nfigures  {}", markdown.display(), json.display());
        match results.missing() {
            0 => {}
            missing => bail!("{missing} measurements could not be made; the report says why"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The rows of a table that have these names, in the table's order; all of them where there are no names.
pub(crate) fn chosen<T>(
    table: &'static [T],
    names: &[String],
    name_of: fn(&T) -> &'static str,
) -> anyhow::Result<Vec<&'static T>> {
    if let Some(unknown) = names.iter().find(|name| !table.iter().any(|row| name_of(row) == *name)) {
        let all: Vec<_> = table.iter().map(name_of).collect();
        bail!("there is no {unknown}; there are {}", all.join(", "));
    }
    let wanted = |row: &&T| names.is_empty() || names.iter().any(|name| name == name_of(row));
    Ok(table.iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_name_and_keep_their_order() {
        let names = ["nbdkit".to_owned(), "ringnbd".to_owned()];
        let servers = chosen(SERVERS, &names, |server: &Server| server.name).expect("known names");
        assert_eq!(servers.iter().map(|server| server.name).collect::<Vec<_>>(), ["ringnbd", "nbdkit"]);
        let error = chosen(SERVERS, &["apache".to_owned()], |server: &Server| server.name);
        assert!(error.expect_err("unknown").to_string().contains("there is no apache"));
    }

    #[test]
    fn names_are_unique() {
        for names in [
            SERVERS.iter().map(|row| row.name).collect::<Vec<_>>(),
            WORKLOADS.iter().map(|row| row.name).collect(),
        ] {
            let mut unique = names.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), names.len());
        }
    }
}
