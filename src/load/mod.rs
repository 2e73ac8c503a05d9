//! Load: makes requests, checks the replies, and says how long they took.
//!
//! ```text
//!   Plan --fit--> one worker for each connection --> Tally --> Report
//!                   send task <-- Job --> receive task
//!                                  |
//!           Sequence (which), Pace (when), Ledger (what must be there)
//! ```
//!
//! Closed loop: `iodepth` requests of each connection are always in flight. Open loop: requests start by a schedule, and
//! their latency counts from when they were due. It runs on one thread and one ring, like a shard, and costs a fraction of
//! what fio's nbd engine does, so that it is the server that is measured.
//!
//! | file | holds |
//! |---|---|
//! | `workload`, `sizes` | what is asked for |
//! | `sequence`, `distribution` | which request comes next |
//! | `pace` | when it starts |
//! | `job` | one connection without its socket |
//! | `worker` | the socket |
//! | `run` | what connections share; the phases of a run |
//! | `verify` | blocks that describe themselves |
//! | `tally`, `report` | what it came to |
//!
//! May be imported by `cli`; imports `client`, `proto`, `rt`, `metrics`.

mod distribution;
mod fit;
mod job;
mod pace;
mod report;
mod run;
mod sequence;
mod sizes;
mod tally;
mod verify;
mod worker;
mod workload;

use std::future::Future;
use std::rc::Rc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime};

pub use report::Report;
pub use sizes::Sizes;
pub use tally::Interval;
pub use workload::{Distribution, Pattern, Workload};

use crate::client::{ConnectError, Connection, Uri};
use crate::proto::DialerConfig;
use crate::rt::caps::Unsupported;
use crate::rt::sync::{Either, select};
use crate::rt::{self, timer};
use job::{Job, Manner};
use pace::Pace;
use run::{Phase, Run};
use sequence::Sequence;
use verify::{Author, Ledger};
use worker::Worker;

/// A server that answers nothing for so long, with requests in flight, after the end of the run does not answer at all.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long a server may take to close a connection after DISC before it is closed from this side.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// Receive buffers for each connection. The kernel takes them in turn: few of them stay in the processor's cache.
const RECEIVE_BUFFERS_EACH: u32 = 4;
/// Receive buffers of all connections; with none left, receives wait for one that comes back.
const RECEIVE_BUFFERS_MAX: u32 = 256;
/// Length of the intervals that [`Plan::intervals`] is told.
const INTERVAL: Duration = Duration::from_secs(1);

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The export.
    pub uri: Uri,
    /// Which requests.
    pub workload: Workload,
    /// Requests in flight on each connection, at most.
    pub iodepth: u32,
    /// Connections.
    pub connections: u32,
    /// Requests for each second on each connection, whatever the replies; `None` for the closed loop.
    pub rate_iops: Option<u32>,
    /// How long, after `ramp`.
    pub runtime: Duration,
    /// How long before anything is counted; with zero the very first request counts.
    pub ramp: Duration,
    /// Who is told what each second brought.
    pub intervals: Option<Sender<Interval>>,
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
    /// The server failed, broke the protocol, or did not keep what was written.
    #[error("connection {connection}: {fault}")]
    Broken {
        /// Which, from 0.
        connection: u32,
        /// What happened.
        fault: String,
    },
    /// The server went silent.
    #[error("the server left {in_flight} requests without an answer for {} s", SILENCE_MAX.as_secs())]
    Silent {
        /// How many.
        in_flight: u64,
    },
}

/// Carries out a plan on this thread.
///
/// # Errors
/// [`LoadError`]: nothing is reported of a run that did not go to its end.
pub fn run(plan: Plan) -> Result<Report, LoadError> {
    let buffers = (RECEIVE_BUFFERS_EACH * plan.connections).next_power_of_two().clamp(8, RECEIVE_BUFFERS_MAX);
    let config =
        rt::Config { receive_buffers: u16::try_from(buffers).unwrap_or(u16::MAX), ..rt::Config::default() };
    rt::run(&config, move || drive(plan))?
}

