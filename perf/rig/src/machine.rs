//! The machine that a report speaks of, without its name.

use std::fs;

use anyhow::{Context, bail};
use rustix::thread::{CpuSet, sched_getaffinity};
use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) processors: usize,
    pub(crate) kernel: String,
    pub(crate) governor: Option<String>,
    pub(crate) memory_mib: u64,
    /// The file system of the served file.
    pub(crate) file_system: String,
    pub(crate) server_core: usize,
    pub(crate) client_core: usize,
}

impl Machine {
    pub(crate) fn look(file: &std::path::Path) -> anyhow::Result<Self> {
        let cores = cores()?;
        let (server_core, client_core) = match *cores.as_slice() {
            [] => bail!("no processor is allowed"),
            [only] => (only, only),
            [first, second, ..] => (first, second),
        };
        let governor = format!("/sys/devices/system/cpu/cpu{server_core}/cpufreq/scaling_governor");
        Ok(Self {
            cpu: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            processors: cores.len(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            governor: fs::read_to_string(governor).ok().map(|text| text.trim().to_owned()),
            memory_mib: memory_mib(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            file_system: file_system(file, &fs::read_to_string("/proc/self/mounts").unwrap_or_default()),
            server_core,
            client_core,
        })
    }

    /// A name for files: what it is, not what it is called.
    pub(crate) fn label(&self) -> String {
        let cpu = self.cpu.replace("(R)", "").replace("(TM)", "").to_lowercase();
        let words = cpu.split(|c: char| !c.is_ascii_alphanumeric());
        let words: Vec<&str> =
            words.filter(|word| !["", "processor", "cpu", "core"].contains(word)).collect();
        format!("{}-{}cpu", words.iter().take(4).copied().collect::<Vec<_>>().join("-"), self.processors)
    }
}

/// Processors that this process may use, in order.
fn cores() -> anyhow::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None).context("cannot ask for processors")?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect())
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = line.and_then(|line| line.split_once(':')).map(|(_, model)| model.trim());
    model.unwrap_or(std::env::consts::ARCH).to_owned()
}

fn memory_mib(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// The type of the innermost mount that holds `file`.
fn file_system(file: &std::path::Path, mounts: &str) -> String {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let holding = mounts.filter(|(at, _)| file.starts_with(at));
    // Of two mounts at one place the later one is on top.
    let innermost = holding.max_by_key(|(at, _)| at.len());
    innermost.map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_says_what_the_machine_is() {
        let machine = |cpu: &str| Machine {
            cpu: cpu.to_owned(),
            processors: 2,
            kernel: "6.18.1".to_owned(),
            governor: None,
            memory_mib: 1,
            file_system: "ext4".to_owned(),
            server_core: 0,
            client_core: 1,
        };
        assert_eq!(machine("AMD EPYC 9R14").label(), "amd-epyc-9r14-2cpu");
        assert_eq!(machine("Intel(R) Xeon(R) Processor").label(), "intel-xeon-2cpu");
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: A B\nflags\t: x\n"), "A B");
        assert_eq!(memory_mib("MemTotal:        4194304 kB\nMemFree: 1 kB\n"), 4096);
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /var/tmp tmpfs rw 0 0\n/dev/b /var xfs rw 0 0\n";
        assert_eq!(file_system("/var/tmp/x".as_ref(), mounts), "tmpfs");
        assert_eq!(file_system("/var/x".as_ref(), mounts), "xfs");
        assert_eq!(file_system("/home".as_ref(), mounts), "ext4");
    }
}
