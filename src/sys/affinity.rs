//! Which processors this process may use, and staying on one of them.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors that the calling thread may run on (cgroup cpusets and taskset included), rising.
pub fn allowed() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Keeps the calling thread on processor `cpu`, one of [`allowed`].
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_sees_one_processor() {
        let cpus = std::thread::spawn(|| {
            let last = *allowed()?.last().ok_or(io::ErrorKind::NotFound)?;
            pin(last)?;
            Ok::<_, io::Error>((last, allowed()?))
        });
        let (last, after) = cpus.join().expect("no panic").expect("affinity is readable");
        assert_eq!(after, [last]);
    }
}
