//! What every curve needs: servers, loads beside each other, and what they cost.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::answer::{Point, Row};
use crate::address::{Address, Transport};
use crate::child::{Child, Ended};
use crate::disk::Disk;
use crate::figures::{self, ClientFigures, Latency, float};
use crate::interrupt::Interrupt;
use crate::machine::Machine;
use crate::procfs::{MachineTime, Watch, cpu_ticks};
use crate::rounds::{ASK_EVERY, END_PATIENCE, START_PATIENCE, WARM_UP, last_words, online, ticks};

/// A sample is noisy when others, or the hypervisor, took more than this percentage of a processor.
pub(super) const NOISE_MAX_PCT: f64 = 10.0;
/// How much longer than the sample a load beside it lasts: it begins before the warm-up of the other.
const BESIDE: Duration = Duration::from_secs(1);
/// How long a program may take that ends by itself.
const RUN_PATIENCE: Duration = Duration::from_secs(300);

pub(crate) struct Stage<'a> {
    pub(super) ringnbd: String,
    pub(super) rig: String,
    pub(super) machine: Machine,
    pub(super) rounds: u32,
    /// Length of a sample.
    pub(super) sample: Duration,
    /// Connections that idle.
    pub(super) crowd: u32,
    pub(super) disk: Disk,
    pub(super) interrupt: &'a Interrupt,
}

/// A server.
pub(super) struct Node {
    child: Child,
    pub(super) address: Address,
    home: PathBuf,
}

/// A load that is under way.
pub(super) struct Loading {
    child: Child,
    home: PathBuf,
    deadline: Instant,
}

/// One sample.
pub(super) struct Sample {
    pub(super) client: ClientFigures,
    /// Of the server, all of the sample.
    pub(super) cpu: Duration,
    pub(super) steal_pct: f64,
    pub(super) noisy: bool,
}

impl Sample {
    /// Microseconds for each read or write.
    pub(super) fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / float(self.client.requests)
    }

    pub(super) fn latency(&self) -> anyhow::Result<Latency> {
        self.client.read.or(self.client.write).context("nothing was measured")
    }

    pub(super) fn point(&self, values: impl Into<Vec<f64>>) -> Point {
        Point { values: values.into(), noisy: self.noisy }
    }
}

/// What a program that ran to its end took.
pub(super) struct Ran {
    pub(super) wall: Duration,
    pub(super) cpu: Duration,
    /// Of the server meanwhile.
    pub(super) server: Duration,
    pub(super) noisy: bool,
}

/// What the clocks say.
pub(super) struct Clocks {
    at: Instant,
    server: u64,
    /// The rig and all that it started, servers and loads.
    family: u64,
    machine: MachineTime,
}

/// What was spent between two looks at the clocks.
pub(super) struct Spent {
    pub(super) wall: Duration,
    pub(super) server: Duration,
    /// Of the rig and all that it started, the server too.
    family: Duration,
    pub(super) steal_pct: f64,
    pub(super) noisy: bool,
}

impl Clocks {
    pub(super) fn look(node: &Node) -> anyhow::Result<Self> {
        Ok(Self {
            server: cpu_ticks(node.child.id()),
            family: cpu_ticks(std::process::id()),
            machine: MachineTime::now().context("cannot read /proc/stat")?,
            at: Instant::now(),
        })
    }

    pub(super) fn since(&self, earlier: &Self) -> Spent {
        let wall = self.at - earlier.at;
        let [server, family, idle, steal] = [
            (self.server, earlier.server),
            (self.family, earlier.family),
            (self.machine.idle, earlier.machine.idle),
            (self.machine.steal, earlier.machine.steal),
        ]
        .map(|(now, then)| ticks(now.saturating_sub(then)));
        let percent = |time: Duration| 100.0 * time.as_secs_f64() / wall.as_secs_f64();
        // What was stolen is in here too: nobody of ours had it.
        let lost = (wall * online()).saturating_sub(family + idle);
        Spent { wall, server, family, steal_pct: percent(steal), noisy: percent(lost) > NOISE_MAX_PCT }
    }
}

