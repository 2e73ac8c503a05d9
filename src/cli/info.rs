//! `ringnbd info`: what a server exports, what can be done with it, and where its data is. Words, keys and layout are those
//! of nbdinfo, so that scripts move over.

mod content;
mod describe;
mod map;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Args;

use super::print;
use crate::client::{self, Client, ConnectError, Connection, Options, Uri};
use crate::proto::{
    DialError, Dialect, DialerConfig, Found, Link, SurveyConfig, TlsMode, TransmissionFlags, Which,
};

/// How long a server may take over telling.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a flag that is false exits with.
const FALSE: u8 = 2;

/// Ask a server what it exports, what can be done with it, and where its data is
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringnbd info nbd://127.0.0.1/disk
  ringnbd info --list --json nbd://127.0.0.1
  ringnbd info --map --totals 'nbd+unix:///disk?socket=/run/nbd.sock'
  ringnbd info --map=qemu:dirty-bitmap:b0 nbd://127.0.0.1/disk
  if ringnbd info --can trim nbd://127.0.0.1/disk; then fstrim /mnt; fi

Exit code of --is and --can: 0 for true, 2 for false, 1 where that cannot be told.")]
pub(super) struct Info {
    /// The export: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH; nbds for TLS, with tls-certificates=DIR
    #[arg(value_parser = Uri::parse)]
    uri: Uri,

    /// All exports of the server; the name in the URI does not matter
    #[arg(short = 'L', long, conflicts_with_all = ["size", "map", "can", "is"])]
    list: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Print only the size in bytes
    #[arg(long, conflicts_with_all = ["map", "can", "is"])]
    size: bool,

    /// Print the extents of a meta context
    #[arg(
        long, value_name = "CONTEXT", num_args = 0..=1, require_equals = true,
        default_missing_value = "base:allocation", conflicts_with_all = ["can", "is"]
    )]
    map: Option<String>,

    /// With --map: how much there is of each type, in bytes and per cent
    #[arg(long, requires = "map")]
    totals: bool,

    /// Whether the export, or the connection, can: cache, connect, df, fast-zero, flush, fua, multi-conn, read,
    /// structured-reply, extended-headers, trim, write, zero
    #[arg(long, value_name = "FLAG", conflicts_with = "is")]
    can: Option<String>,

    /// Whether the export, or the connection, is: read-only, rotational, tls
    #[arg(long, value_name = "FLAG")]
    is: Option<String>,

    /// Tell what the exports hold, as file(1) sees it, with --list as well
    #[arg(long, conflicts_with_all = ["size", "map", "can", "is"])]
    content: bool,

    /// Do not look at what the export holds
    #[arg(long, conflicts_with = "content")]
    no_content: bool,
}

/// What was found out.
struct Facts {
    uri: Uri,
    protocol: &'static str,
    tls: bool,
    /// Headers that were agreed on.
    dialect: Dialect,
    exports: Vec<Found>,
    /// What each of them holds, if that was looked at.
    contents: Vec<Option<String>>,
}

impl Info {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(flag) = self.can.clone().or_else(|| self.is.clone()) {
            return self.test(&flag);
        }
        if let Some(context) = self.map.clone() {
            return self.print_map(context);
        }
        let mut facts = self.facts()?;
        if !self.size && (self.content || !(self.list || self.no_content)) {
            facts.contents = contents(&facts)?;
        }
        let text = match facts.exports.first() {
            Some(found) if self.size => {
                let (size, _) = found.export.unwrap_or_default();
                format!("{size}\n")
            }
            _ if self.json => describe::json(&facts),
            _ => describe::text(&facts),
        };
        print(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }

    fn facts(&self) -> anyhow::Result<Facts> {
        let (uri, list) = (self.uri.clone(), self.list);
        Ok(client::block_on(async move { facts(uri, list).await })??)
    }

    /// Exits with what a flag is.
    fn test(&self, flag: &str) -> anyhow::Result<ExitCode> {
        let normal = flag.to_ascii_lowercase().replace([' ', '_'], "-");
        // A word that makes no sense is said before a server is asked.
        let told = told_by(&normal);
        ensure!(told.is_some(), "unknown --can or --is flag {flag}: `ringnbd info --help` lists them");
        let facts = self.facts()?;
        let flags = facts.exports.first().and_then(|found| found.export).unwrap_or_default().1;
        let is_true = match told {
            Some(Told::Always(is_true)) => is_true,
            Some(Told::Tls) => facts.tls,
            Some(Told::Flag(flag)) => flags.contains(flag),
            Some(Told::NotFlag(flag)) => !flags.contains(flag),
            Some(Told::Dialect(least)) => facts.dialect == least || facts.dialect == Dialect::Extended,
            None => bail!("unknown flag {flag}"),
        };
        Ok(if is_true { ExitCode::SUCCESS } else { ExitCode::from(FALSE) })
    }

