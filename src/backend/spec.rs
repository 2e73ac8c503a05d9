//! The words an operator writes for one export: `[NAME=]BACKEND[,key=value...]`.
//!
//! ```text
//!   data=block:/dev/sdb,offset=1M,size=2G,direct=on
//!   '--' '------------' '------------------------'
//!   name  source         options
//! ```
//!
//! * The name is what stands before the first `=`, and may hold anything else; without one it is `""`, the default
//!   export. Two readings come first: if that text contains `://` the word is a URI and has no name, and if it ends in
//!   `,KEY` with KEY an option's name, the `=` belongs to the option (`disk.img,readonly=on` has no name).
//! * `,,` stands for one comma in a name, a path or a value.
//! * Sizes are bytes, with an optional binary suffix K, M, G, T or P.
//!
//! Nothing here touches the file system: that is [`Media::open`](super::Media::open).

use std::collections::HashSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use super::upstream::UpstreamOptions;
use crate::client::{Uri, UriError};
use crate::rt::Writes;

/// Longest name or description, in bytes: the protocol's limit on a string (proto.md, "String values").
pub const STRING_LENGTH_MAX: usize = 4096;

/// Largest size of an export, in bytes: file offsets in Linux are signed.
pub const SIZE_MAX: u64 = i64::MAX.unsigned_abs();

/// One export as the operator asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSpec {
    /// What clients ask for; `""` is the default export.
    pub name: String,
    /// Where the bytes are.
    pub source: Source,
    /// How they are served.
    pub options: ExportOptions,
}

/// Where an export's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A bare path: a regular file or a block device, whichever is found there.
    Path(PathBuf),
    /// `file:PATH`, a regular file.
    File(PathBuf),
    /// `block:PATH`, a block device.
    Block(PathBuf),
    /// `memory:SIZE`, anonymous memory that is gone when the server ends.
    Memory(u64),
    /// `null:SIZE`, reads zeroes and forgets writes.
    Null(u64),
    /// `nbd://HOST/EXPORT` or any other NBD URI, an export of another server.
    Nbd(Uri),
    /// `faulty:SEED:BACKEND`, fails some requests of another backend, repeatably: for testing clients.
    Faulty {
        /// Where the run of faults starts; the same requests in the same order meet the same faults.
        seed: u64,
        /// What is served between the faults.
        inner: Box<Self>,
    },
}

/// How an export is served. The default is a writable, buffered, locked export of all that the source holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// First byte of the source that is served, `offset=SIZE`.
    pub offset: u64,
    /// Bytes served from there, `size=SIZE`; all that follow if `None`.
    pub size: Option<u64>,
    /// Refuse writes, `readonly=on`.
    pub readonly: bool,
    /// Text for people who list exports, `description=TEXT`.
    pub description: Option<String>,
    /// Pass by the page cache, `direct=on`.
    pub direct: bool,
    /// With `direct`: look for completions instead of taking interrupts, `iopoll=on`.
    pub iopoll: bool,
    /// Refuse requests that are not aligned to the minimum block size, `strict=on`.
    pub strict: bool,
    /// Keep other writers out, `lock=off` to allow them.
    pub lock: bool,
    /// Every write is durable before its reply, `writethrough=on`.
    pub writethrough: bool,
    /// Who carries out buffered writes, `writes=ring|thread|inline|adaptive`; found out when it is opened if `None`, `writes=auto`.
    pub writes: Option<Writes>,
    /// Leave the export out of lists, `hidden=on`; it can still be opened by name.
    pub hidden: bool,
    /// Serve it to encrypted connections only, `tls=require`.
    pub tls: bool,
    /// Say what the device is, `rotational=on|off`; asked of the kernel if `None`.
    pub rotational: Option<bool>,
    /// How to talk to the server behind an NBD URI.
    pub upstream: UpstreamOptions,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            offset: 0,
            size: None,
            readonly: false,
            description: None,
            direct: false,
            iopoll: false,
            strict: false,
            lock: true,
            writethrough: false,
            writes: None,
            hidden: false,
            tls: false,
            rotational: None,
            upstream: UpstreamOptions::default(),
        }
    }
}

