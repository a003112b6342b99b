//! When the broker closes clients' connections, and when it does not.

mod support;

use bytes::Bytes;
use net::{
    StrBytes,
    client::{
        ClientCodec,
        blocking::{Client, ClientError},
    },
    codec::{
        api::ApiKey,
        fetch::{FetchRequest, ForgottenTopic},
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
        request::Request,
    },
    messages::{
        JoinGroupRequest, JoinGroupResponse, MetadataRequest, SyncGroupRequest,
        sync_group_request::SyncGroupRequestAssignment,
    },
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};
use support::{PATIENCE, broker::Broker, small_disk::not_tested, tool::Tool, wire};

fn is_closed(error: &ClientError) -> bool {
    matches!(error, ClientError::Closed { .. })
        || matches!(error, ClientError::Io(error)
            if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
}

/// A produce request with acks=0 and one batch for each of these partitions.
fn without_acks(topic: &str, partitions: &[i32], records: &Bytes) -> ProduceRequest {
    let partition = |index: &i32| ProducePartition { index: *index, records: Some(records.clone()) };
    let topic = ProduceTopic {
        topic: TopicRef::Name(wire::text(topic)),
        partitions: partitions.iter().map(partition).collect(),
    };
    ProduceRequest { transactional_id: None, acks: 0, timeout_ms: 30_000, topics: vec![topic] }
}

/// Sends a request without waiting.
fn send(client: &mut Client, api: ApiKey, request: Request) {
    // Later versions of Produce and Fetch name topics by id.
    let version = client.version(api).expect("it is served").min(12);
    client.send(version, &request).expect("sent");
}

#[test]
fn without_acks_an_error_closes_the_connection_and_nothing_else_does() {
    let broker = Broker::start();
    let mut witness = wire::connect(&broker);
    assert_eq!(wire::create_topic(&mut witness, "unacked", 2, 1, &[]).error_code, 0);
    let sound = wire::batch(&[b"value"]);
    let mut damaged = sound.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let mut magic = sound.to_vec();
    magic[16] = 1;
    let large = wire::batch(&[&vec![b'v'; 1_200_000][..]]);
    let cases = [
        ("an unknown topic", without_acks("nowhere", &[0], &sound)),
        ("an unknown partition", without_acks("unacked", &[7], &sound)),
        ("one partition of two is unknown", without_acks("unacked", &[0, 7], &sound)),
        ("a damaged batch", without_acks("unacked", &[0], &Bytes::from(damaged))),
        ("a batch of an old format", without_acks("unacked", &[0], &Bytes::from(magic))),
        ("a batch too large", without_acks("unacked", &[1], &large)),
        ("a topic of the broker's own", without_acks("__millrace_metadata", &[0], &sound)),
    ];
    let count = cases.len();
    for (name, request) in cases {
        let mut client = wire::connect(&broker);
        // Earlier requests still get their answers.
        send(&mut client, ApiKey::Metadata, MetadataRequest::default().into());
        send(&mut client, ApiKey::Produce, request.into());
        client.receive().unwrap_or_else(|error| panic!("{name}: the answer before it: {error}"));
        match client.receive() {
            Err(error) if is_closed(&error) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(broker.metric("millrace_produce_unacked_closed_total"), count as f64);
    broker.wait_for_log("acks=0", |line| line.contains("acks=0") && line.contains("nowhere"));

    // Without an error, the connection stays open. The next answer on it belongs to the next request.
    let mut client = wire::connect(&broker);
    send(&mut client, ApiKey::Produce, without_acks("unacked", &[1], &sound).into());
    assert_eq!(wire::produce(&mut client, "unacked", 1, sound).base_offset, 1);
    assert_eq!(wire::partitions(&mut witness, "unacked").len(), 2);
}

/// A broker that closes connections after a second of idleness.
fn impatient() -> Broker {
    Broker::start_with(&["--set", "connections.max.idle.ms=1000"])
}

#[test]
fn a_connection_with_a_request_in_flight_is_not_idle_and_one_without_is() {
    let broker = impatient();
    let (mut client, idle) = (wire::connect(&broker), wire::connect(&broker));
    assert_eq!(wire::create_topic(&mut client, "patient", 1, 1, &[]).error_code, 0);
    let wait = Duration::from_secs(4);
    for _ in 0..2 {
        let begun = Instant::now();
        let request = wire::fetch_request("patient", 0, 0, wait.as_millis() as i32, 1);
        client.fetch(request).expect("a fetch is answered however long it waits");
        assert!(begun.elapsed() >= wait, "it waited");
        assert_eq!(wire::partitions(&mut client, "patient").len(), 1, "served right after a long fetch");
    }
    let mut idle = idle;
    assert!(is_closed(&idle.receive().unwrap_err()), "an idle connection is closed");
}

#[test]
fn a_member_that_waits_for_others_is_not_idle() {
    let broker = impatient();
    let (mut leader, mut follower) = (wire::connect(&broker), wire::connect(&broker));
    assert_eq!(wire::create_topic(&mut leader, "patient", 1, 1, &[]).error_code, 0);
    wire::await_coordinator(&mut leader, "members");
    let wait = |leader: &mut Client| {
        let begun = Instant::now();
        leader.fetch(wire::fetch_request("patient", 0, 0, 4_000, 1)).expect("answered");
        assert!(begun.elapsed() >= Duration::from_secs(4), "it waited");
    };
    let (joined, followed) = join_both("members", &mut leader, &mut follower, wait);
    assert_eq!(followed.error_code, 0);
    send(&mut follower, ApiKey::SyncGroup, wire::syncing(&followed, "members").into());
    wait(&mut leader);
    let assignment = SyncGroupRequestAssignment::default().with_member_id(joined.member_id.clone());
    let sync = wire::syncing(&joined, "members").with_assignments(vec![assignment]);
    assert_eq!(leader.call(sync).expect("answered").error_code, 0);
    let synced = follower.receive().expect("answered").decode::<SyncGroupRequest>().expect("it decodes");
    assert_eq!(synced.error_code, 0);
}

#[test]
fn a_request_that_comes_slowly_is_not_idleness() {
    let broker = impatient();
    let mut stream = TcpStream::connect(broker.kafka()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Sends ApiVersions 0, byte by byte, for several times the limit.
    let request = [0, 0, 0, 12, 0, 18, 0, 0, 0, 0, 0, 77, 0, 2, b'm', b'e'];
    for byte in request {
        stream.write_all(&[byte]).expect("the connection stays");
        std::thread::sleep(Duration::from_millis(300));
    }
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).expect("the answer");
    assert_eq!(answer[4..], 77i32.to_be_bytes());
}

/// Like a hanging consumer: the client requests more than fits the sockets' buffers, and reads nothing.
#[test]
fn a_client_that_does_not_read_its_answer_is_idle() {
    let broker = impatient();
    let mut client = wire::connect(&broker);
    assert_eq!(wire::create_topic(&mut client, "unread", 1, 1, &[]).error_code, 0);
    for _ in 0..32 {
        let batch = wire::batch(&[&vec![b'v'; 1_000_000][..]]);
        assert_eq!(wire::produce(&mut client, "unread", 0, batch).error_code, 0);
    }
    let mut fetch = wire::fetch_request("unread", 0, 0, 0, 1);
    fetch.max_bytes = 32 << 20;
    fetch.topics[0].partitions[0].partition_max_bytes = 32 << 20;
    let mut hanging = wire::connect(&broker);
    for _ in 0..4 {
        send(&mut hanging, ApiKey::Fetch, fetch.clone().into());
    }
    let begun = Instant::now();
    while broker.metric("millrace_connections_open") > 0.0 {
        assert!(begun.elapsed() < PATIENCE, "it stays open");
        std::thread::yield_now();
    }
    // The sockets' buffers may contain some answers, but not the whole answer to the last request.
    let answers = (0..4).take_while(|_| hanging.receive().is_ok()).count();
    assert!(answers < 4, "{answers} answers");
}

/// Waits until a figure, summed over the cores, satisfies the condition.
fn until(broker: &Broker, name: &str, wanted: impl Fn(f64) -> bool) -> f64 {
    let begun = Instant::now();
    loop {
        let figure = broker.metric(name);
        if wanted(figure) {
            return figure;
        }
        assert!(begun.elapsed() < PATIENCE, "{name} stays at {figure}");
        std::thread::yield_now();
    }
}

/// Whether the broker closes a connection that sends nothing more.
fn ends(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match stream.read(&mut [0]) {
        Ok(byte_count) => byte_count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn is_served(client: &mut Client) -> bool {
    client.call(MetadataRequest::default()).is_ok()
}

fn try_connect(broker: &Broker) -> Result<Client, ClientError> {
    Client::connect(&broker.bootstrap(), "one more", PATIENCE)
}

#[test]
fn connections_are_limited_over_all_cores_and_who_has_said_nothing_goes_first() {
    let broker = Broker::start_with(&["--set", "max.connections=5"]);
    let mut clients: Vec<Client> = (0..3).map(|_| wire::connect(&broker)).collect();
    let silent: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(broker.kafka()).unwrap()).collect();
    until(&broker, "millrace_connections_open", |open| open == 5.0);
    // Two connections that have sent nothing make room for two more.
    clients.extend((0..2).map(|_| wire::connect(&broker)));
    assert!(silent.iter().all(ends), "who says nothing makes room");
    assert_eq!(broker.metric("millrace_connections_displaced_total"), 2.0);
    // Now nothing can make room, so the broker rejects new connections at once.
    for _ in 0..10 {
        let refused = try_connect(&broker).expect_err("there are five");
        assert!(is_closed(&refused), "{refused}");
    }
    assert_eq!(broker.metric("millrace_connections_refused_total"), 10.0);
    broker.wait_for_log("max.connections", |line| line.contains("5 connections are open (max.connections"));
    assert!(clients.iter_mut().all(is_served));
    // A client that leaves makes room, too.
    clients.pop();
    until(&broker, "millrace_connections_open", |open| open == 4.0);
    clients.push(wire::connect(&broker));
    assert!(clients.iter_mut().all(is_served));
}

/// Connects from another of this machine's addresses.
fn connect_from(source: [u8; 4], broker: &Broker) -> TcpStream {
    use std::os::fd::FromRawFd;
    let std::net::SocketAddr::V4(to) = broker.kafka() else { panic!("tests listen on IPv4") };
    let address = |ip: [u8; 4], port: u16| libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip) },
        sin_zero: [0; 8],
    };
    let (from, to) = (address(source, 0), address(to.ip().octets(), to.port()));
    let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the calls read live structs of the given lengths. The descriptor is new, and nobody else owns it.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0);
        let stream = TcpStream::from_raw_fd(socket);
        assert_eq!(libc::bind(socket, (&raw const from).cast(), len), 0);
        assert_eq!(libc::connect(socket, (&raw const to).cast(), len), 0);
        stream
    }
}

