//! `ringnbd detach`: the end of a device that `ringnbd attach` made.

use std::process::ExitCode;

use clap::Args;

use crate::attach::{self, Device};

/// Detach a device that was made of an export
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  umount /mnt && ringnbd detach /dev/nbd0
  ringnbd detach --force /dev/nbd0          its server is gone for good; what waits for it fails")]
pub(super) struct Detach {
    /// /dev/nbd0 and so on
    device: Device,

    /// Even if it is mounted or claimed: what is written after that is lost
    #[arg(short, long)]
    force: bool,
}

impl Detach {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        attach::detach(self.device, self.force)?;
        Ok(ExitCode::SUCCESS)
    }
}
