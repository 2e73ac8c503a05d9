//! Too many at once, and one after the other for a long time.

use std::os::fd::AsFd;
use std::time::Duration;

use super::Bystander;
use crate::client::{Client, DIALECTS, Dialect, READ, Request};
use crate::haggle::Haggle;
use crate::server::Server;
use crate::wait::{readable, until};
use crate::wire::Wire;

#[test]
fn thousands_of_connects_leave_no_descriptor_and_no_memory() {
    for server in [Server::start(["memory:1M"]), Server::tcp(["memory:1M"])] {
        let round = |count: usize| {
            for index in 0..count {
                match index % 4 {
                    0 => drop(Wire::connect(&server.address)),
                    1 => drop(Haggle::new(&server.address)),
                    2 => server.client(DIALECTS[index % 3]).disconnect(),
                    _ => drop(server.client(DIALECTS[index % 3])),
                }
            }
            server.comes_to_rest();
        };
        round(300);
        let before = server.memory();
        round(2000);
        let after = server.memory();
        assert!(after < before + (4 << 20), "2000 connections took memory from {before} to {after}");
    }
}

#[test]
fn hundreds_at_the_same_time_are_all_served() {
    let server = Server::start(["--shards", "2", "memory:1M"]);
    let mut clients: Vec<_> = (0..400).map(|index| server.client(DIALECTS[index % 3])).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.write(index as u64 * 512, &[index as u8; 512]);
    }
    for (index, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.read(index as u64 * 512, 512), [index as u8; 512]);
    }
}

/// At most 32 KiB, and no more when it was as busy as the window lets it be.
#[test]
fn an_idle_connection_takes_little_memory() {
    const EACH_MAX: u64 = 32 << 10;
    let server = Server::start(["--shards", "1", "memory:1M"]);
    let busy = |client: &mut Client| {
        // As many as the window holds.
        for index in 0..128 {
            client.submit(&Request::new(READ, index * 4096, 4096));
        }
        for _ in 0..128 {
            client.reply().ok("a read");
        }
    };
    let mut first = server.client(Dialect::Structured);
    busy(&mut first);
    let before = server.memory();
    let mut clients: Vec<_> = (0..400).map(|index| server.client(DIALECTS[index % 3])).collect();
    let each = |memory: u64| memory.saturating_sub(before) / 400;
    let fresh = each(server.memory());
    assert!(fresh <= EACH_MAX, "{fresh} bytes for each that was never busy");
    clients.iter_mut().for_each(busy);
    let rested = each(server.memory());
    assert!(rested <= EACH_MAX, "{rested} bytes for each that was busy once");
}

#[test]
fn the_connection_limit_keeps_those_who_are_in() {
    let server = Server::start(["--max-connections", "4", "memory:1M"]);
    let mut inside: Vec<_> = (0..4).map(|_| server.client(Dialect::Structured)).collect();
    for _ in 0..10 {
        let mut outside = Wire::connect(&server.address);
        // Turned away or left waiting; in no case served.
        if readable(outside.as_fd(), Duration::from_millis(100)) {
            outside.expect_close("over the limit");
        }
    }
    for client in &mut inside {
        client.is_alive("inside the limit");
    }
    inside.pop().expect("four are inside").disconnect();
    until("a place becomes free", || {
        let mut wire = Wire::connect(&server.address);
        wire.try_receive(18).is_ok()
    });
    Bystander(inside.pop().expect("three are inside")).is_served();
}

/// One client that works as hard as it can, and another that asks now and then.
#[test]
fn a_busy_connection_does_not_starve_a_quiet_one() {
    let server = Server::start(["--shards", "1", "memory:64M"]);
    let mut bystander = Bystander::on(&server);
    let mut busy = server.client(Dialect::Extended);
    for round in 0..30_u64 {
        for index in 0..100 {
            busy.submit(&Request::write((index % 64) << 20, vec![round as u8; 1 << 18]));
        }
        bystander.is_served();
        while busy.in_flight() > 0 {
            busy.reply().ok("WRITE");
        }
    }
}