#[test]
fn connections_from_one_address_are_limited_over_all_cores() {
    let broker = Broker::start_with(&["--set", "max.connections.per.ip=3"]);
    let mut clients: Vec<Client> = (0..3).map(|_| wire::connect(&broker)).collect();
    for _ in 0..5 {
        assert!(is_closed(&try_connect(&broker).expect_err("three are open")));
    }
    assert_eq!(broker.metric("millrace_connections_refused_total"), 5.0);
    broker.wait_for_log("the address", |line| line.contains("3 connections from 127.0.0.1 are open"));
    // Other addresses have limits of their own.
    let others: Vec<TcpStream> = (0..3).map(|_| connect_from([127, 0, 0, 2], &broker)).collect();
    until(&broker, "millrace_connections_open", |open| open == 6.0);
    assert!(ends(&connect_from([127, 0, 0, 2], &broker)));
    drop(others);
    clients.pop();
    until(&broker, "millrace_connections_open", |open| open == 2.0);
    clients.push(wire::connect(&broker));
    assert!(clients.iter_mut().all(is_served));
}

/// 1,500 connections with `ulimit -n 1024`: storage, brokers, tools and the admin port have descriptors of their own.
#[test]
fn clients_take_no_descriptors_from_storage_peers_and_the_admin_port() {
    const PARTITIONS: i32 = 200;
    // This process holds the clients' ends of the connections.
    engine::host::limits::raise_open_files().expect("the limit can be raised");
    let mut broker = Broker::new(&["--set", "wal.ring.bytes=33554432"]);
    broker.limit_open_files(1024);
    broker.begin();
    let mut client = wire::connect(&broker);
    assert_eq!(wire::create_topic(&mut client, "lives", PARTITIONS, 1, &[]).error_code, 0);
    let idle: Vec<TcpStream> = (0..1500).map(|_| TcpStream::connect(broker.kafka()).expect("accepted")).collect();
    until(&broker, "millrace_connections_displaced_total", |count| count > 1000.0);
    // More than the rings hold. Without segment files and checkpoints, this amount could not be written.
    let checkpoints = broker.metric("millrace_checkpoints_total");
    for n in 0..3 * PARTITIONS {
        let batch = wire::batch(&[&vec![b'v'; 120_000][..]]);
        assert_eq!(wire::produce(&mut client, "lives", n % PARTITIONS, batch).error_code, 0);
    }
    until(&broker, "millrace_checkpoints_total", |now| now > checkpoints);
    assert_eq!(broker.metric("millrace_flush_failures_total"), 0.0);
    // New connections find room on every port.
    let mut clients: Vec<Client> = (0..100).map(|_| wire::connect(&broker)).collect();
    assert!(clients.iter_mut().all(is_served));
    Tool::connect(&broker, PATIENCE).expect("a tool is served");
    assert_eq!(broker.admin_get("/health/ready").0, 200);
    // Connections that have sent a request are not displaced. Once all connections have, the broker rejects new ones.
    let more: Vec<_> = (0..1000).map_while(|_| try_connect(&broker).ok()).collect();
    assert!(more.len() < 900, "{} more", more.len());
    assert!(clients.iter_mut().all(is_served) && is_served(&mut client));
    assert!(broker.metric("millrace_connections_refused_total") >= 1.0);
    Tool::connect(&broker, PATIENCE).expect("a tool is served");
    assert!(!broker.output().contains("Too many open files"), "{}", broker.output());
    drop((idle, more));
    broker.stop();
}

