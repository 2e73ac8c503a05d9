//! The run: rounds of servers in turn (A B C, A B C, ...), so that what the machine does to one it does to all.
//!
//! Each sample has a server of its own: start, wait until it answers, a short warm-up with the same load, then the
//! load that counts, then stop. What is read of the processes is read just before and just after that load.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::address::{self, Address, Transport};
use crate::certificates::Certificates;
use crate::child::{self, Child, Ended};
use crate::disk::Disk;
use crate::figures::{Figures, float};
use crate::generator::{Abilities, Generator, Load, Target};
use crate::interrupt::{Interrupt, Interrupted};
use crate::machine::Machine;
use crate::procfs::{MachineTime, Stat, Watch, cpu_ticks};
use crate::samples::{Cell, Noise, Sample, Settings};
use crate::servers::{Place, Programs, Server};

pub(crate) const START_PATIENCE: Duration = Duration::from_secs(10);
/// How long after its runtime a generator may end.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const WARM_UP: Duration = Duration::from_millis(300);
/// How often a server's threads are looked at while it works.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often a server that starts is asked whether it does.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(5);
/// A hypervisor that takes more than this percentage of a processor makes a sample noisy.
const STEAL_MAX_PCT: f64 = 2.0;

/// All that a run needs.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) programs: Programs,
    pub(crate) machine: Machine,
    pub(crate) settings: Settings,
    pub(crate) servers: Vec<&'static Server>,
    pub(crate) cells: Vec<Cell>,
    pub(crate) disk: Disk,
    pub(crate) interrupt: &'a Interrupt,
    /// For the workloads that want them.
    pub(crate) certificates: Option<Certificates>,
}

