//! What runs out: descriptors, and the patience of whoever watches memory grow.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::Bystander;
use crate::client::{DIALECTS, READ, Request};
use crate::scratch::{Scratch, pattern};
use crate::server::Server;
use crate::wait::{readable, until};
use crate::wire::Wire;

/// Processor time of the server so far, in clock ticks.
fn ticks(server: &Server) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("read /proc");
    let fields = stat.rsplit(')').next().expect("fields behind the name").split_whitespace();
    fields.skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
}

#[test]
fn running_out_of_descriptors_is_survived_without_spinning() {
    let server = Server::start(["memory:1M"]);
    let mut bystander = Bystander::on(&server);
    let limit = server.descriptors().len() as u64 + 8;
    let pid = Pid::from_raw(server.pid().cast_signed()).expect("a process id");
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(4096) })
        .expect("prlimit");
    let mut crowd: Vec<_> = (0..60).map(|_| Wire::connect(&server.address)).collect();
    bystander.is_served();
    // The last in the queue may be greeted, turned away or left waiting; meanwhile nobody burns a processor.
    let before = ticks(&server);
    readable(crowd.last().expect("there are sixty").as_fd(), Duration::from_secs(1));
    crowd.rotate_left(1);
    let burnt = ticks(&server) - before;
    assert!(burnt < 50, "{burnt} ticks of processor time in a second of nothing to do");
    crowd.clear();
    until("newcomers are served again", || Wire::connect(&server.address).try_receive(18).is_ok());
    bystander.is_served();
}

/// Buffers, slots and queues are made once. After a warm-up, work of every kind takes nothing more.
#[test]
fn hours_of_traffic_take_no_more_memory_than_minutes() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 16 << 20);
    let server = Server::start(["--shards".as_ref(), "2".as_ref(), path.as_os_str()]);
    let mut clients = DIALECTS.map(|dialect| server.client(dialect));
    let mut traffic = |rounds: u64| {
        for round in 0..rounds {
            for client in &mut clients {
                for index in 0..100_u64 {
                    let offset = (round * 977 + index * 131) % 4000 * 4096;
                    match index % 5 {
                        0 | 1 => client.submit(&Request::new(READ, offset, 4096 << (index % 3))),
                        2 => client.submit(&Request::write(offset, pattern(round, 4096 << (index % 3)))),
                        3 => client.submit(&Request::new(crate::client::WRITE_ZEROES, offset, 4096)),
                        _ => client.submit(&Request::new(READ, 1 << 40, 4096)),
                    };
                }
                while client.in_flight() > 0 {
                    client.reply();
                }
            }
        }
    };
    traffic(20);
    let before = server.memory();
    traffic(150);
    let after = server.memory();
    assert!(after < before + (2 << 20), "45000 requests took memory from {before} to {after}");
}

/// An idle server sleeps.
#[test]
fn idle_connections_cost_no_processor_time() {
    let server = Server::tcp(["memory:1M"]);
    let mut idle: Vec<_> = (0..50).map(|index| server.client(DIALECTS[index % 3])).collect();
    for client in &mut idle {
        client.is_alive("before the rest");
    }
    let before = ticks(&server);
    readable(idle[0].wire.as_fd(), Duration::from_secs(2));
    let burnt = ticks(&server) - before;
    assert!(burnt < 10, "{burnt} ticks of processor time in two seconds of silence");
}
