//! `ringnbd attach`: an export as a block device of this machine, and what is attached already.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, value_parser};
use sd_notify::NotifyState;

use super::{log, print};
use crate::attach::{self, AttachError, Device, Entry, SECONDS_MAX};
use crate::client::Uri;

/// Seconds after which a server that says nothing counts as gone, where connections are replaced.
const TIMEOUT_S: u32 = 30;

/// Make an export a block device of this machine, by the kernel's NBD client
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  modprobe nbd
  ringnbd attach nbd://storage/disk                       prints the device that it became
  ringnbd attach --connections 4 nbd://storage/disk /dev/nbd0
  ringnbd attach --reconnect 60 nbd://storage/disk /dev/nbd0 &
  ringnbd attach --list
  ringnbd detach /dev/nbd0

A device stays until it is detached, whether this process does or not. With --reconnect it stays to replace connections
that die, and ends when the device is detached. Without the kernel's netlink family (in a container with a network of its
own) the device has one connection and lasts as long as the process.")]
pub(super) struct Attach {
    /// The export: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH
    #[arg(value_parser = Uri::parse, required_unless_present = "list")]
    uri: Option<Uri>,

    /// /dev/nbd0 and so on; without it the kernel takes one that is free
    device: Option<Device>,

    /// Print what is attached: device, bytes, bytes of a block, rw or ro, connections used at a time, export
    #[arg(
        short = 'L',
        long,
        conflicts_with_all = ["uri", "device", "connections", "timeout", "reconnect", "read_only", "ioctl"]
    )]
    list: bool,

    /// Connections to make, if the server says that several are safe
    #[arg(short = 'C', long, value_name = "N", default_value_t = 1,
        value_parser = value_parser!(u16).range(1..=attach::CONNECTIONS_MAX as i64))]
    connections: u16,

    /// A server that leaves a request unanswered for so long counts as gone; 0 waits for ever. With --reconnect 30, else 0,
    /// if not given
    #[arg(short, long, value_name = "SECONDS", value_parser = value_parser!(u32).range(..=i64::from(SECONDS_MAX)))]
    timeout: Option<u32>,

    /// Stay, and replace connections that die; requests wait so long for one when there is none left
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u32).range(1..=i64::from(SECONDS_MAX)))]
    reconnect: Option<u32>,

    /// Refuse writes, even if the server takes them
    #[arg(short, long)]
    read_only: bool,

    /// Do without netlink
    #[arg(long, requires = "device", conflicts_with_all = ["connections", "reconnect"])]
    ioctl: bool,
}

impl Attach {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Some(uri) = self.uri.as_ref().filter(|_| !self.list) else {
            print(table(&attach::list()?).as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        };
        log::start(log::Format::Text, 0)?;
        let timeout_s = if self.reconnect.is_some() { TIMEOUT_S } else { 0 };
        let options = attach::Options {
            device: self.device,
            connections: self.connections.into(),
            timeout_s: self.timeout.unwrap_or(timeout_s),
            dead_timeout_s: self.reconnect.unwrap_or(0),
            read_only: self.read_only,
        };
        if self.ioctl {
            return self.hold(uri, &options);
        }
        let attached = match attach::attach(uri, &options) {
            Err(AttachError::NoNetlink) if self.reconnect.is_none() => return self.hold(uri, &options),
            outcome => outcome?,
        };
        if attached.connections() < options.connections {
            tracing::warn!("one connection: the server does not say that several are safe (CAN_MULTI_CONN)");
        }
        announce(attached.device(), attached.bytes_lost())?;
        if self.reconnect.is_some() {
            attached.watch()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Without netlink.
    fn hold(&self, uri: &Uri, options: &attach::Options) -> anyhow::Result<ExitCode> {
        let Some(device) = self.device else {
            bail!(
                "without the kernel's netlink family \"nbd\" the device has to be named, such as /dev/nbd0"
            );
        };
        let held = attach::hold(uri, device, options)?;
        announce(device, held.bytes_lost())?;
        held.serve()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn announce(device: Device, bytes_lost: u64) -> anyhow::Result<()> {
    if bytes_lost > 0 {
        tracing::warn!("the last {bytes_lost} bytes of the export make no whole block and are out of reach");
    }
    print(format!("{device}\n").as_bytes())?;
    sd_notify::notify(&[NotifyState::Ready]).context("cannot tell NOTIFY_SOCKET that the device is there")
}

fn table(entries: &[Entry]) -> String {
    let mut text = String::new();
    for entry in entries {
        let Entry { device, size, block, read_only, queues, export, .. } = entry;
        let access = if *read_only { "ro" } else { "rw" };
        let export = export.as_deref().unwrap_or("-");
        // Writing to a String does not fail.
        let _ = writeln!(text, "{device}\t{size}\t{block}\t{access}\t{queues}\t{export}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_all_and_a_dash_stands_for_what_the_kernel_forgot() {
        let entry = Entry {
            device: "/dev/nbd3".parse().expect("a device"),
            size: 1 << 20,
            block: 4096,
            read_only: false,
            queues: 4,
            pid: 1,
            export: Some("nbd://host/a".to_owned()),
        };
        assert_eq!(table(std::slice::from_ref(&entry)), "/dev/nbd3\t1048576\t4096\trw\t4\tnbd://host/a\n");
        let old = Entry { read_only: true, export: None, ..entry };
        assert_eq!(table(&[old]), "/dev/nbd3\t1048576\t4096\tro\t4\t-\n");
    }
}