impl Run<'_> {
    /// Measures everything. Fails only when it is interrupted or the rig itself can not work.
    pub(crate) fn measure(&self, mut report: impl FnMut(&Cell, &Sample)) -> anyhow::Result<Vec<Sample>> {
        let can = Abilities::ask(&self.programs.ringnbd)?;
        let mut samples = Vec::new();
        for cell in &self.cells {
            for round in 1..=self.settings.rounds {
                for server in self.servers.iter().filter(|server| (server.cannot)(cell.workload).is_none()) {
                    for attempt in 1..=1 + self.settings.repeats {
                        let sample = self.sample(cell, server, round, attempt, can)?;
                        report(cell, &sample);
                        let again = sample.noisy || sample.failure.is_some();
                        samples.push(sample);
                        if !again {
                            break;
                        }
                    }
                }
            }
        }
        Ok(samples)
    }

    fn sample(
        &self,
        cell: &Cell,
        server: &'static Server,
        round: u32,
        attempt: u32,
        can: Abilities,
    ) -> anyhow::Result<Sample> {
        let mut sample = Sample {
            workload: cell.workload.name,
            transport: cell.transport,
            generator: cell.generator,
            server: server.name,
            round,
            attempt,
            noisy: false,
            noise: None,
            figures: None,
            failure: None,
            curve: None,
        };
        match self.try_sample(cell, server, round, can) {
            Ok((figures, noise, curve)) => {
                sample.noisy =
                    noise.foreign_pct > self.settings.noise_max_pct || noise.steal_pct > STEAL_MAX_PCT;
                sample.figures = Some(figures);
                sample.noise = Some(noise);
                sample.curve = curve;
            }
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => sample.failure = Some(format!("{error:#}")),
        }
        Ok(sample)
    }

    fn try_sample(
        &self,
        cell: &Cell,
        server: &Server,
        round: u32,
        can: Abilities,
    ) -> anyhow::Result<(Figures, Noise, Option<String>)> {
        // What an earlier sample left when it failed shall not be taken for this one's.
        child::sweep();
        let home = self.disk.fresh_dir("server")?;
        let file = self.disk.prepare(cell.workload.writes(), self.interrupt)?;
        let load = |generator, target, runtime| Load {
            generator,
            workload: cell.workload,
            target,
            runtime,
            size: self.disk.size(),
            home: self.certificates.as_ref().map(Certificates::home),
            // The same in all of a round, so that all servers get the same requests.
            seed: round,
        };
        let runtime = Duration::from_secs(self.settings.seconds.into());
        let Some(words) = server.words else {
            let (mut figures, noise, curve) =
                self.drive(&load(cell.generator, Target::File(&file), runtime), can, None)?;
            figures.server_cpu_us = std::mem::take(&mut figures.client_cpu_us);
            return Ok((figures, noise, curve));
        };
        let address = match cell.transport {
            Transport::Unix => Address::Unix(home.join("socket").display().to_string()),
            Transport::Tcp => Address::Tcp(Address::free_port()?),
        };
        let place = Place {
            programs: &self.programs,
            file: &file,
            address: &address,
            direct: cell.workload.direct,
            certificates: self.certificates.as_ref().filter(|_| cell.workload.tls).map(Certificates::dir),
            scratch: &home,
        };
        let mut process = self.start(&words(&place)?, &address, &home)?;
        let plain = address.uri(server.export);
        let uri = match (place.certificates, cell.generator) {
            (None, _) => plain,
            (Some(directory), Generator::Bench) => address::with_tls(&plain, Some(directory)),
            (Some(_), Generator::Fio) => address::with_tls(&plain, None),
        };
        let uri = Target::Uri(&uri);
        // fio and `bench` find their certificates in different places.
        let warmer = if cell.workload.tls { cell.generator } else { Generator::Bench };
        self.drive(&load(warmer, uri, WARM_UP), can, None).context("warming up")?;
        let result = self.drive(&load(cell.generator, uri, runtime), can, Some(process.id()))?;
        if !process.stop() {
            bail!("did not end when asked to");
        }
        Ok(result)
    }

    /// Starts a server and waits until it answers.
    fn start(&self, words: &[String], address: &Address, home: &Path) -> anyhow::Result<Child> {
        let mut process = Child::start(words, &[self.machine.server_core], &self.programs.rig, home)?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let ended = process.wait(Instant::now() + ASK_EVERY, self.interrupt)?;
            if let Ended::With(status) = ended {
                // What ends well before it answers has gone into the background.
                match Child::adopt()? {
                    Some(daemon) if status.exit_status() == Some(0) => process = daemon,
                    _ => bail!("did not start: {}", last_words(home)),
                }
            }
            if address.answers() {
                return Ok(process);
            }
            if Instant::now() > deadline {
                bail!("did not answer within {} s: {}", START_PATIENCE.as_secs(), last_words(home));
            }
        }
    }

    /// Runs a generator, with an eye on the server where there is one to look at.
    fn drive(
        &self,
        load: &Load<'_>,
        can: Abilities,
        server: Option<u32>,
    ) -> anyhow::Result<(Figures, Noise, Option<String>)> {
        let home = self.disk.fresh_dir("client")?;
        let words = load.words(&self.programs.ringnbd, can, &home)?;
        let mut watch = server.map(Watch::start);
        let before = Moment::now(server)?;
        let core = match load.target {
            Target::Uri(_) => self.machine.client_core,
            Target::File(_) => self.machine.server_core,
        };
        let mut client = Child::start(&words, &[core], &self.programs.rig, &home)?;
        let deadline = before.at + load.runtime + END_PATIENCE;
        let status = loop {
            match client.wait(deadline.min(Instant::now() + LOOK_EVERY), self.interrupt)? {
                Ended::With(status) => break status,
                Ended::NotYet if Instant::now() >= deadline => {
                    bail!("the load did not end within {} s of its time", END_PATIENCE.as_secs())
                }
                Ended::NotYet => watch.iter_mut().for_each(Watch::look),
            }
        };
        let after = Moment::now(server)?;
        if status.exit_status() != Some(0) {
            bail!("the load failed: {}", last_words(&home));
        }
        let client = load.figures(&home)?;
        if client.requests == 0 {
            bail!("no request was answered");
        }
        let spent = before.until(&after);
        let seen = watch.as_ref().map(Watch::result).unwrap_or_default();
        let bs = block_bytes(load.workload.bs).context("a block size that the rig does not know")?;
        let figures = Figures {
            requests: client.requests,
            iops: client.iops,
            mb_s: client.iops * float(bs) / 1e6,
            read: client.read,
            write: client.write,
            server_cpu_us: spent.server.as_secs_f64() * 1e6 / float(client.requests),
            client_cpu_us: client.client_cpu_us,
            memory_kib: seen.memory_kib,
            voluntary_switches: seen.voluntary,
            involuntary_switches: seen.involuntary,
        };
        Ok((figures, spent.noise(), curve(&home)?))
    }
}

