//! A small NBD server on tokio-uring: what the ready-made runtime gives to the idea that ringnbd is built on.
//!
//! ```text
//! receive many --> a task for each request --> read, write, fsync on the ring --> reply queue --> one writev
//! ```
//!
//! One thread, one file, the default export. It does what costs nothing and leaves out what ringnbd has besides
//! (structured replies, histograms, limits by memory), so it is the faster for it. Its buffers are pooled, but not
//! registered: for cached files that made no difference that could be measured.

mod handshake;
mod stream;
mod transmission;

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::thread;

use anyhow::{Context, bail};
use tokio::sync::mpsc;
use tokio_uring::net::{TcpStream, UnixStream};

use crate::stream::Stream;

/// What is served: a file and its size when the server started.
struct Export {
    file: tokio_uring::fs::File,
    size: u64,
}

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, path] = words.as_slice() else {
        bail!("usage: tokio-uring-baseline unix:PATH|tcp:PORT FILE");
    };
    let file = std::fs::File::options().read(true).write(true).open(path);
    let file = file.with_context(|| format!("cannot open {path}"))?;
    let size = file.metadata()?.len();

    let mut arrivals = listen(address)?;

    // DEFER_TASKRUN is not among these: the runtime never asks for deferred completions and would hang.
    let mut ring = tokio_uring::uring_builder();
    ring.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    tokio_uring::builder().entries(1024).uring_builder(&ring).start(async {
        let export = Rc::new(Export { file: tokio_uring::fs::File::from_std(file), size });
        while let Some(arrival) = arrivals.recv().await {
            let stream = match arrival {
                Arrival::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)),
                Arrival::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)),
            };
            converse(stream, &export);
        }
        bail!("cannot accept")
    })
}

/// A connection before the runtime has it.
enum Arrival {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

/// Accepts on a thread of its own, which is not the way of data: tokio-uring 0.5 asks for SO_REUSEPORT when it binds a
/// unix socket, and newer kernels refuse that.
fn listen(address: &str) -> anyhow::Result<mpsc::UnboundedReceiver<Arrival>> {
    let (sender, arrivals) = mpsc::unbounded_channel();
    match address.split_once(':') {
        Some(("unix", path)) => {
            let listener = UnixListener::bind(path).context("cannot listen")?;
            thread::spawn(move || {
                let streams = listener.incoming().map_while(Result::ok);
                streams.map(Arrival::Unix).try_for_each(|arrival| sender.send(arrival))
            });
        }
        Some(("tcp", port)) => {
            let listener =
                TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse()?)).context("cannot listen")?;
            thread::spawn(move || {
                let streams = listener.incoming().map_while(Result::ok);
                let streams = streams.filter(|stream| stream.set_nodelay(true).is_ok());
                streams.map(Arrival::Tcp).try_for_each(|arrival| sender.send(arrival))
            });
        }
        _ => bail!("{address} is neither unix:PATH nor tcp:PORT"),
    }
    Ok(arrivals)
}

fn converse(stream: Stream, export: &Rc<Export>) {
    let export = Rc::clone(export);
    tokio_uring::spawn(async move {
        // A client that breaks the protocol or goes away ends its connection and nothing else.
        if matches!(handshake::shake_hands(&stream, export.size).await, Ok(true)) {
            let _ = transmission::serve(stream, export).await;
        }
    });
}
