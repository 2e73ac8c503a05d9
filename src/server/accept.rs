//! Accepting: one multishot accept per listener, on the first shard; each connection goes to the shard with the fewest.
//!
//! `SO_REUSEPORT` would spread by hash, unevenly for a handful of connections and not at all for unix sockets; passing
//! the descriptor on costs one letter per connection.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::shard::{ShardState, with_state};
use crate::metrics::Counter;
use crate::net::listen::Listener;
use crate::rt::net::Acceptor;
use crate::rt::sync::{Either, select};
use crate::rt::timer;

/// How long accepting rests after an error such as `EMFILE`, which passes only when something is closed.
const REST: Duration = Duration::from_millis(100);

/// Accepts until the shard drains; then the socket is closed, and a unix socket removed from the file system.
pub(super) async fn run(shard: Rc<ShardState>, listener: Listener) {
    let Listener { fd, bound, guard } = listener;
    let mut acceptor = Acceptor::new(fd);
    let mut complained = false;
    loop {
        match select(acceptor.next(), shard.no_longer_serving()).await {
            Either::First(Ok(fd)) => {
                complained = false;
                hand_over(&shard, fd);
            }
            Either::First(Err(error)) => {
                if !complained {
                    tracing::error!(
                        "cannot accept on {bound}: {error}; trying again (is `ulimit -n` too low?)"
                    );
                    complained = true;
                }
                timer::sleep(REST).await;
            }
            Either::Second(()) => break,
        }
    }
    drop(guard);
}

fn hand_over(shard: &Rc<ShardState>, fd: OwnedFd) {
    let Some(target) = shard.directory.choose(shard.limits.connections_max) else {
        shard.count(Counter::ConnectionsRefused);
        shard.warn_of_failure(format_args!(
            "a connection was turned away: there are {} already (--max-connections)",
            shard.limits.connections_max
        ));
        return;
    };
    if target == shard.index {
        return shard.adopt(fd);
    }
    let posted = shard.directory.remote(target).post(move || with_state(|shard| shard.adopt(fd)));
    if !posted {
        shard.directory.left(target);
    }
}
