//! A connection, of either kind.

use std::io;

use tokio_uring::BufResult;
use tokio_uring::buf::{BoundedBuf, BoundedBufMut};
use tokio_uring::net::{TcpStream, UnixStream};

pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Reads what is there; an end of the stream is an error, since a peer says goodbye first.
    pub(crate) async fn read<T: BoundedBufMut>(&self, buf: T) -> BufResult<usize, T> {
        let (result, buf) = match self {
            Self::Unix(stream) => stream.read(buf).await,
            Self::Tcp(stream) => stream.read(buf).await,
        };
        match result {
            Ok(0) => (Err(io::ErrorKind::UnexpectedEof.into()), buf),
            result => (result, buf),
        }
    }

    /// Reads `length` bytes onto the end of `buf`.
    pub(crate) async fn append(&self, mut buf: Vec<u8>, length: usize) -> BufResult<(), Vec<u8>> {
        let end = buf.len() + length;
        buf.reserve(length);
        while buf.len() < end {
            let start = buf.len();
            let (result, slice) = self.read(buf.slice(start..end)).await;
            buf = slice.into_inner();
            if let Err(error) = result {
                return (Err(error), buf);
            }
        }
        (Ok(()), buf)
    }

    pub(crate) async fn write_all(&self, buf: Vec<u8>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.write_all(buf).await.0,
            Self::Tcp(stream) => stream.write_all(buf).await.0,
        }
    }

    /// One gathered write, which may be short.
    pub(crate) async fn writev<T: BoundedBuf>(&self, bufs: Vec<T>) -> BufResult<usize, Vec<T>> {
        match self {
            Self::Unix(stream) => stream.writev(bufs).await,
            Self::Tcp(stream) => stream.writev(bufs).await,
        }
    }

    /// Wakes whoever waits in a read or a write.
    pub(crate) fn shutdown(&self) {
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }
}
