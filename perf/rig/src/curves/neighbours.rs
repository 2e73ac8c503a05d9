//! What one connection does to another on the same shard.

use std::os::unix::fs::FileExt;

use anyhow::{Context, ensure};

use super::answer::{Answer, Column, Point, ratio};
use super::stage::{Node, Stage};
use super::wire::Walked;
use crate::address::Transport;
use crate::figures::float;

const READ_1: &str = "--rw randread --bs 4k --iodepth 1";

/// Reads while another connection asks for 100,000 extents.
pub(super) fn extents(stage: &Stage<'_>, answer: &mut Answer) -> anyhow::Result<()> {
    const COLUMNS: &[Column] = &[("IOPS", 0), ("p50", 0), ("p99", 0), ("p99.9", 0), ("queries/s", 0)];
    const EXTENTS: u64 = 100_000;
    const P99_MAX: f64 = 2.0;
    answer.how = "A file of 100,000 pieces of data with holes between them. One connection reads 4k at random over a unix \
                  socket; another, on the same shard, asks for BLOCK_STATUS of all of it again and again, as fast as \
                  answers come. The helper thread that looks for extents shares the shard's processor.";
    answer.columns = COLUMNS;
    let path = stage.path("extents")?;
    scatter(&path, EXTENTS)?;
    let node = stage.serve(Transport::Unix, "", &path)?;
    let walk = |node: &Node| -> Vec<String> {
        let seconds = stage.beside_time().as_secs_f64().to_string();
        [&stage.rig, "walk", "--seconds", &seconds, &node.address.to_string()].map(str::to_owned).into()
    };
    for depth in [1, 32] {
        let words = format!("--rw randread --bs 4k --iodepth {depth}");
        let sides = [(format!("depth {depth}, alone"), false), (format!("depth {depth}, beside"), true)];
        let rows = stage.in_turn(&sides, |beside| {
            let (sample, rate) = if *beside {
                let (sample, said) = stage.sample_beside_program(&node, &words, &walk(&node))?;
                let walked: Walked =
                    serde_json::from_str(&said).context("the walker printed something else")?;
                ensure!(walked.extents >= 2 * EXTENTS, "a walk met {} extents only", walked.extents);
                (sample, float(walked.queries) / stage.beside_time().as_secs_f64())
            } else {
                (stage.sample(&node, &words)?, f64::NAN)
            };
            let latency = sample.latency()?;
            let values = [sample.client.iops, latency.p50_us, latency.p99_us, latency.p99_9_us, rate];
            Ok(sample.point(values))
        })?;
        answer.target(
            format!("p99 at depth {depth} beside BLOCK_STATUS, to alone"),
            ratio(&rows[1], &rows[0], 2),
            P99_MAX,
        );
        answer.rows.extend(rows);
    }
    stage.stop(node)?;
    Ok(std::fs::remove_file(path)?)
}