/// Why an export's words make no sense; each says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)] // the message of each variant is its documentation
pub enum SpecError {
    #[error("`{word}` names no file or backend: write a path, or {BACKENDS}")]
    Empty { word: String },
    #[error("`{word}`: only NBD URIs can be served: write {BACKENDS}, or a path")]
    Uri { word: String },
    #[error("{0}")]
    Nbd(UriError),
    #[error("the export name `{}...` has {} bytes; at most {STRING_LENGTH_MAX} fit the protocol", head(.name), .name.len())]
    NameLong { name: String },
    #[error("the export name {name:?} contains a NUL, which the protocol forbids")]
    NameNul { name: String },
    #[error(
        "the description of export `{name}` has {length} bytes; at most {STRING_LENGTH_MAX} fit the protocol"
    )]
    DescriptionLong { name: String, length: usize },
    #[error("the description of export `{name}` contains a NUL, which the protocol forbids")]
    DescriptionNul { name: String },
    #[error("`{text}` is not a size: write bytes, or a number with K, M, G, T or P, such as 10G")]
    Size { text: String },
    #[error("the size `{text}` is too large: the most is {SIZE_MAX} bytes, one less than 8192P")]
    SizeLarge { text: String },
    #[error("`{word}` has a size of 0: there would be nothing to serve")]
    SizeZero { word: String },
    #[error("`{seed}` in `{word}` is not a seed: write faulty:NUMBER:BACKEND, such as faulty:1:memory:1G")]
    Seed { word: String, seed: String },
    #[error("unknown option `{key}`: the options are {OPTIONS}")]
    OptionUnknown { key: String },
    #[error("option `{key}` is given twice")]
    OptionTwice { key: String },
    #[error("option `{key}` lacks a value: write {key}={example}")]
    OptionBare { key: String, example: &'static str },
    #[error("option `{key}` cannot be `{value}`: write on or off")]
    OptionSwitch { key: String, value: String },
    #[error("option `writes` cannot be `{value}`: write auto, ring, thread, inline or adaptive")]
    OptionWrites { value: String },
    #[error("option `tls` cannot be `{value}`: write require (or leave it out, and --tls decides)")]
    OptionTls { value: String },
    #[error("option `{key}` makes no sense for `{backend}`, which has no {lacks} behind it")]
    OptionUseless { key: &'static str, backend: &'static str, lacks: &'static str },
    #[error("option `{key}` cannot be `{value}`: write a whole number{hint}")]
    OptionNumber { key: String, value: String, hint: &'static str },
    #[error("two exports are called `{name}`: give each its own name, as in other=disk.img")]
    NameTwice { name: String },
    #[error(
        "two exports have no name, and only one can be the default: give the others one, as in other=disk.img"
    )]
    DefaultTwice,
    #[error("iopoll=on is for direct I/O: add direct=on")]
    PollWithoutDirect,
}

pub(super) const BACKENDS: &str = "file:PATH, block:PATH, memory:SIZE, null:SIZE, faulty:SEED:BACKEND, nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH";
const OPTIONS: &str = "offset, size, readonly, description, direct, iopoll, strict, lock, writethrough, writes, hidden, tls, rotational, connections, reconnect-delay, open-timeout, request-timeout";
/// More connections to one server than any has use for.
const CONNECTIONS_MAX: u64 = 64;
const SECONDS_MAX: u64 = 1_000_000_000;

impl ExportSpec {
    /// Reads one word of the command line.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let (name, rest) = split_name(text);
        let name = unescape(name);
        if name.len() > STRING_LENGTH_MAX {
            return Err(SpecError::NameLong { name });
        }
        if name.contains('\0') {
            return Err(SpecError::NameNul { name });
        }
        let mut parts = split_commas(rest).into_iter();
        let source = Source::parse(&parts.next().unwrap_or_default())?;
        let mut options = ExportOptions::default();
        let mut seen = HashSet::new();
        for part in parts {
            let (key, value) = part.split_once('=').map_or((part.as_str(), None), |(k, v)| (k, Some(v)));
            options.set(&name, key, value)?;
            if !seen.insert(key.to_owned()) {
                return Err(SpecError::OptionTwice { key: key.to_owned() });
            }
        }
        source.check(&options)?;
        Ok(Self { name, source, options })
    }

    /// Reads all exports of a command line; their names must differ.
    pub fn parse_all<S: AsRef<str>>(words: &[S]) -> Result<Vec<Self>, SpecError> {
        let specs = words.iter().map(|word| Self::parse(word.as_ref())).collect::<Result<Vec<_>, _>>()?;
        check_names(&specs)?;
        Ok(specs)
    }
}

