//! A connection without its socket.

use super::super::run::{Phase, Run};
use super::super::sizes::Sizes;
use super::super::verify::{Author, Ledger};
use super::super::workload::{Distribution, Pattern, Workload};
use super::*;
use crate::proto::{Errno, ReplyBody};

const BLOCK: u32 = 4096;

fn workload(pattern: Pattern) -> Workload {
    Workload {
        pattern,
        sizes: Sizes::one(BLOCK),
        rwmixread: 50,
        offset: 0,
        size: None,
        distribution: Distribution::Uniform,
        fsync: 0,
        fua: false,
        verify: false,
        seed: 1,
    }
}

fn job(workload: Workload, iodepth: u32, rate: Option<u32>, blocks: u64) -> (Job, Rc<Run>) {
    let window = 0..blocks * u64::from(BLOCK);
    let author = Author { seed: 1, run: 1 };
    let ledger = workload.verify.then(|| Ledger::new(author, window.clone(), BLOCK, false));
    let run = Rc::new(Run::new(1, ledger));
    let manner = Manner { dialect: Dialect::Simple, iodepth, fua: workload.fua, request_max: 1 << 25 };
    let sequence = Sequence::new(workload, window, 0, 1);
    (Job::new(&manner, sequence, Pace::new(rate, 0, 0, 1), Rc::clone(&run)), run)
}

/// All that the job sends at a time, and what it does then.
fn sent(job: &mut Job, now_ns: u64) -> (Vec<Request>, Next) {
    let mut requests = Vec::new();
    loop {
        match job.next(now_ns) {
            Next::Send(request) => requests.push(request),
            idle => return (requests, idle),
        }
    }
}

fn answer(job: &mut Job, request: &Request, now_ns: u64) {
    let reply =
        Reply { cookie: request.cookie, offset: None, done: true, body: ReplyBody::Simple(Errno::OK) };
    let (_, ends) = job.accept(&reply).unwrap();
    assert!(ends);
    job.end(request.cookie, now_ns).unwrap();
}

/// The run ends between the last reply of a batch and the next one: nothing is in flight, nothing will arrive. A receiving
/// side that waited for a reply then waited for ever; the goodbye comes from the sending side.
#[test]
fn a_run_that_ends_with_nothing_in_flight_says_goodbye() {
    for iodepth in 1..=32 {
        let (mut job, run) = job(workload(Pattern::RandRead), iodepth, None, 100);
        let (requests, idle) = sent(&mut job, 1);
        assert_eq!(requests.len(), iodepth as usize);
        assert!(matches!(idle, Next::Wait));
        for request in &requests {
            answer(&mut job, request, 2);
        }
        run.enter(Phase::Draining);
        assert!(run.is_settled());
        assert!(matches!(job.next(3), Next::Wait));
        run.enter(Phase::Leaving);
        assert!(matches!(job.next(3), Next::Leave));
    }
}

#[test]
fn the_last_reply_settles_the_run_and_nothing_is_sent_meanwhile() {
    let (mut job, run) = job(workload(Pattern::RandRead), 4, None, 100);
    let (requests, _) = sent(&mut job, 1);
    run.enter(Phase::Draining);
    for request in &requests {
        assert!(!run.is_settled());
        answer(&mut job, request, 2);
        assert!(matches!(job.next(3), Next::Wait));
    }
    assert!(run.is_settled());
}

#[test]
fn late_requests_of_the_open_loop_count_from_when_they_were_due() {
    let (mut job, run) = job(workload(Pattern::RandRead), 2, Some(1000), 100);
    run.tally.begin(0);
    let (requests, idle) = sent(&mut job, 1_500_000);
    assert_eq!(requests.len(), 2);
    assert!(matches!(idle, Next::Wait), "no slot is free: {idle:?}");
    // The server stalls for a second; then each request of the schedule is as late as it is.
    let mut waiting = requests;
    for now in 1_000_000_000..1_000_000_500 {
        for request in std::mem::take(&mut waiting) {
            answer(&mut job, &request, now);
        }
        waiting = sent(&mut job, now).0;
    }
    let rows = run.tally.rows();
    let median = rows[0].latency.value_at_quantile(0.5);
    assert!((450_000_000..550_000_000).contains(&median), "{median}");
    assert!(rows[0].latency.max() >= 1_000_000_000);
}

#[test]
fn the_open_loop_waits_for_the_schedule_and_flushes_outside_of_it() {
    let (mut job, _) = job(Workload { fsync: 1, ..workload(Pattern::Write) }, 8, Some(1000), 100);
    let (requests, idle) = sent(&mut job, 0);
    let commands: Vec<_> = requests.iter().map(|request| request.command).collect();
    assert_eq!(commands, [Command::WRITE, Command::FLUSH]);
    assert!(matches!(idle, Next::WaitUntil(1_000_000)), "{idle:?}");
    assert_eq!(job.unsent(10_000_000), 9);
}

#[test]
fn fua_goes_with_writes_only() {
    let (mut job, _) = job(Workload { fua: true, fsync: 3, ..workload(Pattern::RandRw) }, 64, None, 100);
    let (requests, _) = sent(&mut job, 0);
    assert!(
        requests.iter().all(|request| {
            (request.command == Command::WRITE) == request.flags.contains(CommandFlags::FUA)
        })
    );
}

#[test]
fn a_verified_write_waits_for_the_one_before_it_on_the_same_block() {
    let (mut job, run) = job(Workload { verify: true, ..workload(Pattern::Write) }, 4, None, 1);
    let (first, idle) = sent(&mut job, 0);
    assert_eq!(first.len(), 1);
    assert!(matches!(idle, Next::Wait));
    answer(&mut job, &first[0], 1);
    assert_eq!(sent(&mut job, 2).0.len(), 1, "the block is free again");
    assert_eq!(run.in_flight(), 1);
}

#[test]
fn what_the_server_does_wrong_is_told() {
    let (mut job, _) = job(workload(Pattern::RandRead), 1, None, 1);
    let reply = |cookie, errno| Reply { cookie, offset: None, done: true, body: ReplyBody::Simple(errno) };
    let (requests, _) = sent(&mut job, 0);
    let astray = job.accept(&reply(7, Errno::OK)).unwrap_err();
    assert!(astray.contains("0x7"), "{astray}");
    let failed = job.accept(&reply(requests[0].cookie, Errno::EIO)).unwrap_err();
    assert!(failed.contains("READ of 4096 bytes at offset 0 failed"), "{failed}");
}