/// Longer than a test waits for anything.
const FOR_GOOD_MS: i32 = 600_000;

/// Two clients join a group. `meanwhile` runs on the leader's connection while the follower waits. Returns the answers
/// to the leader and to the follower.
fn join_both(
    group: &str,
    leader: &mut Client,
    follower: &mut Client,
    meanwhile: impl Fn(&mut Client),
) -> (JoinGroupResponse, JoinGroupResponse) {
    let [lead, follow] = [&mut *leader, &mut *follower].map(|client| wire::joining(client, group, Bytes::new()));
    assert_eq!(leader.call(lead.clone()).expect("answered").error_code, 0);
    send(follower, ApiKey::JoinGroup, follow.into());
    meanwhile(leader);
    let joined = loop {
        // Until the follower's request has come, the leader joins alone.
        let joined = leader.call(lead.clone()).expect("answered");
        assert_eq!(joined.error_code, 0);
        if joined.members.len() == 2 {
            break joined;
        }
    };
    (joined, follower.receive().expect("answered").decode::<JoinGroupRequest>().expect("it decodes"))
}

#[test]
fn consumers_that_are_killed_in_a_rebalance_leave_their_places_to_others_at_once() {
    const CROWD: usize = 12;
    let broker = Broker::start_with(&["--set", &format!("max.connections={}", CROWD + 1)]);
    let mut client = wire::connect(&broker);
    wire::await_coordinator(&mut client, "rebalanced");
    let join = wire::joining(&mut client, "rebalanced", Bytes::new());
    assert_eq!(client.call(join.clone()).expect("answered").error_code, 0);
    // The group waits until its first member joins again.
    let crowd = (0..CROWD).map(|_| {
        let mut waiting = wire::connect(&broker);
        let join = wire::joining(&mut waiting, "rebalanced", Bytes::new());
        send(&mut waiting, ApiKey::JoinGroup, join.into());
        waiting
    });
    let crowd: Vec<Client> = crowd.collect();
    until(&broker, "millrace_connections_open", |open| open == CROWD as f64 + 1.0);
    drop(crowd);
    until(&broker, "millrace_connections_open", |open| open == 1.0);
    let successors: Vec<Client> = (0..CROWD).map(|_| wire::connect(&broker)).collect();
    drop(successors);
    until(&broker, "millrace_connections_open", |open| open == 1.0);
    // They have joined all the same, and are members until their sessions expire.
    let joined = client.call(join).expect("answered");
    assert_eq!((joined.error_code, joined.members.len()), (0, CROWD + 1));

    // The same while a member waits for the leader's assignment.
    let mut follower = wire::connect(&broker);
    let (joined, followed) = join_both("assigned", &mut client, &mut follower, |_| {});
    send(&mut follower, ApiKey::SyncGroup, wire::syncing(&followed, "assigned").into());
    drop(follower);
    until(&broker, "millrace_connections_open", |open| open == 1.0);
    let assignment = SyncGroupRequestAssignment::default().with_member_id(joined.member_id.clone());
    let sync = wire::syncing(&joined, "assigned").with_assignments(vec![assignment]);
    assert_eq!(client.call(sync).expect("answered").error_code, 0);
}

