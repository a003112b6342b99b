//! One connection of workload `produce`: sends batches by the schedule and receives acknowledgements.
//!
//! Lives on: one load thread. The sender and the receiver are two tasks that share this.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use net::client::Answer;
use net::codec::produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef};
use net::errors;
use net::messages;
use net::records::build::BatchBuilder;

use crate::clock;
use crate::figures::stats::{Live, Tally, histogram};
use crate::load::batcher::{Batch, Batcher};
use crate::load::connection::{self, Answers, Requests};
use crate::load::error::LoadError;
use crate::load::schedule::Schedule;
use crate::load::setup::Lane;
use crate::options::Acks;
use crate::options::sizes::Numbers;
use crate::rt;
use crate::workloads::produce::{Plan, STAMP_BYTES, key};

/// How long to wait after the end for outstanding answers. Records without an answer then count as errors.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the broker may take for one request.
const REQUEST_TIMEOUT_MS: i32 = 30_000;
/// Batches that are due together share a request. The request takes batches until it has reached this size, or that
/// of one full batch if that is larger.
const REQUEST_BYTES: usize = 1 << 20;
/// Interval between two updates of the live line's latencies.
const PUBLISH_NS: u64 = 250_000_000;
/// A flush that takes longer was delayed by the broker, which does not read.
const FLUSH_HELD_NS: u64 = 1_000_000;

/// State that the two tasks of a connection share.
struct Shared {
    plan: Plan,
    partitions: Vec<i32>,
    live: Arc<Live>,
    /// The batches of each unanswered request, oldest first.
    sent: RefCell<VecDeque<Vec<Batch>>>,
    results: RefCell<Results>,
}

struct Results {
    tally: Tally,
    recent_ns: Histogram<u64>,
    published_ns: u64,
}

impl Shared {
    /// Counts an acknowledged batch.
    fn acked(&self, batch: &Batch, now_ns: u64) {
        let mut results = self.results.borrow_mut();
        let Results { tally, recent_ns, published_ns } = &mut *results;
        let count = batch.len() as u64;
        let fixed = if self.plan.sizes.is_fixed() { self.plan.sizes.max() } else { 0 };
        let value_bytes = count * fixed as u64 + batch.sizes.iter().map(|size| u64::from(*size)).sum::<u64>();
        self.live.count(count, value_bytes);
        let mut measured = 0;
        // Equal times come in runs. Without a rate, a whole batch may have one time.
        for run in batch.intended_ns.chunk_by(|a, b| a == b) {
            let (latency_ns, count) = (now_ns.saturating_sub(run[0]).max(1), run.len() as u64);
            recent_ns.saturating_record_n(latency_ns, count);
            if run[0] >= self.plan.window.measured_from_ns {
                tally.latency_ns.saturating_record_n(latency_ns, count);
                measured += count;
            }
        }
        if measured > 0 {
            tally.records += measured;
            // For a batch that spans the end of the warm-up, count only the measured share.
            tally.bytes += value_bytes * measured / count;
            tally.span_ns = tally.span_ns.max(now_ns - self.plan.window.measured_from_ns);
        }
        if now_ns - *published_ns > PUBLISH_NS {
            *published_ns = now_ns;
            self.live.publish(recent_ns);
        }
    }

    fn failed(&self, records: u64, why: impl FnOnce() -> String) {
        self.live.errors.fetch_add(records, Ordering::Relaxed);
        self.results.borrow_mut().tally.fail(records, why);
    }

    fn request(&self, batches: &[Batch]) -> ProduceRequest {
        let plan = &self.plan;
        let partitions = batches.iter().map(|batch| {
            let index = self.partitions[batch.partition];
            ProducePartition { index, records: Some(self.encoded(batch, index)) }
        });
        let topic = ProduceTopic { topic: TopicRef::Name(plan.topic.clone()), partitions: partitions.collect() };
        ProduceRequest {
            transactional_id: None,
            acks: plan.acks.code(),
            timeout_ms: REQUEST_TIMEOUT_MS,
            topics: vec![topic],
        }
    }

