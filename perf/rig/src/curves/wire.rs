//! NBD by hand, as far as two clients need it: many that negotiate and then are silent, and one that asks for extents.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::address::Address;

/// <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>
mod numbers {
    pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
    pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
    pub(super) const CHUNK_MAGIC: u32 = 0x668E_33EF;
    pub(super) const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
    pub(super) const OPT_GO: u32 = 7;
    pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
    pub(super) const OPT_SET_META_CONTEXT: u32 = 10;
    pub(super) const REP_ACK: u32 = 1;
    pub(super) const REP_INFO: u32 = 3;
    pub(super) const REP_ERROR: u32 = 1 << 31;
    pub(super) const COMMAND_BLOCK_STATUS: u16 = 7;
    pub(super) const CHUNK_DONE: u8 = 1;
    pub(super) const CHUNK_BLOCK_STATUS: u16 = 5;
}
use numbers::*;

/// Descriptors that the rig needs beside a crowd.
const OTHERS: u64 = 128;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A client that chose the default export.
struct Wire {
    stream: Box<dyn Stream>,
    size: u64,
}

impl Wire {
    fn open(address: &Address, with_extents: bool) -> anyhow::Result<Self> {
        let mut stream: Box<dyn Stream> = match address {
            Address::Unix(path) => Box::new(UnixStream::connect(path)?),
            Address::Tcp(port) => Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?),
        };
        stream.read_exact(&mut [0; 18])?;
        stream.write_all(&FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes())?;
        let mut wire = Self { stream, size: 0 };
        if with_extents {
            wire.option(OPT_STRUCTURED_REPLY, &[])?;
            let context = b"base:allocation";
            let mut payload = Vec::from([0; 4]);
            payload.extend(1_u32.to_be_bytes());
            payload.extend(u32::try_from(context.len())?.to_be_bytes());
            payload.extend(context);
            wire.option(OPT_SET_META_CONTEXT, &payload)?;
        }
        wire.option(OPT_GO, &[0; 6])?;
        Ok(wire)
    }

    /// Sends an option and takes all replies to it.
    fn option(&mut self, option: u32, payload: &[u8]) -> anyhow::Result<()> {
        let mut bytes = Vec::from(OPTION_MAGIC.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend(u32::try_from(payload.len())?.to_be_bytes());
        bytes.extend(payload);
        self.stream.write_all(&bytes)?;
        loop {
            let head: [u8; 20] = self.array()?;
            let (kind, length) = (u32_at(&head, 12), u32_at(&head, 16));
            let payload = self.bytes(length)?;
            match kind {
                REP_ACK => return Ok(()),
                // NBD_INFO_EXPORT, whose number is 0, has the size.
                REP_INFO if payload.len() >= 10 && payload[..2] == [0, 0] => {
                    self.size = u64::from_be_bytes(payload[2..10].try_into()?);
                }
                kind if kind & REP_ERROR != 0 => bail!("option {option} was refused ({kind:#x})"),
                _ => {}
            }
        }
    }

    /// Asks for the extents from `offset` on; their number, and the bytes that they cover.
    fn block_status(&mut self, offset: u64) -> anyhow::Result<(u64, u64)> {
        // A whole number of blocks below the 32 bits that the compact header has.
        let length = u32::try_from(self.size - offset).unwrap_or(u32::MAX) & !0xFFF;
        let mut request = Vec::from(REQUEST_MAGIC.to_be_bytes());
        request.extend([0; 2]);
        request.extend(COMMAND_BLOCK_STATUS.to_be_bytes());
        request.extend([0; 8]);
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        self.stream.write_all(&request)?;
        let mut answer = (0, 0);
        loop {
            let head: [u8; 20] = self.array()?;
            ensure!(u32_at(&head, 0) == CHUNK_MAGIC, "a reply that is none");
            let flags_and_kind = u32_at(&head, 4).to_be_bytes();
            let kind = u16::from_be_bytes([flags_and_kind[2], flags_and_kind[3]]);
            let payload = self.bytes(u32_at(&head, 16))?;
            match kind {
                CHUNK_BLOCK_STATUS => {
                    for extent in payload.get(4..).unwrap_or_default().chunks_exact(8) {
                        answer.0 += 1;
                        answer.1 += u64::from(u32_at(extent, 0));
                    }
                }
                0 => {}
                kind => bail!("the extents were refused (chunk {kind:#x})"),
            }
            if flags_and_kind[1] & CHUNK_DONE != 0 {
                ensure!(answer.1 > 0, "no extents came");
                return Ok(answer);
            }
        }
    }

    fn array<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn bytes(&mut self, length: u32) -> anyhow::Result<Vec<u8>> {
        ensure!(length <= 1 << 20, "a reply of {length} bytes");
        let mut bytes = vec![0; length as usize];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Connections that have chosen an export and are silent.
pub(super) struct Crowd {
    connections: Vec<Wire>,
    limit_before: Rlimit,
}

impl Crowd {
    /// Opens `count` of them, one after the other, and raises the limit of descriptors for that.
    pub(super) fn gather(
        address: &Address,
        count: u32,
        mut check: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let limit_before = getrlimit(Resource::Nofile);
        let needed = u64::from(count) + OTHERS;
        if limit_before.current.is_some_and(|limit| limit < needed) {
            let raised = Rlimit { current: Some(needed), maximum: limit_before.maximum };
            setrlimit(Resource::Nofile, raised).with_context(|| {
                format!("{count} connections need {needed} descriptors: raise `ulimit -Hn`")
            })?;
        }
        let mut crowd = Self { connections: Vec::new(), limit_before };
        for number in 0..count {
            check()?;
            let wire = Wire::open(address, false).with_context(|| format!("connection {number}"))?;
            crowd.connections.push(wire);
        }
        Ok(crowd)
    }

    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.connections.clear();
        // The servers after this one shall raise the limit themselves.
        let _ = setrlimit(Resource::Nofile, self.limit_before);
    }
}

/// What one that asks for the extents of the whole export, again and again, saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Walked {
    pub(super) queries: u64,
    /// In one walk over all of the export.
    pub(super) extents: u64,
}

/// `rig walk`: walks for `time`, then prints what it saw.
pub(crate) fn walk(address: &Address, time: Duration) -> anyhow::Result<()> {
    let mut wire = Wire::open(address, true)?;
    let end = Instant::now() + time;
    let (mut offset, mut extents) = (0, 0);
    let mut walked = Walked::default();
    while Instant::now() < end {
        let (more, length) = wire.block_status(offset)?;
        walked.queries += 1;
        extents += more;
        offset += length;
        if offset >= wire.size {
            walked.extents = std::mem::take(&mut extents);
            offset = 0;
        }
    }
    println!("{}", serde_json::to_string(&walked)?);
    Ok(())
}