async fn drive(plan: Plan) -> Result<Report, LoadError> {
    let mut connections = Vec::new();
    for _ in 0..plan.connections {
        let config = DialerConfig { export: plan.uri.export.clone(), ..DialerConfig::default() };
        let connection = Connection::open(&plan.uri, config).await?;
        let window = fit::fit(&plan, &connection)?;
        connections.push((connection, window));
    }
    let work = &plan.workload;
    let ledger = connections.first().filter(|_| work.verify).map(|(_, window)| {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let run = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        let author = Author { seed: work.seed, run };
        Ledger::new(author, window.clone(), work.sizes.smallest(), !work.pattern.writes())
    });
    let run = Rc::new(Run::new(plan.connections, ledger));
    if plan.ramp.is_zero() {
        run.tally.begin(0); // the very first request counts
    }
    let now_ns = rt::clock_ns();
    let mut workers = Vec::new();
    for (number, (connection, window)) in (0..).zip(connections) {
        let manner = Manner {
            dialect: connection.link.dialect,
            iodepth: plan.iodepth,
            fua: work.fua,
            request_max: connection.link.block.unwrap_or_default().maximum,
        };
        let sequence = Sequence::new(work.clone(), window, number, plan.connections);
        let pace = Pace::new(plan.rate_iops, now_ns, number, plan.connections);
        let job = Job::new(&manner, sequence, pace, Rc::clone(&run));
        let payload = if work.pattern.writes() && !work.verify { work.sizes.largest() } else { 0 };
        workers.push(worker::start(number, connection, job, Rc::clone(&run), payload));
    }
    conduct(&plan, &run, &workers).await
}

/// Takes the run through its phases.
async fn conduct(plan: &Plan, run: &Rc<Run>, workers: &[Rc<Worker>]) -> Result<Report, LoadError> {
    if !plan.ramp.is_zero() {
        unless_broken(run, timer::sleep(plan.ramp)).await?;
        run.tally.begin(rt::clock_ns());
    }
    let (started, usage) = (Instant::now(), report::cpu_time());
    unless_broken(run, pass_time(plan, run, started)).await?;
    let (elapsed, usage) = (started.elapsed(), report::cpu_time().saturating_sub(usage));
    let end_ns = rt::clock_ns();
    run.tally.end(end_ns);
    let unsent = workers.iter().map(|worker| worker.job.borrow().unsent(end_ns)).sum();
    run.enter(Phase::Draining);
    settle(run).await?;
    if let Some(listener) = &plan.intervals {
        run.tally.tell(started.elapsed(), listener);
    }
    if run.ledger.is_some() {
        run.enter(Phase::ReadingBack);
        settle(run).await?;
    }
    run.enter(Phase::Leaving);
    part(run, workers).await;
    if let Some((connection, fault)) = run.fault() {
        return Err(LoadError::Broken { connection, fault });
    }
    let verified = run.ledger.as_ref().map(|ledger| ledger.borrow().checked());
    Ok(Report::new(run.tally.rows(), elapsed, usage, unsent, verified))
}

/// The run itself.
async fn pass_time(plan: &Plan, run: &Run, started: Instant) {
    let Some(listener) = &plan.intervals else { return timer::sleep(plan.runtime).await };
    loop {
        let passed = started.elapsed();
        if passed >= plan.runtime {
            return;
        }
        // The last interval ends with the last reply.
        timer::sleep(INTERVAL.min(plan.runtime.saturating_sub(passed))).await;
        if started.elapsed() < plan.runtime {
            run.tally.tell(started.elapsed(), listener);
        }
    }
}

/// Awaits `future`, or the first fault of a connection.
async fn unless_broken<T>(run: &Run, future: impl Future<Output = T>) -> Result<T, LoadError> {
    let fault = async {
        loop {
            let turned = run.turned.wait();
            if let Some((connection, fault)) = run.fault() {
                return LoadError::Broken { connection, fault };
            }
            turned.await;
        }
    };
    match select(fault, future).await {
        Either::First(error) => Err(error),
        Either::Second(output) => Ok(output),
    }
}

/// Waits until the phase has nothing left to do.
async fn settle(run: &Run) -> Result<(), LoadError> {
    loop {
        let answered = run.answered();
        let empty = async {
            loop {
                let turned = run.turned.wait();
                if run.is_settled() {
                    return;
                }
                turned.await;
            }
        };
        match timer::deadline(SILENCE_MAX, unless_broken(run, empty)).await {
            Ok(result) => return result,
            Err(_) if run.answered() == answered => {
                return Err(LoadError::Silent { in_flight: run.in_flight() });
            }
            Err(_) => {}
        }
    }
}

/// Waits until the server has closed all connections, but not for ever.
async fn part(run: &Run, workers: &[Rc<Worker>]) {
    let gone = async {
        loop {
            let turned = run.turned.wait();
            if run.connected() == 0 {
                return;
            }
            turned.await;
        }
    };
    if timer::deadline(GOODBYE_MAX, gone).await.is_err() {
        for worker in workers {
            worker.line.shutdown();
        }
    }
}
