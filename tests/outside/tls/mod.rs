//! TLS: by hand, with other people's programs, and with certificates of every kind.
//!
//! | file | holds |
//! |---|---|
//! | `authority` | a CA, and what it signs |
//! | `modes` | what is answered before, at and after STARTTLS |
//! | `certificates` | which are accepted, and how those that are not are told |
//! | `peers` | libnbd, QEMU, GnuTLS, OpenSSL |
//! | `endurance` | stalls, cuts, a thousand handshakes, new certificates under load |

mod authority;
mod certificates;
mod endurance;
mod modes;
mod peers;

use std::path::Path;

use authority::{Authority, client_config, name};

use crate::haggle::{ACK, Haggle, STARTTLS};
use crate::server::Server;

/// A server with certificates of an authority that clients know, on TCP.
pub(crate) struct Secure {
    pub(crate) server: Server,
    pub(crate) authority: Authority,
}

impl Secure {
    /// `words` go to the server, with the exports.
    #[track_caller]
    fn start(words: &[&str]) -> Self {
        let authority = Authority::new("ringnbd tests");
        authority.issue_pair();
        let server =
            Server::tcp(options(authority.dir()).into_iter().chain(words.iter().map(|w| (*w).into())));
        Self { server, authority }
    }

    /// Through STARTTLS, as a client that trusts the authority.
    #[track_caller]
    fn haggle(&self) -> Haggle {
        let mut haggle = Haggle::new(&self.server.address);
        self.secure(&mut haggle);
        haggle
    }

    #[track_caller]
    fn secure(&self, haggle: &mut Haggle) {
        assert_eq!(haggle.outcome(STARTTLS, &[]).kind, ACK);
        let config = client_config(self.authority.dir());
        haggle.wire.secure(config, name()).expect("TLS begins");
    }
}

/// `--tls-certificates` and where.
fn options(directory: &Path) -> Vec<String> {
    vec!["--tls-certificates".to_owned(), directory.display().to_string()]
}
