//! The steps, many at a time.
//!
//! ```text
//!   look_ahead: map, plan --queue, at most AHEAD--> walk --slot--> a task: read, look for zeroes, write --> slot back
//! ```

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::iter;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::end::End;
use super::error::CopyError;
use super::ledger::{Entry, Ledger};
use super::plan::{self, Step};
use super::report::{Progress, Summary, add};
use super::stream::Stream;
use super::{Job, QUEUE_FAR, QUEUE_NEAR, REQUEST_MIN, open, zeroes};
use crate::rt::sync::{Either, Event, Queue, Semaphore, select};
use crate::rt::{self, Buffer, timer};

/// How often the watcher is told.
const TICK: Duration = Duration::from_millis(100);
/// How much of the source is asked about at a time: what a file or a server says of it is held in memory, and the slowest of
/// both take milliseconds for it.
const WINDOW_BYTES: u64 = 128 << 20;
/// Such answers ahead of what is being copied.
const AHEAD: usize = 2;

/// A copy under way.
pub(super) struct Engine {
    pub(super) source: End,
    pub(super) destination: End,
    pub(super) progress: Rc<Progress>,
    job: Job,
    /// Bytes of one request: a power of two.
    pub(super) request: u64,
    /// What steps begin and end at.
    granule: u64,
    /// Zeroes in data are looked for in blocks of so much; 0 for never.
    sparse: usize,
    /// The destination reads as zeroes already, and may go on having holes there.
    is_blank: bool,
    depth: usize,
    pub(super) slots: Semaphore,
    is_stopped: Cell<bool>,
    /// It has just stopped.
    turned: Event,
    failure: RefCell<Option<CopyError>>,
    pub(super) ledger: RefCell<Ledger>,
    /// Whose turn it is to flush.
    pub(super) flushing: Semaphore,
    /// Data since the last flush.
    pub(super) unflushed: Cell<u64>,
    /// What is written was written before.
    pub(super) is_repeating: Cell<bool>,
}

/// Carries out a job.
pub(super) async fn copy(job: Job, mut watch: impl FnMut(&Progress)) -> Result<Summary, CopyError> {
    let start = Instant::now();
    let engine = Rc::new(Box::pin(Engine::begin(job)).await?);
    let progress = Rc::clone(&engine.progress);
    let outcome = match select(engine.work(), tick(&progress, &mut watch)).await {
        Either::First(outcome) => outcome,
        Either::Second(never) => match never {},
    };
    watch(&progress);
    outcome?;
    let bytes = progress.copied();
    engine.source.leave(bytes).await;
    engine.destination.leave(bytes).await;
    Ok(Summary {
        source: engine.job.source.to_string(),
        destination: engine.job.destination.to_string(),
        bytes,
        data_bytes: progress.data.get(),
        zeroed_bytes: progress.zeroed.get(),
        skipped_bytes: progress.skipped.get(),
        repeated_bytes: progress.repeated.get(),
        verified_bytes: progress.verified(),
        elapsed: start.elapsed(),
    })
}

async fn tick(progress: &Progress, watch: &mut impl FnMut(&Progress)) -> Infallible {
    loop {
        timer::sleep(TICK).await;
        watch(progress);
    }
}

impl Engine {
    async fn begin(job: Job) -> Result<Self, CopyError> {
        let opened = open::source(&job).await?;
        let destination = open::destination(&job, &opened).await?;
        let source = opened.end;
        let most = source.request_max().min(destination.request_max()).max(REQUEST_MIN);
        let request = job.request_bytes.min(1 << most.ilog2());
        let granule = destination.granule().max(REQUEST_MIN).min(request);
        let keeps_zeroes_apart = !matches!(destination, End::Stream(_) | End::Null);
        let sparse = if keeps_zeroes_apart { job.sparse_bytes.unwrap_or(granule).min(request) } else { 0 };
        let is_empty_file = matches!(&destination, End::File(file) if !file.is_device);
        let progress = Progress::default();
        progress.size.set(source.size());
        let usual = if source.is_near() && destination.is_near() { QUEUE_NEAR } else { QUEUE_FAR };
        let in_flight = usize::try_from(job.queue_bytes.unwrap_or(usual) / request).unwrap_or(usize::MAX);
        let depth = job.requests.saturating_mul(job.connections).min(in_flight).max(1);
        Ok(Self {
            is_blank: !job.allocated && (is_empty_file || job.target_is_zero),
            sparse: usize::try_from(sparse).unwrap_or(0),
            slots: Semaphore::new(depth),
            is_stopped: Cell::new(false),
            turned: Event::new(),
            failure: RefCell::new(None),
            ledger: RefCell::default(),
            flushing: Semaphore::new(1),
            unflushed: Cell::new(0),
            is_repeating: Cell::new(false),
            progress: Rc::new(progress),
            source,
            destination,
            job,
            request,
            granule,
            depth,
        })
    }

