//! Producers that stamp their records, and consumers at the tail that read the stamps. The latency runs from a
//! record's intended send time until a consumer has it. Producers and consumers share one process, so one clock
//! serves both.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use net::StrBytes;
use net::records::record::{ReadError, Records};

use crate::clock;
use crate::figures::stats::{Live, Tally, histogram};
use crate::load::connection::{self, Answers, Requests};
use crate::load::error::LoadError;
use crate::load::fetcher::{Fetcher, Offsets};
use crate::load::setup::Lane;
use crate::load::window::Window;
use crate::rt;
use crate::workloads::produce::lane as produce_lane;
use crate::workloads::produce::{self, STAMP_BYTES};

/// How long consumers wait after the end for acknowledged records. Records that are missing then count as errors.
const DRAIN: Duration = Duration::from_secs(10);
const PUBLISH_NS: u64 = 250_000_000;
/// Maximum decompressed bytes of a batch.
const BATCH_BYTES_MAX: usize = 1 << 30;

/// State that producers and consumers share.
#[derive(Debug)]
pub struct Flow {
    producers_left: AtomicUsize,
    /// Acknowledged records since the start, warm-up included. Each producer adds its own when it ends.
    acked: AtomicU64,
    received: AtomicU64,
    /// Records are missing, and one consumer has already counted them.
    lost: AtomicBool,
    /// Results of the producers.
    pub produced: Mutex<Tally>,
}

impl Flow {
    pub fn new(producers: usize) -> Flow {
        Flow {
            producers_left: AtomicUsize::new(producers),
            acked: AtomicU64::new(0),
            received: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            produced: Mutex::default(),
        }
    }

