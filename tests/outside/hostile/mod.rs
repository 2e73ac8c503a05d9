//! Clients that vanish, stall, never read, lie or shout. Each hurts only itself: a bystander on the same server is
//! served meanwhile, memory stays bounded, and afterwards no descriptor is left.

mod crowd;
mod exhaustion;
mod garbage;
mod hoarder;
mod vanishing;

use crate::client::{Client, Dialect};
use crate::server::Server;

/// A well-behaved client beside a hostile one.
struct Bystander(Client);

impl Bystander {
    fn on(server: &Server) -> Self {
        Self(server.client(Dialect::Structured))
    }

    /// A few round trips, each of which fails the test if it takes longer than the wire's patience.
    #[track_caller]
    fn is_served(&mut self) {
        for round in 0..20_u8 {
            self.0.write(u64::from(round) * 512, &[round + 1; 512]);
            assert_eq!(self.0.read(u64::from(round) * 512, 512), [round + 1; 512]);
        }
        self.0.flush();
    }
}
