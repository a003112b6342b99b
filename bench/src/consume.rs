//! Workload `consume`: reads a topic's partitions and measures throughput and how long each fetch takes.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use net::StrBytes;
use net::api::ApiKey;
use net::batch::Batches;
use net::client_blocking::Client;
use net::errors;
use net::fetch::{FetchPartition, FetchRequest, FetchTopic};
use net::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use net::messages::{self, BrokerId, ListOffsetsRequest, TopicName};
use net::produce::TopicRef;

use crate::ceiling::Ceiling;
use crate::clock;
use crate::connection::{self, Answers, Requests};
use crate::options::{ConsumeOptions, From};
use crate::report::Report;
use crate::run::{self, Window};
use crate::setup::{self, Lane};
use crate::stats::{Live, Tally, histogram};

const PATIENCE: Duration = Duration::from_secs(30);
/// How long the broker may wait for the first byte of an answer.
const MAX_WAIT_MS: i32 = 500;
/// Bytes of one answer, whatever its partitions.
const ANSWER_BYTES: i32 = 64 << 20;
const PUBLISH_NS: u64 = 250_000_000;

pub fn run(options: &ConsumeOptions) -> Result<(), Box<dyn Error>> {
    let target = setup::prepare(&options.target, ApiKey::Fetch)?;
    let starts = offsets(options, &target.lanes, if options.from == From::Start { -2 } else { -1 })?;
    let ends = if options.to_end { Some(offsets(options, &target.lanes, -1)?) } else { None };
    let ceiling = Ceiling::measure(&options.run);
    // A drain is measured whole, from its first fetch.
    let (warm_up, duration) = if options.to_end {
        (Duration::ZERO, Duration::from_secs(86_400))
    } else {
        (options.target.warm_up, options.run.duration)
    };
    let window = Window::new(warm_up, duration);
    let plan = Plan {
        topic: StrBytes::from_string(options.target.topic.clone()),
        version: target.version,
        fetch_bytes: options.fetch_size as i32,
        starts: Arc::new(starts),
        ends: ends.map(Arc::new),
        window,
    };
    let work = move |_: usize, lane: Lane, live: Arc<Live>| lane_work(plan.clone(), lane, live);
    let outcome = run::drive(options.target.threads, &options.target.cpus, target.lanes, window, work)?;
    let report = Report::new("consume", outcome, ceiling);
    report.print(options.run.json);
    match report.first_error {
        Some(error) if report.records == 0 => Err(error.into()),
        _ => Ok(()),
    }
}

/// One offset per partition: -2 asks for the first, -1 for the end.
fn offsets(options: &ConsumeOptions, lanes: &[Lane], at: i64) -> Result<HashMap<i32, i64>, Box<dyn Error>> {
    let mut offsets = HashMap::new();
    for lane in lanes {
        let mut client = Client::connect(&lane.addr.to_string(), "millrace-bench", PATIENCE)?;
        let ask = |p: &i32| ListOffsetsPartition::default().with_partition_index(*p).with_timestamp(at);
        let topic = ListOffsetsTopic::default()
            .with_name(TopicName(StrBytes::from_string(options.target.topic.clone())))
            .with_partitions(lane.partitions.iter().map(ask).collect());
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
        for partition in client.call(request)?.topics.iter().flat_map(|topic| &topic.partitions) {
            errors::check(partition.error_code)
                .map_err(|e| format!("offsets of partition {}: {e}", partition.partition_index))?;
            offsets.insert(partition.partition_index, partition.offset);
        }
    }
    Ok(offsets)
}

#[derive(Clone)]
struct Plan {
    topic: StrBytes,
    version: i16,
    fetch_bytes: i32,
    starts: Arc<HashMap<i32, i64>>,
    ends: Option<Arc<HashMap<i32, i64>>>,
    window: Window,
}

/// One partition's place.
struct Place {
    partition: i32,
    next_offset: i64,
    end_offset: Option<i64>,
}

impl Place {
    fn is_done(&self) -> bool {
        self.end_offset.is_some_and(|end| self.next_offset >= end)
    }
}