    fn encoded(&self, batch: &Batch, partition: i32) -> Bytes {
        let plan = &self.plan;
        let timestamp_ms = clock::unix_ms();
        let fixed = plan.sizes.max();
        let room = plan.values.len() - fixed;
        let mut numbers = Numbers::new(batch.intended_ns[0] ^ partition as u64);
        let mut builder = BatchBuilder::new(plan.codec);
        let mut stamped = Vec::new();
        for (i, intended_ns) in batch.intended_ns.iter().enumerate() {
            let at = (*intended_ns as usize / 64 + i * 67) % room;
            let mut value = &plan.values[at..at + batch.size(i, fixed)];
            if plan.stamped {
                stamped.clear();
                stamped.extend_from_slice(&intended_ns.to_be_bytes());
                stamped.extend_from_slice(&value[STAMP_BYTES..]);
                value = &stamped;
            }
            let key = (plan.keys > 0).then(|| key(numbers.next(), partition as u64, plan));
            builder.push(timestamp_ms, key.as_ref().map(|key| key.as_slice()), Some(value));
        }
        builder.finish()
    }
}

pub async fn lane_work(plan: Plan, index: usize, lane: Lane, live: Arc<Live>) -> Tally {
    let (requests, answers) = match connection::open(lane.addr).await {
        Ok(open) => open,
        Err(why) => {
            let mut tally = Tally::default();
            tally.fail(1, || why.to_string());
            return tally;
        }
    };
    let results = Results { tally: Tally::default(), recent_ns: histogram(), published_ns: 0 };
    let shared = Rc::new(Shared {
        plan,
        partitions: lane.partitions,
        live,
        sent: RefCell::default(),
        results: RefCell::new(results),
    });
    let receiver = rt::spawn(receive(answers, shared.clone()));
    send(requests, &shared, index).await;
    receiver.join().await;
    let unanswered: u64 = shared.sent.borrow().iter().flatten().map(|batch| batch.len() as u64).sum();
    shared.failed(unanswered, || "no answer".to_owned());
    std::mem::take(&mut shared.results.borrow_mut().tally)
}

async fn send(mut requests: Requests, shared: &Shared, index: usize) {
    let plan = &shared.plan;
    let mut schedule =
        Schedule::new(plan.window.start_ns, plan.window.duration_ns(), plan.rate, index, plan.connections);
    let mut batcher = Batcher::new(shared.partitions.len(), plan.limits, plan.sizes.clone(), index as u64);
    // The last time at which something other than this client delayed records.
    let mut held_until_ns = plan.window.start_ns;
    let give_up_ns = plan.window.end_ns + DRAIN.as_nanos() as u64;
    let broken = loop {
        let now_ns = clock::now_ns();
        admit(&mut schedule, &mut batcher, shared, now_ns, held_until_ns);
        let over = schedule.next_ns(now_ns).is_none();
        if over {
            batcher.close();
        }
        let sent = send_ready(&mut requests, &mut batcher, shared, now_ns).await;
        let sent = match sent {
            Ok(sent) => sent,
            Err(why) => break Some(why),
        };
        let after_ns = clock::now_ns();
        if sent && after_ns - now_ns > FLUSH_HELD_NS {
            held_until_ns = after_ns;
        }
        if let Some(why) = requests.take_broken() {
            break Some(why);
        }
        if over && batcher.is_empty() && requests.in_flight() == 0 {
            break None;
        }
        if after_ns >= give_up_ns {
            break Some(LoadError::Unanswered { patience: DRAIN });
        }
        if requests.in_flight() >= plan.in_flight {
            requests.wait(Some(give_up_ns)).await;
            held_until_ns = clock::now_ns().max(requests.answered_ns());
            continue;
        }
        let wake_ns = [schedule.next_ns(after_ns), batcher.deadline_ns(), Some(give_up_ns)].into_iter().flatten().min();
        match wake_ns {
            // Something is due already. Yield to the receiver, then continue.
            Some(wake_ns) if wake_ns <= after_ns => rt::yield_now().await,
            wake_ns => requests.wait(wake_ns).await,
        }
    };
    if let Some(why) = broken {
        // Records that the schedule required and that were not sent count as errors.
        let unsent = schedule.total().map_or(0, |total| total - schedule.taken()) + batcher.len() as u64;
        shared.failed(unsent.max(1), || why.to_string());
    }
    requests.shutdown();
}

