//! What this kernel can do, probed once, before the first shard starts.
//!
//! Linux 6.1 is the oldest kernel (`SINGLE_ISSUER` 6.0, `DEFER_TASKRUN` 6.1). Everything newer is optional and found by
//! trying it, not by version numbers, because distributions backport.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::op::{USER_DATA_DOORBELL, USER_DATA_IGNORE};
use super::ring::{Mode, Ring};

/// `IORING_REGISTER_SEND_MSG_RING` (6.13): a MSG_RING without a ring to send it from. Private in the io-uring crate.
const REGISTER_SEND_MSG_RING: libc::c_uint = 31;

/// What was found.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Kernel release as `uname -r` says it.
    pub kernel: String,
    /// One ring can post a completion to another (`IORING_OP_MSG_RING`, and a trial that it reaches such a ring).
    pub message_ring: bool,
    /// A thread without a ring can post a completion (`IORING_REGISTER_SEND_MSG_RING`, 6.13).
    pub message_sync: bool,
    /// Zero-copy sends of messages exist (`IORING_OP_SENDMSG_ZC`, 6.1).
    pub send_zero_copy: bool,
    /// `RLIMIT_MEMLOCK` in bytes; `None` when unlimited or when `CAP_IPC_LOCK` lifts it.
    pub memory_lock_max: Option<u64>,
}

/// Why there can be no ring, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// No io_uring in this kernel, or hidden by a container's seccomp filter.
    #[error(
        "io_uring is not available (Linux {kernel}): the kernel lacks it or a container's seccomp profile hides it; \
         use Linux 6.1 or newer and allow io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Absent {
        /// Kernel release.
        kernel: String,
    },
    /// `kernel.io_uring_disabled` forbids it.
    #[error(
        "io_uring is disabled: /proc/sys/kernel/io_uring_disabled is {value}; set it with \
         `sysctl kernel.io_uring_disabled=0`, or, if it is 1, run as root or in the group kernel.io_uring_group"
    )]
    Disabled {
        /// The sysctl's value.
        value: String,
    },
    /// A kernel before 6.1.
    #[error(
        "Linux {kernel} is too old: ringnbd needs 6.1 or newer (IORING_SETUP_SINGLE_ISSUER and \
         IORING_SETUP_DEFER_TASKRUN); Debian 12 has it"
    )]
    Old {
        /// Kernel release.
        kernel: String,
    },
    /// Locked memory is limited too tightly.
    #[error(
        "{what} does not fit RLIMIT_MEMLOCK ({limit} bytes); raise it with `ulimit -l` or systemd's LimitMEMLOCK=, \
         or run with CAP_IPC_LOCK"
    )]
    MemoryLock {
        /// What was to be locked.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Descriptors are limited too tightly; a ring's table of files must fit the limit too.
    #[error(
        "{what} does not fit RLIMIT_NOFILE ({limit} descriptors); raise it with `ulimit -n` or systemd's LimitNOFILE="
    )]
    Descriptors {
        /// What was to be made.
        what: String,
        /// The limit, a number of descriptors.
        limit: u64,
    },
    /// No busy polling of network cards.
    #[error(
        "network cards cannot be busy-polled here: {0}; that takes Linux 6.9 or newer: leave out --busy-poll"
    )]
    BusyPoll(io::Error),
    /// Anything else.
    #[error("io_uring cannot be set up: {0}")]
    Other(io::Error),
}

/// Probes the kernel; rings made for it are gone when it returns.
///
/// # Errors
/// [`Unsupported`] when a shard could not run here.
pub fn probe() -> Result<Capabilities, Unsupported> {
    let ring = Ring::new(8, Mode::Plain).map_err(|error| explain(error, "a ring"))?;
    let mut probe = Probe::new();
    ring.uring().submitter().register_probe(&mut probe).map_err(Unsupported::Other)?;
    Ok(Capabilities {
        kernel: kernel_release(),
        message_ring: probe.is_supported(opcode::MsgRingData::CODE) && message_reaches_ring(&ring),
        message_sync: sync_message_reaches_ring(ring),
        send_zero_copy: probe.is_supported(opcode::SendMsgZc::CODE),
        memory_lock_max: memory_lock_max(),
    })
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |have: bool| if have { "yes" } else { "no" };
        let doorbell = match (self.message_ring, self.message_sync) {
            (true, true) => "MSG_RING, and its registration form from helper threads",
            (true, false) => "MSG_RING, and eventfd from helper threads",
            _ => "eventfd",
        };
        writeln!(f, "kernel                  {}", self.kernel)?;
        writeln!(f, "ring setup              SINGLE_ISSUER DEFER_TASKRUN TASKRUN_FLAG SUBMIT_ALL")?;
        writeln!(f, "MSG_RING                {}", yes(self.message_ring))?;
        writeln!(f, "MSG_RING registration   {}", yes(self.message_sync))?;
        writeln!(f, "SENDMSG_ZC              {}", yes(self.send_zero_copy))?;
        match self.memory_lock_max {
            Some(limit) => writeln!(f, "RLIMIT_MEMLOCK          {limit} bytes")?,
            None => writeln!(f, "RLIMIT_MEMLOCK          not limiting")?,
        }
        write!(f, "shards are woken by     {doorbell}")
    }
}

