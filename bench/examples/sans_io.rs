//! Runs the parts of a broker that do no I/O, each in a loop, for tools that measure their cost.
//!
//! `cargo run --release -p bench --example sans_io -- PART TIMES`
//!
//! | part | one repetition is |
//! |---|---|
//! | `produce` | a Produce request with one batch of ten 100-byte records: frame, request, batch and CRC, response |
//! | `fetch` | a Fetch request for one partition, and its response with a batch |
//! | `raft` | the leader of three replicas proposes an entry of 100 bytes, and all three apply it |
//! | `ring` | an entry of 1 KiB is staged in the write-ahead ring; there is one write for every 16 entries |
//! | `metadata` | a topic's setting is changed: encoded, decoded, applied |
//!
//! No part depends on the machine or on chance, so instruction counts can be compared from run to run. Two runs of
//! different length under `valgrind --tool=callgrind` differ by the cost of the extra repetitions. `.ci/instructions`
//! measures this way.

use std::collections::BTreeMap;
use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use consensus::group::{Group, GroupConfig, Restored};
use consensus::metadata::{self, Command, Slice};
use net::StrBytes;
use net::codec::fetch::{
    FetchPartition, FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopic, FetchTopicResponse,
};
use net::codec::frame::FrameDecoder;
use net::codec::header::RequestHeader;
use net::codec::produce::{
    ProducePartition, ProducePartitionResponse, ProduceRequest, ProduceResponse, ProduceTopic, ProduceTopicResponse,
    TopicRef,
};
use net::codec::request::{self, Request};
use net::codec::response;
use net::records::batch;
use net::records::build::BatchBuilder;
use types::{GroupId, HardState, RaftIndex, Term};
use uuid::Uuid;
use wal::record::{Entry, Span};
use wal::ring::format::Record;
use wal::ring::{Ring, RingConfig, RingStart};