impl Stage<'_> {
    /// Serves `export` on the server's processor with one shard, and these words before it.
    pub(super) fn serve(&self, transport: Transport, words: &str, export: &str) -> anyhow::Result<Node> {
        self.serve_on(&[self.machine.server_core], transport, &format!("--shards 1 {words}"), export)
    }

    /// The same on other processors, with as many shards as `words` say.
    pub(super) fn serve_on(
        &self,
        cores: &[usize],
        transport: Transport,
        words: &str,
        export: &str,
    ) -> anyhow::Result<Node> {
        self.serve_words(cores, transport, |address| {
            let listen = match address {
                Address::Unix(path) => format!("unix:{path}"),
                Address::Tcp(port) => format!("127.0.0.1:{port}"),
            };
            let mut line = vec![self.ringnbd.clone(), "serve".to_owned(), "--quiet".to_owned()];
            line.extend(words.split_whitespace().map(str::to_owned));
            line.extend(["--listen".to_owned(), listen, export.to_owned()]);
            line
        })
    }

    /// Any server, by its words.
    pub(super) fn serve_words(
        &self,
        cores: &[usize],
        transport: Transport,
        words: impl FnOnce(&Address) -> Vec<String>,
    ) -> anyhow::Result<Node> {
        let home = self.home()?;
        let address = match transport {
            Transport::Unix => Address::Unix(home.join("socket").display().to_string()),
            Transport::Tcp => Address::Tcp(Address::free_port()?),
        };
        let child = Child::start(&words(&address), cores, &self.rig, &home)?;
        let mut node = Node { child, address, home };
        let deadline = Instant::now() + START_PATIENCE;
        while !node.address.answers() {
            match node.child.wait(Instant::now() + ASK_EVERY, self.interrupt)? {
                Ended::With(_) => bail!("a server did not start: {}", last_words(&node.home)),
                Ended::NotYet if Instant::now() > deadline => bail!("a server did not answer"),
                Ended::NotYet => {}
            }
        }
        Ok(node)
    }

    /// Asks a server to end; what it then printed on standard error.
    pub(super) fn stop(&self, mut node: Node) -> anyhow::Result<String> {
        if !node.child.stop() {
            bail!("the server did not end when asked to");
        }
        Ok(std::fs::read_to_string(node.home.join("stderr"))?)
    }

    /// Starts a load, in `ringnbd bench`'s words, on the client's processor.
    fn start(
        &self,
        node: &Node,
        words: &str,
        runtime: Duration,
        cores: &[usize],
        yields: bool,
    ) -> anyhow::Result<Loading> {
        let home = self.home()?;
        let mut line: Vec<String> = Vec::new();
        if yields {
            line.extend(idle_class());
        }
        line.extend([&self.ringnbd, "bench", "--json", "--ramp", "0s", "--runtime"].map(str::to_owned));
        line.push(format!("{}ms", runtime.as_millis()));
        line.extend(words.split_whitespace().map(str::to_owned));
        line.push(node.address.uri(""));
        let child = Child::start(&line, cores, &self.rig, &home)?;
        Ok(Loading { child, home, deadline: Instant::now() + runtime + END_PATIENCE })
    }

    /// Starts a load that lasts longer than a sample with its warm-up. It takes the processor only while the load that is
    /// sampled leaves it, so that the sample shows what the server does and not how two clients share a processor.
    pub(super) fn beside(&self, node: &Node, words: &str) -> anyhow::Result<Loading> {
        self.start(node, words, self.beside_time(), &[self.machine.client_core], true)
    }

    /// What a load came to, when it has ended.
    pub(super) fn end(&self, mut load: Loading) -> anyhow::Result<ClientFigures> {
        match load.child.wait(load.deadline, self.interrupt)? {
            Ended::NotYet => bail!("a load did not end in time"),
            Ended::With(status) if status.exit_status() != Some(0) => {
                bail!("a load failed: {}", last_words(&load.home))
            }
            Ended::With(_) => {}
        }
        let figures = figures::of_bench(&std::fs::read_to_string(load.home.join("stdout"))?)?;
        if figures.requests == 0 {
            bail!("no request was answered");
        }
        Ok(figures)
    }

    /// A warm-up, then a sample, on the client's processor.
    pub(super) fn sample(&self, node: &Node, words: &str) -> anyhow::Result<Sample> {
        self.sample_on(&[self.machine.client_core], node, words)
    }

    /// A sample whose CPU time has no connecting and parting in it: that of a longer run less that of a shorter one.
    pub(super) fn sample_at_work(&self, node: &Node, words: &str) -> anyhow::Result<Sample> {
        let run = |runtime| -> anyhow::Result<Sample> {
            let before = Clocks::look(node)?;
            let cores = [self.machine.client_core];
            let client = self.end(self.start(node, words, runtime, &cores, false)?)?;
            let spent = Clocks::look(node)?.since(&before);
            Ok(Sample { client, cpu: spent.server, steal_pct: spent.steal_pct, noisy: spent.noisy })
        };
        let short = run(self.sample / 4)?;
        let mut long = run(self.sample + self.sample / 4)?;
        long.cpu = long.cpu.saturating_sub(short.cpu);
        long.client.requests = long.client.requests.saturating_sub(short.client.requests).max(1);
        long.noisy |= short.noisy;
        Ok(long)
    }

    pub(super) fn sample_on(&self, cores: &[usize], node: &Node, words: &str) -> anyhow::Result<Sample> {
        self.end(self.start(node, words, WARM_UP, cores, false)?).context("warming up")?;
        let before = Clocks::look(node)?;
        let client = self.end(self.start(node, words, self.sample, cores, false)?)?;
        let spent = Clocks::look(node)?.since(&before);
        Ok(Sample { client, cpu: spent.server, steal_pct: spent.steal_pct, noisy: spent.noisy })
    }

    /// A sample with another load beside it all the time; what that one came to as well.
    pub(super) fn sample_beside(
        &self,
        node: &Node,
        words: &str,
        beside: &str,
    ) -> anyhow::Result<(Sample, ClientFigures)> {
        let mut other = self.beside(node, beside)?;
        let sample = self.sample(node, words)?;
        if let Ended::With(_) = other.child.wait(Instant::now(), self.interrupt)? {
            bail!("the load beside ended first: {}", last_words(&other.home));
        }
        Ok((sample, self.end(other)?))
    }

    /// A sample with another program on the client's processor beside it all the time; what that printed.
    pub(super) fn sample_beside_program(
        &self,
        node: &Node,
        words: &str,
        program: &[String],
    ) -> anyhow::Result<(Sample, String)> {
        let mut other = self.run_beside(program)?;
        let sample = self.sample(node, words)?;
        if let Ended::With(_) = other.child.wait(Instant::now(), self.interrupt)? {
            bail!("{} ended first: {}", program[0], last_words(&other.home));
        }
        match other.child.wait(other.deadline, self.interrupt)? {
            Ended::With(status) if status.exit_status() == Some(0) => {}
            _ => bail!("{} failed: {}", program[0], last_words(&other.home)),
        }
        Ok((sample, std::fs::read_to_string(other.home.join("stdout"))?))
    }

    /// Any other program on the client's processor, while nothing of ours wants it.
    pub(super) fn run_beside(&self, words: &[String]) -> anyhow::Result<Loading> {
        let home = self.home()?;
        let line: Vec<String> = idle_class().into_iter().chain(words.iter().cloned()).collect();
        let child = Child::start(&line, &[self.machine.client_core], &self.rig, &home)?;
        Ok(Loading { child, home, deadline: Instant::now() + self.beside_time() + END_PATIENCE })
    }

    /// Runs a program that talks to `node` to its end, on the client's processor and the server's.
    pub(super) fn run(&self, node: &Node, words: &[String]) -> anyhow::Result<Ran> {
        let home = self.home()?;
        let cores = [self.machine.server_core, self.machine.client_core];
        let before = Clocks::look(node)?;
        let start = Instant::now();
        let mut child = Child::start(words, &cores, &self.rig, &home)?;
        let ended = child.wait(start + RUN_PATIENCE, self.interrupt)?;
        let wall = start.elapsed();
        match ended {
            Ended::With(status) if status.exit_status() == Some(0) => {}
            Ended::With(_) => bail!("{} failed: {}", words[0], last_words(&home)),
            Ended::NotYet => bail!("{} did not end in time", words[0]),
        }
        let Spent { server, family, noisy, .. } = Clocks::look(node)?.since(&before);
        Ok(Ran { wall, cpu: family.saturating_sub(server), server, noisy })
    }

    /// Ends a program that has no end of its own, if it still runs as it should.
    pub(super) fn halt(&self, mut other: Loading) -> anyhow::Result<()> {
        if let Ended::With(_) = other.child.wait(Instant::now(), self.interrupt)? {
            bail!("a program beside the load ended first: {}", last_words(&other.home));
        }
        other.child.stop();
        Ok(())
    }

    /// How long what runs beside a sample has to last.
    pub(super) fn beside_time(&self) -> Duration {
        WARM_UP + self.sample + BESIDE
    }

    /// A directory for one process; it goes with the disk.
    fn home(&self) -> anyhow::Result<PathBuf> {
        Ok(tempfile::Builder::new().prefix("home.").tempdir_in(self.disk.path())?.keep())
    }

    /// Lets time pass in which nothing shall happen.
    pub(super) fn rest(&self, time: Duration) -> anyhow::Result<()> {
        let timeout = rustix::event::Timespec::try_from(time)?;
        let mut signal =
            [rustix::event::PollFd::from_borrowed_fd(self.interrupt.as_fd(), rustix::event::PollFlags::IN)];
        let _ = rustix::event::poll(&mut signal, Some(&timeout));
        Ok(self.interrupt.check()?)
    }

    /// The file that is only read, or the copy that is written, in the page cache and clean, as an export that other
    /// servers may have too.
    pub(super) fn file(&self, to_write: bool) -> anyhow::Result<String> {
        let path = self.disk.prepare(to_write, self.interrupt)?;
        Ok(format!("{},lock=off", path.replace(',', ",,")))
    }

    /// A path for a file of the curve's own.
    pub(super) fn path(&self, name: &str) -> anyhow::Result<String> {
        text_of(&self.disk.path().join(name))
    }

    /// For each round all of `sides` in turn; a row for each.
    pub(super) fn in_turn<S>(
        &self,
        sides: &[(String, S)],
        mut take: impl FnMut(&S) -> anyhow::Result<Point>,
    ) -> anyhow::Result<Vec<Row>> {
        let mut rows: Vec<Row> = sides.iter().map(|(name, _)| Row::new(name)).collect();
        for _ in 0..self.rounds {
            for ((name, side), row) in sides.iter().zip(&mut rows) {
                row.rounds.push(take(side).with_context(|| name.clone())?);
            }
        }
        Ok(rows)
    }
}

impl Node {
    /// Resident memory, in KiB.
    pub(super) fn memory_kib(&self) -> u64 {
        Watch::start(self.child.id()).result().memory_kib
    }
}

fn text_of(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).context("the directory's name is not UTF-8: set TMPDIR")
}

/// The words that give a program the processor only while no other wants it (`SCHED_IDLE`, sched(7)).
fn idle_class() -> [String; 3] {
    ["chrt", "--idle", "0"].map(str::to_owned)
}
