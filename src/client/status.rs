//! Block status: one answer, or a whole map.

use std::ops::Range;

use super::Client;
use super::commands::ask;
use super::error::Error;
use super::extents::{ALLOCATION, Extent, Status, append, repaired};
use super::pipelined::Ask;
use crate::proto::{Command, CommandFlags, TransmissionFlags};

impl Client {
    /// Asks about the status of a range. Every context answers for the range's beginning; how far is up to the server.
    ///
    /// `contexts` names those of interest, none for all that were agreed on. Where the server can, it is asked for no
    /// others. `one` asks for no more than the first extent of each.
    ///
    /// # Errors
    /// [`Error::NoContext`] for a name that was not agreed on; else as others.
    pub async fn block_status(
        &self,
        offset: u64,
        length: u64,
        contexts: &[&str],
        one: bool,
    ) -> Result<Vec<Status>, Error> {
        let bounds = self.bounds();
        let end = bounds.end(Command::BLOCK_STATUS, offset, length)?;
        let agreed = self.contexts();
        let mut wanted = Vec::new();
        for name in contexts {
            let at = self.options().contexts.iter().position(|own| own == name);
            let at = at.filter(|_| agreed.iter().any(|own| own == name));
            wanted.push(at.ok_or_else(|| Error::NoContext((*name).to_owned()))?);
        }
        if agreed.is_empty() {
            return Err(Error::NoContext(self.options().contexts.first().cloned().unwrap_or_default()));
        }
        if offset == end {
            return Ok(Vec::new());
        }
        let whole = bounds.outward(offset..end);
        let asked = (whole.end - whole.start).min(bounds.effect_max);
        let flags = if one { CommandFlags::REQ_ONE } else { CommandFlags::NONE };
        let filter = !wanted.is_empty() && self.offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        let ask = Ask { flags, contexts: &wanted, filter, ..ask(Command::BLOCK_STATUS, whole.start, asked) };
        let told = self.exchange(&ask, None).await.0?;
        let until = whole.start + asked;
        let names = &self.options().contexts;
        let is_wanted = |at: &usize| wanted.is_empty() || wanted.contains(at);
        let statuses = told.extents.iter().filter(|(at, _)| is_wanted(at)).map(|(at, extents)| {
            let name = names.get(*at).map_or("", String::as_str);
            let extents = repaired(&bounds, name, whole.start, until, one, extents);
            Status { context: name.to_owned(), extents: within(extents, &(offset..end)) }
        });
        Ok(statuses.filter(|status| !status.extents.is_empty()).collect())
    }

    /// The status of the whole range in one context, in as many requests as it takes; neighbours of one status are one.
    ///
    /// # Errors
    /// As [`Client::block_status`].
    pub async fn extents(&self, context: &str, offset: u64, length: u64) -> Result<Vec<Extent>, Error> {
        let end = self.bounds().end(Command::BLOCK_STATUS, offset, length)?;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end {
            let told = self.block_status(at, end - at, &[context], false).await?;
            let more = told.into_iter().flat_map(|status| status.extents);
            append(&mut extents, more);
            let reached = extents.last().map_or(at, |last: &Extent| last.offset + last.length);
            if reached <= at {
                // The session lets no reply without extents of this context pass, so this is not reached by any server.
                return Err(Error::NoContext(context.to_owned()));
            }
            at = reached;
        }
        Ok(extents)
    }

    /// What is allocated and what reads as zeroes ([`AllocationFlags`](crate::proto::AllocationFlags)). A server that does
    /// not tell has data everywhere.
    ///
    /// # Errors
    /// As [`Client::block_status`].
    pub async fn allocation(&self, offset: u64, length: u64) -> Result<Vec<Extent>, Error> {
        if self.contexts().iter().any(|context| context == ALLOCATION) {
            return self.extents(ALLOCATION, offset, length).await;
        }
        self.bounds().end(Command::BLOCK_STATUS, offset, length)?;
        Ok((length > 0).then_some(Extent { offset, length, status: 0 }).into_iter().collect())
    }
}

/// Extents cut to a range.
fn within(extents: Vec<Extent>, range: &Range<u64>) -> Vec<Extent> {
    let cut = |extent: Extent| {
        let start = extent.offset.max(range.start);
        let end = (extent.offset + extent.length).min(range.end);
        (start < end).then(|| Extent { offset: start, length: end - start, ..extent })
    };
    extents.into_iter().filter_map(cut).collect()
}