    fn is_over(&self) -> bool {
        self.producers_left.load(Ordering::Acquire) == 0
            && self.received.load(Ordering::Relaxed) >= self.acked.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
pub struct Plan {
    /// Must be stamped.
    pub produce: produce::Plan,
    pub topic: StrBytes,
    pub fetch_version: i16,
    pub fetch_bytes: usize,
    pub starts: Arc<Offsets>,
    pub flow: Arc<Flow>,
    pub apart: Option<Apart>,
}

/// Additionally collects latencies of records whose intended time lies in a period. The end of the period becomes
/// known only later.
#[derive(Clone)]
pub struct Apart {
    pub from_ns: u64,
    /// `u64::MAX` until the end is known.
    pub until_ns: Arc<AtomicU64>,
    pub latency_ns: Arc<Mutex<Histogram<u64>>>,
}

/// Runs a producer's connection. The consumers count its records; its own latencies go into the flow.
pub async fn produce_work(plan: Plan, index: usize, lane: Lane, live: Arc<Live>) -> Tally {
    // The producer's own live figures count acknowledgements. Only its errors belong in the live line beside the
    // consumers' records.
    let own: Arc<Live> = Arc::default();
    let tally = produce_lane::lane_work(plan.produce.clone(), index, lane, own.clone()).await;
    live.errors.fetch_add(own.errors.load(Ordering::Relaxed), Ordering::Relaxed);
    let Plan { flow, .. } = plan;
    flow.acked.fetch_add(own.records.load(Ordering::Relaxed), Ordering::Relaxed);
    flow.producers_left.fetch_sub(1, Ordering::Release);
    let errors = Tally {
        errors: tally.errors,
        first_error: tally.first_error.clone(),
        client_late_ns: tally.client_late_ns.clone(),
        ..Tally::default()
    };
    flow.produced.lock().expect("nothing panics while it holds this").add(tally);
    errors
}

/// Runs a consumer's connection until the producers have ended and all their records have arrived.
pub async fn consume_work(plan: Plan, lane: Lane, live: Arc<Live>) -> Tally {
    let fetcher =
        Fetcher::new(plan.topic.clone(), plan.fetch_version, plan.fetch_bytes, &lane.partitions, &plan.starts, None);
    let window = plan.produce.window;
    let tail =
        Rc::new(RefCell::new(Tail { plan, live, tally: Tally::default(), recent_ns: histogram(), published_ns: 0 }));
    let result = match connection::open(lane.addr).await {
        Ok((requests, answers)) => read(&tail, fetcher, window, requests, answers).await,
        Err(why) => Err(why),
    };
    let mut tail = tail.borrow_mut();
    if let Err(why) = result {
        tail.live.errors.fetch_add(1, Ordering::Relaxed);
        tail.tally.fail(1, || why.to_string());
    }
    std::mem::take(&mut tail.tally)
}

struct Tail {
    plan: Plan,
    live: Arc<Live>,
    tally: Tally,
    recent_ns: Histogram<u64>,
    published_ns: u64,
}

async fn read(
    tail: &RefCell<Tail>,
    mut fetcher: Fetcher,
    window: Window,
    mut requests: Requests,
    mut answers: Answers,
) -> Result<(), LoadError> {
    rt::sleep_until(window.start_ns).await;
    let flow = tail.borrow().plan.flow.clone();
    let give_up_ns = window.end_ns + DRAIN.as_nanos() as u64;
    loop {
        if flow.is_over() {
            return Ok(());
        }
        if clock::now_ns() >= give_up_ns {
            let missing =
                flow.acked.load(Ordering::Relaxed).saturating_sub(flow.received.load(Ordering::Relaxed)).max(1);
            // Among several consumers, only the first that gives up counts the missing records.
            if !flow.lost.swap(true, Ordering::Relaxed) {
                let why = || format!("acknowledged, but not consumed {} s after the end", DRAIN.as_secs());
                tail.borrow_mut().tally.fail(missing, why);
            }
            return Ok(());
        }
        let count = |batch: &_, bytes, from| tail.borrow_mut().count(batch, bytes, from);
        fetcher.fetch(&mut requests, &mut answers, count).await?;
        tail.borrow_mut().fetched();
    }
}

impl Tail {
    fn count(
        &mut self,
        _: &net::records::batch::BatchHeader,
        batch: bytes::Bytes,
        from_offset: i64,
    ) -> Result<(), LoadError> {
        let now_ns = clock::now_ns();
        let window = self.plan.produce.window;
        let records = Records::open(&batch, BATCH_BYTES_MAX)?;
        let mut apart = self.plan.apart.as_ref().map(|apart| {
            let latency_ns = apart.latency_ns.lock().expect("nothing panics while it holds this");
            (apart.from_ns..apart.until_ns.load(Ordering::Relaxed), latency_ns)
        });
        let (mut count, mut bytes) = (0, 0);
        for record in records.iter() {
            let record = record.map_err(ReadError::from)?;
            if record.offset < from_offset {
                continue;
            }
            let value = record.value.unwrap_or_default();
            let Some(stamp) = value.first_chunk::<STAMP_BYTES>() else {
                return Err(LoadError::NoStamp);
            };
            let intended_ns = u64::from_be_bytes(*stamp);
            let latency_ns = now_ns.saturating_sub(intended_ns).max(1);
            count += 1;
            bytes += value.len() as u64;
            self.recent_ns.saturating_record(latency_ns);
            if intended_ns >= window.measured_from_ns {
                self.tally.records += 1;
                self.tally.bytes += value.len() as u64;
                self.tally.latency_ns.saturating_record(latency_ns);
                self.tally.span_ns = self.tally.span_ns.max(now_ns - window.measured_from_ns);
            }
            if let Some((time, latencies)) = &mut apart
                && time.contains(&intended_ns)
            {
                latencies.saturating_record(latency_ns);
            }
        }
        self.live.count(count, bytes);
        self.plan.flow.received.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    fn fetched(&mut self) {
        let now_ns = clock::now_ns();
        if now_ns >= self.plan.produce.window.measured_from_ns {
            self.tally.requests += 1;
        }
        if now_ns - self.published_ns > PUBLISH_NS {
            self.published_ns = now_ns;
            self.live.publish(&mut self.recent_ns);
        }
    }
}
