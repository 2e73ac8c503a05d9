//! The table of exports: opened once, taken into use on each shard.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::authorise::Rules;
use crate::backend::{Backend, ExportSpec, Media, OpenError, Traits};
use crate::proto::{BlockSizes, ExportInfo, TransmissionFlags};

/// The meta contexts of every export that has none of its own; the index is the context's number.
pub(super) const CONTEXTS: [&str; 2] = ["base:allocation", "qemu:allocation-depth"];
/// `base:allocation`.
pub(super) const CONTEXT_ALLOCATION: usize = 0;
/// `qemu:allocation-depth`.
pub(super) const CONTEXT_DEPTH: usize = 1;

/// All exports of the process, and who may have what of them.
pub(super) struct Table {
    rows: Vec<Row>,
    by_name: HashMap<String, usize>,
    pub(super) rules: Rules,
}

struct Row {
    media: Arc<Media>,
    info: ExportInfo,
    /// The same for peers that may not write.
    read_only: ExportInfo,
    tls: bool,
}

/// One export on one shard.
pub(super) struct Export {
    pub(super) backend: Backend,
    pub(super) writethrough: bool,
}

impl Table {
    /// Opens all exports; their names are distinct (checked with the specs).
    pub(super) fn open(
        specs: &[ExportSpec],
        payload_length_max: u32,
        rules: Rules,
    ) -> Result<Self, OpenError> {
        let mut rows = Vec::with_capacity(specs.len());
        let mut by_name = HashMap::new();
        for (id, spec) in specs.iter().enumerate() {
            let media = Media::open(spec)?;
            let info = describe(id, spec, &media, payload_length_max);
            by_name.insert(spec.name.clone(), id);
            let read_only = info.read_only();
            rows.push(Row { media, info, read_only, tls: spec.options.tls });
        }
        Ok(Self { rows, by_name, rules })
    }

    /// The number of the export with this name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// An export for peers that may do with it what can be done.
    pub(super) fn info(&self, id: usize) -> &ExportInfo {
        &self.rows[id].info
    }

    /// An export for peers that may read it.
    pub(super) fn read_only(&self, id: usize) -> &ExportInfo {
        &self.rows[id].read_only
    }

    /// Whether the export is for encrypted connections only.
    pub(super) fn needs_tls(&self, id: usize) -> bool {
        self.rows[id].tls
    }

    /// Whether there is one that plain connections do not get.
    pub(super) fn hides_some_from_plain(&self) -> bool {
        self.rows.iter().any(|row| row.tls)
    }

    /// The name of the first export: the only one of an oldstyle server.
    pub(super) fn only(&self) -> &str {
        self.rows.first().map_or("", |row| &row.info.name)
    }

    /// The exports that are not hidden.
    pub(super) fn listed(&self) -> impl Iterator<Item = &ExportInfo> {
        self.rows.iter().filter(|row| !row.media.traits().hidden).map(|row| &row.info)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.rows.iter().map(|row| row.info.name.clone()).collect()
    }

    /// Takes all exports into use on the calling shard.
    pub(super) fn attach(&self) -> io::Result<Vec<Export>> {
        self.rows
            .iter()
            .map(|row| {
                let writethrough = row.media.traits().writethrough;
                Ok(Export { backend: row.media.attach()?, writethrough })
            })
            .collect()
    }
}

fn describe(id: usize, spec: &ExportSpec, media: &Media, payload_length_max: u32) -> ExportInfo {
    let traits = media.traits();
    ExportInfo {
        id,
        name: spec.name.clone(),
        description: traits.description.clone(),
        size: media.size(),
        flags: flags(traits),
        block: BlockSizes {
            minimum: traits.minimum,
            preferred: traits.preferred.max(traits.minimum),
            maximum: payload_length_max,
        },
        strict: traits.strict,
        contexts: match media.contexts() {
            Some(own) => own.to_vec(),
            None => CONTEXTS.map(str::to_owned).to_vec(),
        },
    }
}

/// What is advertised is what works: every flag comes from the backend.
fn flags(traits: &Traits) -> TransmissionFlags {
    let can = &traits.can;
    let writable = !traits.readonly;
    [
        (true, TransmissionFlags::HAS_FLAGS),
        (can.multi_conn, TransmissionFlags::CAN_MULTI_CONN),
        (traits.readonly, TransmissionFlags::READ_ONLY),
        (traits.rotational, TransmissionFlags::ROTATIONAL),
        (can.flush, TransmissionFlags::SEND_FLUSH),
        (can.fua, TransmissionFlags::SEND_FUA),
        (can.trim && writable, TransmissionFlags::SEND_TRIM),
        (can.zero && writable, TransmissionFlags::SEND_WRITE_ZEROES),
        (can.zero && can.fast_zero && writable, TransmissionFlags::SEND_FAST_ZERO),
        (can.cache, TransmissionFlags::SEND_CACHE),
    ]
    .into_iter()
    .filter(|(holds, _)| *holds)
    .fold(TransmissionFlags::default(), |flags, (_, flag)| flags | flag)
}
