//! Another connection for each that dies.
//!
//! ```text
//!   a link died -----> one more is missing --+--> connect, hand over --> one less
//!   a pause is over -------------------------'        '--failed--> a longer pause
//!   something happened to the device --> detached? --> over
//! ```
//!
//! The kernel repeats what was in flight on a dead connection once its own timer for that request is over: the timeout, or
//! 30 s without one. What is new waits for up to the dead-connection timeout, and after that fails until a connection is
//! handed over.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{AttachError, Attached, identifier, open, refused};
use crate::client::changed;
use crate::sys::netlink::DeviceEvents;

/// The first pause between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Attempts become rarer up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);

pub(super) fn watch(attached: Attached) -> Result<(), AttachError> {
    let Attached { uri, link, device, connections, mut family, deaths, .. } = attached;
    let failed = |error: io::Error| refused(device.to_string(), "watch it", error);
    let happenings = DeviceEvents::listen().map_err(failed)?;
    // Its process, not just that there is one: it may be detached and attached by somebody else between two looks.
    let holder = device.holder();
    let path_end = format!("/block/nbd{}", device.0);
    let identifier = identifier(&uri);
    let (mut missing, mut look) = (0_usize, true);
    let (mut pause, mut due) = (PAUSE_MIN, Instant::now());
    loop {
        let dead = deaths.take(device).map_err(failed)?.unwrap_or(connections);
        if dead > 0 && missing == 0 {
            // The kernel announces a death a moment before it takes another connection in the place of the dead one.
            (pause, due) = (PAUSE_MIN, Instant::now() + PAUSE_MIN);
        }
        missing = missing.saturating_add(dead).min(connections);
        look |= happenings.take(&path_end).map_err(failed)?;
        if look && (!family.is_connected(device)? || device.holder() != holder) {
            return Ok(());
        }
        look = false;
        if missing > 0 && due <= Instant::now() {
            let outcome = open(&uri, 1).and_then(|(now, sockets)| match changed(&link, &now) {
                Some(what) => Err(AttachError::Changed { uri: uri.to_string(), what }),
                None => {
                    sockets.iter().try_for_each(|socket| family.replace(device, &identifier, socket.as_fd()))
                }
            });
            match outcome {
                Ok(()) => {
                    missing -= 1;
                    pause = PAUSE_MIN;
                    tracing::info!(%device, missing, "a connection was replaced");
                }
                Err(error @ (AttachError::Connect(_) | AttachError::Broken { .. })) => {
                    tracing::warn!(%device, missing, "cannot replace a connection yet: {error}");
                }
                // Detached meanwhile: the kernel has nothing to reconfigure.
                Err(AttachError::Refused { .. }) if !family.is_connected(device)? => return Ok(()),
                Err(error) => return Err(error),
            }
            // After a success as well: a server may take connections and drop them again.
            due = Instant::now() + pause;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        let wait = (missing > 0).then(|| due.saturating_duration_since(Instant::now()));
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        let mut sources = [PollFd::new(&deaths, PollFlags::IN), PollFd::new(&happenings, PollFlags::IN)];
        match poll(&mut sources, wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}
