//! The two ends: a server with little to do, and one with all that it can do.

use std::time::Duration;

use anyhow::Context;

use super::answer::{Answer, Column, Point};
use super::stage::{Clocks, Stage};
use crate::address::Transport;

/// How long a server that shall do nothing is watched: the kernel counts in steps of 10 ms.
const WATCHED: Duration = Duration::from_secs(3);

/// CPU time of a server after a load has ended, and under a small one, with and without polling.
pub(super) fn rest(stage: &Stage<'_>, answer: &mut Answer) -> anyhow::Result<()> {
    const COLUMNS: &[Column] = &[("% of a processor", 2), ("p50", 0), ("p99", 0)];
    answer.how = "A server over a unix socket, watched for 3 s after reads of 4k at depth 1 have ended (which it polls \
                  for) and their connection is closed, and the same while 1,000 reads a second are asked for, evenly. The \
                  kernel counts CPU time in steps of 10 ms.";
    answer.columns = COLUMNS;
    let file = stage.file(false)?;
    let mut sides = Vec::new();
    for poll in ["auto", "never"] {
        let node = stage.serve(Transport::Unix, &format!("--poll {poll}"), &file)?;
        sides.push((poll, node));
    }
    let named = |what: &str| -> Vec<_> {
        sides.iter().map(|(poll, node)| (format!("{what}, --poll {poll}"), node)).collect()
    };
    let silent = stage.in_turn(&named("after a load"), |node| {
        stage.sample(node, "--rw randread --bs 4k --iodepth 1")?;
        let before = Clocks::look(node)?;
        stage.rest(WATCHED)?;
        let spent = Clocks::look(node)?.since(&before);
        let percent = 100.0 * spent.server.as_secs_f64() / spent.wall.as_secs_f64();
        Ok(Point { values: vec![percent, f64::NAN, f64::NAN], noisy: spent.noisy })
    })?;
    let offered = stage.in_turn(&named("1,000 reads a second"), |node| {
        let sample = stage.sample(node, "--rw randread --bs 4k --iodepth 32 --rate_iops 1000")?;
        let latency = sample.latency()?;
        let percent = 100.0 * sample.cpu.as_secs_f64() / stage.sample.as_secs_f64();
        Ok(sample.point([percent, latency.p50_us, latency.p99_us]))
    })?;
    for (_, node) in sides {
        stage.stop(node)?;
    }
    answer.target("% of a processor after a load, --poll auto", silent[0].median(0), 1.0);
    let more = offered[0].median(0) - offered[1].median(0);
    answer.target("percentage points that --poll auto adds at 1,000 reads a second", more, 1.0);
    answer.rows.extend(silent);
    answer.rows.extend(offered);
    Ok(())
}

/// Latency of reads and writes together on all processors, and where it was spent.
pub(super) fn mixed(stage: &Stage<'_>, answer: &mut Answer) -> anyhow::Result<()> {
    const COLUMNS: &[Column] = &[
        ("IOPS", 0),
        ("CPU", 2),
        ("reads: p50", 0),
        ("p99", 0),
        ("p99.9", 0),
        ("max", 0),
        ("p99.9 in the server", 0),
        ("p99.9 in the kernel's file system", 0),
        ("writes: p99.9", 0),
        ("p99.9 in the server", 0),
        ("p99.9 in the kernel's file system", 0),
        ("stolen %", 1),
    ];
    answer.how = "70 % reads and 30 % writes of 4k at random over unix sockets, 16 in flight on each of 4 connections, one \
                  shard for each processor, the client on all of them too; then with a flush after every 32 writes. In \
                  the server: from the request's last byte to the reply's (its own histograms, warm-up included); in the \
                  file system: of that, its calls. What the client sees beyond is sockets, wake-ups, and the two sides in \
                  each other's way on their processors.";
    answer.columns = COLUMNS;
    let mut cores = vec![stage.machine.server_core, stage.machine.client_core];
    cores.dedup();
    let sides = [
        ("file".to_owned(), (true, "")),
        ("file, a flush after 32 writes".to_owned(), (true, "--fsync 32")),
        ("no file at all (null:)".to_owned(), (false, "")),
    ];
    let rows = stage.in_turn(&sides, |(file, more)| {
        let export = if *file { stage.file(true)? } else { "null:512M".to_owned() };
        let words = format!("--shards {} --stats", cores.len());
        let node = stage.serve_on(&cores, Transport::Unix, &words, &export)?;
        let load = format!("--rw randrw --rwmixread 70 --bs 4k --iodepth 16 --numjobs 4 {more}");
        let sample = stage.sample_on(&cores, &node, &load)?;
        let table = stage.stop(node)?;
        let server = |command, time| of_table(&table, command, time);
        let read = sample.client.read.context("nothing was read")?;
        let write = sample.client.write.context("nothing was written")?;
        Ok(sample.point([
            sample.client.iops,
            sample.cpu_us(),
            read.p50_us,
            read.p99_us,
            read.p99_9_us,
            read.max_us,
            server("read", "service")?,
            server("read", "backend")?,
            write.p99_9_us,
            server("write", "service")?,
            server("write", "backend")?,
            sample.steal_pct,
        ]))
    })?;
    for row in &rows {
        for (command, at) in [("reads", 4), ("writes", 8)] {
            let [client, server, backend] = [0, 2, 3].map(|more| match (command, more) {
                ("writes", 2) => row.median(9),
                ("writes", 3) => row.median(10),
                _ => row.median(at + more),
            });
            answer.notes.push(format!(
                "{}: p99.9 of {command} ({client:.0} us): {}.",
                row.name,
                cause(client, server, backend)
            ));
        }
    }
    answer.rows = rows;
    Ok(())
}

/// Where most of a percentile was spent.
fn cause(client: f64, server: f64, backend: f64) -> &'static str {
    if server < client / 2.0 {
        "outside of the server, in sockets and in waiting for a processor"
    } else if backend < server / 2.0 {
        "in the server, behind other requests of the shard"
    } else {
        "in the file system"
    }
}

/// The p99.9 of a line of the table that `--stats` prints, in microseconds: its last figures are p50, p90, p99, p99.9,
/// p99.99 and max.
fn of_table(table: &str, command: &str, time: &str) -> anyhow::Result<f64> {
    let is_it = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(command) && words.next() == Some(time)
    };
    let line = table.lines().find(is_it).with_context(|| format!("--stats has no {time} of {command}"))?;
    let word = line.split_whitespace().rev().nth(2).context("a short line")?;
    word.parse().with_context(|| format!("{word} is no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_server_is_read() {
        let table = "latency in microseconds, over 1.5 s\n\
                     export  command time requests IOPS MiB/s errors p50 p90 p99 p99.9 p99.99 max\n\
                     default read    service 34604 22840 89.2 0 1654.8 3129.3 4980.7 8585.2 9044.0 9044.1\n\
                     default read    backend 1523.7 2981.9 4784.1 8454.1 8847.4 8847.5\n";
        assert_eq!(of_table(table, "read", "service").ok(), Some(8585.2));
        assert_eq!(of_table(table, "read", "backend").ok(), Some(8454.1));
        assert!(of_table(table, "write", "backend").is_err());
    }

    #[test]
    fn a_percentile_is_blamed_on_the_largest_share() {
        assert!(cause(100.0, 20.0, 10.0).contains("outside"));
        assert!(cause(100.0, 80.0, 10.0).contains("behind other requests"));
        assert!(cause(100.0, 80.0, 60.0).contains("file system"));
    }
}
