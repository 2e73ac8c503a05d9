//! What a connection's socket is: its options, and how large payloads get into it.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use socket2::{SockRef, TcpKeepalive};

use super::config::{Limits, Sending, ZeroCopy};
use super::peer::Address;

/// How a payload that the page cache holds is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Like any other: read into a buffer.
    Buffer,
    /// From a mapping of the file.
    Map,
    /// By `sendfile(2)`.
    SendFile,
}

/// What is known of a peer once it is connected.
pub(super) struct Transport {
    /// Where it comes from.
    pub(super) peer: Address,
    /// How payload goes to it from the page cache.
    pub(super) way: Way,
    /// Whether to try sends that copy nothing: between machines only.
    pub(super) lends: bool,
}

/// Sets a connection's socket options.
pub(super) fn prepare(fd: &OwnedFd, limits: &Limits, sending: Sending) -> Transport {
    let socket = SockRef::from(fd);
    let peer = Address::of(fd);
    let Address::Tcp(remote) = peer else {
        return Transport { peer, way: way(sending.zero_copy, false), lends: false };
    };
    let keepalive = TcpKeepalive::new().with_time(limits.keepalive).with_interval(limits.keepalive / 6);
    // None of these can fail on a connected TCP socket; if one did, the connection still works.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(limits.user_timeout));
    let local = socket.local_addr().ok().and_then(|address| address.as_socket());
    let same_host = is_loopback(remote.ip()) || local.is_some_and(|local| local.ip() == remote.ip());
    if same_host {
        let _ = socket.set_send_buffer_size(limits.loopback_send_buffer);
    }
    Transport { peer, way: way(sending.zero_copy, !same_host), lends: sending.send_zc && !same_host }
}

/// Between machines the card takes the cache's pages as they are. Within one the peer copies from them, and it is
/// dearer for it than what we save.
fn way(zero_copy: ZeroCopy, network: bool) -> Way {
    match zero_copy {
        ZeroCopy::Off => Way::Buffer,
        ZeroCopy::Map => Way::Map,
        ZeroCopy::SendFile => Way::SendFile,
        ZeroCopy::Auto if network => Way::SendFile,
        ZeroCopy::Auto => Way::Map,
    }
}

/// IPv4 addresses may come as IPv6 ones.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_in_both_families() {
        for (address, expected) in
            [("127.0.0.1", true), ("::1", true), ("::ffff:127.0.0.5", true), ("10.0.0.1", false)]
        {
            assert_eq!(is_loopback(address.parse().expect("an address")), expected, "{address}");
        }
    }
}