impl FromStr for ExportSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::parse(text)
    }
}

/// No two exports of one server may share a name.
pub fn check_names(specs: &[ExportSpec]) -> Result<(), SpecError> {
    let mut names = HashSet::new();
    for ExportSpec { name, .. } in specs {
        if !names.insert(name.as_str()) {
            return Err(if name.is_empty() {
                SpecError::DefaultTwice
            } else {
                SpecError::NameTwice { name: name.clone() }
            });
        }
    }
    Ok(())
}

impl Source {
    /// `text` has its commas unescaped and holds no options.
    fn parse(text: &str) -> Result<Self, SpecError> {
        let word = || text.to_owned();
        match text.split_once(':') {
            Some((scheme, _)) if scheme == "nbd" || scheme.starts_with("nbd+") || is_tls(scheme) => {
                Uri::parse(text).map(Self::Nbd).map_err(SpecError::Nbd)
            }
            Some((scheme, rest)) if rest.starts_with("//") && is_scheme(scheme) => {
                Err(SpecError::Uri { word: word() })
            }
            Some(("file" | "block", "")) => Err(SpecError::Empty { word: word() }),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(("block", path)) => Ok(Self::Block(path.into())),
            Some((scheme @ ("memory" | "null"), size)) => {
                let size = parse_size(size)?;
                match (size, scheme) {
                    (0, _) => Err(SpecError::SizeZero { word: word() }),
                    (_, "memory") => Ok(Self::Memory(size)),
                    _ => Ok(Self::Null(size)),
                }
            }
            Some(("faulty", rest)) => {
                let (seed, inner) = rest.split_once(':').unwrap_or((rest, ""));
                let seed =
                    seed.parse().map_err(|_| SpecError::Seed { word: word(), seed: seed.to_owned() })?;
                match Self::parse(inner)? {
                    Self::Faulty { .. } => Err(SpecError::Empty { word: word() }),
                    inner => Ok(Self::Faulty { seed, inner: Box::new(inner) }),
                }
            }
            _ if text.is_empty() => Err(SpecError::Empty { word: word() }),
            _ => Ok(Self::Path(text.into())),
        }
    }

    /// The other server's export, if it is one.
    pub fn upstream(&self) -> Option<&Uri> {
        match self {
            Self::Nbd(uri) => Some(uri),
            Self::Faulty { inner, .. } => inner.upstream(),
            _ => None,
        }
    }

    /// Options about a file are a mistake where there is none.
    fn check(&self, options: &ExportOptions) -> Result<(), SpecError> {
        if options.iopoll && !options.direct {
            return Err(SpecError::PollWithoutDirect);
        }
        let (backend, has_file, has_window) = match self {
            Self::Path(_) | Self::File(_) => ("file", true, true),
            Self::Block(_) => ("block", true, true),
            Self::Faulty { inner, .. } => return inner.check(options),
            Self::Memory(_) => ("memory", false, false),
            Self::Null(_) => ("null", false, false),
            Self::Nbd(_) => ("nbd", false, true),
        };
        let useless = |key, lacks| Err(SpecError::OptionUseless { key, backend, lacks });
        const FILE: &str = "file or device";
        match options {
            ExportOptions { direct: true, .. } if !has_file => useless("direct", FILE),
            ExportOptions { writes: Some(_), .. } if !has_file => useless("writes", FILE),
            ExportOptions { size: Some(_), .. } if !has_window => useless("size", FILE),
            ExportOptions { offset: 1.., .. } if !has_window => useless("offset", FILE),
            _ if matches!(self, Self::Nbd(_)) => Ok(()),
            _ => options.upstream.first_set().map_or(Ok(()), |key| useless(key, "server")),
        }
    }
}

