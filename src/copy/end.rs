//! What both sides can be asked for, whatever they are.

use std::ops::Range;

use super::error::CopyError;
use super::file::LocalFile;
use super::plan::Step;
use super::stream::Stream;
use crate::client::{self, Client};
use crate::proto::{AllocationFlags, CommandFlags, Errno};
use crate::rt::{self, Buffer};

/// Zeroes that are written as data, at a time.
const ZEROES_BYTES: u64 = 256 << 10;
/// The context of holes.
pub(super) const ALLOCATION: &str = "base:allocation";

/// One side of a copy, open.
pub(super) enum End {
    Nbd { client: Client, label: String },
    File(LocalFile),
    Stream(Stream),
    Null,
}

/// Runs of a buffer, each zero or not.
pub(super) type Runs = [(Range<usize>, bool)];

impl End {
    pub(super) fn label(&self) -> &str {
        match self {
            Self::Nbd { label, .. } => label,
            Self::File(file) => &file.label,
            Self::Stream(stream) => &stream.label,
            Self::Null => "null:",
        }
    }

    /// Bytes that there are; `None` where that is not known.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::Nbd { client, .. } => Some(client.size()),
            Self::File(file) => Some(file.size),
            Self::Stream(_) | Self::Null => None,
        }
    }

    /// Bytes that there is room for; `None` for what grows.
    pub(super) fn room(&self) -> Option<u64> {
        match self {
            Self::File(file) if !file.is_device => None,
            _ => self.size(),
        }
    }

    /// Whether it is on this machine.
    pub(super) fn is_near(&self) -> bool {
        match self {
            Self::Nbd { client, .. } => client.address().is_near(),
            _ => true,
        }
    }

    /// The longest request that it takes in one piece.
    pub(super) fn request_max(&self) -> u64 {
        match self {
            Self::Nbd { client, .. } => u64::from(client.block_sizes().maximum),
            _ => super::REQUEST_MAX,
        }
    }

    /// The block that it is best written in: a power of two.
    pub(super) fn granule(&self) -> u64 {
        match self {
            Self::Nbd { client, .. } => {
                let sizes = client.block_sizes();
                u64::from(sizes.preferred.max(sizes.minimum))
            }
            _ => super::REQUEST_MIN,
        }
    }

    pub(super) async fn read(&self, offset: u64, buffer: Buffer) -> (Result<(), CopyError>, Buffer) {
        match self {
            Self::Nbd { client, label } => {
                let (result, buffer) = client.read(offset, buffer).await;
                (result.map_err(|error| refused(label, error)), buffer)
            }
            Self::File(file) => file.read(offset, buffer).await,
            Self::Stream(_) | Self::Null => (Err(CopyError::Once(self.label().to_owned())), buffer),
        }
    }

    /// Writes all of `buffer`.
    pub(super) async fn write(&self, offset: u64, buffer: Buffer) -> Result<(), CopyError> {
        match self {
            Self::Nbd { client, label } => {
                client.write(offset, buffer).await.0.map_err(|error| refused(label, error))
            }
            Self::File(file) => {
                let all = 0..buffer.len();
                file.write(offset, buffer, all).await.0
            }
            Self::Stream(stream) => stream.write(offset, buffer).await,
            Self::Null => Ok(()),
        }
    }

    /// Writes those runs of `buffer` that are not zero.
    pub(super) async fn write_data(
        &self,
        offset: u64,
        mut buffer: Buffer,
        runs: &Runs,
    ) -> Result<(), CopyError> {
        // From the last one on: the first one of those that go to a server needs no buffer of its own.
        for (range, _) in runs.iter().rev().filter(|(_, zero)| !zero) {
            match self {
                Self::File(file) => {
                    let (result, back) = file.write(offset, buffer, range.clone()).await;
                    buffer = back;
                    result?;
                }
                _ if range.start == 0 => {
                    buffer.set_len(range.end);
                    return self.write(offset, buffer).await;
                }
                _ => {
                    let mut part = Buffer::scratch(range.len());
                    part.copy_from_slice(&buffer[range.clone()]);
                    self.write(offset + range.start as u64, part).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes a range zero, and allocates it if that is wanted.
    pub(super) async fn zero(&self, offset: u64, length: u64, allocated: bool) -> Result<(), CopyError> {
        match self {
            Self::Nbd { client, label } => {
                let flags = if allocated { CommandFlags::NO_HOLE } else { CommandFlags::NONE };
                match client.write_zeroes(offset, length, flags).await {
                    Err(client::Error::NotOffered(_)) => self.write_zeroes(offset, length).await,
                    // There are servers that offer it and then refuse it (nbdkit, oldstyle).
                    Err(client::Error::Failed { error, .. })
                        if matches!(error.errno, Errno::EINVAL | Errno::ENOTSUP) =>
                    {
                        self.write_zeroes(offset, length).await
                    }
                    result => result.map_err(|error| refused(label, error)),
                }
            }
            Self::File(file) => file.zero(offset, length, allocated).await,
            Self::Stream(_) => self.write_zeroes(offset, length).await,
            Self::Null => Ok(()),
        }
    }

    async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), CopyError> {
        let mut done = 0;
        while done < length {
            let count = (length - done).min(ZEROES_BYTES);
            let mut buffer = Buffer::scratch(usize::try_from(count).unwrap_or(0));
            buffer.fill(0);
            self.write(offset + done, buffer).await?;
            done += count;
        }
        Ok(())
    }

    /// What reads as zeroes and what is data, joined, from `offset` on: to `end` or less far, never nothing.
    pub(super) async fn map(&self, offset: u64, end: u64) -> Result<Vec<Step>, CopyError> {
        let told = match self {
            Self::Nbd { client, label } if client.contexts().iter().any(|context| context == ALLOCATION) => {
                // One answer at a time: all of a range that long may be more than is good to hold.
                let told = client.block_status(offset, end - offset, &[ALLOCATION], false).await;
                let told = told.map_err(|error| refused(label, error))?;
                let zero = u64::from(AllocationFlags::ZERO.0);
                let extents = told.into_iter().flat_map(|status| status.extents);
                extents
                    .map(|extent| Step {
                        offset: extent.offset,
                        length: extent.length,
                        zero: extent.status & zero != 0,
                    })
                    .collect()
            }
            Self::File(file) => file.map(offset, end).await?,
            _ => Vec::new(),
        };
        let mut joined: Vec<Step> = Vec::new();
        for step in told {
            match joined.last_mut() {
                Some(last) if last.zero == step.zero => last.length += step.length,
                _ => joined.push(step),
            }
        }
        if joined.is_empty() {
            joined.push(Step::new(&(offset..end), false));
        }
        Ok(joined)
    }

    /// The source turned out to be so long: a file that grew with it may end in zeroes, which were not written.
    pub(super) fn end_at(&self, size: u64) -> Result<(), CopyError> {
        let Self::File(file) = self else { return Ok(()) };
        if file.is_device { Ok(()) } else { file.resize(size) }
    }

    /// Makes what was written durable. A pipe has nowhere to keep it.
    pub(super) async fn flush(&self) -> Result<(), CopyError> {
        match self {
            Self::Nbd { client, label } => client.flush().await.map_err(|error| refused(label, error)),
            Self::File(file) => file.flush().await,
            Self::Stream(_) | Self::Null => Ok(()),
        }
    }

    /// Whether what was written may be gone before it was flushed, and the copy go on.
    pub(super) fn may_forget(&self) -> bool {
        matches!(self, Self::Nbd { .. })
    }

    /// How often it came back.
    pub(super) fn reconnects(&self) -> u64 {
        match self {
            Self::Nbd { client, .. } => client.reconnects(),
            _ => 0,
        }
    }

    /// Lets go whoever waits for something that will not come any more.
    pub(super) fn stop(&self) {
        match self {
            Self::Nbd { client, .. } => client.abort(),
            Self::Stream(stream) => stream.stop(),
            Self::File(_) | Self::Null => {}
        }
    }

    /// Says goodbye, or leaves the position of standard input or output where others would go on.
    pub(super) async fn leave(&self, bytes: u64) {
        match self {
            Self::Nbd { client, .. } => client.disconnect().await,
            Self::File(file) if file.is_standard => advance(&file.file, bytes),
            Self::Stream(stream) => advance(&stream.file, stream.base + bytes),
            Self::File(_) | Self::Null => {}
        }
    }
}

/// A pipe has no position: that is no error.
fn advance(file: &rt::File, position: u64) {
    let _ = rustix::fs::seek(file.fd(), rustix::fs::SeekFrom::Start(position));
}

fn refused(label: &str, error: client::Error) -> CopyError {
    CopyError::Request { label: label.to_owned(), error }
}