/// Requests that wait for room on a full disk, for longer than their clients live: batches end with their connections,
/// and commits go on.
#[test]
fn requests_that_write_go_on_without_their_connections_but_for_batches() {
    /// As many connections of a core may end before their requests.
    const ENDED_EARLY_MAX: usize = 1024;
    const MORE: usize = 16;
    engine::host::limits::raise_open_files().expect("the limit can be raised");
    let settings = ["wal.ring.bytes=33554432", "offsets.commit.timeout.ms=600000", "offsets.topic.num.partitions=1"];
    let mut flags = vec!["--cores", "0"];
    settings.iter().for_each(|setting| flags.extend(["--set", setting]));
    let mut broker = Broker::new(&flags);
    if let Err(why) = broker.put_on_small_disk(128 << 20) {
        return not_tested(&why);
    }
    broker.begin();
    let mut client = wire::connect(&broker);
    assert_eq!(wire::create_topic(&mut client, "orphaned", 1, 1, &[]).error_code, 0);
    wire::await_coordinator(&mut client, "first");
    assert_eq!(wire::commit(&mut client, "first", "orphaned", 0), Ok(()));
    broker.small_disk().expect("mounted").fill();
    // Fills the ring, so that even a commit finds no room.
    let mut stored = 0;
    let requests = [900_000, 20_000, 1].map(|size| {
        let records = wire::batch(&[&vec![b'v'; size][..]]);
        let mut request = wire::produce_request("orphaned", 0, -1, records);
        request.timeout_ms = 1_000;
        while client.produce(request.clone()).expect("answered").responses[0].partition_responses[0].error_code == 0 {
            stored += 1;
        }
        ProduceRequest { timeout_ms: FOR_GOOD_MS, ..request }
    });
    let waiting = |count: usize, api: ApiKey, request: &dyn Fn(usize) -> Request| -> Vec<Client> {
        let crowd = (0..count).map(|n| {
            let mut waiting = wire::connect(&broker);
            send(&mut waiting, api, request(n));
            waiting
        });
        let crowd = crowd.collect();
        until(&broker, "millrace_admission_waiting", |waiting| waiting == count as f64);
        crowd
    };

    drop(waiting(MORE, ApiKey::Produce, &|n| requests[n % 3].clone().into()));
    until(&broker, "millrace_admission_waiting", |waiting| waiting == 0.0);
    until(&broker, "millrace_connections_open", |open| open == 1.0);

    let groups: Vec<String> = (0..ENDED_EARLY_MAX + MORE).map(|n| format!("group-{n}")).collect();
    let commit = |n: usize| -> Request { wire::committing(&groups[n], "orphaned", n as i64).into() };
    drop(waiting(groups.len(), ApiKey::OffsetCommit, &commit));
    until(&broker, "millrace_connections_open", |open| open == MORE as f64 + 1.0);
    assert_eq!(broker.metric("millrace_admission_waiting"), groups.len() as f64);

    broker.small_disk().expect("mounted").make_room();
    until(&broker, "millrace_connections_open", |open| open == 1.0);
    until(&broker, "millrace_admission_waiting", |waiting| waiting == 0.0);
    for (n, group) in groups.iter().enumerate() {
        assert_eq!(wire::committed(&mut client, group, "orphaned"), n as i64, "{group}");
    }
    assert_eq!(wire::produce(&mut client, "orphaned", 0, wire::batch(&[b"last"])).base_offset, stored);
    broker.stop();
}

