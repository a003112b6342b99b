//! The memory that clients make the broker hold stays within its budget, and clients that hold memory without progress
//! lose it to others.

mod support;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use net::client::blocking::Client;
use net::client::{Answer, ClientCodec};
use net::codec::fetch::{FetchPartition, FetchRequest, FetchTopic};
use net::codec::produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef};
use net::codec::request::Request;
use net::errors::{self, ErrorCode};
use net::messages::describe_configs_request::DescribeConfigsResource;
use net::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use net::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use net::messages::sync_group_request::SyncGroupRequestAssignment;
use net::messages::{
    self, DescribeConfigsRequest, DescribeGroupsRequest, FindCoordinatorRequest, GroupId, JoinGroupRequest,
    ListOffsetsRequest, MetadataRequest, OffsetFetchRequest, SyncGroupRequest,
};
use net::records::build::BatchBuilder;
use net::records::compression::Codec;
use socket2::{Domain, Socket, Type};

use support::broker::Broker;
use support::cluster::wait_until;
use support::wire;

const MIB: usize = 1 << 20;
/// The smallest budget that a broker accepts.
const BUDGET: usize = 64 * MIB;
/// Further memory of the process: the program itself, its threads and runtime, sockets, and freed memory that it keeps.
/// A debug build that has served a little takes 70 MiB.
const BESIDES: usize = 96 * MIB;
const TOPIC: &str = "old";
const PARTITIONS: i32 = 12;

fn start(settings: &[&str]) -> Broker {
    let budget = format!("memory.budget.bytes={BUDGET}");
    let mut flags = vec!["--cores", "0", "--set", &budget];
    settings.iter().for_each(|setting| flags.extend(["--set", setting]));
    Broker::start_with(&flags)
}

