//! What grows: connections that idle, connections at work, the export, shards.

use std::fs::File;

use super::answer::{Answer, Column, Point, Row, ratio};
use super::stage::{Node, Sample, Stage};
use super::wire::Crowd;
use crate::address::Transport;
use crate::figures::float;

const READ_32: &str = "--rw randread --bs 4k --iodepth 32";
/// Noise of a quiet machine between two samples of the same thing.
const WITHIN_NOISE: f64 = 1.1;

/// Memory of a connection that is silent, and what many of them cost one that is not.
pub(super) fn idle(stage: &Stage<'_>, answer: &mut Answer) -> anyhow::Result<()> {
    const COLUMNS: &[Column] = &[("KiB for each", 1), ("IOPS", 0), ("CPU", 2), ("p99", 0)];
    const MEMORY_KIB_MAX: f64 = 32.0;
    answer.how = "One process holds connections that have chosen an export and are silent; memory is the growth of the \
                  server's resident set, divided by them (what sockets cost the kernel is not in it). One more connection \
                  reads, 4k at random, 32 in flight: at a server that has the crowd, and at one that has not.";
    answer.columns = COLUMNS;
    let export = stage.file(false)?;
    for transport in [Transport::Unix, Transport::Tcp] {
        let words = format!("--max-connections {}", stage.crowd + 16);
        let alone = stage.serve(transport, &words, &export)?;
        let crowded = stage.serve(transport, &words, &export)?;
        // What the first connection needs that later ones share is not theirs.
        stage.sample(&crowded, READ_32)?;
        let before = crowded.memory_kib();
        let crowd = Crowd::gather(&crowded.address, stage.crowd, || Ok(stage.interrupt.check()?))?;
        let each_kib = float(crowded.memory_kib().saturating_sub(before)) / float(crowd.len() as u64);
        let sides = [
            (format!("{transport}, alone"), (&alone, f64::NAN)),
            (format!("{transport}, beside {}", crowd.len()), (&crowded, each_kib)),
        ];
        let rows = stage.in_turn(&sides, |(node, kib)| {
            let sample = stage.sample(node, READ_32)?;
            Ok(sample.point([*kib, sample.client.iops, sample.cpu_us(), sample.latency()?.p99_us]))
        })?;
        answer.target(format!("{transport}: KiB for each idle connection"), each_kib, MEMORY_KIB_MAX);
        let cpu = ratio(&rows[1], &rows[0], 2);
        answer.target(format!("{transport}: CPU/request of the active one, to alone"), cpu, WITHIN_NOISE);
        let time = 1.0 / ratio(&rows[1], &rows[0], 1);
        answer.target(format!("{transport}: IOPS alone, to IOPS beside the crowd"), time, WITHIN_NOISE);
        answer.rows.extend(rows);
        drop(crowd);
        stage.stop(alone)?;
        stage.stop(crowded)?;
    }
    Ok(())
}

/// CPU time of a request, by the number of connections that share the load.
pub(super) fn connections(stage: &Stage<'_>, answer: &mut Answer) -> anyhow::Result<()> {
    const COLUMNS: &[Column] = &[("IOPS", 0), ("CPU", 2), ("p50", 0), ("p99", 0), ("memory MiB", 0)];
    const IN_FLIGHT: u32 = 64;
    answer.how = "4k random reads over a unix socket. Up to 64 connections share 64 requests in flight, beyond each has \
                  one; CPU time is without connecting. What connections share is lost by this: 64 requests on one come in batches of eight for one system \
                  call, and from 64 on each has a receive, a reply and a wake-up of its own; from there on the curve shall \
                  be flat.";
    answer.columns = COLUMNS;
    let node = stage.serve(Transport::Unix, "", &stage.file(false)?)?;
    let sides = [1, 4, 16, 64, 256, 1000].map(|count: u32| (format!("{count}"), count));
    let rows = stage.in_turn(&sides, |count| {
        let depth = (IN_FLIGHT / count).max(1);
        let words = format!("--rw randread --bs 4k --iodepth {depth} --numjobs {count}");
        let sample = stage.sample_at_work(&node, &words)?;
        let latency = sample.latency()?;
        let mib = float(node.memory_kib()) / 1024.0;
        Ok(sample.point([sample.client.iops, sample.cpu_us(), latency.p50_us, latency.p99_us, mib]))
    })?;
    stage.stop(node)?;
    for row in &rows[4..] {
        answer.target(
            format!("CPU/request at {} connections, to 64", row.name),
            ratio(row, &rows[3], 1),
            1.15,
        );
    }
    answer.target(
        "CPU/request at 1000 connections, to the most expensive number below",
        most(&rows, 1),
        1.15,
    );
    answer.rows = rows;
    Ok(())
}

