//! Reading both sides again. What is zero at the source, and by what the destination says of itself there too, is not read.

use super::end::End;
use super::engine::Engine;
use super::error::{CopyError, Mismatch};
use super::plan::Step;
use super::report::add;
use super::zeroes::is_zero;
use crate::rt::{self, Buffer};

impl Engine {
    /// Compares one step.
    pub(super) async fn compare(&self, step: Step) -> Result<(), CopyError> {
        if step.zero {
            self.compare_zeroes(step).await?;
        } else {
            let length = usize::try_from(step.length).unwrap_or(usize::MAX);
            let buffers = Buffer::acquire_all([length; 2].into_iter()).await;
            let reads = [&self.source, &self.destination].into_iter().zip(buffers);
            let reads = reads.map(|(end, buffer)| end.read(step.offset, buffer));
            let mut contents = Vec::with_capacity(2);
            for (result, buffer) in rt::join_all(reads).await {
                result?;
                contents.push(buffer);
            }
            self.check(step.offset, &contents[0], &contents[1])?;
        }
        add(&self.progress.verified, step.length);
        Ok(())
    }

    async fn compare_zeroes(&self, step: Step) -> Result<(), CopyError> {
        let mut at = step.offset;
        while at < step.end() {
            for told in self.destination.map(at, step.end()).await? {
                at = told.end();
                if !told.zero {
                    self.read_zeroes(told).await?;
                }
            }
        }
        Ok(())
    }

    async fn read_zeroes(&self, range: Step) -> Result<(), CopyError> {
        let mut at = range.offset;
        while at < range.end() {
            let length = usize::try_from((range.end() - at).min(self.request)).unwrap_or(usize::MAX);
            let (result, buffer) = self.destination.read(at, Buffer::acquire(length).await).await;
            result?;
            if !is_zero(&buffer) {
                self.check(at, &vec![0; length], &buffer)?;
            }
            at += length as u64;
        }
        Ok(())
    }

    fn check(&self, offset: u64, wanted: &[u8], found: &[u8]) -> Result<(), CopyError> {
        if wanted == found {
            return Ok(());
        }
        let pairs = || wanted.iter().zip(found);
        let first = pairs().position(|(wanted, found)| wanted != found).unwrap_or(0);
        let name = |end: &End| end.label().to_owned();
        Err(CopyError::Differs(Mismatch {
            source: name(&self.source),
            destination: name(&self.destination),
            offset: offset + first as u64,
            wanted: wanted.get(first).copied().unwrap_or(0),
            found: found.get(first).copied().unwrap_or(0),
            differing: pairs().filter(|(wanted, found)| wanted != found).count() as u64,
            length: found.len() as u64,
            all_zero: is_zero(found),
        }))
    }
}
