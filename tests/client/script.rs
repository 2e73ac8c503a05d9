//! A server by hand, on a unix socket: it shakes hands as told and then does what a test wants. Its bytes are written
//! without the crate's protocol code, so that one misreading of the specification cannot sit on both sides.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};

use ringnbd::client::{Client, Options, Uri};
use tempfile::TempDir;

/// Headers to agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Simple,
    Structured,
    Extended,
}

pub(crate) const ALL: [Dialect; 3] = [Dialect::Simple, Dialect::Structured, Dialect::Extended];
pub(crate) const CHUNKED: [Dialect; 2] = [Dialect::Structured, Dialect::Extended];

/// Id of base:allocation.
pub(crate) const CONTEXT: u32 = 7;

/// What the scripted server says of its export.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Export {
    pub(crate) dialect: Dialect,
    pub(crate) size: u64,
    pub(crate) flags: u16,
    pub(crate) block: (u32, u32, u32),
}

impl Export {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self { dialect, size: 1 << 20, flags: 0x0fed, block: (1, 4096, 1 << 20) }
    }
}

/// A scripted server, gone when its script ends.
pub(crate) struct Script {
    pub(crate) uri: String,
    thread: JoinHandle<()>,
    _dir: TempDir,
}

impl Script {
    /// Serves `count` connections one after another.
    pub(crate) fn serve(
        export: Export,
        count: usize,
        mut run: impl FnMut(usize, &mut Peer) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || {
            for number in 0..count {
                let (stream, _) = listener.accept().unwrap();
                let mut peer = Peer { stream, dialect: export.dialect };
                // A client that leaves early is the other side's business.
                if peer.shake_hands(export).is_ok() {
                    let _ = run(number, &mut peer);
                }
            }
        });
        Self { uri: format!("nbd+unix:///?socket={}", path.display()), thread, _dir: dir }
    }

    /// Serves `count` connections at once.
    pub(crate) fn serve_at_once(
        export: Export,
        count: usize,
        run: impl Fn(usize, &mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || {
            thread::scope(|scope| {
                for number in 0..count {
                    let (stream, _) = listener.accept().unwrap();
                    let (run, mut peer) = (&run, Peer { stream, dialect: export.dialect });
                    scope.spawn(move || {
                        peer.shake_hands(export).and_then(|()| run(number, &mut peer)).unwrap();
                    });
                }
            });
        });
        Self { uri: format!("nbd+unix:///?socket={}", path.display()), thread, _dir: dir }
    }

    pub(crate) fn end(self) {
        self.thread.join().unwrap();
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) payload: Vec<u8>,
}

/// The client's end of the line.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    pub(crate) dialect: Dialect,
}

impl Peer {
    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn shake_hands(&mut self, export: Export) -> io::Result<()> {
        self.stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
        self.bytes(4)?;
        loop {
            let head = self.bytes(16)?;
            assert_eq!(&head[..8], b"IHAVEOPT");
            let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
            let length = u32::from_be_bytes(head[12..].try_into().unwrap());
            self.bytes(length as usize)?;
            match option {
                11 if export.dialect == Dialect::Extended => self.reply(option, 1, &[])?,
                8 if export.dialect == Dialect::Structured => self.reply(option, 1, &[])?,
                10 => {
                    self.reply(option, 4, &[&CONTEXT.to_be_bytes()[..], b"base:allocation"].concat())?;
                    self.reply(option, 1, &[])?;
                }
                7 => {
                    let (minimum, preferred, maximum) = export.block;
                    let sizes = [minimum, preferred, maximum].map(u32::to_be_bytes).concat();
                    self.reply(option, 3, &[&[0, 3][..], &sizes].concat())?;
                    let facts = [&export.size.to_be_bytes()[..], &export.flags.to_be_bytes()].concat();
                    self.reply(option, 3, &[&[0, 0][..], &facts].concat())?;
                    return self.reply(option, 1, &[]);
                }
                2 => return Err(io::ErrorKind::ConnectionAborted.into()),
                _ => self.reply(option, 0x8000_0001, b"no")?,
            }
        }
    }