/// Takes the records that are due, unless full batches can't leave. Then records wait in the schedule, not in memory.
fn admit(schedule: &mut Schedule, batcher: &mut Batcher, shared: &Shared, now_ns: u64, held_until_ns: u64) {
    let mut results = shared.results.borrow_mut();
    while batcher.has_room() {
        let Some(intended_ns) = schedule.take(now_ns) else { break };
        if shared.plan.rate > 0 && intended_ns >= shared.plan.window.measured_from_ns {
            let late_ns = now_ns.saturating_sub(intended_ns.max(held_until_ns));
            results.tally.client_late_ns.saturating_record(late_ns.max(1));
        }
        batcher.push(intended_ns);
    }
}

/// Sends batches that are due while the limit of requests in flight allows. Returns whether any were sent.
async fn send_ready(
    requests: &mut Requests,
    batcher: &mut Batcher,
    shared: &Shared,
    now_ns: u64,
) -> Result<bool, LoadError> {
    let plan = &shared.plan;
    let request_bytes_max = REQUEST_BYTES.max(plan.limits.batch_bytes);
    let mut any = false;
    while requests.in_flight() < plan.in_flight {
        let mut batches: Vec<Batch> = Vec::new();
        let mut bytes = 0;
        while bytes < request_bytes_max
            && let Some(batch) = batcher.take_ready(now_ns, |p| batches.iter().all(|batch| batch.partition != p))
        {
            bytes += batch.bytes;
            batches.push(batch);
        }
        if batches.is_empty() {
            break;
        }
        any = true;
        requests.push(plan.version, &shared.request(&batches).into())?;
        if now_ns >= plan.window.measured_from_ns {
            shared.results.borrow_mut().tally.requests += 1;
        }
        if plan.acks == Acks::None {
            requests.flush().await?;
            let now_ns = clock::now_ns();
            batches.iter().for_each(|batch| shared.acked(batch, now_ns));
            continue;
        }
        shared.sent.borrow_mut().push_back(batches);
        requests.flush().await?;
    }
    Ok(any)
}

async fn receive(mut answers: Answers, shared: Rc<Shared>) {
    while let Some(answer) = answers.next().await {
        let now_ns = clock::now_ns();
        let batches = shared.sent.borrow_mut().pop_front().expect("the codec matches answers to requests");
        if let Err(why) = count(&shared, answer, &batches, now_ns) {
            answers.end(why);
            return;
        }
        answers.done(now_ns);
    }
}

fn count(shared: &Shared, answer: Answer, batches: &[Batch], now_ns: u64) -> Result<(), LoadError> {
    let response = answer.decode::<messages::ProduceRequest>()?;
    let partitions: Vec<_> = response.responses.iter().flat_map(|topic| &topic.partition_responses).collect();
    for batch in batches {
        let index = shared.partitions[batch.partition];
        let records = batch.len() as u64;
        match partitions.iter().find(|partition| partition.index == index) {
            None => shared.failed(records, || format!("the answer lacks partition {index}")),
            Some(partition) => match errors::check(partition.error_code) {
                Ok(()) => shared.acked(batch, now_ns),
                Err(error) => shared.failed(records, || {
                    let message = partition.error_message.as_ref().map_or("", |message| message.as_str());
                    format!("partition {index}: {error} {message}").trim_end().to_owned()
                }),
            },
        }
    }
    Ok(())
}
