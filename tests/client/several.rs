//! Several connections: the load is spread, a flush on one covers all, and none is made where the server forbids it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use ringnbd::client::Options;
use ringnbd::proto::CommandFlags;
use ringnbd::rt;

use crate::script::{Dialect, Export, Script, simple, with_client};

const CONNECTIONS: usize = 4;
const EACH: usize = 3;

fn options() -> Options {
    let mut options = Options::default();
    options.connections = CONNECTIONS;
    options
}

/// Every connection waits for its share and for the others before it answers: a client that spread its requests in any
/// other way would wait for ever.
#[test]
fn requests_are_spread_by_load_and_one_flush_covers_all() {
    let (barrier, flushes) = (Barrier::new(CONNECTIONS), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&flushes);
    let script = Script::serve_at_once(Export::new(Dialect::Simple), CONNECTIONS, move |_, peer| {
        let share = (0..EACH).map(|_| peer.request()).collect::<Result<Vec<_>, _>>()?;
        barrier.wait();
        for asked in share {
            assert_eq!(asked.command, 1);
            peer.send(&simple(asked.cookie, 0))?;
        }
        loop {
            let asked = peer.request()?;
            match asked.command {
                2 => return Ok(()),
                3 => drop(counted.fetch_add(1, Ordering::Relaxed)),
                other => panic!("command {other}"),
            }
            peer.send(&simple(asked.cookie, 0))?;
        }
    });
    with_client(&script.uri, options(), |client| async move {
        let up = async {
            while client.connections() < CONNECTIONS {
                rt::timer::sleep(Duration::from_millis(2)).await;
            }
        };
        rt::timer::deadline(Duration::from_secs(20), up).await.expect("all of them come up");
        let client = &client;
        let writes = (0..(CONNECTIONS * EACH) as u64)
            .map(|number| async move { client.write_at(number * 512, &[1; 512], CommandFlags::NONE).await });
        let writes = rt::timer::deadline(Duration::from_secs(20), rt::join_all(writes)).await;
        assert!(writes.expect("each has its share").iter().all(Result::is_ok));
        client.flush().await.unwrap();
        client.disconnect().await;
    });
    script.end();
    assert_eq!(flushes.load(Ordering::Relaxed), 1);
}

#[test]
fn one_connection_is_all_that_a_server_without_multi_conn_gets() {
    const CAN_MULTI_CONN: u16 = 1 << 8;
    let export = Export {
        flags: Export::new(Dialect::Simple).flags & !CAN_MULTI_CONN,
        ..Export::new(Dialect::Simple)
    };
    // A second one would find nobody to accept it, and count as no connection; the first must do everything.
    let script = Script::serve_at_once(export, 1, |_, peer| {
        for _ in 0..CONNECTIONS {
            let asked = peer.request()?;
            peer.send(&simple(asked.cookie, 0))?;
        }
        assert_eq!(peer.request()?.command, 2);
        Ok(())
    });
    with_client(&script.uri, options(), |client| async move {
        for number in 0..CONNECTIONS as u64 {
            client.write_at(number * 512, &[1; 512], CommandFlags::NONE).await.unwrap();
        }
        assert_eq!(client.connections(), 1);
        client.disconnect().await;
    });
    script.end();
}
