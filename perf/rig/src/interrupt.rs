//! Ctrl-C and SIGTERM end a run in order: every wait of the rig looks here, so that what was started is ended.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The run was interrupted; what it holds is being put away.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Latches the first of the signals; its descriptor becomes readable then.
#[derive(Debug)]
pub(crate) struct Interrupt {
    came: Arc<AtomicBool>,
    reader: UnixStream,
}

impl Interrupt {
    pub(crate) fn listen() -> std::io::Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: who reads a byte finds the flag set.
            signal_hook::flag::register(signal, Arc::clone(&came))?;
            signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
        }
        Ok(Self { came, reader })
    }

    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        let mut bytes = [0; 16];
        while matches!((&self.reader).read(&mut bytes), Ok(1..)) {}
        if self.came.load(Ordering::SeqCst) { Err(Interrupted) } else { Ok(()) }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