    fn reply(&mut self, option: u32, kind: u32, payload: &[u8]) -> io::Result<()> {
        let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        for word in [option, kind, payload.len() as u32] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(payload);
        self.stream.write_all(&bytes)
    }

    /// The next request with its payload.
    pub(crate) fn request(&mut self) -> io::Result<Asked> {
        let extended = self.dialect == Dialect::Extended;
        let head = self.bytes(if extended { 32 } else { 28 })?;
        let number = |range: std::ops::Range<usize>| {
            head[range].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let magic = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        assert_eq!(number(0..4), magic);
        let (flags, command) = (number(4..6) as u16, number(6..8) as u16);
        let mut asked = Asked {
            flags,
            command,
            cookie: number(8..16),
            offset: number(16..24),
            length: number(24..head.len()),
            payload: Vec::new(),
        };
        let has_payload = if extended { flags & 32 != 0 } else { command == 1 };
        assert!(!extended || command != 1 || has_payload, "a WRITE without PAYLOAD_LEN");
        if has_payload {
            asked.payload = self.bytes(asked.length as usize)?;
        }
        Ok(asked)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }
}

/// A simple reply's header.
pub(crate) fn simple(cookie: u64, errno: u32) -> Vec<u8> {
    [&0x6744_6698_u32.to_be_bytes()[..], &errno.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

/// A chunk in either form.
pub(crate) fn chunk(dialect: Dialect, asked: &Asked, kind: u16, done: bool, payload: &[u8]) -> Vec<u8> {
    let extended = dialect == Dialect::Extended;
    let magic: u32 = if extended { 0x6e8a_278c } else { 0x668e_33ef };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(u16::from(done).to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(asked.cookie.to_be_bytes());
    if extended {
        bytes.extend(asked.offset.to_be_bytes());
        bytes.extend((payload.len() as u64).to_be_bytes());
    } else {
        bytes.extend((payload.len() as u32).to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// A data chunk.
pub(crate) fn data(dialect: Dialect, asked: &Asked, offset: u64, content: &[u8], done: bool) -> Vec<u8> {
    chunk(dialect, asked, 1, done, &[&offset.to_be_bytes()[..], content].concat())
}

/// A hole chunk.
pub(crate) fn hole(dialect: Dialect, asked: &Asked, offset: u64, length: u32, done: bool) -> Vec<u8> {
    chunk(dialect, asked, 2, done, &[&offset.to_be_bytes()[..], &length.to_be_bytes()].concat())
}

/// A block status chunk in the dialect's width.
pub(crate) fn status(
    dialect: Dialect,
    asked: &Asked,
    id: u32,
    extents: &[(u64, u64)],
    done: bool,
) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    if dialect == Dialect::Extended {
        payload.extend((extents.len() as u32).to_be_bytes());
        extents
            .iter()
            .for_each(|(length, flags)| payload.extend([length.to_be_bytes(), flags.to_be_bytes()].concat()));
        return chunk(dialect, asked, 6, done, &payload);
    }
    for (length, flags) in extents {
        payload.extend([(*length as u32).to_be_bytes(), (*flags as u32).to_be_bytes()].concat());
    }
    chunk(dialect, asked, 5, done, &payload)
}

/// An error chunk.
pub(crate) fn error(dialect: Dialect, asked: &Asked, errno: u32, text: &str) -> Vec<u8> {
    let length = (text.len() as u16).to_be_bytes();
    chunk(dialect, asked, 0x8001, true, &[&errno.to_be_bytes()[..], &length, text.as_bytes()].concat())
}

/// Opens a client in a shard of its own and runs `body` with it.
pub(crate) fn with_client<T: 'static, F: Future<Output = T> + 'static>(
    uri: &str,
    options: Options,
    body: impl FnOnce(Client) -> F + 'static,
) -> T {
    let uri = Uri::parse(uri).unwrap();
    ringnbd::rt::block_on(async move { body(Client::open(&uri, options).await.unwrap()).await }).unwrap()
}
