//! The floor: the least that this machine needs to move the same bytes in the same batches.
//!
//! ```text
//! one recv of all that has arrived --> pread or pwrite of each block, from the page cache --> one send of it all
//! ```
//!
//! A thread for each connection, blocking calls, one small buffer that stays in the processor's cache. It answers
//! to NBD's packet headers so that the same generator drives it with the same batches, but it is no server: the
//! handshake agrees to anything, nothing is checked, counted or limited, and an error ends the connection.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::Context;

use crate::address::Address;

/// Larger batches and blocks go in pieces of this size, which is what a processor's cache keeps.
const PIECE: usize = 128 << 10;
const REQUEST: usize = 28;
const REPLY: usize = 16;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
/// HAS_FLAGS, SEND_FLUSH, CAN_MULTI_CONN.
const EXPORT_FLAGS: u16 = 1 | 4 | 1 << 8;

/// Serves `file` at `address` until it is killed.
pub(crate) fn serve(address: &Address, file: &Path) -> anyhow::Result<()> {
    let file = File::options().read(true).write(true).open(file).context("cannot open the file")?;
    let file = Arc::new(file);
    match address {
        Address::Unix(path) => {
            let listener = UnixListener::bind(path).context("cannot listen")?;
            for stream in listener.incoming() {
                start(stream.context("cannot accept")?, &file);
            }
        }
        Address::Tcp(port) => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).context("cannot listen")?;
            for stream in listener.incoming() {
                let stream = stream.context("cannot accept")?;
                stream.set_nodelay(true)?;
                start(stream, &file);
            }
        }
    }
    Ok(())
}

fn start(stream: impl Read + Write + Send + 'static, file: &Arc<File>) {
    let file = Arc::clone(file);
    // A client that is gone ends its thread; nobody wants to hear of it.
    thread::spawn(move || converse(stream, &file));
}

fn converse(mut stream: impl Read + Write, file: &File) -> io::Result<()> {
    if !shake_hands(&mut stream, file.metadata()?.len())? {
        return Ok(());
    }
    let mut batch = Batch { stream, file, out: vec![0; PIECE + REPLY], used: 0 };
    let mut input = vec![0; PIECE];
    let mut filled = 0;
    let mut payload = None;
    loop {
        let got = batch.stream.read(&mut input[filled..])?;
        if got == 0 {
            return Ok(());
        }
        filled += got;
        let mut at = 0;
        loop {
            if let Some(write) = payload.take() {
                let taken;
                (payload, taken) = batch.write_some(write, &input[at..filled])?;
                at += taken;
                if payload.is_some() {
                    break;
                }
            }
            let Some(header) = input[at..filled].first_chunk::<REQUEST>() else { break };
            at += REQUEST;
            let request = Request::parse(header);
            match request.command {
                0 => batch.read(&request)?,
                1 => payload = Some(request),
                3 => {
                    file.sync_data()?;
                    batch.reply(&request)?;
                }
                _ => return Ok(()),
            }
        }
        batch.send()?;
        input.copy_within(at..filled, 0);
        filled -= at;
    }
}

struct Request {
    command: u16,
    cookie: [u8; 8],
    offset: u64,
    length: usize,
}

impl Request {
    fn parse(header: &[u8; REQUEST]) -> Self {
        let part = |at: usize| header[at..].first_chunk();
        Self {
            command: header[6..].first_chunk().copied().map_or(u16::MAX, u16::from_be_bytes),
            cookie: header[8..].first_chunk().copied().unwrap_or_default(),
            offset: header[16..].first_chunk().copied().map_or(0, u64::from_be_bytes),
            length: part(24).copied().map_or(0, u32::from_be_bytes) as usize,
        }
    }
}

/// Replies that go out together.
struct Batch<'a, S> {
    stream: S,
    file: &'a File,
    out: Vec<u8>,
    used: usize,
}