impl ExportOptions {
    fn set(&mut self, name: &str, key: &str, value: Option<&str>) -> Result<(), SpecError> {
        let example = match key {
            "offset" | "size" => "1M",
            "description" => "TEXT",
            "lock" => "off",
            "writes" => "auto",
            "tls" => "require",
            "connections" => "4",
            "reconnect-delay" | "open-timeout" | "request-timeout" => "30",
            _ if is_option(key) => "on",
            _ => return Err(SpecError::OptionUnknown { key: key.to_owned() }),
        };
        let Some(value) = value else {
            return Err(SpecError::OptionBare { key: key.to_owned(), example });
        };
        let switch = || match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(SpecError::OptionSwitch { key: key.to_owned(), value: value.to_owned() }),
        };
        let number = |most: u64, hint| match value.parse() {
            Ok(number) if number <= most => Ok(number),
            _ => Err(SpecError::OptionNumber { key: key.to_owned(), value: value.to_owned(), hint }),
        };
        let seconds = || number(SECONDS_MAX, " of seconds, at most 31 years").map(Duration::from_secs);
        match key {
            "offset" => self.offset = parse_size(value)?,
            "size" => match parse_size(value)? {
                0 => return Err(SpecError::SizeZero { word: format!("size={value}") }),
                size => self.size = Some(size),
            },
            "description" if value.len() > STRING_LENGTH_MAX => {
                return Err(SpecError::DescriptionLong { name: name.to_owned(), length: value.len() });
            }
            "description" if value.contains('\0') => {
                return Err(SpecError::DescriptionNul { name: name.to_owned() });
            }
            "description" => self.description = Some(value.to_owned()),
            "readonly" => self.readonly = switch()?,
            "direct" => self.direct = switch()?,
            "iopoll" => self.iopoll = switch()?,
            "strict" => self.strict = switch()?,
            "lock" => self.lock = switch()?,
            "writethrough" => self.writethrough = switch()?,
            "writes" => {
                self.writes = match value {
                    "auto" => None,
                    "ring" => Some(Writes::Ring),
                    "thread" => Some(Writes::Thread),
                    "inline" => Some(Writes::Inline),
                    "adaptive" => Some(Writes::Adaptive),
                    _ => return Err(SpecError::OptionWrites { value: value.to_owned() }),
                }
            }
            "hidden" => self.hidden = switch()?,
            "tls" if value == "require" => self.tls = true,
            "tls" => return Err(SpecError::OptionTls { value: value.to_owned() }),
            "connections" => match usize::try_from(number(CONNECTIONS_MAX, " from 1 to 64")?) {
                Ok(count @ 1..) => self.upstream.connections = count,
                _ => {
                    return Err(SpecError::OptionNumber {
                        key: key.to_owned(),
                        value: value.to_owned(),
                        hint: " from 1 to 64",
                    });
                }
            },
            "reconnect-delay" => self.upstream.reconnect_delay = seconds()?,
            "open-timeout" => self.upstream.open_timeout = seconds()?,
            "request-timeout" => {
                self.upstream.request_timeout = Some(seconds()?).filter(|limit| !limit.is_zero());
            }
            _ => self.rotational = Some(switch()?),
        }
        Ok(())
    }
}

/// A size in bytes: decimal digits and at most one of K, M, G, T, P (powers of 1024, either case).
pub fn parse_size(text: &str) -> Result<u64, SpecError> {
    let bad = || SpecError::Size { text: text.to_owned() };
    let large = || SpecError::SizeLarge { text: text.to_owned() };
    let (digits, shift) = match text.bytes().last().map(|last| last.to_ascii_uppercase()) {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        Some(b'T') => (&text[..text.len() - 1], 40),
        Some(b'P') => (&text[..text.len() - 1], 50),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let number: u64 = digits.parse().map_err(|_| large())?; // only digits: too many of them
    number.checked_mul(1 << shift).filter(|&size| size <= SIZE_MAX).ok_or_else(large)
}

fn is_option(key: &str) -> bool {
    OPTIONS.split(", ").any(|option| option == key)
}

/// RFC 3986 section 3.1; keeps `dir:/` and the like apart from URIs.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// `nbds`, `nbds+unix` and the like.
fn is_tls(scheme: &str) -> bool {
    scheme == "nbds" || scheme.starts_with("nbds+")
}

fn split_name(text: &str) -> (&str, &str) {
    let Some((before, after)) = text.split_once('=') else { return ("", text) };
    let ends_in_option = split_commas(before).iter().skip(1).last().is_some_and(|key| is_option(key));
    if before.contains("://") || ends_in_option { ("", text) } else { (before, after) }
}

/// Splits at single commas; `,,` becomes a comma of the part it stands in.
pub(crate) fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

fn unescape(name: &str) -> String {
    split_commas(name).join(",")
}

/// Enough of a long name to recognise it.
fn head(name: &str) -> String {
    name.chars().take(40).collect()
}

#[cfg(test)]
mod tests;