    async fn work(self: &Rc<Self>) -> Result<(), CopyError> {
        match &self.source {
            End::Stream(stream) => self.drain(stream).await?,
            _ => self.walk(Deed::Copy, self.everything()).await?,
        }
        self.assure(self.job.flush).await?;
        if self.job.verify {
            self.progress.is_verifying.set(true);
            self.walk(Deed::Compare, self.everything()).await?;
            self.assure(false).await?;
        }
        Ok(())
    }

    fn everything(&self) -> Vec<Range<u64>> {
        iter::once(0..self.source.size().unwrap_or(0)).collect()
    }

    /// Does something with ranges of a source that can be read anywhere. They begin and end where steps do.
    pub(super) async fn walk(self: &Rc<Self>, deed: Deed, ranges: Vec<Range<u64>>) -> Result<(), CopyError> {
        let ahead = Rc::new(Ahead { windows: Queue::new(), room: Semaphore::new(AHEAD) });
        rt::spawn(look_ahead(Rc::clone(self), Rc::clone(&ahead), ranges));
        while !self.is_stopped.get() {
            ahead.windows.ready(|| false).await;
            let Some(steps) = ahead.windows.pop() else { continue };
            if steps.is_empty() {
                break;
            }
            ahead.room.release(1);
            for step in steps {
                if deed == Deed::Copy && !step.zero {
                    self.flush_now_and_then(step.length).await;
                }
                self.slots.acquire(1).await;
                if self.is_stopped.get() {
                    self.slots.release(1);
                    break;
                }
                let engine = Rc::clone(self);
                rt::spawn(async move {
                    let outcome = match deed {
                        Deed::Copy => engine.carry(step).await,
                        Deed::Compare => engine.compare(step).await,
                    };
                    engine.end_step(outcome);
                });
            }
        }
        self.settle().await
    }

    /// Copies a source that comes in order, and is as long as it is.
    async fn drain(self: &Rc<Self>, stream: &Stream) -> Result<(), CopyError> {
        let request = usize::try_from(self.request).unwrap_or(usize::MAX);
        let room = self.destination.room();
        let mut at = 0;
        loop {
            self.slots.acquire(1).await;
            if self.is_stopped.get() {
                self.slots.release(1);
                break;
            }
            self.flush_now_and_then(self.request).await;
            // A pipe may be silent for long after the destination has failed.
            let fill = async { stream.fill(at, Buffer::acquire(request).await).await };
            let mut buffer = match select(fill, self.stopped()).await {
                Either::First(Ok(buffer)) => buffer,
                Either::First(Err(error)) => {
                    self.end_step(Err(error));
                    break;
                }
                Either::Second(()) => {
                    self.slots.release(1);
                    break;
                }
            };
            let filled = buffer.len();
            let fits =
                room.map_or(filled, |room| usize::try_from(room - at).unwrap_or(usize::MAX).min(filled));
            buffer.set_len(fits);
            if fits == 0 {
                self.slots.release(1);
            } else {
                let engine = Rc::clone(self);
                rt::spawn(async move {
                    let outcome = engine.put(at, buffer).await;
                    engine.end_step(outcome);
                });
                at += fits as u64;
            }
            if fits < filled {
                self.settle().await?;
                return Err(CopyError::Overflow {
                    source_name: self.source.label().to_owned(),
                    destination: self.destination.label().to_owned(),
                    room: at,
                });
            }
            if filled < request {
                break;
            }
        }
        self.settle().await?;
        self.progress.size.set(Some(at));
        self.destination.end_at(at)
    }