struct Reading {
    plan: Plan,
    places: Vec<Place>,
    live: Arc<Live>,
    tally: Tally,
    recent_ns: Histogram<u64>,
    published_ns: u64,
}

async fn lane_work(plan: Plan, lane: Lane, live: Arc<Live>) -> Tally {
    let place = |partition: i32| Place {
        partition,
        next_offset: plan.starts.get(&partition).copied().unwrap_or(0),
        end_offset: plan.ends.as_ref().and_then(|ends| ends.get(&partition).copied()),
    };
    let places = lane.partitions.iter().copied().map(place).collect();
    let mut reading = Reading { plan, places, live, tally: Tally::default(), recent_ns: histogram(), published_ns: 0 };
    let result = match connection::open(lane.addr).await {
        Ok((requests, answers)) => reading.read(requests, answers).await,
        Err(why) => Err(why),
    };
    if let Err(why) = result {
        reading.live.errors.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        reading.tally.fail(1, || why);
    }
    reading.tally
}

impl Reading {
    /// One fetch after the other: offsets of the next follow from the answer to the last.
    async fn read(&mut self, mut requests: Requests, mut answers: Answers) -> Result<(), String> {
        loop {
            let begin_ns = clock::now_ns();
            self.places.retain(|place| !place.is_done());
            if begin_ns >= self.plan.window.end_ns || self.places.is_empty() {
                return Ok(());
            }
            requests.push(self.plan.version, &self.request().into())?;
            requests.flush().await?;
            let Some(answer) = answers.next().await else {
                return Err(requests.broken().unwrap_or_else(|| "the connection ended".to_owned()));
            };
            let response = answer.decode::<messages::FetchRequest>().map_err(|e| e.to_string())?;
            errors::check(response.error_code).map_err(|e| e.to_string())?;
            self.count(response, begin_ns)?;
        }
    }

    fn request(&self) -> FetchRequest {
        let ask =
            |place: &Place| FetchPartition::of_consumer(place.partition, place.next_offset, self.plan.fetch_bytes);
        let topic = FetchTopic {
            topic: TopicRef::Name(self.plan.topic.clone()),
            partitions: self.places.iter().map(ask).collect(),
        };
        FetchRequest::of_consumer(MAX_WAIT_MS, 1, ANSWER_BYTES, vec![topic])
    }

    fn count(&mut self, response: messages::FetchResponse, begin_ns: u64) -> Result<(), String> {
        let (mut records, mut bytes) = (0, 0);
        for partition in response.responses.into_iter().flat_map(|topic| topic.partitions) {
            let index = partition.partition_index;
            errors::check(partition.error_code).map_err(|e| format!("partition {index}: {e}"))?;
            let Some(place) = self.places.iter_mut().find(|place| place.partition == index) else { continue };
            let Some(batches) = partition.records else { continue };
            bytes += batches.len() as u64;
            let mut batches = Batches::new(batches);
            for batch in batches.by_ref() {
                // An answer may end within a batch; the next fetch begins there.
                let Ok((header, _)) = batch else { break };
                records += (header.next_offset() - header.base_offset.max(place.next_offset)).max(0) as u64;
                place.next_offset = place.next_offset.max(header.next_offset());
            }
        }
        let now_ns = clock::now_ns();
        self.live.count(records, bytes);
        let latency_ns = (now_ns - begin_ns).max(1);
        self.recent_ns.saturating_record(latency_ns);
        if now_ns - self.published_ns > PUBLISH_NS {
            self.published_ns = now_ns;
            self.live.publish(&mut self.recent_ns);
        }
        if begin_ns >= self.plan.window.measured_from_ns || self.plan.ends.is_some() {
            let tally = &mut self.tally;
            tally.records += records;
            tally.bytes += bytes;
            tally.requests += 1;
            tally.latency_ns.saturating_record(latency_ns);
            tally.span_ns = now_ns.saturating_sub(self.plan.window.measured_from_ns).max(1);
        }
        Ok(())
    }
}
