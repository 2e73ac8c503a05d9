//! What a node in front of another costs.

use super::answer::{Answer, Column, ratio};
use super::stage::Stage;
use crate::address::Transport;

/// The same requests to a server, and to a node in front of it.
pub(super) fn upstream(stage: &Stage<'_>, answer: &mut Answer) -> anyhow::Result<()> {
    const COLUMNS: &[Column] =
        &[("p50, depth 1", 0), ("IOPS, depth 32", 0), ("p99, depth 32", 0), ("MiB/s, 256k", 0)];
    answer.how = "4k random reads, one and 32 in flight, and 256k sequential ones, 16 in flight: of a server directly, and \
                  of a second ringnbd that serves its export (`serve nbd://...`), over the same kind of socket. The node \
                  runs on the client's processor and the server on the other, so a machine with two has no processor \
                  for what the node adds: with one more it is less.";
    answer.columns = COLUMNS;
    for transport in [Transport::Unix, Transport::Tcp] {
        let server = stage.serve(transport, "", &stage.file(false)?)?;
        let export = server.address.uri("");
        let node = stage.serve_on(&[stage.machine.client_core], transport, "--shards 1", &export)?;
        let sides =
            [(format!("{transport}, directly"), &server), (format!("{transport}, through a node"), &node)];
        let rows = stage.in_turn(&sides, |target| {
            let one = stage.sample(target, "--rw randread --bs 4k --iodepth 1")?;
            let many = stage.sample(target, "--rw randread --bs 4k --iodepth 32")?;
            let large = stage.sample(target, "--rw read --bs 256k --iodepth 16")?;
            let (p50_us, many_latency) = (one.latency()?.p50_us, many.latency()?);
            let mut point =
                many.point([p50_us, many.client.iops, many_latency.p99_us, large.client.iops / 4.0]);
            point.noisy |= one.noisy || large.noisy;
            Ok(point)
        })?;
        let times = |column| ratio(&rows[1], &rows[0], column);
        answer.notes.push(format!(
            "{transport}: through a node {:+.0} us at depth 1 ({:.2} times), {:.2} times the IOPS at depth 32, {:.2} times the \
             bandwidth of 256k",
            rows[1].median(0) - rows[0].median(0),
            times(0),
            times(1),
            times(3),
        ));
        answer.rows.extend(rows);
        stage.stop(node)?;
        stage.stop(server)?;
    }
    Ok(())
}
