//! What an export holds, as file(1) sees it: from as many of its first bytes as nbdinfo gives it.

use std::fs::File;
use std::io::{Seek, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::MemfdFlags;

use crate::client::{Client, ConnectError, Options, Uri};

/// What is looked at.
const LOOKED_AT_MAX: u64 = 8192;

/// Reads the beginning of an export. `None`: it has none, or the server does not let us.
pub(super) async fn head(uri: &Uri, patience: Duration) -> Result<Option<Vec<u8>>, ConnectError> {
    let options = Options { contexts: Vec::new(), handshake_timeout: patience, ..Options::default() };
    let client = Client::open(uri, options).await?;
    let length = client.size().min(LOOKED_AT_MAX);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let read = client.read_at(0, &mut bytes).await;
    client.disconnect().await;
    Ok((read.is_ok() && length > 0).then_some(bytes))
}

/// In the words of file(1); `None` where that is not installed, or has nothing to say.
pub(super) fn guess(head: &[u8]) -> Option<String> {
    // Not a pipe: it looks at the end of some formats.
    let mut file: File = rustix::fs::memfd_create("head", MemfdFlags::CLOEXEC).ok()?.into();
    file.write_all(head).and_then(|()| file.rewind()).ok()?;
    let output = Command::new("file").args(["-b", "-"]).stdin(file).stderr(Stdio::null()).output().ok()?;
    let words = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    (output.status.success() && !words.is_empty()).then_some(words)
}