/// A file of `count` blocks of data with a hole after each, in the page cache.
fn scatter(path: &str, count: u64) -> anyhow::Result<()> {
    const BLOCK: [u8; 4096] = [0x5A; 4096];
    const STEP: u64 = 2 * BLOCK.len() as u64;
    let file = std::fs::File::create(path)?;
    file.set_len(count * STEP)?;
    for number in 0..count {
        file.write_all_at(&BLOCK, number * STEP)?;
    }
    file.sync_all()?;
    std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

/// Small reads while another connection reads much.
pub(super) fn fairness(stage: &Stage<'_>, answer: &mut Answer) -> anyhow::Result<()> {
    const COLUMNS: &[Column] = &[("IOPS", 0), ("p50", 0), ("p99", 0), ("p99.9", 0), ("the other's MB/s", 0)];
    const P99_MAX: f64 = 3.0;
    answer.how = "One connection reads 4k at random, one at a time; another, on the same shard, reads 256k in sequence, 64 \
                  in flight. The clients share a processor; that of the large reads gets it only while the other waits, so \
                  that the figures are the server's.";
    answer.columns = COLUMNS;
    let file = stage.file(false)?;
    for transport in [Transport::Unix, Transport::Tcp] {
        let node = stage.serve(transport, "", &file)?;
        let sides = [(format!("{transport}, alone"), false), (format!("{transport}, beside"), true)];
        let rows = stage.in_turn(&sides, |beside| {
            let (sample, rate) = if *beside {
                let large = "--rw read --bs 256k --iodepth 64";
                let (sample, other) = stage.sample_beside(&node, READ_1, large)?;
                (sample, other.iops * f64::from(256 << 10) / 1e6)
            } else {
                (stage.sample(&node, READ_1)?, f64::NAN)
            };
            let latency = sample.latency()?;
            let values = [sample.client.iops, latency.p50_us, latency.p99_us, latency.p99_9_us, rate];
            Ok(sample.point(values))
        })?;
        answer.target(
            format!("{transport}: p99 beside large reads, to alone"),
            ratio(&rows[1], &rows[0], 2),
            P99_MAX,
        );
        answer.rows.extend(rows);
        stage.stop(node)?;
    }
    Ok(())
}

/// Small reads while another connection writes, by who writes, in calm and while the disk is busy.
pub(super) fn writes(stage: &Stage<'_>, answer: &mut Answer) -> anyhow::Result<()> {
    const COLUMNS: &[Column] = &[
        ("writes: IOPS", 0),
        ("p99", 0),
        ("p99.9", 0),
        ("CPU of both", 2),
        ("reads: IOPS", 0),
        ("p50", 0),
        ("p99", 0),
        ("p99.9", 0),
        ("max", 0),
    ];
    const WAYS: [&str; 4] = ["ring", "thread", "inline", "adaptive"];
    const READER_P99_9: usize = 7;
    answer.how = "One connection writes 4k at random, 32 in flight; another, on the same shard, reads 4k of the same file, \
                  one at a time, over unix sockets: by who does the writes (`writes=`), in calm and while `dd \
                  if=/dev/zero bs=1M conv=fdatasync` fills the same file system from the client's processor. Writer \
                  threads share the shard's processor here, and so may the kernel's write-back.";
    answer.columns = COLUMNS;
    let sides = |busy| WAYS.map(|way| (format!("{way}, {}", if busy { "dd" } else { "calm" }), (way, busy)));
    for busy in [false, true] {
        let rows = stage.in_turn(&sides(busy), |(way, busy)| reads_beside_writes(stage, way, *busy))?;
        let [ring, thread, inline, adaptive] = &rows[..] else { unreachable!("four ways") };
        let name = if busy { "dd" } else { "calm" };
        if busy {
            let best = ratio(adaptive, ring, READER_P99_9).max(ratio(adaptive, thread, READER_P99_9));
            answer.target(
                format!("{name}: the reader's p99.9 with adaptive, to the better of ring and thread"),
                best,
                2.0,
            );
        } else {
            let best = [ring, thread, inline]
                .map(|way| 1.0 / ratio(adaptive, way, 0))
                .into_iter()
                .fold(0.0, f64::max);
            answer.target(format!("{name}: writes of the best other way, to adaptive's"), best, 1.15);
        }
        answer.rows.extend(rows);
    }
    Ok(())
}

fn reads_beside_writes(stage: &Stage<'_>, way: &str, busy: bool) -> anyhow::Result<Point> {
    /// dd ends when it is told to; this is how much it may write if it is not.
    const FILL_MIB: u32 = 16 << 10;
    let file = stage.file(true)?;
    let node = stage.serve(Transport::Unix, "", &format!("{file},writes={way}"))?;
    let filling = stage.path("filling")?;
    let dd = if busy {
        let words = [
            "dd",
            "if=/dev/zero",
            &format!("of={filling}"),
            "bs=1M",
            &format!("count={FILL_MIB}"),
            "conv=fdatasync",
        ];
        Some(stage.run_beside(&words.map(str::to_owned))?)
    } else {
        None
    };
    let (sample, writer) = stage.sample_beside(&node, READ_1, "--rw randwrite --bs 4k --iodepth 32")?;
    if let Some(dd) = dd {
        stage.halt(dd)?;
        std::fs::remove_file(&filling)?;
    }
    stage.stop(node)?;
    let (reads, writes) = (sample.latency()?, writer.write.context("nothing was written")?);
    let requests = sample.client.iops + writer.iops;
    let cpu_us = sample.cpu.as_secs_f64() * 1e6 / (requests * stage.sample.as_secs_f64());
    Ok(sample.point([
        writer.iops,
        writes.p99_us,
        writes.p99_9_us,
        cpu_us,
        sample.client.iops,
        reads.p50_us,
        reads.p99_us,
        reads.p99_9_us,
        reads.max_us,
    ]))
}
