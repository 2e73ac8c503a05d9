//! What of an export the kernel is told, and what it cannot hold.

use super::AttachError;
use crate::proto::{Link, TransmissionFlags};

/// The kernel's smallest block.
const BLOCK_MIN: u32 = 512;

/// A device in the making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Bytes, in whole blocks.
    pub(super) size: u64,
    /// Bytes of a block.
    pub(super) block: u32,
    /// As negotiated; the kernel looks at those that it knows.
    pub(super) flags: TransmissionFlags,
    /// Bytes of a read or a write.
    pub(super) request_length_max: u32,
    /// Bytes at the end that make no whole block.
    pub(super) bytes_lost: u64,
}

impl Plan {
    pub(super) fn of(link: &Link, read_only: bool) -> Result<Self, AttachError> {
        Self::within(link, read_only, rustix::param::page_size())
    }

    fn within(link: &Link, read_only: bool, page: usize) -> Result<Self, AttachError> {
        let sizes = link.block.unwrap_or_default();
        let block = sizes.minimum.max(BLOCK_MIN);
        if u64::from(block) > page as u64 {
            return Err(AttachError::BlockSize { minimum: sizes.minimum, page });
        }
        // loff_t
        if i64::try_from(link.size).is_err() {
            return Err(AttachError::TooLarge(link.size));
        }
        let bytes_lost = link.size % u64::from(block);
        let protection = if read_only { TransmissionFlags::READ_ONLY } else { TransmissionFlags::NONE };
        Ok(Self {
            size: link.size - bytes_lost,
            block,
            flags: link.flags | TransmissionFlags::HAS_FLAGS | protection,
            request_length_max: sizes.maximum,
            bytes_lost,
        })
    }

    /// Blocks, as an ioctl takes them.
    pub(super) fn blocks(&self) -> Result<usize, AttachError> {
        usize::try_from(self.size / u64::from(self.block)).map_err(|_| AttachError::TooLarge(self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{BlockSizes, Dialect};

    const PAGE: usize = 4096;

    fn link(size: u64, minimum: u32) -> Link {
        Link {
            tls: false,
            dialect: Dialect::Simple,
            size,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_TRIM,
            block: Some(BlockSizes { minimum, preferred: 65536, maximum: 1 << 20 }),
            name: None,
            description: None,
            contexts: Vec::new(),
        }
    }

    #[test]
    fn blocks_are_the_servers_from_a_sector_to_a_page() {
        for (minimum, block, lost) in [(1, 512, 488), (512, 512, 488), (4096, 4096, 1000)] {
            let plan = Plan::within(&link(5096, minimum), false, PAGE).expect("a plan");
            assert_eq!((plan.block, plan.bytes_lost, plan.size), (block, lost, 5096 - lost), "{minimum}");
            assert_eq!(plan.blocks().ok(), usize::try_from((5096 - lost) / u64::from(block)).ok());
            assert_eq!(plan.request_length_max, 1 << 20);
        }
        let refused = Plan::within(&link(1 << 20, 8192), false, PAGE);
        assert!(matches!(refused, Err(AttachError::BlockSize { minimum: 8192, page: PAGE })));
        let untold = Link { block: None, ..link(1 << 20, 1) };
        let plan = Plan::within(&untold, false, PAGE).expect("a plan");
        assert_eq!((plan.block, plan.request_length_max), (512, 1 << 25));
    }

    #[test]
    fn a_size_that_has_no_sign_bit_left_is_refused() {
        let largest = i64::MAX.unsigned_abs();
        assert_eq!(
            Plan::within(&link(largest, 1), false, PAGE).map(|plan| plan.size).ok(),
            Some(largest - 511)
        );
        let refused = Plan::within(&link(largest + 1, 1), false, PAGE);
        assert!(matches!(refused, Err(AttachError::TooLarge(size)) if size == largest + 1));
    }

    #[test]
    fn flags_are_the_servers_and_protection_may_be_added() {
        let flags = link(0, 1).flags;
        assert_eq!(Plan::within(&link(0, 1), false, PAGE).map(|plan| plan.flags).ok(), Some(flags));
        let protected = Plan::within(&link(0, 1), true, PAGE).map(|plan| plan.flags).ok();
        assert_eq!(protected, Some(flags | TransmissionFlags::READ_ONLY));
    }
}
