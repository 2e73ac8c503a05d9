//! Where a server listens and a client connects: a unix socket or TCP over loopback.

use std::fmt;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    Unix,
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unix => "unix",
            Self::Tcp => "tcp",
        })
    }
}

/// A unix socket's path or a port of 127.0.0.1; written `unix:PATH` or `tcp:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(String),
    Tcp(u16),
}

impl Address {
    /// A port that was free a moment ago. Servers that can not tell which port they got need one beforehand.
    pub(crate) fn free_port() -> anyhow::Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot find a free port")?;
        Ok(listener.local_addr()?.port())
    }

    pub(crate) fn answers(&self) -> bool {
        match self {
            Self::Unix(path) => UnixStream::connect(path).is_ok(),
            Self::Tcp(port) => TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_ok(),
        }
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        match self {
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={path}"),
            Self::Tcp(port) => format!("nbd://127.0.0.1:{port}/{export}"),
        }
    }
}

/// The same export through TLS, for a client that trusts what is in `certificates` or, without that, in its home.
pub(crate) fn with_tls(uri: &str, certificates: Option<&Path>) -> String {
    let secure = uri.replacen("nbd", "nbds", 1);
    let Some(directory) = certificates else { return secure };
    let separator = if secure.contains('?') { '&' } else { '?' };
    format!("{secure}{separator}tls-certificates={}", directory.display())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{path}"),
            Self::Tcp(port) => write!(f, "tcp:{port}"),
        }
    }
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text.split_once(':') {
            Some(("unix", path)) => Ok(Self::Unix(path.to_owned())),
            Some(("tcp", port)) => Ok(Self::Tcp(port.parse()?)),
            _ => bail!("{text} is neither unix:PATH nor tcp:PORT"),
        }
    }
}
