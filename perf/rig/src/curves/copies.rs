//! What copying a disk costs, beside nbdcopy.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::answer::{Answer, Column, Point, ratio};
use super::stage::Stage;
use crate::address::Transport;

/// Bytes of the disk; every other stretch is a hole.
const DISK_BYTES: u64 = 2 << 30;
const STRETCH_BYTES: u64 = 16 << 20;
/// More than what one copy writes.
const MEMORY_BYTES: usize = 3 << 29;
/// Times nbdcopy's throughput that are enough.
const FASTER: f64 = 1.2;
/// Of nbdcopy's CPU time, at its throughput.
const CHEAPER: f64 = 0.7;

/// Into an export and out of one, over both kinds of socket.
pub(super) fn copies(stage: &Stage<'_>, answer: &mut Answer) -> anyhow::Result<()> {
    const COLUMNS: &[Column] = &[("seconds", 2), ("CPU, ms", 0), ("server's CPU, ms", 0)];
    answer.how = "A disk of 2 GiB, every other 16 MiB of it a hole, from a file into an export and from an export into a new \
                  file, by `ringnbd copy` and by nbdcopy, both with their defaults and one after the other in each round. The \
                  same ringnbd serves both, on its processor; they may use that of the client too. What is read is in the \
                  page cache. All that was written before is on the disk when a copy begins, and nothing that it writes has to \
                  be when it ends. The target is 1.2 times nbdcopy's throughput, or its throughput with 0.7 of its CPU time: \
                  of the times' ratio x 1.2, and the larger of that ratio and the CPU times' / 0.7, the one that is better.";
    answer.columns = COLUMNS;
    let [full, holes, fetched] = ["full.img", "holes.img", "fetched.img"].map(|name| stage.path(name));
    let (full, holes, fetched) = (full?, holes?, fetched?);
    make(&full, &stretch(stage)?)?;
    make(&holes, &[])?;
    for transport in [Transport::Unix, Transport::Tcp] {
        for direction in ["in", "out"] {
            let is_in = direction == "in";
            let served = if is_in { &holes } else { &full };
            let node = stage.serve(transport, "", &format!("{},lock=off", served.replace(',', ",,")))?;
            let uri = node.address.uri("");
            let places = if is_in { [full.clone(), uri] } else { [uri, fetched.clone()] };
            let line = |words: &[&str]| -> Vec<String> {
                words.iter().map(|word| (*word).to_owned()).chain(places.clone()).collect()
            };
            let sides = [
                (format!("{direction}, {transport}, ringnbd"), line(&[&stage.ringnbd, "copy"])),
                (format!("{direction}, {transport}, nbdcopy"), line(&["nbdcopy"])),
            ];
            // The first of all finds no blocks at the destination, and others do.
            stage.run(&node, &sides[1].1)?;
            let rows = stage.in_turn(&sides, |words| {
                let _ = fs::remove_file(&fetched);
                rustix::fs::syncfs(File::open(stage.disk.path())?)?;
                warm_memory();
                let ran = stage.run(&node, words)?;
                let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
                Ok(Point {
                    values: vec![ran.wall.as_secs_f64(), ms(ran.cpu), ms(ran.server)],
                    noisy: ran.noisy,
                })
            })?;
            stage.stop(node)?;
            let [time, cpu] = [0, 1].map(|column| ratio(&rows[0], &rows[1], column));
            let reached = (time * FASTER).min(time.max(cpu / CHEAPER));
            answer.target(format!("{direction}, {transport}"), reached, 1.0);
            answer.notes.push(format!(
                "{direction}, {transport}: {:.2} times nbdcopy's throughput with {cpu:.2} of its CPU time",
                time.recip()
            ));
            answer.rows.extend(rows);
        }
    }
    Ok(())
}

/// Has the kernel hold memory for the page cache to take. A guest that gives its free memory back to the host (balloon, free page
/// reporting) gets it again page by page, in ten times as long as a copy into it takes, and whoever comes next would pay.
fn warm_memory() {
    let mut memory = vec![0_u8; MEMORY_BYTES];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(memory);
}

fn stretch(stage: &Stage<'_>) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(STRETCH_BYTES)?];
    File::open(stage.disk.prepare(false, stage.interrupt)?)?.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A disk with `stretch` at every other place, in the page cache.
fn make(path: &str, stretch: &[u8]) -> anyhow::Result<()> {
    let file = File::create(path)?;
    file.set_len(DISK_BYTES)?;
    for number in (0..DISK_BYTES / STRETCH_BYTES).step_by(2) {
        file.write_all_at(stretch, number * STRETCH_BYTES)?;
    }
    Ok(file.sync_all()?)
}
