//! Another server's export as all shards know it: where it is, what was agreed on when it was opened.

use std::fs;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use super::open::OpenError;
use super::ranges::Ranges;
use super::spec::SIZE_MAX;
use super::{Can, ExportOptions, Traits};
use crate::client::{
    Client, ConnectError, Link, Options, SurveyConfig, TransmissionFlags, Uri, Which, survey,
};
use crate::rt;

/// What a context of ours is called that says which process is in the way; the rest is that process's identity.
const VIA: &str = "ringnbd:via:";
/// Most meta contexts that are passed on.
const CONTEXTS_MAX: usize = 64;
const PREFERRED: u32 = 4096;

/// How another server is to be talked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamOptions {
    /// Connections of each shard, if the server says that several are safe, `connections=N`.
    pub connections: usize,
    /// How long requests wait for a lost connection, `reconnect-delay=SECONDS`.
    pub reconnect_delay: Duration,
    /// How long to try at first, `open-timeout=SECONDS`.
    pub open_timeout: Duration,
    /// After how long without an answer the server counts as gone, `request-timeout=SECONDS`; never if `None`.
    pub request_timeout: Option<Duration>,
}

impl Default for UpstreamOptions {
    fn default() -> Self {
        Self {
            connections: 1,
            reconnect_delay: Duration::from_secs(60),
            open_timeout: Duration::ZERO,
            request_timeout: None,
        }
    }
}

impl UpstreamOptions {
    /// The first option that is not at its default.
    pub(super) fn first_set(&self) -> Option<&'static str> {
        let usual = Self::default();
        [
            (self.connections != usual.connections, "connections"),
            (self.reconnect_delay != usual.reconnect_delay, "reconnect-delay"),
            (self.open_timeout != usual.open_timeout, "open-timeout"),
            (self.request_timeout != usual.request_timeout, "request-timeout"),
        ]
        .into_iter()
        .find_map(|(is_set, key)| is_set.then_some(key))
    }
}

/// Another server's export.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) uri: Uri,
    options: Options,
    link: Link,
    /// First byte that is served.
    pub(super) base: u64,
    /// Smallest block that the server takes.
    pub(super) block: u64,
    /// Keeps requests away from blocks that are being changed in part.
    pub(super) ranges: Arc<Ranges>,
    /// The server's contexts, and ours.
    contexts: Vec<String>,
    theirs: usize,
}

impl Upstream {
    /// Connects, asks what there is, and disconnects.
    pub(super) fn open(uri: &Uri, export: &ExportOptions) -> Result<(u64, Traits, Self), OpenError> {
        let failed = |cause: ConnectError| OpenError::Upstream { uri: uri.to_string(), cause };
        let options = client_options(&export.upstream);
        let (first, to) = (options.clone(), uri.clone());
        // The caller's thread may have a ring already; this one needs its own.
        let looked = thread::scope(|scope| {
            let looking = scope.spawn(move || rt::block_on(async move { look(&to, first).await }));
            looking.join().map_err(|_| OpenError::Looking { uri: uri.to_string() })
        })?;
        let Looked { link, block } = looked.map_err(|cause| OpenError::Ring { cause })?.map_err(failed)?;
        let whole = link.size;
        if whole == 0 || whole > SIZE_MAX {
            return Err(OpenError::UpstreamSize { uri: uri.to_string(), whole });
        }
        let base = export.offset;
        let path = || uri.to_string().into();
        if base >= whole {
            return Err(OpenError::Offset { path: path(), offset: base, whole });
        }
        let size = export.size.unwrap_or(whole - base);
        if size > whole - base {
            return Err(OpenError::Window { path: path(), offset: base, size, whole });
        }
        let traits = traits(export, &link, block, base, size);
        if traits.readonly && !export.readonly {
            tracing::info!("{uri} is read-only, and so is the export that it is served as");
        }
        let theirs: Vec<_> = link.contexts.iter().map(|(_, name)| name.clone()).collect();
        let (count, mut contexts) = (theirs.len(), theirs.clone());
        contexts.extend(own_context().map(str::to_owned));
        let options = Options { contexts: theirs, open_timeout: export.upstream.reconnect_delay, ..options };
        let ranges = Arc::default();
        Ok((
            size,
            traits,
            Self { uri: uri.clone(), options, link, base, block, ranges, contexts, theirs: count },
        ))
    }

