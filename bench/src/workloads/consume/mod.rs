//! Workload `consume`: reads a topic's partitions and measures throughput and the duration of each fetch.

#[cfg(feature = "librdkafka")]
pub(crate) mod librdkafka;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use net::StrBytes;
use net::codec::api::ApiKey;

use crate::clock;
use crate::error::AnyError;
use crate::figures::outcome::Outcome;
use crate::figures::stats::{Live, Tally, histogram};
use crate::load::connection::{self, Answers, Requests};
use crate::load::error::LoadError;
use crate::load::fetcher::{self, At, Fetched, Fetcher, Offsets};
use crate::load::setup::{self, Lane};
use crate::load::window::Window;
use crate::machine::ceiling::Ceiling;
use crate::options::Client;
use crate::options::workloads::{ConsumeOptions, From};
use crate::report::shares::Share;
use crate::report::{Report, Unit};
use crate::rt;
use crate::run;

const PUBLISH_NS: u64 = 250_000_000;
/// A drain ends by itself; this is only its upper bound.
const DRAIN_AT_MOST: Duration = Duration::from_secs(86_400);

pub fn run(options: &ConsumeOptions) -> Result<Report, AnyError> {
    let target = setup::prepare(&options.target, ApiKey::Fetch)?;
    let topic = &options.target.topic;
    let from = if options.from == From::Start { At::Start } else { At::End };
    let starts = fetcher::offsets(topic, &target.lanes, from)?;
    let ends = if options.to_end { Some(fetcher::offsets(topic, &target.lanes, At::End)?) } else { None };
    let ceiling = Ceiling::measure(&options.run);
    // A drain is measured completely, from its first fetch.
    let window = match &ends {
        Some(_) => Window::new(Duration::ZERO, DRAIN_AT_MOST),
        None => Window::new(options.run.warm_up, options.run.duration),
    };
    let plan = Plan {
        topic: StrBytes::from_string(topic.clone()),
        version: target.version,
        fetch_bytes: options.fetch_size,
        starts: Arc::new(starts),
        ends: ends.map(Arc::new),
        window,
    };
    let outcome = match options.client {
        Client::Native => {
            let work = move |_: usize, lane: Lane, live: Arc<Live>| lane_work(plan.clone(), lane, live);
            run::drive(&options.target.threads, target.lanes, window, work)?
        }
        Client::Librdkafka => librdkafka(options, plan)?,
    };
    let shares = [Share::DiskRead, Share::LoopbackBytes, Share::LoopbackRoundTrip];
    Ok(Report::new("consume", Unit::Records, outcome, ceiling).against(&shares))
}

#[cfg(feature = "librdkafka")]
fn librdkafka(options: &ConsumeOptions, plan: Plan) -> Result<Outcome, AnyError> {
    crate::workloads::consume::librdkafka::load(options, plan)
}

#[cfg(not(feature = "librdkafka"))]
fn librdkafka(_: &ConsumeOptions, _: Plan) -> Result<Outcome, AnyError> {
    Err("--client librdkafka: this build does not have it; build with --features librdkafka".into())
}

#[derive(Clone)]
pub struct Plan {
    pub topic: StrBytes,
    pub version: i16,
    pub fetch_bytes: usize,
    pub starts: Arc<Offsets>,
    /// Offset at which the reading of each partition ends. `None`: reading continues until the window ends.
    pub ends: Option<Arc<Offsets>>,
    pub window: Window,
}

pub async fn lane_work(plan: Plan, lane: Lane, live: Arc<Live>) -> Tally {
    let fetcher =
        Fetcher::new(plan.topic, plan.version, plan.fetch_bytes, &lane.partitions, &plan.starts, plan.ends.as_deref());
    let mut reading = Reading {
        fetcher,
        window: plan.window,
        live,
        tally: Tally::default(),
        recent_ns: histogram(),
        published_ns: 0,
    };
    let result = match connection::open(lane.addr).await {
        Ok((requests, answers)) => reading.read(requests, answers).await,
        Err(why) => Err(why),
    };
    if let Err(why) = result {
        reading.live.errors.fetch_add(1, Ordering::Relaxed);
        reading.tally.fail(1, || why.to_string());
    }
    reading.tally
}

struct Reading {
    fetcher: Fetcher,
    window: Window,
    live: Arc<Live>,
    tally: Tally,
    recent_ns: Histogram<u64>,
    published_ns: u64,
}

impl Reading {
    async fn read(&mut self, mut requests: Requests, mut answers: Answers) -> Result<(), LoadError> {
        rt::sleep_until(self.window.start_ns).await;
        loop {
            let begin_ns = clock::now_ns();
            if begin_ns >= self.window.end_ns || self.fetcher.is_done() {
                return Ok(());
            }
            let fetched = self.fetcher.fetch(&mut requests, &mut answers, |_, _, _| Ok(())).await?;
            self.count(fetched, begin_ns);
        }
    }

    fn count(&mut self, fetched: Fetched, begin_ns: u64) {
        let now_ns = clock::now_ns();
        self.live.count(fetched.records, fetched.bytes);
        let latency_ns = (now_ns - begin_ns).max(1);
        self.recent_ns.saturating_record(latency_ns);
        if now_ns - self.published_ns > PUBLISH_NS {
            self.published_ns = now_ns;
            self.live.publish(&mut self.recent_ns);
        }
        if begin_ns >= self.window.measured_from_ns {
            let tally = &mut self.tally;
            tally.records += fetched.records;
            tally.bytes += fetched.bytes;
            tally.requests += 1;
            tally.latency_ns.saturating_record(latency_ns);
            tally.span_ns = now_ns.saturating_sub(self.window.measured_from_ns).max(1);
        }
    }
}
