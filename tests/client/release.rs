//! A connection that is given up to somebody else, as the kernel's client gets it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use ringnbd::client::{Connection, Uri};
use ringnbd::proto::{Command, CommandFlags, Dialect, DialerConfig, Request, TransmissionFlags};
use ringnbd::rt;

use crate::program::{Process, Scratch};
use crate::wait::PATIENCE;

const SIMPLE_REPLY: [u8; 4] = 0x6744_6698u32.to_be_bytes();

/// While another thread speaks on the socket the ring goes on turning: a receive that were still armed would take replies
/// away.
#[test]
fn nothing_receives_on_a_socket_that_was_released() {
    let scratch = Scratch::new();
    let _server = Process::ringnbd(&scratch.socket(), &["memory:1M"]);
    let uri = Uri::parse(&scratch.uri("")).unwrap();
    let config = DialerConfig { extended: false, structured: false, ..DialerConfig::default() };
    let link = rt::block_on(async move {
        let connection = Connection::open(&uri, config).await.unwrap();
        let (link, fd) = connection.release().await.unwrap();
        rt::blocking(move || speak(UnixStream::from(fd))).await;
        link
    })
    .unwrap();
    assert_eq!((link.dialect, link.size), (Dialect::Simple, 1 << 20));
    assert!(link.flags.contains(TransmissionFlags::CAN_MULTI_CONN));
}

fn speak(mut stream: UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for cookie in 0..200u64 {
        let (command, flags) = (Command::READ, CommandFlags::NONE);
        let request = Request { command, flags, cookie, offset: 0, length: 512, payload: 0 };
        stream.write_all(&request.encode(Dialect::Simple)).unwrap();
        let mut reply = [0; 16 + 512];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], SIMPLE_REPLY);
        assert_eq!(reply[4..8], [0; 4], "no error");
        assert_eq!(reply[8..16], cookie.to_be_bytes());
    }
}