impl<S: Write> Batch<'_, S> {
    fn reply(&mut self, request: &Request) -> io::Result<()> {
        if self.used + REPLY > self.out.len() {
            self.send()?;
        }
        let header = &mut self.out[self.used..self.used + REPLY];
        header[..4].copy_from_slice(&0x6744_6698_u32.to_be_bytes());
        header[4..8].fill(0);
        header[8..].copy_from_slice(&request.cookie);
        self.used += REPLY;
        Ok(())
    }

    fn read(&mut self, request: &Request) -> io::Result<()> {
        if self.used + REPLY + request.length > self.out.len() {
            self.send()?;
        }
        self.reply(request)?;
        let (mut offset, mut left) = (request.offset, request.length);
        while left > 0 {
            if self.used == self.out.len() {
                self.send()?;
            }
            let piece = left.min(self.out.len() - self.used);
            self.file.read_exact_at(&mut self.out[self.used..self.used + piece], offset)?;
            self.used += piece;
            offset += piece as u64;
            left -= piece;
        }
        Ok(())
    }

    /// Writes what is there of a payload. What is left of it, and how much was taken.
    fn write_some(&mut self, mut write: Request, bytes: &[u8]) -> io::Result<(Option<Request>, usize)> {
        let taken = write.length.min(bytes.len());
        self.file.write_all_at(&bytes[..taken], write.offset)?;
        write.offset += taken as u64;
        write.length -= taken;
        if write.length > 0 {
            return Ok((Some(write), taken));
        }
        self.reply(&write)?;
        Ok((None, taken))
    }

    fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out[..self.used])?;
        self.used = 0;
        Ok(())
    }
}

/// Agrees to the one export that there is, whatever its name. Whether transmission begins.
fn shake_hands(stream: &mut (impl Read + Write), size: u64) -> io::Result<bool> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    let client_flags: [u8; 4] = read_array(stream)?;
    let no_zeroes = client_flags[3] & 2 != 0;
    loop {
        let _magic: [u8; 8] = read_array(stream)?;
        let option = u32::from_be_bytes(read_array(stream)?);
        let length = u32::from_be_bytes(read_array(stream)?);
        io::copy(&mut stream.take(u64::from(length)), &mut io::sink())?;
        match option {
            OPTION_EXPORT_NAME => {
                let mut answer = [size.to_be_bytes().as_slice(), &EXPORT_FLAGS.to_be_bytes()].concat();
                answer.extend_from_slice(if no_zeroes { &[] } else { &[0; 124] });
                stream.write_all(&answer)?;
                return Ok(true);
            }
            OPTION_GO => {
                let item = [&[0, 0], size.to_be_bytes().as_slice(), &EXPORT_FLAGS.to_be_bytes()].concat();
                let mut answer = option_reply(option, REPLY_INFO, &item);
                answer.extend(option_reply(option, REPLY_ACK, &[]));
                stream.write_all(&answer)?;
                return Ok(true);
            }
            OPTION_ABORT => return Ok(false),
            _ => stream.write_all(&option_reply(option, REPLY_UNSUPPORTED, &[]))?,
        }
    }
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    #[allow(clippy::cast_possible_truncation)] // 12 bytes at most
    let length = data.len() as u32;
    let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
    let words = [option, kind, length].map(u32::to_be_bytes);
    [magic.as_slice(), words.as_flattened(), data].concat()
}

fn read_array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_written_is_read_even_in_pieces() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("room");
        let (mut client, server) = UnixStream::pair().expect("sockets");
        let server = thread::spawn(move || converse(server, &file));
        client.write_all(&[0, 0, 0, 3]).expect("flags");
        client.write_all(&[b"IHAVEOPT".as_slice(), &[0, 0, 0, 7, 0, 0, 0, 0]].concat()).expect("GO");
        let greeting: [u8; 18 + 32 + 20] = read_array(&mut client).expect("greeting and answer");
        assert_eq!(greeting[40..48], (1_u64 << 20).to_be_bytes());

        let request = |command: u8, cookie: u64, offset: u64, length: u32| {
            let mut packet = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, command];
            packet.extend(cookie.to_be_bytes());
            packet.extend(offset.to_be_bytes());
            packet.extend(length.to_be_bytes());
            packet
        };
        let block: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let mut packets = request(1, 7, 100, 300_000);
        packets.extend_from_slice(&block);
        packets.extend(request(3, 8, 0, 0));
        packets.extend(request(0, 9, 100, 300_000));
        let writer = {
            let mut client = client.try_clone().expect("a second handle");
            thread::spawn(move || client.write_all(&packets))
        };
        for cookie in 7..=9_u64 {
            let reply: [u8; REPLY] = read_array(&mut client).expect("a reply");
            assert_eq!(reply[8..], cookie.to_be_bytes());
        }
        let mut back = vec![0; block.len()];
        client.read_exact(&mut back).expect("the block");
        assert!(back == block);
        writer.join().expect("no panic").expect("all is taken");
        drop(client);
        server.join().expect("no panic").expect("ends with its client");
    }
}