/// What the clocks say at one time.
struct Moment {
    at: Instant,
    server: u64,
    own: Stat,
    machine: MachineTime,
}

/// What was spent between two moments.
struct Spent {
    wall: Duration,
    server: Duration,
    /// The client, and the rig itself.
    client: Duration,
    idle: Duration,
    steal: Duration,
    processors: u32,
}

impl Moment {
    fn now(server: Option<u32>) -> anyhow::Result<Self> {
        Ok(Self {
            server: server.map_or(0, cpu_ticks),
            own: Stat::of(std::process::id()).context("cannot read /proc")?,
            machine: MachineTime::now().context("cannot read /proc/stat")?,
            at: Instant::now(),
        })
    }

    fn until(&self, later: &Self) -> Spent {
        let own = |moment: &Self| moment.own.own + moment.own.inherited;
        Spent {
            wall: later.at.duration_since(self.at),
            server: ticks(later.server.saturating_sub(self.server)),
            client: ticks(own(later).saturating_sub(own(self))),
            idle: ticks(later.machine.idle.saturating_sub(self.machine.idle)),
            steal: ticks(later.machine.steal.saturating_sub(self.machine.steal)),
            processors: online(),
        }
    }
}

impl Spent {
    fn noise(&self) -> Noise {
        let ours = self.server + self.client + self.idle + self.steal;
        let foreign = (self.wall * self.processors).saturating_sub(ours);
        let percent = |time: Duration| 100.0 * time.as_secs_f64() / self.wall.as_secs_f64();
        Noise { foreign_pct: percent(foreign), steal_pct: percent(self.steal) }
    }
}

pub(crate) fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(float(count) / float(rustix::param::clock_ticks_per_second()))
}

/// Processors that /proc/stat adds up, whichever of them we may use.
pub(crate) fn online() -> u32 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    u32::try_from(lines.count()).unwrap_or(1)
}

/// `4k` is 4096.
fn block_bytes(bs: &str) -> Option<u64> {
    Some(bs.strip_suffix('k')?.parse::<u64>().ok()? << 10)
}

/// The last line of what a process said before it failed.
pub(crate) fn last_words(home: &Path) -> String {
    let read = |name: &str| fs::read_to_string(home.join(name)).unwrap_or_default();
    let text = [read("stdout"), read("stderr")].concat();
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
}

/// Latency by percentile (`.hgrm`), where the generator left it: of several commands reads, else writes.
fn curve(home: &Path) -> anyhow::Result<Option<String>> {
    let path = |command: &str| home.join(format!("latency{command}.hgrm"));
    let found = ["", ".read", ".write"].map(path).into_iter().find(|path| path.exists());
    Ok(found.map(fs::read_to_string).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_load_is_what_nobody_of_ours_spent() {
        let millis = Duration::from_millis;
        let mut spent = Spent {
            wall: millis(1000),
            server: millis(900),
            client: millis(600),
            idle: millis(400),
            steal: millis(20),
            processors: 2,
        };
        let noise = spent.noise();
        assert!((noise.foreign_pct - 8.0).abs() < 1e-9 && (noise.steal_pct - 2.0).abs() < 1e-9, "{noise:?}");
        // Clocks that disagree by a tick do not make less than nothing.
        spent.idle = millis(600);
        assert!(spent.noise().foreign_pct.abs() < 1e-9);
    }

    #[test]
    fn block_sizes_of_the_table_are_known() {
        assert_eq!(block_bytes("4k"), Some(4096));
        assert!(crate::workloads::WORKLOADS.iter().all(|workload| block_bytes(workload.bs).is_some()));
    }

    #[test]
    fn a_process_is_quoted_with_its_last_line() {
        let home = tempfile::tempdir().expect("a directory");
        assert_eq!(last_words(home.path()), "it said nothing");
        fs::write(home.path().join("stderr"), "first\nno such file\n\n").expect("writable");
        assert_eq!(last_words(home.path()), "no such file");
    }
}