    async fn carry(&self, step: Step) -> Result<(), CopyError> {
        if step.zero {
            let reconnects = self.destination.reconnects();
            self.zero(step.offset, step.length).await?;
            self.enter(Entry { range: step.offset..step.end(), reconnects, digest: None });
            return Ok(());
        }
        let length = usize::try_from(step.length).unwrap_or(usize::MAX);
        let (result, buffer) = self.source.read(step.offset, Buffer::acquire(length).await).await;
        result?;
        self.put(step.offset, buffer).await
    }

    /// Writes what was read.
    async fn put(&self, offset: u64, buffer: Buffer) -> Result<(), CopyError> {
        let is_lasting = !matches!(self.source, End::Stream(_)) || !self.destination.may_forget();
        let digest = if is_lasting { None } else { Some(crc32fast::hash(&buffer)) };
        let (range, reconnects) = (offset..offset + buffer.len() as u64, self.destination.reconnects());
        self.put_sparse(offset, buffer).await?;
        self.enter(Entry { range, reconnects, digest });
        Ok(())
    }

    /// Writes all but zeroes.
    async fn put_sparse(&self, offset: u64, buffer: Buffer) -> Result<(), CopyError> {
        let length = buffer.len() as u64;
        let runs = if self.sparse > 0 { zeroes::runs(&buffer, self.sparse) } else { Vec::new() };
        if runs.iter().all(|(_, zero)| !zero) {
            self.destination.write(offset, buffer).await?;
            self.count(&self.progress.data, length);
            return Ok(());
        }
        for (range, _) in runs.iter().filter(|(_, zero)| *zero) {
            self.zero(offset + range.start as u64, range.len() as u64).await?;
        }
        self.destination.write_data(offset, buffer, &runs).await?;
        let data: usize = runs.iter().filter(|(_, zero)| !zero).map(|(range, _)| range.len()).sum();
        self.count(&self.progress.data, data as u64);
        Ok(())
    }

    async fn zero(&self, offset: u64, length: u64) -> Result<(), CopyError> {
        if self.is_blank {
            self.count(&self.progress.skipped, length);
            return Ok(());
        }
        self.destination.zero(offset, length, self.job.allocated).await?;
        self.count(&self.progress.zeroed, length);
        Ok(())
    }

    fn count(&self, kind: &Cell<u64>, bytes: u64) {
        add(if self.is_repeating.get() { &self.progress.repeated } else { kind }, bytes);
    }

    pub(super) fn end_step(&self, outcome: Result<(), CopyError>) {
        if let Err(error) = outcome {
            self.fail(error);
        }
        self.slots.release(1);
    }

    /// The first failure ends everything; what others say after it is its consequence.
    pub(super) fn fail(&self, error: CopyError) {
        if !self.is_stopped.replace(true) {
            *self.failure.borrow_mut() = Some(error);
            self.source.stop();
            self.destination.stop();
            self.turned.notify();
        }
    }

    pub(super) async fn stopped(&self) {
        while !self.is_stopped.get() {
            self.turned.wait().await;
        }
    }

    /// Waits until no step is under way, or one has failed.
    pub(super) async fn settle(&self) -> Result<(), CopyError> {
        // A pipe that nobody reads would hold up the failure of others.
        if let Either::First(()) = select(self.slots.acquire(self.depth), self.stopped()).await {
            self.slots.release(self.depth);
        }
        self.failure.borrow_mut().take().map_or(Ok(()), Err)
    }
}

/// What is done with each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Copy,
    Compare,
}

/// Steps that are known before it is their turn; none are the end.
struct Ahead {
    windows: Queue<Vec<Step>>,
    room: Semaphore,
}

/// Asks where data is while what was found before is copied.
async fn look_ahead(engine: Rc<Engine>, ahead: Rc<Ahead>, ranges: Vec<Range<u64>>) {
    for Range { start: mut at, end } in ranges {
        while at < end && !engine.is_stopped.get() {
            ahead.room.acquire(1).await;
            let until = end.min((at & !(WINDOW_BYTES - 1)).saturating_add(WINDOW_BYTES));
            let told = if engine.job.extents {
                engine.source.map(at, until).await
            } else {
                Ok(vec![Step::new(&(at..until), false)])
            };
            match told {
                Ok(told) => {
                    let steps = plan::steps(&told, end, engine.granule, engine.request);
                    at = steps.last().map_or(end, Step::end);
                    ahead.windows.push(steps);
                }
                Err(error) => engine.fail(error),
            }
        }
    }
    ahead.windows.push(Vec::new());
}
