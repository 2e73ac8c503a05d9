//! /dev/nbdN, and what /sys/block/nbdN says of it.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use rustix::fs::{Mode, OFlags};

use super::plan::Plan;
use super::{AttachError, Entry, refused};

/// One of the kernel's NBD devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device(pub(super) u32);

/// Why a text names no NBD device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not one of the kernel's NBD devices, /dev/nbd0 and so on")]
pub struct DeviceError(String);

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let name = text.strip_prefix("/dev/").unwrap_or(text);
        Self::of_name(name).ok_or_else(|| DeviceError(text.to_owned()))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/nbd{}", self.0)
    }
}

impl Device {
    /// `nbd0`; neither a partition (`nbd0p1`) nor another way to write a number.
    fn of_name(name: &str) -> Option<Self> {
        let digits = name.strip_prefix("nbd")?;
        let number: u32 = digits.parse().ok()?;
        (number.to_string() == digits).then_some(Self(number))
    }

    fn attribute(self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.directory().join(name)).ok()?;
        Some(text.trim_end_matches('\n').to_owned())
    }

    fn directory(self) -> PathBuf {
        PathBuf::from(format!("/sys/block/nbd{}", self.0))
    }

    /// The process that attached it; `None` while nothing is attached.
    pub(super) fn holder(self) -> Option<u32> {
        self.attribute("pid")?.parse().ok()
    }

    /// Bytes; 0 while nothing is attached.
    fn size(self) -> u64 {
        // The kernel tells sectors of 512 bytes, whatever the block size.
        let sectors: u64 = self.attribute("size").and_then(|text| text.parse().ok()).unwrap_or(0);
        sectors.saturating_mul(512)
    }

    /// Whether something has it mounted or claimed. Opening a device whose server is gone can take as long as requests
    /// wait for another connection.
    pub(super) fn is_claimed(self) -> bool {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        let opened = rustix::fs::open(self.to_string(), flags, Mode::empty());
        opened.is_err_and(|errno| errno == rustix::io::Errno::BUSY)
    }

    /// Whether the kernel took the size of what it attached, or a part of its bits.
    pub(super) fn took(self, plan: &Plan) -> Result<(), AttachError> {
        if self.size() == plan.size { Ok(()) } else { Err(AttachError::TooLarge(plan.size)) }
    }

    /// Sees to it that no request is larger than the server takes. The kernel is not told while it attaches the device.
    pub(super) fn limit_requests(self, plan: &Plan) -> Result<(), AttachError> {
        let queue = self.directory().join("queue/max_sectors_kb");
        let largest: Option<u32> = fs::read_to_string(&queue).ok().and_then(|text| text.trim().parse().ok());
        let wanted = plan.request_length_max >> 10;
        if largest.is_some_and(|largest| largest > wanted) {
            fs::write(&queue, wanted.to_string())
                .map_err(|error| refused(self.to_string(), "set its largest request", error))?;
        }
        Ok(())
    }

    /// What there is to tell, if something is attached.
    pub(super) fn entry(self) -> Option<Entry> {
        let pid = self.holder()?;
        let block = self.attribute("queue/logical_block_size").and_then(|text| text.parse().ok());
        // One hardware queue for each connection, up to one for each processor; further connections stand by.
        let queues = fs::read_dir(self.directory().join("mq")).map_or(0, |entries| entries.flatten().count());
        Some(Entry {
            device: self,
            size: self.size(),
            block: block.unwrap_or(0),
            read_only: self.attribute("ro").is_some_and(|text| text == "1"),
            queues,
            pid,
            export: self.attribute("backend").filter(|text| !text.is_empty()),
        })
    }
}

/// The kernel's NBD devices, attached or not; none without its module.
pub(super) fn all() -> impl Iterator<Item = Device> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries.filter_map(|entry| Device::of_name(entry.file_name().to_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_devices_have_a_name() {
        assert_eq!("/dev/nbd0".parse(), Ok(Device(0)));
        assert_eq!("nbd17".parse(), Ok(Device(17)));
        assert_eq!(Device(3).to_string(), "/dev/nbd3");
        let others = [
            "",
            "/dev/nbd",
            "/dev/nbd0p1",
            "/dev/nbd01",
            "/dev/nbd+1",
            "/dev/sda",
            "/tmp/nbd0",
            "nbd4294967296",
        ];
        for text in others {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_neither_attached_nor_claimed() {
        let missing = Device(u32::MAX);
        assert_eq!(missing.holder(), None);
        assert_eq!(missing.entry(), None);
        assert!(!missing.is_claimed());
    }
}
