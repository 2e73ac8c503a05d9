//! How far a copy is, for eyes and for programs.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::{AsFd as _, RawFd};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::copy::Progress;

const STDERR: RawFd = 2;
const KNOWN: &str =
    "{msg} {wide_bar} {percent:>3}%  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta}";
const UNKNOWN: &str = "{msg} {binary_bytes}  {binary_bytes_per_sec}";

/// What is shown.
pub(super) enum Bar {
    Nothing,
    /// A line that changes.
    Drawn(ProgressBar),
    /// `N/100`, a line for each N that is seen.
    Lines {
        out: File,
        last: Option<u32>,
        verifies: bool,
    },
}

impl Bar {
    /// A bar on a terminal, unless that is not wanted; lines to `fd`.
    pub(super) fn choose(fd: Option<RawFd>, quiet: bool, verifies: bool) -> anyhow::Result<Self> {
        let for_eyes = matches!(fd, None | Some(STDERR)) && io::stderr().is_terminal();
        let Some(fd) = fd.filter(|_| !for_eyes) else {
            return Ok(if for_eyes && !quiet { Self::Drawn(drawn()) } else { Self::Nothing });
        };
        let out = if fd == STDERR {
            io::stderr().as_fd().try_clone_to_owned().map(File::from)
        } else {
            // Whoever opened it may have written something before.
            OpenOptions::new().append(true).open(format!("/proc/self/fd/{fd}"))
        };
        let out = out.with_context(|| format!("--progress={fd}: cannot write to descriptor {fd}"))?;
        Ok(Self::Lines { out, last: None, verifies })
    }

    pub(super) fn show(&mut self, progress: &Progress) {
        match self {
            Self::Nothing => {}
            Self::Drawn(bar) => draw(bar, progress),
            Self::Lines { out, last, verifies } => {
                let part = progress.part(*verifies).map(percent);
                if let Some(percent) = part.filter(|percent| *last != Some(*percent)) {
                    *last = Some(percent);
                    // Nobody has to listen.
                    let _ = writeln!(out, "{percent}/100");
                }
            }
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Self::Drawn(bar) = self {
            bar.finish_and_clear();
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // of a number from 0 to 100
fn percent(part: f64) -> u32 {
    (part * 100.0).clamp(0.0, 100.0) as u32
}

fn drawn() -> ProgressBar {
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style(UNKNOWN))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    if bar.length().is_none()
        && let Some(size) = progress.size()
    {
        bar.set_length(size);
        bar.set_style(style(KNOWN));
    }
    match progress.verified() {
        None => {
            bar.set_message("copying");
            bar.set_position(progress.copied());
        }
        Some(verified) => {
            bar.set_message("verifying");
            bar.set_position(verified);
        }
    }
}