/// Puts the error of a ring set-up or registration into words.
pub(super) fn explain(error: io::Error, what: &str) -> Unsupported {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    in_words(error, what, disabled.trim(), memory_lock_max())
}

/// `disabled` is the sysctl, empty where there is none; `limit` is `None` where nothing limits locked memory.
fn in_words(error: io::Error, what: &str, disabled: &str, limit: Option<u64>) -> Unsupported {
    match (error.raw_os_error(), limit) {
        (Some(libc::EPERM), _) if !matches!(disabled, "" | "0") => {
            Unsupported::Disabled { value: disabled.to_owned() }
        }
        (Some(libc::ENOSYS | libc::EPERM), _) => Unsupported::Absent { kernel: kernel_release() },
        (Some(libc::EINVAL), _) => Unsupported::Old { kernel: kernel_release() },
        (Some(libc::ENOMEM), Some(limit)) => Unsupported::MemoryLock { what: what.to_owned(), limit },
        (Some(libc::EMFILE), _) => {
            Unsupported::Descriptors { what: what.to_owned(), limit: descriptors_max() }
        }
        _ => Unsupported::Other(error),
    }
}

fn descriptors_max() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn memory_lock_max() -> Option<u64> {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or_default();
    if effective >> CAP_IPC_LOCK & 1 == 1 {
        return None;
    }
    rustix::process::getrlimit(rustix::process::Resource::Memlock).current
}

/// Sends a message from a second ring to `target` and looks whether it arrives: kernels between 6.1 and 6.3 differ in
/// how they treat a `DEFER_TASKRUN` target, and a doorbell that does not ring would hang the server.
fn message_reaches_ring(target: &Ring) -> bool {
    let Ok(mut sender) = Ring::new(8, Mode::Plain) else { return false };
    let sqe = opcode::MsgRingData::new(types::Fd(target.uring().as_raw_fd()), 0, USER_DATA_DOORBELL, None)
        .build()
        .flags(squeue::Flags::empty())
        .user_data(USER_DATA_IGNORE);
    sender.push(&sqe);
    sender.enter(1);
    arrived(target.uring())
}

fn sync_message_reaches_ring(target: Ring) -> bool {
    send_sync_message(target.uring().as_raw_fd()).is_ok() && arrived(target.uring())
}

/// Whether a doorbell arrives within a second.
fn arrived(ring: &IoUring) -> bool {
    let second = types::Timespec::new().sec(1);
    let waited = ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&second));
    // SAFETY: this function is the only user of the ring's completion queue while it runs.
    waited.is_ok() && unsafe { ring.completion_shared() }.any(|cqe| cqe.user_data() == USER_DATA_DOORBELL)
}

/// Posts a doorbell completion to the ring `fd` from a thread that has no ring (`io_uring_register(2)` with file
/// descriptor -1, Linux 6.13).
pub(super) fn send_sync_message(fd: i32) -> io::Result<()> {
    let sqe = opcode::MsgRingData::new(types::Fd(fd), 0, USER_DATA_DOORBELL, None).build();
    // SAFETY: the kernel copies one SQE of 64 bytes from `sqe`, which outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_register, -1, REGISTER_SEND_MSG_RING, &raw const sqe, 1) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_setup_name_the_way_out() {
        let table = [
            (libc::EMFILE, "0", None, "raise it with `ulimit -n`"),
            (libc::EINVAL, "0", None, "needs 6.1 or newer"),
            (
                libc::ENOMEM,
                "0",
                Some(65_536),
                "a ring does not fit RLIMIT_MEMLOCK (65536 bytes); raise it with `ulimit -l`",
            ),
            (libc::ENOMEM, "0", None, "Cannot allocate memory"),
            (
                libc::EPERM,
                "2",
                None,
                "io_uring_disabled is 2; set it with `sysctl kernel.io_uring_disabled=0`",
            ),
            (libc::EPERM, "1", None, "in the group kernel.io_uring_group"),
            (libc::EPERM, "0", None, "seccomp profile"),
            (libc::EPERM, "", None, "seccomp profile"),
            (libc::ENOSYS, "", None, "use Linux 6.1 or newer"),
        ];
        for (errno, disabled, limit, hint) in table {
            let text = in_words(io::Error::from_raw_os_error(errno), "a ring", disabled, limit).to_string();
            assert!(text.contains(hint), "{errno}, {disabled:?}: {hint:?} is not in: {text}");
        }
    }

    #[test]
    fn this_machine_is_supported() {
        let found = probe().unwrap();
        assert!(found.to_string().contains(&found.kernel));
    }
}
