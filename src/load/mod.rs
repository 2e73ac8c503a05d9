//! Load: makes requests as fast as replies come, and says how long they took.
//!
//! ```text
//!   Plan --one worker for each connection--> worker ---> Tally --merge--> Report
//!                                   free slots --> send task --> server --> receive task --> free slots
//! ```
//!
//! Closed loop: `iodepth` requests of each connection are always in flight. It runs on one thread and one ring, like a
//! shard, and costs a fraction of what fio's nbd engine does, so that it is the server that is measured.
//!
//! May be imported by `cli`; imports `client`, `proto`, `rt`, `metrics`.

mod report;
mod worker;
mod workload;

use std::rc::Rc;
use std::time::{Duration, Instant};

pub use report::Report;
pub use workload::{Pattern, Workload};

use crate::client::{ConnectError, Connection, Uri};
use crate::proto::{DialerConfig, TransmissionFlags};
use crate::rt::caps::Unsupported;
use crate::rt::sync::Event;
use crate::rt::{self, timer};
use worker::Tally;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The export.
    pub uri: Uri,
    /// Which requests.
    pub workload: Workload,
    /// Requests in flight on each connection.
    pub iodepth: u32,
    /// Connections.
    pub connections: u32,
    /// How long, after `ramp`.
    pub runtime: Duration,
    /// How long before anything is counted.
    pub ramp: Duration,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No ring.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The export does not fit the workload.
    #[error("{0}")]
    Unfit(String),
    /// The server failed or broke the protocol.
    #[error("connection {connection}: {fault}")]
    Broken {
        /// Which, from 0.
        connection: u32,
        /// What happened.
        fault: String,
    },
}

/// Carries out a plan on this thread.
///
/// # Errors
/// [`LoadError`]: nothing is reported of a run that did not go to its end.
pub fn run(plan: Plan) -> Result<Report, LoadError> {
    let config = rt::Config { payload_memory_max: 1 << 30, ..rt::Config::default() };
    rt::run(&config, move || drive(plan))?
}

async fn drive(plan: Plan) -> Result<Report, LoadError> {
    let mut connections = Vec::new();
    for _ in 0..plan.connections {
        let config = DialerConfig { export: plan.uri.export.clone(), ..DialerConfig::default() };
        let connection = Connection::open(&plan.uri.address, config).await?;
        fit(&plan, &connection)?;
        connections.push(connection);
    }
    let done = Rc::new(Event::new());
    let tally = Rc::new(Tally::new(plan.connections));
    for (number, connection) in (0..).zip(connections) {
        worker::start(number, connection, &plan, Rc::clone(&tally), Rc::clone(&done));
    }
    timer::sleep(plan.ramp).await;
    tally.start_counting();
    let (started, usage) = (Instant::now(), report::cpu_time());
    timer::sleep(plan.runtime).await;
    let (elapsed, usage) = (started.elapsed(), report::cpu_time().saturating_sub(usage));
    tally.stop();
    while tally.workers_left() > 0 {
        done.wait().await;
    }
    match tally.fault() {
        Some((connection, fault)) => Err(LoadError::Broken { connection, fault }),
        None => Ok(Report::new(&tally, elapsed, usage)),
    }
}

fn fit(plan: &Plan, connection: &Connection) -> Result<(), LoadError> {
    let link = &connection.link;
    let bs = plan.workload.bs;
    let maximum = link.block.map_or(32 << 20, |block| block.maximum);
    if link.size < u64::from(bs) {
        return Err(LoadError::Unfit(format!(
            "the export has {} bytes, less than one request of {bs}",
            link.size
        )));
    }
    if bs > maximum {
        return Err(LoadError::Unfit(format!("--bs {bs} is over the server's maximum of {maximum}")));
    }
    if plan.workload.pattern.writes() && link.flags.contains(TransmissionFlags::READ_ONLY) {
        return Err(LoadError::Unfit("the export is read-only: use --rw=read or --rw=randread".to_owned()));
    }
    if plan.connections > 1 && !link.flags.contains(TransmissionFlags::CAN_MULTI_CONN) {
        tracing::warn!("the server does not promise that several connections see one another's flushes");
    }
    Ok(())
}