    fn print_map(&self, context: String) -> anyhow::Result<ExitCode> {
        let (uri, wanted) = (self.uri.clone(), context.clone());
        let (size, extents) = client::block_on(async move {
            let options = Options { contexts: vec![wanted.clone()], ..Options::default() };
            let client = Client::open(&uri, options).await?;
            let extents = client.extents(&wanted, 0, client.size()).await?;
            client.disconnect().await;
            Ok::<_, anyhow::Error>((client.size(), extents))
        })??;
        let text = match (self.totals, self.json) {
            (false, false) => map::text(&context, &extents),
            (false, true) => map::json(&context, &extents),
            (true, false) => map::totals_text(&context, size, &extents),
            (true, true) => map::totals_json(&context, size, &extents),
        };
        print(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Where a flag's truth comes from.
enum Told {
    Always(bool),
    Tls,
    Flag(TransmissionFlags),
    NotFlag(TransmissionFlags),
    Dialect(Dialect),
}

fn told_by(flag: &str) -> Option<Told> {
    Some(match flag {
        "connect" | "read" => Told::Always(true),
        "tls" => Told::Tls,
        "write" => Told::NotFlag(TransmissionFlags::READ_ONLY),
        "read-only" | "readonly" => Told::Flag(TransmissionFlags::READ_ONLY),
        "rotational" => Told::Flag(TransmissionFlags::ROTATIONAL),
        "cache" => Told::Flag(TransmissionFlags::SEND_CACHE),
        "df" => Told::Flag(TransmissionFlags::SEND_DF),
        "fast-zero" => Told::Flag(TransmissionFlags::SEND_FAST_ZERO),
        "flush" => Told::Flag(TransmissionFlags::SEND_FLUSH),
        "fua" => Told::Flag(TransmissionFlags::SEND_FUA),
        "multi-conn" => Told::Flag(TransmissionFlags::CAN_MULTI_CONN),
        "trim" => Told::Flag(TransmissionFlags::SEND_TRIM),
        "zero" => Told::Flag(TransmissionFlags::SEND_WRITE_ZEROES),
        "structured" | "structured-reply" => Told::Dialect(Dialect::Structured),
        "extended" | "extended-headers" => Told::Dialect(Dialect::Extended),
        _ => return None,
    })
}

/// Looks around; a single export is opened as well, because not every server tells the truth to those who only look.
async fn facts(uri: Uri, list: bool) -> Result<Facts, ConnectError> {
    let which = if list { Which::All } else { Which::One(uri.export.clone()) };
    let config = SurveyConfig { which, ..SurveyConfig::default() };
    let exports = match client::survey(&uri, config, PATIENCE).await {
        Ok(exports) => exports,
        Err(ConnectError::Dial { error: DialError::NoList, .. }) if !list => {
            return opened(uri, "newstyle", Vec::new()).await;
        }
        Err(error) => return Err(error),
    };
    let dialect = exports.first().map_or(Some(Dialect::Simple), |found| found.dialect);
    // Where nothing is listed nothing tells, but what was demanded.
    let tls = exports.first().map_or(uri.security.tls == TlsMode::Require, |found| found.tls);
    let Some(dialect) = dialect else {
        return Ok(Facts {
            uri,
            protocol: "oldstyle",
            tls,
            dialect: Dialect::Simple,
            exports,
            contents: Vec::new(),
        });
    };
    let protocol = "newstyle-fixed";
    if list {
        return Ok(Facts { uri, protocol, tls, dialect, exports, contents: Vec::new() });
    }
    let contexts = exports.into_iter().next().map(|found| found.contexts).unwrap_or_default();
    opened(uri, protocol, contexts).await
}

fn contents(facts: &Facts) -> anyhow::Result<Vec<Option<String>>> {
    let exports = facts.exports.iter().map(|found| Uri { export: found.name.clone(), ..facts.uri.clone() });
    let exports: Vec<_> = exports.collect();
    let heads = client::block_on(async move {
        let mut heads = Vec::with_capacity(exports.len());
        for uri in &exports {
            heads.push(content::head(uri, PATIENCE).await?);
        }
        Ok::<_, ConnectError>(heads)
    })??;
    Ok(heads.iter().map(|head| content::guess(head.as_ref()?)).collect())
}

async fn opened(uri: Uri, protocol: &'static str, contexts: Vec<String>) -> Result<Facts, ConnectError> {
    let config = DialerConfig { export: uri.export.clone(), ..DialerConfig::default() };
    let Link { tls, dialect, size, flags, block, name, description, .. } =
        Connection::open_within(&uri, config, PATIENCE, None).await?.leave().await;
    let export = Found {
        name: uri.export.clone(),
        canonical: name,
        description,
        export: Some((size, flags)),
        block,
        contexts,
        dialect: Some(dialect),
        tls,
        refused: None,
    };
    Ok(Facts { uri, protocol, tls, dialect, exports: vec![export], contents: Vec::new() })
}