    /// Names of the meta contexts that clients may ask about.
    pub(super) fn contexts(&self) -> &[String] {
        &self.contexts
    }

    /// Those of them that the other server has.
    pub(super) fn theirs(&self) -> &[String] {
        &self.contexts[..self.theirs]
    }

    /// A client on the calling thread.
    pub(super) async fn connect(&self) -> Result<Client, ConnectError> {
        Client::open_again(&self.uri, self.options.clone(), &self.link).await
    }
}

fn client_options(upstream: &UpstreamOptions) -> Options {
    Options {
        connections: upstream.connections,
        reconnect_delay: upstream.reconnect_delay,
        open_timeout: upstream.open_timeout,
        request_timeout: upstream.request_timeout,
        unwanted_contexts: own_context().map(str::to_owned).into_iter().collect(),
        ..Options::default()
    }
}

struct Looked {
    link: Link,
    block: u64,
}

/// What can be known of an export before it is used.
async fn look(uri: &Uri, mut options: Options) -> Result<Looked, ConnectError> {
    options.connections = 1;
    let client = Client::open(uri, options.clone()).await?;
    let mut looked = Looked { link: client.link().clone(), block: client.minimum_block() };
    client.disconnect().await;
    let named = SurveyConfig { which: Which::One(uri.export.clone()), ..SurveyConfig::default() };
    let found = match survey(uri, named, options.handshake_timeout).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!("{uri}: its meta contexts cannot be listed: {error}");
            Vec::new()
        }
    };
    let mut contexts: Vec<_> = found.into_iter().flat_map(|export| export.contexts).collect();
    if contexts.len() > CONTEXTS_MAX {
        tracing::warn!("{uri} has {} meta contexts; {CONTEXTS_MAX} of them are passed on", contexts.len());
        contexts.truncate(CONTEXTS_MAX);
    }
    if contexts.iter().any(|name| !options.contexts.contains(name)) {
        options.contexts = contexts;
        let client = Client::open(uri, options).await?;
        looked = Looked { link: client.link().clone(), block: client.minimum_block() };
        client.disconnect().await;
    }
    Ok(looked)
}

/// What is passed on is what was agreed on.
fn traits(export: &ExportOptions, link: &Link, block: u64, base: u64, size: u64) -> Traits {
    let offers = |flag| link.flags.contains(flag);
    let readonly = export.readonly || offers(TransmissionFlags::READ_ONLY);
    let can = Can {
        flush: offers(TransmissionFlags::SEND_FLUSH),
        // Without FUA, a flush follows each write that wants it.
        fua: offers(TransmissionFlags::SEND_FUA) || offers(TransmissionFlags::SEND_FLUSH),
        trim: offers(TransmissionFlags::SEND_TRIM),
        zero: offers(TransmissionFlags::SEND_WRITE_ZEROES),
        fast_zero: offers(TransmissionFlags::SEND_FAST_ZERO),
        cache: offers(TransmissionFlags::SEND_CACHE),
        extents: !link.contexts.is_empty(),
        multi_conn: offers(TransmissionFlags::CAN_MULTI_CONN),
    };
    // A window that begins or ends inside a block is served exactly, so the block is not a minimum.
    let whole_blocks = base.is_multiple_of(block) && size.is_multiple_of(block);
    let minimum = if whole_blocks { u32::try_from(block).unwrap_or(1) } else { 1 };
    let preferred = link.block.map_or(PREFERRED, |block| block.preferred);
    Traits {
        readonly,
        rotational: export.rotational.unwrap_or_else(|| offers(TransmissionFlags::ROTATIONAL)),
        can,
        minimum,
        preferred: preferred.max(minimum),
        strict: export.strict,
        writethrough: export.writethrough,
        hidden: export.hidden,
        description: export.description.clone().or_else(|| link.description.clone()),
    }
}

/// The context that names this process; none where the kernel gives no identity.
fn own_context() -> Option<&'static str> {
    static OWN: OnceLock<Option<String>> = OnceLock::new();
    let make = || {
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid").ok()?;
        Some(format!("{VIA}{}", id.trim_end()))
    };
    OWN.get_or_init(make).as_deref()
}
