//! Sends single requests of Kafka's control APIs in an open loop: each operation is one request and one answer.
//!
//! Lives on: the load threads. The workloads that count operations rather than records share this.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use net::client::Answer;
use net::codec::request::Request;

use crate::clock;
use crate::figures::stats::{Live, Tally, histogram};
use crate::load::connection::{self, Answers, Requests};
use crate::load::error::LoadError;
use crate::load::schedule::Schedule;
use crate::load::window::Window;
use crate::rt;

/// How long to wait after the end for outstanding answers. Operations without an answer then count as errors.
const DRAIN: Duration = Duration::from_secs(30);
const PUBLISH_NS: u64 = 250_000_000;

/// The pace of the operations, the same for all connections.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Operations per second of all connections together; 0: as fast as they are answered.
    pub rate: u64,
    pub connections: usize,
    pub in_flight: usize,
    pub window: Window,
}

impl Pace {
    /// The intended start times of the operations on connection `index`.
    pub fn schedule(&self, index: usize) -> Schedule {
        let Window { start_ns, .. } = self.window;
        Schedule::new(start_ns, self.window.duration_ns(), self.rate, index, self.connections)
    }
}

/// Checks an answer; an `Err` says why the operation failed.
pub type Check = fn(Answer) -> Result<(), LoadError>;

struct Shared {
    window: Window,
    live: Arc<Live>,
    /// Intended start time of each unanswered operation, oldest first.
    sent: RefCell<VecDeque<u64>>,
    results: RefCell<(Tally, Histogram<u64>, u64)>,
}

impl Shared {
    fn answered(&self, intended_ns: u64, now_ns: u64) {
        let mut results = self.results.borrow_mut();
        let (tally, recent_ns, published_ns) = &mut *results;
        let latency_ns = now_ns.saturating_sub(intended_ns).max(1);
        self.live.count(1, 0);
        recent_ns.saturating_record(latency_ns);
        if intended_ns >= self.window.measured_from_ns {
            tally.records += 1;
            tally.requests += 1;
            tally.latency_ns.saturating_record(latency_ns);
            tally.span_ns = tally.span_ns.max(now_ns - self.window.measured_from_ns);
        }
        if now_ns - *published_ns > PUBLISH_NS {
            *published_ns = now_ns;
            self.live.publish(recent_ns);
        }
    }

    fn failed(&self, count: u64, why: impl FnOnce() -> String) {
        self.live.errors.fetch_add(count, Ordering::Relaxed);
        self.results.borrow_mut().0.fail(count, why);
    }
}

/// Runs one connection until the window ends and the last answer has arrived. `request` builds operation number n,
/// counted from 0, and returns it with its API version.
pub async fn lane_work(
    pace: Pace,
    index: usize,
    addr: SocketAddr,
    live: Arc<Live>,
    request: impl FnMut(u64) -> (i16, Request),
    check: Check,
) -> Tally {
    let results = RefCell::new((Tally::default(), histogram(), 0));
    let shared = Rc::new(Shared { window: pace.window, live, sent: RefCell::default(), results });
    match connection::open(addr).await {
        Ok((requests, answers)) => {
            let receiver = rt::spawn(receive(answers, shared.clone(), check));
            send(requests, &shared, pace, index, request).await;
            receiver.join().await;
        }
        Err(why) => shared.failed(1, || why.to_string()),
    }
    let unanswered = shared.sent.borrow().len() as u64;
    shared.failed(unanswered, || "no answer".to_owned());
    std::mem::take(&mut shared.results.borrow_mut().0)
}

async fn send(
    mut requests: Requests,
    shared: &Shared,
    pace: Pace,
    index: usize,
    mut request: impl FnMut(u64) -> (i16, Request),
) {
    let mut schedule = pace.schedule(index);
    let give_up_ns = pace.window.end_ns + DRAIN.as_nanos() as u64;
    let mut held_until_ns = pace.window.start_ns;
    let mut number = 0;
    let broken = loop {
        let now_ns = clock::now_ns();
        let mut queued = Ok(());
        while queued.is_ok()
            && requests.in_flight() < pace.in_flight
            && let Some(intended_ns) = schedule.take(now_ns)
        {
            if pace.rate > 0 && intended_ns >= pace.window.measured_from_ns {
                let late_ns = now_ns.saturating_sub(intended_ns.max(held_until_ns)).max(1);
                shared.results.borrow_mut().0.client_late_ns.saturating_record(late_ns);
            }
            let (version, request) = request(number);
            queued = requests.push(version, &request);
            if queued.is_ok() {
                shared.sent.borrow_mut().push_back(intended_ns);
                number += 1;
            }
        }
        let flushed = match queued {
            Ok(()) => requests.flush().await,
            Err(why) => Err(why),
        };
        if let Err(why) = flushed {
            break Some(why);
        }
        if let Some(why) = requests.take_broken() {
            break Some(why);
        }
        let after_ns = clock::now_ns();
        let next_ns = schedule.next_ns(after_ns);
        if next_ns.is_none() && requests.in_flight() == 0 {
            break None;
        }
        if after_ns >= give_up_ns {
            break Some(LoadError::Unanswered { patience: DRAIN });
        }
        if requests.in_flight() >= pace.in_flight {
            requests.wait(Some(give_up_ns)).await;
            held_until_ns = clock::now_ns().max(requests.answered_ns());
        } else if next_ns.is_some_and(|next| next <= after_ns) {
            rt::yield_now().await;
        } else {
            requests.wait(next_ns.or(Some(give_up_ns))).await;
        }
    };
    if let Some(why) = broken {
        let unsent = schedule.total().map_or(0, |total| total - schedule.taken());
        shared.failed(unsent.max(1), || why.to_string());
    }
    requests.shutdown();
}

async fn receive(mut answers: Answers, shared: Rc<Shared>, check: Check) {
    while let Some(answer) = answers.next().await {
        let now_ns = clock::now_ns();
        let intended_ns = shared.sent.borrow_mut().pop_front().expect("the codec matches answers to requests");
        match check(answer) {
            Ok(()) => shared.answered(intended_ns, now_ns),
            Err(why) => shared.failed(1, || why.to_string()),
        }
        answers.done(now_ns);
    }
}
