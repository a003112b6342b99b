//! When connections of clients end, and when they do not.

mod support;

use bytes::Bytes;
use net::{
    api::ApiKey,
    client_blocking::{Client, ClientError},
    messages::MetadataRequest,
    produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
    request::Request,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};
use support::{PATIENCE, broker::Broker, wire};

fn is_closed(error: &ClientError) -> bool {
    matches!(error, ClientError::Closed { .. })
        || matches!(error, ClientError::Io(error) if error.kind() == ErrorKind::ConnectionReset)
}

/// A produce request with acks=0 of a batch for each of these partitions.
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
        // What came before is still answered.
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

    // Without an error the connection stays, and the next answer on it is that to the next request.
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
fn a_request_that_comes_slowly_is_not_idleness() {
    let broker = impatient();
    let mut stream = TcpStream::connect(broker.kafka()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // ApiVersions 0, byte by byte, over several times the limit.
    let request = [0, 0, 0, 12, 0, 18, 0, 0, 0, 0, 0, 77, 0, 2, b'm', b'e'];
    for byte in request {
        stream.write_all(&[byte]).expect("the connection stays");
        std::thread::sleep(Duration::from_millis(300));
    }
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).expect("the answer");
    assert_eq!(answer[4..], 77i32.to_be_bytes());
}

/// As a consumer that hangs: it asks for more than fits the sockets' buffers, and reads nothing.
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
    // Whatever was in the sockets' buffers, it is no whole answer to the last of them.
    let answers = (0..4).take_while(|_| hanging.receive().is_ok()).count();
    assert!(answers < 4, "{answers} answers");
}