/// The peak memory of the process, in bytes.
fn peak(broker: &Broker) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.pid())).expect("the broker runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

/// Ends other threads, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes several times the amount that the broker may keep in memory.
fn fill(broker: &Broker) {
    let mut client = wire::connect(broker);
    let created = wire::create_topic(&mut client, TOPIC, PARTITIONS, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    let records = wire::batch(&[&vec![b'x'; 900_000]]);
    for at in 0..10 * PARTITIONS {
        let answer = wire::produce(&mut client, TOPIC, at % PARTITIONS, records.clone());
        assert_eq!(errors::check(answer.error_code), Ok(()));
    }
}

fn fetch_all() -> FetchRequest {
    let partitions = (0..PARTITIONS).map(|index| FetchPartition::of_consumer(index, 0, 16 << 20)).collect();
    let topic = FetchTopic { topic: TopicRef::Name(wire::text(TOPIC)), partitions };
    FetchRequest::of_consumer(500, 1, 50 << 20, vec![topic])
}

/// Sends the same request again and again, and reads nothing. The kernel buffers little for this connection.
fn ask_in_vain(broker: &Broker, version: i16, request: &Request, times: usize) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a buffer's size can be set");
    socket.connect(&broker.kafka().into()).expect("the broker accepts");
    let mut stream = TcpStream::from(socket);
    let mut codec = ClientCodec::new("deaf");
    for _ in 0..times {
        let (_, parts) = codec.encode(version, request).expect("the request is valid");
        // The broker may have closed the connection already.
        if stream.write_all(&parts.into_bytes()).is_err() {
            break;
        }
    }
    stream
}

#[test]
fn answers_that_nobody_reads_take_what_they_may_and_hold_up_nobody() {
    let broker = start(&[]);
    fill(&broker);
    let crowd: Vec<TcpStream> = (0..40).map(|_| ask_in_vain(&broker, 12, &fetch_all().into(), 300)).collect();
    wait_until("clients that are closed for others", || broker.metric("millrace_connections_stalled_total") > 3.0);
    // Meanwhile a client that reads gets everything.
    let mut reader = wire::connect(&broker);
    for partition in 0..PARTITIONS {
        // If memory is short, an answer may be empty. Then a consumer asks again.
        wait_until("records", || {
            let answer = reader.fetch(wire::fetch_request(TOPIC, partition, 5, 500, 1)).expect("an answer");
            let answer = wire::only_partition(&answer);
            assert_eq!(errors::check(answer.error_code), Ok(()));
            answer.records.as_ref().is_some_and(|records| !records.is_empty())
        });
    }
    assert!(peak(&broker) < BUDGET + BESIDES, "{} MiB", peak(&broker) / MIB);
    // Nobody reads the answers on the closed connections any more.
    drop(crowd);
    wait_until("connections that are gone", || broker.metric("millrace_connections_open") == 1.0);
    wait_until("memory that is given back", || broker.metric("millrace_memory_cold_answers_bytes") == 0.0);
    assert!(peak(&broker) < BUDGET + BESIDES, "{} MiB", peak(&broker) / MIB);
}

/// Requests that wait behind an answer begin nothing for a client that is gone. Else each starts a read of the disk,
/// and all their buffers are there together.
#[test]
fn clients_that_leave_many_requests_behind_cause_no_reads() {
    const CROWD: usize = 4;
    const LARGER: usize = 256 * MIB;
    let broker = Broker::start_with(&["--cores", "0", "--set", &format!("memory.budget.bytes={LARGER}")]);
    fill(&broker);
    let partitions = vec![FetchPartition::of_consumer(0, 0, 500_000)];
    let topic = FetchTopic { topic: TopicRef::Name(wire::text(TOPIC)), partitions };
    let fetch: Request = FetchRequest::of_consumer(500, 1, 50 << 20, vec![topic]).into();
    let crowd: Vec<TcpStream> = (0..CROWD).map(|_| ask_in_vain(&broker, 12, &fetch, 64)).collect();
    let held = || broker.metric("millrace_memory_cold_answers_bytes") as usize;
    wait_until("answers that nobody takes", || held() > CROWD * 900_000);
    let before = peak(&broker);
    drop(crowd);
    wait_until("connections that are gone", || broker.metric("millrace_connections_open") == 0.0);
    wait_until("memory that is given back", || held() == 0);
    let more = peak(&broker).saturating_sub(before);
    assert!(more < 64 * MIB, "{} MiB more", more / MIB);
}

#[test]
fn answers_about_metadata_that_nobody_reads_are_counted_and_given_back() {
    const CROWD: usize = 8;
    let broker = start(&[]);
    let created = wire::create_topic(&mut wire::connect(&broker), TOPIC, 700, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    let all = MetadataRequest::default().with_topics(None).into();
    let crowd: Vec<TcpStream> = (0..CROWD).map(|_| ask_in_vain(&broker, 12, &all, 300)).collect();
    // An answer is larger than 15 KB. One answer of each client waits, because the kernel takes no more.
    let held = || broker.metric("millrace_memory_answers_bytes") as usize;
    wait_until("answers that nobody takes", || held() > CROWD * 15_000);
    assert_eq!(wire::partitions(&mut wire::connect(&broker), TOPIC).len(), 700);
    assert!(peak(&broker) < BUDGET + BESIDES, "{} MiB", peak(&broker) / MIB);
    drop(crowd);
    wait_until("memory that is given back", || held() == 0);
}

/// While a connection sends an answer that nobody takes, only the next one is built.
#[test]
fn few_answers_of_one_connection_are_in_memory_however_many_it_asks_for() {
    const REQUESTS: usize = 60;
    const LARGE: usize = 130 << 10;
    let broker = start(&[]);
    let mut client = wire::connect(&broker);
    assert_eq!(errors::check(wire::create_topic(&mut client, "t", 1, 1, &[]).error_code), Ok(()));
    let describe = |times| {
        const TOPIC_RESOURCE: i8 = 2;
        let topic =
            DescribeConfigsResource::default().with_resource_type(TOPIC_RESOURCE).with_resource_name(wire::text("t"));
        let request = DescribeConfigsRequest::default().with_resources(vec![topic; times]);
        Request::from(request.with_include_documentation(true).with_include_synonyms(true))
    };
    let sent = || broker.metric("millrace_kafka_response_bytes_total") as usize;
    let before = sent();
    let described = client.ask(4, &describe(1)).expect("answered").decode::<DescribeConfigsRequest>().expect("decodes");
    assert_eq!(errors::check(described.results[0].error_code), Ok(()));
    let times = LARGE / (sent() - before) + 1;
    let before = broker.metric("millrace_kafka_requests_total");
    let deaf = ask_in_vain(&broker, 4, &describe(times), REQUESTS);
    let held = |name: &str| broker.metric(&format!("millrace_memory_{name}_bytes")) as usize;
    let few = || {
        let held = held("answers") + held("requests");
        // The one being sent, and the next one, which is weighed as decoded and encoded.
        assert!(held < 8 * LARGE, "{held} bytes");
        held
    };
    let begun = || broker.metric("millrace_kafka_requests_total") >= before + REQUESTS as f64;
    wait_until("requests", || few() < 8 * LARGE && begun());
    wait_until("answers that nobody takes", || few() > LARGE);
    drop(deaf);
    wait_until("connections that are gone", || broker.metric("millrace_connections_open") == 1.0);
    wait_until("memory that is given back", || few() == 0);
}

/// Small frames with many names: a request takes 100 times its frame when it is decoded and answered.
#[test]
fn requests_with_many_small_elements_are_counted_by_their_elements() {
    const CROWD: usize = 300;
    let broker = start(&[]);
    let keys = vec![wire::text("g"); 8_000];
    let find: Request = FindCoordinatorRequest::default().with_coordinator_keys(keys).into();
    let crowd: Vec<TcpStream> = (0..CROWD).map(|_| ask_in_vain(&broker, 4, &find, 2)).collect();
    wait_until("requests that wait for memory", || broker.metric("millrace_memory_request_waits_total") > 10.0);
    // A client that asks for little is answered at once.
    wire::await_coordinator(&mut wire::connect(&broker), "g");
    drop(crowd);
    wait_until("connections that are gone", || broker.metric("millrace_connections_open") == 0.0);
    wait_until("memory that is given back", || {
        let held = |name: &str| broker.metric(&format!("millrace_memory_{name}_bytes"));
        held("answers") == 0.0 && held("requests") == 0.0
    });
    assert!(peak(&broker) < BUDGET + BESIDES, "{} MiB", peak(&broker) / MIB);
}

/// 30,000 elements in a frame of at most 180 KB.
#[test]
fn the_decoded_form_of_every_request_is_counted_and_numbers_count_little() {
    const MANY: usize = 30_000;
    let broker = start(&[]);
    let mut client = wire::connect(&broker);
    wire::await_coordinator(&mut client, "g");
    let name = || TopicRef::Name(wire::text("t"));
    let group = || GroupId(wire::text("g"));
    let partitions = vec![ProducePartition { index: 0, records: None }; MANY];
    let topics = vec![ProduceTopic { topic: name(), partitions }];
    let produce = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 1_000, topics };
    let topics = vec![FetchTopic { topic: name(), partitions: Vec::new() }; MANY];
    let fetch = FetchRequest::of_consumer(500, 1, 50 << 20, topics);
    let join = JoinGroupRequest::default().with_group_id(group()).with_protocols(vec![Default::default(); MANY]);
    let sync = SyncGroupRequest::default().with_group_id(group()).with_assignments(vec![Default::default(); MANY]);
    let topic = OffsetFetchRequestTopics::default().with_name(wire::topic_name("t"));
    let asked = OffsetFetchRequestGroup::default()
        .with_group_id(group())
        .with_topics(Some(vec![topic.with_partition_indexes((0..MANY as i32).collect())]));
    let offsets = OffsetFetchRequest::default().with_groups(vec![asked]);
    let requests: [(Request, i16, bool); 5] = [
        (produce.into(), 9, true),
        (fetch.into(), 12, true),
        (join.into(), 9, true),
        (sync.into(), 5, true),
        (offsets.into(), 8, false),
    ];
    for (request, version, exceeds_its_lane) in requests {
        let waits = || broker.metric("millrace_memory_request_waits_total");
        let before = waits();
        client.ask(version, &request).unwrap_or_else(|error| panic!("{:?}: {error}", request.api()));
        assert_eq!(waits() > before, exceeds_its_lane, "{:?}", request.api());
    }
    wait_until("memory that is given back", || broker.metric("millrace_memory_requests_bytes") == 0.0);
}

/// Small frames of produce requests, which begin before the answers ahead of them are taken.
#[test]
fn produce_requests_whose_answers_nobody_reads_hold_up_nobody() {
    let broker = start(&[]);
    let created = wire::create_topic(&mut wire::connect(&broker), TOPIC, 1, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    let partitions = vec![ProducePartition { index: 0, records: None }; 2_600];
    let topics = vec![ProduceTopic { topic: TopicRef::Name(wire::text("t")), partitions }];
    let produce: Request = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 1_000, topics }.into();
    // The answers of each client take 8 MB, more than the kernel buffers.
    let crowd: Vec<TcpStream> = (0..4).map(|_| ask_in_vain(&broker, 9, &produce, 100)).collect();
    wait_until("requests that wait for memory", || broker.metric("millrace_memory_request_waits_total") > 3.0);
    wait_until("clients that are closed for others", || broker.metric("millrace_connections_stalled_total") > 2.0);
    let answer = wire::produce(&mut wire::connect(&broker), TOPIC, 0, wire::batch(&[&vec![b'x'; 500_000]]));
    assert_eq!(errors::check(answer.error_code), Ok(()));
    assert!(peak(&broker) < BUDGET + BESIDES, "{} MiB", peak(&broker) / MIB);
    drop(crowd);
    wait_until("memory that is given back", || broker.metric("millrace_memory_requests_bytes") == 0.0);
}

/// Sends a large request except its end, as fast as the broker accepts it, and then nothing.
fn send_in_part(broker: &Broker, bytes: usize, over: &AtomicBool) {
    let mut stream = TcpStream::connect(broker.kafka()).expect("the broker accepts");
    stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a timeout can be set");
    // The header of a produce request, and then zeros.
    let head = [&(bytes as i32).to_be_bytes()[..], &[0, 0, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 0]].concat();
    let mut left = bytes - head.len();
    let mut sent = stream.write_all(&head);
    while sent.is_ok() && left > 0 && !over.load(Ordering::Relaxed) {
        sent = match stream.write(&[0; 64 << 10][..left.min(64 << 10)]) {
            Ok(written) => {
                left -= written;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        };
    }
    while sent.is_ok() && !over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn requests_that_never_end_take_what_they_may_and_hold_up_nobody() {
    const FRAME: usize = 24 * MIB;
    let frame_max = format!("socket.request.max.bytes={FRAME}");
    let broker = start(&[&frame_max, "message.max.bytes=2000000"]);
    let mut client = wire::connect(&broker);
    let created = wire::create_topic(&mut client, TOPIC, PARTITIONS, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = End(&over);
        for _ in 0..20 {
            scope.spawn(|| send_in_part(&broker, FRAME, &over));
        }
        wait_until("requests that wait for memory", || broker.metric("millrace_memory_request_waits_total") > 10.0);
        for size in [100, 20_000, 200_000, 1_900_000] {
            let answer = wire::produce(&mut client, TOPIC, 0, wire::batch(&[&vec![b'x'; size]]));
            assert_eq!(errors::check(answer.error_code), Ok(()), "{size} bytes");
        }
        wait_until("clients that are closed for others", || broker.metric("millrace_connections_stalled_total") > 3.0);
        // One frame may exceed the share.
        assert!(peak(&broker) < BUDGET + BESIDES + FRAME, "{} MiB", peak(&broker) / MIB);
    });
    wait_until("memory that is given back", || broker.metric("millrace_memory_requests_bytes") == 0.0);
}

fn await_members(client: &mut Client, group: &str, count: usize) {
    wait_until("members", || {
        let describe = DescribeGroupsRequest::default().with_groups(vec![GroupId(wire::text(group))]);
        let described = &client.call(describe).expect("answered").groups[0];
        assert_eq!(errors::check(described.error_code), Ok(()));
        described.members.len() == count
    });
}

/// More frames than fit the memory for requests, each of a member that waits for another. That may take minutes.
#[test]
fn members_that_wait_for_others_hold_no_memory_of_requests() {
    const CROWD: usize = 9;
    const BYTES: usize = 200_000;
    let broker = start(&[]);
    let mut client = wire::connect(&broker);
    assert_eq!(errors::check(wire::create_topic(&mut client, TOPIC, 1, 1, &[]).error_code), Ok(()));
    wire::await_coordinator(&mut client, "joined");
    let crowd = || (0..CROWD).map(|_| wire::connect(&broker)).collect::<Vec<_>>();
    let held = || broker.metric("millrace_memory_requests_bytes");
    let send = |client: &mut Client, request: Request| {
        let version = client.version(request.api()).expect("it is served");
        client.send(version, &request).expect("sent");
    };
    // JoinGroups that wait until the first member joins again.
    let first = wire::joining(&mut client, "joined", Bytes::new());
    assert_eq!(errors::check(client.call(first).expect("answered").error_code), Ok(()));
    let mut joining = crowd();
    for member in &mut joining {
        let join = wire::joining(member, "joined", vec![b'm'; BYTES].into());
        send(member, join.into());
    }
    await_members(&mut client, "joined", CROWD + 1);
    wait_until("memory that is given back", || held() == 0.0);
    drop(joining);

    // SyncGroups that wait for the leader's.
    let lead = wire::joining(&mut client, "synced", Bytes::new());
    assert_eq!(errors::check(client.call(lead.clone()).expect("answered").error_code), Ok(()));
    let mut syncing = crowd();
    for member in &mut syncing {
        let join = wire::joining(member, "synced", Bytes::new());
        send(member, join.into());
    }
    await_members(&mut client, "synced", CROWD + 1);
    let joined = client.call(lead).expect("answered");
    let before = broker.metric("millrace_kafka_requests_total");
    for member in &mut syncing {
        let joined = member.receive().expect("answered").decode::<JoinGroupRequest>().expect("it decodes");
        let assignment = SyncGroupRequestAssignment::default().with_assignment(vec![b'a'; BYTES].into());
        send(member, wire::syncing(&joined, "synced").with_assignments(vec![assignment]).into());
    }
    wait_until("requests", || broker.metric("millrace_kafka_requests_total") >= before + CROWD as f64);
    wait_until("memory that is given back", || held() == 0.0);
    let answer = wire::produce(&mut client, TOPIC, 0, wire::batch(&[&vec![b'x'; BYTES]]));
    assert_eq!(errors::check(answer.error_code), Ok(()));
    let sync = wire::syncing(&joined, "synced").with_assignments(vec![]);
    assert_eq!(errors::check(client.call(sync).expect("answered").error_code), Ok(()));
    for member in &mut syncing {
        let synced = member.receive().expect("answered").decode::<SyncGroupRequest>().expect("it decodes");
        assert_eq!(errors::check(synced.error_code), Ok(()));
    }
}

#[test]
fn writes_faster_than_the_disk_wait_outside_of_memory() {
    let broker = start(&["wal.ring.bytes=536870912"]);
    let created = wire::create_topic(&mut wire::connect(&broker), TOPIC, PARTITIONS, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    thread::scope(|scope| {
        for partition in 0..PARTITIONS {
            let broker = &broker;
            scope.spawn(move || {
                let mut client = wire::connect(broker);
                let records = wire::batch(&[&vec![b'x'; 900_000]]);
                for _ in 0..30 {
                    let answer = wire::produce(&mut client, TOPIC, partition, records.clone());
                    assert_eq!(errors::check(answer.error_code), Ok(()));
                }
            });
        }
    });
    assert!(peak(&broker) < BUDGET + BESIDES, "{} MiB", peak(&broker) / MIB);
}

const TIME: i64 = 1_000_000;

/// A batch of some 2 KB with a record of `bytes` zeros at [`TIME`] and an empty one a millisecond later, as zstd with a
/// window as large as all of it.
fn with_wide_window(bytes: usize) -> Bytes {
    const BLOCK: usize = 128 << 10;
    const RAW: u32 = 0;
    const RUN: u32 = 1;
    let varint = |value: i64| {
        let (mut left, mut out) = (((value << 1) ^ (value >> 63)) as u64, Vec::new());
        while left >= 0x80 {
            out.push(left as u8 | 0x80);
            left >>= 7;
        }
        out.push(left as u8);
        out
    };
    // No attributes, no deltas, no key. The value and the number of headers are zeros.
    let fields = [vec![0, 0, 0], varint(-1), varint(bytes as i64)].concat();
    let head = [varint((fields.len() + bytes + 1) as i64), fields].concat();
    let second = [12, 0, 2, 2, 1, 1, 0];
    let zeros = bytes + 1;
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0xA0];
    frame.extend_from_slice(&((head.len() + zeros + second.len()) as u32).to_le_bytes());
    let mut block = |kind: u32, size: usize, is_last: bool, content: &[u8]| {
        let header = (size as u32) << 3 | kind << 1 | u32::from(is_last);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(content);
    };
    block(RAW, head.len(), false, &head);
    for at in (0..zeros).step_by(BLOCK) {
        let size = BLOCK.min(zeros - at);
        block(RUN, size, false, &[0]);
    }
    block(RAW, second.len(), true, &second);
    let mut sealed = Vec::new();
    sealed.extend_from_slice(&4i16.to_be_bytes());
    sealed.extend_from_slice(&1i32.to_be_bytes());
    sealed.extend_from_slice(&TIME.to_be_bytes());
    sealed.extend_from_slice(&(TIME + 1).to_be_bytes());
    sealed.extend_from_slice(&(-1i64).to_be_bytes());
    sealed.extend_from_slice(&(-1i16).to_be_bytes());
    sealed.extend_from_slice(&(-1i32).to_be_bytes());
    sealed.extend_from_slice(&2i32.to_be_bytes());
    sealed.extend_from_slice(&frame);
    let mut batch = 0u64.to_be_bytes().to_vec();
    batch.extend_from_slice(&(9 + sealed.len() as i32).to_be_bytes());
    batch.extend_from_slice(&0i32.to_be_bytes());
    batch.push(2);
    batch.extend_from_slice(&crc32c::crc32c(&sealed).to_be_bytes());
    batch.extend_from_slice(&sealed);
    batch.into()
}

/// Sends a request on many connections at once, and waits for all answers.
fn ask_all(broker: &Broker, crowd: usize, version: i16, request: &Request) -> Vec<Answer> {
    let mut crowd: Vec<Client> = (0..crowd).map(|_| wire::connect(broker)).collect();
    for client in &mut crowd {
        client.send(version, request).expect("the broker reads");
    }
    crowd.iter_mut().map(|client| client.receive().expect("an answer")).collect()
}

/// A lookup of the first record with this timestamp or a later one in the first partition.
fn lookup(topic: &str, timestamp: i64) -> Request {
    let partition = ListOffsetsPartition::default().with_timestamp(timestamp);
    let topic = ListOffsetsTopic::default().with_name(wire::topic_name(topic)).with_partitions(vec![partition]);
    ListOffsetsRequest::default().with_replica_id((-1).into()).with_topics(vec![topic]).into()
}

/// The offset that was found.
fn found(answer: Answer) -> Result<i64, ErrorCode> {
    let answer = answer.decode::<ListOffsetsRequest>().expect("it decodes");
    let partition = &answer.topics[0].partitions[0];
    errors::check(partition.error_code).map(|()| partition.offset)
}

/// A batch of 2 KB may ask its decoder to keep 48 MiB.
#[test]
fn batches_with_large_windows_are_unfolded_one_at_a_time() {
    const WINDOW: usize = 48 * MIB;
    let broker = start(&[]);
    let mut client = wire::connect(&broker);
    let created = wire::create_topic(&mut client, TOPIC, 1, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    let batch = with_wide_window(WINDOW);
    assert!(batch.len() < 4096, "{} bytes", batch.len());
    let partitions = vec![ProducePartition { index: 0, records: Some(batch.clone()) }];
    let topics = vec![ProduceTopic { topic: TopicRef::Name(wire::text(TOPIC)), partitions }];
    let request = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 60_000, topics };
    let produced = ask_all(&broker, 12, 9, &request.into()).into_iter().map(|answer| {
        let answer = answer.decode::<messages::ProduceRequest>().expect("it decodes");
        let partition = &answer.responses[0].partition_responses[0];
        assert_eq!(errors::check(partition.error_code), Ok(()));
        partition.base_offset
    });
    assert!(produced.collect::<BTreeSet<_>>().into_iter().eq((0..24).step_by(2)));
    let answer = wire::produce(&mut client, TOPIC, 0, batch);
    assert_eq!((errors::check(answer.error_code), answer.base_offset), (Ok(()), 24));
    let looked_up = ask_all(&broker, 12, 4, &lookup(TOPIC, TIME + 1));
    assert!(looked_up.into_iter().all(|answer| found(answer) == Ok(1)));
    assert!(peak(&broker) < BUDGET + BESIDES + WINDOW, "{} MiB", peak(&broker) / MIB);
}

/// Each lookup unfolds the batch to its end, which takes several turns. Meanwhile it has the batch in memory.
#[test]
fn lookups_in_large_batches_from_the_disk_are_counted() {
    const CROWD: usize = 300;
    const BYTES: usize = 950_000;
    let broker = start(&[]);
    let mut client = wire::connect(&broker);
    assert_eq!(errors::check(wire::create_topic(&mut client, "looked-up", 1, 1, &[]).error_code), Ok(()));
    let mut batch = BatchBuilder::new(Codec::Gzip);
    let mut noise = fastrand::Rng::with_seed(1);
    let value: Vec<u8> = (0..BYTES).map(|_| noise.u8(..)).collect();
    batch.push(TIME, None, Some(&value));
    batch.push(TIME + 1, None, Some(b"last"));
    let batch = batch.finish();
    assert!(batch.len() > BYTES * 9 / 10, "{} bytes", batch.len());
    assert_eq!(errors::check(wire::produce(&mut client, "looked-up", 0, batch).error_code), Ok(()));
    // Then the broker has it on the disk only.
    fill(&broker);
    let cold = || broker.metric("millrace_cold_reads_total");
    let before = cold();
    let lookup = lookup("looked-up", TIME + 1);
    let answers = ask_all(&broker, CROWD, 4, &lookup);
    assert!(cold() - before >= CROWD as f64, "{} reads", cold() - before);
    let mut served = 0;
    for answer in answers {
        match found(answer) {
            Ok(offset) => assert_eq!(offset, 1),
            // Too many lookups came before it. Clients ask again.
            Err(error) => {
                assert_eq!(error, ErrorCode::LeaderNotAvailable);
                continue;
            }
        }
        served += 1;
    }
    assert!(served > 0, "none was served");
    assert!(peak(&broker) < BUDGET + BESIDES, "{} MiB", peak(&broker) / MIB);
    wait_until("memory that is given back", || broker.metric("millrace_memory_cold_answers_bytes") == 0.0);
    assert_eq!(found(client.ask(4, &lookup).expect("an answer")), Ok(1));
}