#[test]
fn a_client_that_has_closed_its_sending_side_still_gets_its_answers() {
    let broker = Broker::start();
    assert_eq!(wire::create_topic(&mut wire::connect(&broker), "half", 1, 1, &[]).error_code, 0);
    let produce = wire::produce_request("half", 0, -1, wire::batch(&[b"value"]));
    let (mut codec, mut stream) = (ClientCodec::new("half"), TcpStream::connect(broker.kafka()).unwrap());
    for (version, request) in [(12, produce.into()), (12, MetadataRequest::default().into())] {
        let (_, parts) = codec.encode(version, &request).expect("the request is valid");
        stream.write_all(&parts.into_bytes()).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).expect("the broker closes the connection");
    let mut rest = &answers[..];
    let mut count = 0;
    while let Some((length, frame)) = rest.split_first_chunk() {
        rest = &frame[u32::from_be_bytes(*length) as usize..];
        count += 1;
    }
    assert_eq!(count, 2);
}

/// A broker with one core. Its frames below 256 KiB have 4 MiB of memory, small requests in progress 1 MiB.
fn with_little_memory(setting: &str) -> Broker {
    Broker::start_with(&["--cores", "0", "--set", "memory.budget.bytes=67108864", "--set", setting])
}

/// A fetch of a partition without records, whose frame is a little larger than `bytes`.
fn vain_fetch(topic: &str, max_wait_ms: i32, bytes: usize) -> FetchRequest {
    /// No string may be much longer.
    const NAME_MAX: usize = 25_000;
    let name = |at| StrBytes::from_string("n".repeat(NAME_MAX.min(bytes - at)));
    let topic_at = |at| ForgottenTopic { topic: TopicRef::Name(name(at)), partitions: Vec::new() };
    let forgotten = (0..bytes).step_by(NAME_MAX).map(topic_at).collect();
    FetchRequest { forgotten, ..wire::fetch_request(topic, 0, 0, max_wait_ms, 1) }
}