const FRAME_MAX: usize = 1 << 20;
const PRODUCE_VERSION: i16 = 9;
const FETCH_VERSION: i16 = 12;

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, times] = &arguments[..] else {
        eprintln!("usage: sans_io produce|fetch|raft|ring|metadata TIMES");
        return ExitCode::FAILURE;
    };
    let begun = Instant::now();
    let done = times.parse().map_err(Failure::from).and_then(|times| run(part, times).map(|()| times));
    match done {
        Ok(times) => {
            println!("{part}: {times} times, {:.0} ns each", begun.elapsed().as_nanos() as f64 / times.max(1) as f64);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("sans_io {part} {times}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(part: &str, times: u64) -> Result<(), Failure> {
    match part {
        "produce" => produce(times),
        "fetch" => fetch(times),
        "raft" => raft(times),
        "ring" => ring(times),
        "metadata" => change_settings(times),
        _ => Err("there is no such part".into()),
    }
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn some_batch() -> Bytes {
    let mut builder = BatchBuilder::default();
    for _ in 0..10 {
        builder.push(1_700_000_000_000, None, Some(&[b'v'; 100]));
    }
    builder.finish()
}

/// A request as it arrives from a socket: with its length prefix.
fn framed(header: &RequestHeader, request: &Request) -> Result<Bytes, Failure> {
    Ok(request::encode(header, request)?.into_bytes())
}

fn next_request(decoder: &mut FrameDecoder, frame: &[u8]) -> Result<(RequestHeader, Request), Failure> {
    decoder.extend(frame);
    let frame = decoder.next_frame()?.ok_or("the frame is whole")?;
    Ok(request::decode(&frame)?)
}

fn produce(times: u64) -> Result<(), Failure> {
    let request = ProduceRequest {
        transactional_id: None,
        acks: -1,
        timeout_ms: 30_000,
        topics: vec![ProduceTopic {
            topic: TopicRef::Name(text("topic")),
            partitions: vec![ProducePartition { index: 0, records: Some(some_batch()) }],
        }],
    };
    let request = Request::Produce(request);
    let header =
        RequestHeader { api: request.api(), version: PRODUCE_VERSION, correlation_id: 1, client_id: Some(text("c")) };
    let frame = framed(&header, &request)?;
    let mut decoder = FrameDecoder::new(FRAME_MAX);
    for offset in 0..times as i64 {
        let (header, request) = next_request(&mut decoder, &frame)?;
        let Request::Produce(request) = request else { return Err("it is Produce".into()) };
        let topics = request.topics.into_iter().map(|topic| {
            let stored = |partition: ProducePartition| {
                let records = partition.records.ok_or("there are records")?;
                black_box(batch::validate(&records, header.version)?);
                Ok(ProducePartitionResponse::stored(partition.index, offset, -1, 0))
            };
            let partitions = topic.partitions.into_iter().map(stored).collect::<Result<_, Failure>>()?;
            Ok(ProduceTopicResponse { topic: topic.topic, partitions })
        });
        let topics = topics.collect::<Result<_, Failure>>()?;
        let answer = ProduceResponse { topics, throttle_time_ms: 0, node_endpoints: Vec::new() };
        black_box(response::encode(&header, answer.into())?);
    }
    Ok(())
}

fn fetch(times: u64) -> Result<(), Failure> {
    let partitions = vec![FetchPartition::of_consumer(0, 0, 1 << 20)];
    let topics = vec![FetchTopic { topic: TopicRef::Name(text("topic")), partitions }];
    let request = Request::Fetch(FetchRequest::of_consumer(500, 1, 1 << 24, topics));
    let header =
        RequestHeader { api: request.api(), version: FETCH_VERSION, correlation_id: 1, client_id: Some(text("c")) };
    let frame = framed(&header, &request)?;
    let batch = some_batch();
    let mut decoder = FrameDecoder::new(FRAME_MAX);
    for _ in 0..times {
        let (header, request) = next_request(&mut decoder, &frame)?;
        let Request::Fetch(request) = request else { return Err("it is Fetch".into()) };
        let topics = request.topics.into_iter().map(|topic| {
            let found = |partition: FetchPartition| {
                FetchPartitionResponse::found(partition.partition, 10, 0, vec![batch.clone()])
            };
            FetchTopicResponse { topic: topic.topic, partitions: topic.partitions.into_iter().map(found).collect() }
        });
        let (throttle_time_ms, error_code, session_id, node_endpoints) = (0, 0, 0, Vec::new());
        let answer =
            FetchResponse { throttle_time_ms, error_code, session_id, topics: topics.collect(), node_endpoints };
        black_box(response::encode(&header, answer.into())?);
    }
    Ok(())
}

/// Three replicas whose disks and network take no time.
struct Replicas(Vec<Group>);

impl Replicas {
    fn new() -> Result<Self, Failure> {
        let new = |peer| {
            let config = GroupConfig {
                voters: vec![1, 2, 3],
                election_jitter: peer as usize,
                ..GroupConfig::single(GroupId(9), peer)
            };
            Group::new(config, Restored::default())
        };
        let mut replicas = Self((1..=3).map(new).collect::<Result<_, _>>()?);
        replicas.0[0].campaign();
        replicas.settle();
        Ok(replicas)
    }

    /// Persists, applies and delivers until nothing is left to do.
    fn settle(&mut self) {
        loop {
            let mut messages = Vec::new();
            for group in &mut self.0 {
                while let Some(ready) = group.ready() {
                    messages.extend(ready.messages);
                    group.on_persisted(ready.number);
                    messages.extend(ready.persisted_messages);
                    if let Some(last) = ready.committed.last() {
                        group.applied_to(last.index);
                    }
                }
            }
            if messages.is_empty() {
                return;
            }
            for message in messages {
                self.0[message.to as usize - 1].step(message);
            }
        }
    }
}

fn raft(times: u64) -> Result<(), Failure> {
    let mut replicas = Replicas::new()?;
    let data = Bytes::from(vec![7; 100]);
    for _ in 0..times {
        replicas.0[0].propose(data.clone())?;
        replicas.settle();
        let applied = replicas.0[0].applied();
        for group in &mut replicas.0 {
            group.compact(applied);
        }
    }
    let applied: Vec<RaftIndex> = replicas.0.iter().map(Group::applied).collect();
    match applied.iter().all(|index| index.get() > times && *index == applied[0]) {
        true => Ok(()),
        false => Err(format!("the replicas applied up to {applied:?}").into()),
    }
}

fn ring(times: u64) -> Result<(), Failure> {
    const PAYLOAD: usize = 1024;
    let config = RingConfig { ring_id: Some(1), ..RingConfig::of_bytes(16 << 20) };
    let mut ring = Ring::new(config, 0, config.segments, RingStart { ring_id: 1, ..RingStart::default() });
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let hard_state = HardState { term: Term(1), vote: 1, commit: RaftIndex::ZERO };
    for index in 1..=times {
        let span = Span { base_offset: index - 1, count: 1, max_timestamp: 0 };
        let data = Bytes::from_static(&[0; 32]);
        let entry = Entry {
            index: RaftIndex::new(index),
            term: Term(1),
            entry_type: 0,
            data,
            payload: Some((span, payload.clone())),
        };
        let staged = ring.append(GroupId(1), hard_state, Record::Entry { entry: &entry });
        black_box(staged.map_err(|refused| format!("{refused:?}"))?);
        if index % 16 == 0 {
            while let Some(write) = ring.next_write() {
                black_box(write);
                ring.written();
            }
            ring.release_below(ring.durable());
        }
    }
    Ok(())
}

fn change_settings(times: u64) -> Result<(), Failure> {
    let (name, id): (Arc<str>, _) = ("topic".into(), Uuid::from_u128(1));
    let create = Command::CreateTopic {
        name: name.clone(),
        id,
        first_group: 1,
        replicas: vec![vec![1]],
        configs: BTreeMap::new(),
        created_ms: 0,
        peers: vec![1],
    };
    let mut slice = Slice::new(create.slice());
    slice.apply(&create).outcome.map_err(|rejection| format!("{rejection:?}"))?;
    for number in 0..times {
        let changes = vec![("retention.ms".to_owned(), Some((number % 1000 + 1000).to_string()))];
        let update = Command::UpdateTopicConfig { name: name.clone(), id, changes };
        for command in metadata::decode(&metadata::encode(&[update]))? {
            slice.apply(&command).outcome.map_err(|rejection| format!("{rejection:?}"))?;
        }
    }
    Ok(())
}
