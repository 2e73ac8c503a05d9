//! Accepted connections: the options of their sockets, and the shard that each of them gets.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::SockRef;

use crate::client::{Client, Dialect};
use crate::server::Server;
use crate::wait::until;
use crate::wire::Wire;

/// A copy of the descriptor that the server has for this connection.
fn servers_end(server: &Server, wire: &Wire) -> OwnedFd {
    let ours = SockRef::from(&wire.as_fd()).local_addr().expect("our own address");
    let pid = Pid::from_raw(server.pid().cast_signed()).expect("a process id is not zero");
    let process = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd_open");
    let sockets = server.descriptors().into_iter().filter(|descriptor| descriptor.contains("socket:"));
    let copies = sockets.filter_map(|descriptor| {
        let number = descriptor.split(' ').next()?.parse().ok()?;
        pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()
    });
    let ends: Vec<_> =
        copies.filter(|copy| SockRef::from(copy).peer_addr().is_ok_and(|peer| peer == ours)).collect();
    ends.into_iter().next().expect("the server has the other end of our connection")
}

/// Replies leave at once, and a peer that vanished without a word is noticed in the end.
#[test]
fn tcp_sockets_do_not_wait_and_are_kept_alive() {
    let server = Server::tcp(["--shards", "2", "memory:1M"]);
    // More than one, so that both shards prepare some.
    let clients = [0; 4].map(|_| server.client(Dialect::Simple));
    for client in &clients {
        let socket = servers_end(&server, &client.wire);
        assert!(sockopt::tcp_nodelay(&socket).expect("TCP_NODELAY"), "TCP_NODELAY");
        assert!(sockopt::socket_keepalive(&socket).expect("SO_KEEPALIVE"), "SO_KEEPALIVE");
        assert_eq!(sockopt::tcp_keepidle(&socket).expect("TCP_KEEPIDLE"), Duration::from_secs(60));
        assert_eq!(sockopt::tcp_keepintvl(&socket).expect("TCP_KEEPINTVL"), Duration::from_secs(10));
        let user_timeout = sockopt::tcp_user_timeout(&socket).expect("TCP_USER_TIMEOUT");
        assert_eq!(user_timeout, 60_000, "milliseconds");
    }
}

/// Connects for the `count`th time; the client, and the shard that took it.
fn connect(server: &Server, count: usize) -> (Client, usize) {
    let client = server.client(Dialect::Structured);
    let mut shard = None;
    until("the log says where the connection went", || {
        let log = server.log();
        let places = log.lines().filter_map(|line| line.rsplit_once("connected, on shard "));
        shard = places.map(|(_, shard)| shard.parse().expect("a number")).nth(count - 1);
        shard.is_some()
    });
    (client, shard.expect("just seen"))
}

#[test]
fn a_connection_goes_to_the_shard_with_the_fewest() {
    let words = ["-v", "--shards", "3", "memory:1M"];
    for server in [Server::start(words), Server::tcp(words)] {
        let spread = |clients: &[(Client, usize)]| {
            [0, 1, 2].map(|shard| clients.iter().filter(|(_, place)| *place == shard).count())
        };
        let mut clients: Vec<_> = (1..=9).map(|count| connect(&server, count)).collect();
        assert_eq!(spread(&clients), [3, 3, 3], "{:?}", server.address);
        // A shard loses its connections: the next ones are its own, whichever was next in turn.
        let mut connected = 9;
        for emptied in [1, 2, 0] {
            clients.retain(|(_, shard)| *shard != emptied);
            let closed = connected - clients.len();
            until("they are closed", || server.log().matches(": closed\n").count() == closed);
            for _ in 0..3 {
                connected += 1;
                clients.push(connect(&server, connected));
            }
            assert_eq!(spread(&clients), [3, 3, 3], "{:?}: shard {emptied} was empty", server.address);
        }
        for (client, shard) in &mut clients {
            client.is_alive(&format!("on shard {shard}"));
        }
    }
}
