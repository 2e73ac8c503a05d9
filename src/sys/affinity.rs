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

/// How many processors the process's threads share that are not pinned.
pub fn shared() -> io::Result<usize> {
    // The main thread is never pinned.
    let all = sched_getaffinity(Some(rustix::process::getpid()))?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).count())
}

/// Lets the calling thread run wherever the process may: threads inherit the pin of the one that starts them.
pub fn unpin() -> io::Result<()> {
    // The main thread is never pinned.
    let all = sched_getaffinity(Some(rustix::process::getpid()))?;
    Ok(sched_setaffinity(None, &all)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_sees_one_processor_and_its_child_may_see_all() {
        let cpus = std::thread::spawn(|| {
            let last = *allowed()?.last().ok_or(io::ErrorKind::NotFound)?;
            let before = allowed()?;
            pin(last)?;
            let pinned = allowed()?;
            let inherited = std::thread::spawn(|| unpin().and_then(|()| allowed()));
            let unpinned = inherited.join().expect("no panic")?;
            Ok::<_, io::Error>((before, last, pinned, unpinned))
        });
        let (before, last, pinned, unpinned) = cpus.join().expect("no panic").expect("affinity is readable");
        assert_eq!(pinned, [last]);
        assert_eq!(unpinned, before);
    }
}