/// The last row's median to the largest of the others.
fn most(rows: &[Row], column: usize) -> f64 {
    let Some((last, others)) = rows.split_last() else { return f64::NAN };
    last.median(column) / others.iter().map(|row| row.median(column)).fold(0.0, f64::max)
}

/// CPU time of a request, by the size of a sparse file.
pub(super) fn size(stage: &Stage<'_>, answer: &mut Answer) -> anyhow::Result<()> {
    const COLUMNS: &[Column] = &[("IOPS", 0), ("CPU", 2), ("p99", 0), ("to the floor", 2)];
    const GIB: [u64; 4] = [1, 16, 128, 1024];
    /// What is read where the size alone is asked about; small enough to be cached by the warm-up.
    const WINDOW: u64 = 16 << 20;
    answer.how = "4k random reads of a sparse file over a unix socket, 32 in flight. First at the end of the file, 16 MiB \
                  that are in the page cache: what the size itself costs. Then everywhere: nearly every read of the large \
                  ones meets a hole that was not read before, and the kernel makes a page of zeroes for it. What the same \
                  costs the floor, which does nothing but read and send, shows how much of that is the server's.";
    answer.columns = COLUMNS;
    let mut sides = Vec::new();
    for gib in GIB {
        let path = stage.path(&format!("sparse-{gib}"))?;
        File::create(&path)?.set_len(gib << 30)?;
        sides.push((format!("{gib} GiB, the end of it"), (path.clone(), (gib << 30) - WINDOW, WINDOW)));
        sides.push((format!("{gib} GiB, everywhere"), (path, 0, gib << 30)));
    }
    let rows = stage.in_turn(&sides, |(path, offset, size)| {
        let words = format!("{READ_32} --offset {offset} --size {size}");
        let cold = || -> anyhow::Result<()> {
            // No page of an earlier sample helps this one.
            let file = File::open(path)?;
            Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
        };
        cold()?;
        let node = stage.serve(Transport::Unix, "", path)?;
        let ours = stage.sample(&node, &words)?;
        stage.stop(node)?;
        cold()?;
        let floor = stage.floor(path)?;
        let least = stage.sample(&floor, &words)?;
        drop(floor);
        let p99 = ours.latency()?.p99_us;
        let values = [ours.client.iops, ours.cpu_us(), p99, ours.cpu_us() / least.cpu_us()];
        Ok(Point { values: values.into(), noisy: ours.noisy || least.noisy })
    })?;
    for (_, (path, ..)) in sides.iter().step_by(2) {
        std::fs::remove_file(path)?;
    }
    let (small, large) = (&rows[0], &rows[rows.len() - 2]);
    answer.target(
        "CPU/request at the end of 1 TiB, to the end of 1 GiB",
        ratio(large, small, 1),
        WITHIN_NOISE,
    );
    let (small, large) = (&rows[1], &rows[rows.len() - 1]);
    answer.target("multiple of the floor everywhere in 1 TiB, to that in 1 GiB", ratio(large, small, 3), 1.1);
    answer.rows = rows;
    Ok(())
}

/// CPU time of a request with two shards.
pub(super) fn shards(stage: &Stage<'_>, answer: &mut Answer) -> anyhow::Result<()> {
    const COLUMNS: &[Column] = &[("IOPS", 0), ("CPU", 2), ("p99", 0)];
    answer.how = "4k random reads over a unix socket, 16 in flight on each of 4 connections. The server has two \
                  processors and the client one of these two, so IOPS can not show what a second shard is worth here: what \
                  it takes from the client is lost again. CPU time of a request shows whether it would be wasted.";
    answer.columns = COLUMNS;
    let file = stage.file(false)?;
    let cores = [stage.machine.server_core, stage.machine.client_core];
    let serve = |words: &str| stage.serve_on(&cores, Transport::Unix, words, &file);
    let (one, two) = (serve("--shards 1")?, serve("--shards 2")?);
    let sides = [("one shard".to_owned(), &one), ("two shards".to_owned(), &two)];
    let rows = stage.in_turn(&sides, |node: &&Node| {
        let sample: Sample = stage.sample(node, "--rw randread --bs 4k --iodepth 16 --numjobs 4")?;
        Ok(sample.point([sample.client.iops, sample.cpu_us(), sample.latency()?.p99_us]))
    })?;
    stage.stop(one)?;
    stage.stop(two)?;
    answer.target("CPU/request with two shards, to one", ratio(&rows[1], &rows[0], 1), 1.1);
    answer.rows = rows;
    Ok(())
}

impl Stage<'_> {
    /// The floor in the place of a server.
    fn floor(&self, file: &str) -> anyhow::Result<Node> {
        self.serve_words(&[self.machine.server_core], Transport::Unix, |address| {
            [&self.rig, "floor", &address.to_string(), file].map(str::to_owned).into()
        })
    }
}