/// Takes all memory for frames below 256 KiB of requests that do not produce, for as long as the first of these fetches
/// waits.
fn hold_memory(broker: &Broker, topic: &str, max_wait_ms: i32) -> Client {
    const BYTES: usize = 250_000;
    const COUNT: usize = 5;
    let mut holder = wire::connect(broker);
    for n in 0..COUNT {
        send(&mut holder, ApiKey::Fetch, vain_fetch(topic, if n == 0 { max_wait_ms } else { 0 }, BYTES).into());
    }
    until(broker, "millrace_memory_requests_bytes", |held| held >= (COUNT * BYTES) as f64);
    holder
}

#[test]
fn a_client_that_leaves_while_its_next_request_waits_for_room_is_noticed() {
    const IN_FLIGHT_MAX: usize = 64;
    let mut broker = with_little_memory("max.connections=8");
    let mut client = wire::connect(&broker);
    assert_eq!(wire::create_topic(&mut client, "vain", 1, 1, &[]).error_code, 0);
    let fetch = |client: &mut Client, bytes| send(client, ApiKey::Fetch, vain_fetch("vain", FOR_GOOD_MS, bytes).into());
    let (requests, open) = ("millrace_kafka_requests_total", "millrace_connections_open");

    // One that waits for one of its requests to end.
    let mut eager = wire::connect(&broker);
    let before = broker.metric(requests);
    (0..IN_FLIGHT_MAX + 1).for_each(|_| fetch(&mut eager, 0));
    until(&broker, requests, |count| count >= before + IN_FLIGHT_MAX as f64);
    // Another client is served meanwhile.
    assert!(is_served(&mut client));
    assert_eq!(broker.metric(requests), before + IN_FLIGHT_MAX as f64 + 1.0);
    drop(eager);
    until(&broker, open, |open| open == 1.0);

    // One that waits for other clients' requests to end.
    let mut crowd = [(); 2].map(|()| wire::connect(&broker));
    let before = broker.metric(requests);
    crowd.iter_mut().for_each(|client| (0..40).for_each(|_| fetch(client, 15_000)));
    until(&broker, requests, |count| count >= before + 69.0);
    let mut late = wire::connect(&broker);
    (0..3).for_each(|_| fetch(&mut late, 15_000));
    drop(late);
    until(&broker, open, |open| open == 3.0);
    drop(crowd);
    until(&broker, open, |open| open == 1.0);

    // One that waits for memory.
    let holder = hold_memory(&broker, "vain", FOR_GOOD_MS);
    let waits = "millrace_memory_request_waits_total";
    let before = broker.metric(waits);
    let mut waiting = wire::connect(&broker);
    fetch(&mut waiting, 20_000);
    until(&broker, waits, |count| count > before);
    drop(waiting);
    until(&broker, open, |open| open == 2.0);
    drop(holder);
    until(&broker, open, |open| open == 1.0);
    until(&broker, "millrace_memory_requests_bytes", |held| held == 0.0);
    broker.stop();
}

#[test]
fn a_request_that_waits_for_memory_is_not_idleness_and_one_that_its_client_does_not_end_is() {
    let mut broker = with_little_memory("connections.max.idle.ms=1000");
    assert_eq!(wire::create_topic(&mut wire::connect(&broker), "vain", 1, 1, &[]).error_code, 0);
    let mut unfinished = TcpStream::connect(broker.kafka()).unwrap();
    unfinished.write_all(&[0, 0, 0, 100, 0]).unwrap();
    let wait = Duration::from_secs(5);
    let begun = Instant::now();
    let _holder = hold_memory(&broker, "vain", wait.as_millis() as i32);
    let mut waiting = wire::connect(&broker);
    send(&mut waiting, ApiKey::Fetch, vain_fetch("vain", 0, 20_000).into());
    waiting.receive().expect("it is answered however long it waits for memory");
    assert!(begun.elapsed() >= wait, "it waited");
    assert!(ends(&unfinished), "a client that sends nothing more is idle");
    broker.stop();
}
