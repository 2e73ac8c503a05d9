//! Meta contexts: which ones an export has, which the client may see, which it selected.
//!
//! A query is a context's full name. For LIST only, one that ends in a colon is a wildcard for
//! all names that begin with it (`base:`, `qemu:`, `qemu:dirty-bitmap:`). What matches nothing
//! is ignored, as the specification demands, so that clients can ask for contexts of servers
//! they do not know.

use smallvec::SmallVec;

use super::consts::{OptionCode, STRING_LENGTH_MAX};
use super::cursor::Cursor;
use super::export::ExportInfo;
use super::option::{Fault, ack, export_name, meta_context};
use super::session::SelectedContext;

/// What SET_META_CONTEXT left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// [`ExportInfo::id`] of the export it is for; void for any other.
    pub(super) export: usize,
    pub(super) contexts: SmallVec<[SelectedContext; 2]>,
}

/// A well-formed LIST_META_CONTEXT or SET_META_CONTEXT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MetaRequest {
    pub(super) option: OptionCode,
    pub(super) name: String,
    /// The queries as they came, each with its length in front: bounded by the option's own bound.
    queries: Vec<u8>,
}

impl MetaRequest {
    pub(super) fn decode(option: OptionCode, payload: &[u8], name_length_max: u32) -> Result<Self, Fault> {
        let mut cursor = Cursor::new(payload);
        let name = export_name(&mut cursor, name_length_max)?;
        let count = cursor.u32().ok_or("the payload ends before the number of queries")?;
        let queries = cursor.clone().rest().to_vec();
        for _ in 0..count {
            let query = cursor.counted().ok_or("the payload ends before the last query does")?;
            if query.contains(&0) {
                return Err("a query contains a NUL");
            }
        }
        if !cursor.is_empty() {
            return Err("bytes are left after the last query");
        }
        Ok(Self { option, name, queries })
    }

    /// Writes the contexts that match, then ACK. They are the new selection if the option is SET.
    pub(super) fn answer(&self, export: &ExportInfo, out: &mut Vec<u8>) -> Selection {
        let list = self.option == OptionCode::LIST_META_CONTEXT;
        let mut contexts = SmallVec::new();
        for (number, name) in export.contexts.iter().enumerate() {
            let all = list && self.queries.is_empty();
            if !(all || self.queries().any(|query| matches(query, name, list))) {
                continue;
            }
            // An id must be unique among the selected; the context's number is. LIST's ids mean nothing.
            let Ok(id) = u32::try_from(number) else { break };
            meta_context(out, self.option, if list { 0 } else { id }, name);
            contexts.push(SelectedContext { id, number });
        }
        ack(out, self.option);
        Selection { export: export.id, contexts }
    }

    fn queries(&self) -> impl Iterator<Item = &[u8]> {
        let mut cursor = Cursor::new(&self.queries);
        std::iter::from_fn(move || cursor.counted())
    }
}

fn matches(query: &[u8], name: &str, wildcards: bool) -> bool {
    if query.len() > STRING_LENGTH_MAX {
        return false;
    }
    let wildcard = wildcards && query.ends_with(b":");
    if wildcard { name.as_bytes().starts_with(query) } else { name.as_bytes() == query }
}
