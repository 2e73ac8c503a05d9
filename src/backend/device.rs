//! What the kernel says about a block device, in `/sys/dev/block/MAJOR:MINOR/queue`
//! (Documentation/ABI/stable/sysfs-block).

use std::fs;
use std::path::PathBuf;

/// The queue attributes of one device.
#[derive(Debug)]
pub(super) struct Queue(Option<PathBuf>);

impl Queue {
    /// Of the device with this number, or of the disk that this partition is on. A file's `st_dev` does too; file systems
    /// without a device of their own have no queue, and every question is then answered with `None`.
    pub(super) fn of(device: u64) -> Self {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let here = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let found = [here.join("queue"), here.join("../queue")].into_iter().find(|dir| dir.is_dir());
        Self(found)
    }

    pub(super) fn rotational(&self) -> Option<bool> {
        self.number("rotational").map(|number| number != 0)
    }

    /// Whether discards reach the device.
    pub(super) fn discards(&self) -> bool {
        self.number("discard_max_bytes").is_some_and(|bytes| bytes > 0)
    }

    /// Whether the device zeroes ranges without being sent the zeroes.
    pub(super) fn zeroes(&self) -> bool {
        self.number("write_zeroes_max_bytes").is_some_and(|bytes| bytes > 0)
    }

    /// zram asks of direct I/O that memory be aligned to 512 bytes, and then copies whole pages to wherever the buffer
    /// begins, over what lies around it (found on Linux 6.18 with buffers that are not aligned to a page).
    pub(super) fn overruns_buffers(&self) -> bool {
        self.0.as_ref().is_some_and(|queue| queue.join("../mm_stat").exists())
    }

    fn number(&self, attribute: &str) -> Option<u64> {
        fs::read_to_string(self.0.as_ref()?.join(attribute)).ok()?.trim().parse().ok()
    }
}

/// What is mounted from a device or built on it, if the system tells.
pub(super) fn user(device: u64) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let number = format!("{major}:{minor}");
    // proc_pid_mountinfo(5): id, parent, MAJOR:MINOR, root, mount point
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(2);
        (words.next()? == number).then(|| words.nth(1)).flatten()
    });
    if let Some(mount) = mount {
        return Some(format!("it is mounted on {mount}"));
    }
    let holders = fs::read_dir(format!("/sys/dev/block/{number}/holders")).ok()?.flatten();
    let holders: Vec<_> = holders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    (!holders.is_empty()).then(|| format!("{} is built on it", holders.join(", ")))
}
