//! The handshake of before 2011: the server talks first and last.

use crate::client::{Client, Dialect, EINVAL, FUA, READ, Request};
use crate::haggle::NBDMAGIC;
use crate::server::Server;
use crate::wire::{Wire, u16_at, u32_at, u64_at};

fn connect(server: &Server) -> (Client, u16) {
    let mut wire = Wire::connect(&server.address);
    let hello = wire.receive(152);
    assert_eq!(&hello[..8], NBDMAGIC);
    assert_eq!(u64_at(&hello, 8), 0x0000_4202_8186_1253);
    assert_eq!(u16_at(&hello, 24), 0, "no handshake flags in oldstyle");
    let flags = u16_at(&hello, 26);
    assert_eq!(u32_at(&hello, 24), u32::from(flags));
    assert!(hello[28..].iter().all(|byte| *byte == 0), "124 reserved zeroes");
    let mut client = Client::new(wire, Dialect::Simple, Vec::new());
    client.size = u64_at(&hello, 16);
    (client, flags)
}

#[test]
fn oldstyle_hello_is_152_bytes_and_then_it_serves() {
    let server = Server::start(["--oldstyle", "memory:1M"]);
    let (mut client, flags) = connect(&server);
    assert_eq!(client.size, 1 << 20);
    assert_eq!(flags & 1, 1, "HAS_FLAGS");
    assert_eq!(flags & (1 << 7), 0, "no DF without structured replies");
    client.write(100, b"old style");
    assert_eq!(client.read(100, 9), b"old style");
    client.call(&Request::write(0, b"durable").flags(FUA)).ok("WRITE with FUA");
    client.flush();
    client.call(&Request::new(READ, 1 << 20, 1)).refused(EINVAL, "READ past the end");
    client.disconnect();
}

#[test]
fn oldstyle_tells_that_an_export_is_read_only() {
    let server = Server::start(["--oldstyle", "--read-only", "memory:1M"]);
    let (mut client, flags) = connect(&server);
    assert_ne!(flags & 2, 0, "READ_ONLY");
    client.call(&Request::write(0, b"x")).refused(crate::client::EPERM, "WRITE");
    client.is_alive("after EPERM");
}

#[test]
fn oldstyle_serves_a_named_export_too() {
    let server = Server::start(["--oldstyle", "disk=memory:3M"]);
    assert_eq!(connect(&server).0.size, 3 << 20, "there is only one it could mean");
}

#[test]
fn oldstyle_serves_many_at_once() {
    let server = Server::start(["--oldstyle", "memory:1M"]);
    let mut clients: Vec<_> = (0..20).map(|_| connect(&server).0).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.write(index as u64 * 512, &[index as u8; 512]);
    }
    for (index, client) in clients.iter_mut().rev().enumerate() {
        assert_eq!(client.read(index as u64 * 512, 512), [index as u8; 512]);
    }
}
