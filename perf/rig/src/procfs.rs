//! What /proc says of processes and of the machine.
//!
//! A server's CPU time is that of its process and its descendants, with what they inherited from children that
//! were waited for: threads that have ended stay in their process' times, processes that have ended move to their
//! parent's. io_uring's kernel workers are threads of the process that asked. Times are in ticks of 1/100 s, of
//! the scheduler's exact sum, so a run of seconds is known to within a percent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Times of one process, in ticks, and its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) parent: u32,
    /// User and system time of all threads, ended ones too.
    pub(crate) own: u64,
    /// The same of children that were waited for.
    pub(crate) inherited: u64,
}

impl Stat {
    /// A line of `/proc/PID/stat`; the name in it may hold anything, so what counts begins after its last `)`.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
        // proc_pid_stat(5) counts from 1, and state, the first one here, is 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(field(4)?).ok()?,
            own: field(14)? + field(15)?,
            inherited: field(16)? + field(17)?,
        })
    }

    pub(crate) fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

/// All processes that can be seen.
fn processes() -> BTreeMap<u32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, Stat::of(pid)?))).collect()
}

fn descendants(of: u32, all: &BTreeMap<u32, Stat>) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([of]);
    loop {
        let children = all.iter().filter(|(pid, stat)| found.contains(&stat.parent) && !found.contains(pid));
        let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
        if children.is_empty() {
            return found;
        }
        found.extend(children);
    }
}

/// Processes whose parent is `pid`.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    processes().into_iter().filter(|(_, stat)| stat.parent == pid).map(|(child, _)| child).collect()
}

/// CPU time of a process and its descendants so far, in ticks.
///
/// A child that is waited for between two reads would count twice or not at all, so this looks until it finds the
/// same processes twice.
pub(crate) fn cpu_ticks(pid: u32) -> u64 {
    let look = || {
        let all = processes();
        let family = descendants(pid, &all);
        let ticks = family.iter().filter_map(|pid| all.get(pid)).map(|stat| stat.own + stat.inherited).sum();
        (family, ticks)
    };
    let mut seen = look();
    for _ in 0..10 {
        let again = look();
        if again.0 == seen.0 {
            return again.1;
        }
        seen = again;
    }
    seen.1
}

/// Memory and context switches of a process and its descendants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) memory_kib: u64,
    pub(crate) voluntary: u64,
    pub(crate) involuntary: u64,
}

impl Status {
    /// A `/proc/PID/status` or `/proc/PID/task/TID/status`.
    fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Self {
            // Pages of a file that is mapped are the page cache's, whoever looks at them.
            memory_kib: value("RssAnon") + value("RssShmem"),
            voluntary: value("voluntary_ctxt_switches"),
            involuntary: value("nonvoluntary_ctxt_switches"),
        }
    }
}

/// Watches a server while it works: its largest memory, and the switches of threads that may end at any time.
///
/// The kernel keeps no sum of ended threads' switches that a stranger may read, so what a thread did after the last
/// look is lost.
#[derive(Debug)]
pub(crate) struct Watch {
    pid: u32,
    first: BTreeMap<u32, Status>,
    last: BTreeMap<u32, Status>,
    memory_kib_max: u64,
}

impl Watch {
    pub(crate) fn start(pid: u32) -> Self {
        let mut watch = Self { pid, first: BTreeMap::new(), last: BTreeMap::new(), memory_kib_max: 0 };
        watch.look();
        watch.first.clone_from(&watch.last);
        watch
    }

    pub(crate) fn look(&mut self) {
        let mut memory_kib = 0;
        for pid in descendants(self.pid, &processes()) {
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            let tids = tasks.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
            let mut memory = 0;
            for tid in tids {
                let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")) else { continue };
                let status = Status::parse(&text);
                memory = memory.max(status.memory_kib);
                self.last.insert(tid, status);
            }
            memory_kib += memory;
        }
        self.memory_kib_max = self.memory_kib_max.max(memory_kib);
    }

    /// Switches since the start, and the largest memory.
    pub(crate) fn result(&self) -> Status {
        let since = |get: fn(&Status) -> u64| {
            let before = |tid| self.first.get(tid).map_or(0, get);
            self.last.iter().map(|(tid, status)| get(status).saturating_sub(before(tid))).sum()
        };
        Status {
            memory_kib: self.memory_kib_max,
            voluntary: since(|status| status.voluntary),
            involuntary: since(|status| status.involuntary),
        }
    }
}

/// Time of all processors together, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MachineTime {
    pub(crate) idle: u64,
    pub(crate) steal: u64,
}

impl MachineTime {
    /// `/proc/stat`. Idle time is exact there; what is not idle is found by sampling, so it is not used.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let times: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guest times after these are in user already.
        let [_, _, _, idle, iowait, _, _, steal] = <[u64; 8]>::try_from(times.get(..8)?).ok()?;
        Some(Self { idle: idle + iowait, steal })
    }

    pub(crate) fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let line = "812 (a) b) c) S 7 812 812 0 -1 4194560 900 0 0 0 150 50 30 20 20 0 17 0 99 1000 500";
        assert_eq!(Stat::parse(line), Some(Stat { parent: 7, own: 200, inherited: 50 }));
        assert_eq!(Stat::parse("812 (cut off) S 7"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn descendants_are_children_of_children_too() {
        let stat = |parent| Stat { parent, own: 0, inherited: 0 };
        let all = BTreeMap::from([(1, stat(0)), (5, stat(1)), (3, stat(5)), (9, stat(3)), (8, stat(1))]);
        assert_eq!(descendants(5, &all), BTreeSet::from([3, 5, 9]));
    }

    #[test]
    fn status_lines_are_found_by_their_whole_name() {
        let text = "Name:\tx\nRssAnon:\t    5000 kB\nRssFile:\t 9 kB\nRssShmem:\t 120 kB\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t34\n";
        assert_eq!(Status::parse(text), Status { memory_kib: 5120, voluntary: 12, involuntary: 34 });
        assert_eq!(Status::parse("Name:\tkworker\n"), Status::default());
    }

    #[test]
    fn waiting_for_a_disk_is_idle_and_guests_are_not_counted_twice() {
        let text = "cpu  100 10 50 800 200 5 15 20 60 3\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(MachineTime::parse(text), Some(MachineTime { idle: 1000, steal: 20 }));
        assert_eq!(MachineTime::parse("cpu  1 2 3\n"), None);
        assert_eq!(MachineTime::parse("intr 5\n"), None);
    }

    #[test]
    fn this_process_is_found_with_its_times() {
        let own = std::process::id();
        assert!(Stat::of(own).is_some());
        let mut watch = Watch::start(own);
        watch.look();
        assert!(watch.result().memory_kib > 0);
        assert!(MachineTime::now().is_some_and(|time| time.idle > 0));
    }
}
