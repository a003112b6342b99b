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
use std::io::ErrorKind;
use support::{broker::Broker, wire};

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
    assert_eq!(broker.metric("millrace_acks0_closed_total"), count as f64);
    broker.wait_for_log("acks=0", |line| line.contains("acks=0") && line.contains("nowhere"));

    // Without an error the connection stays, and the next answer on it is that to the next request.
    let mut client = wire::connect(&broker);
    send(&mut client, ApiKey::Produce, without_acks("unacked", &[1], &sound).into());
    assert_eq!(wire::produce(&mut client, "unacked", 1, sound).base_offset, 1);
    assert_eq!(wire::partitions(&mut witness, "unacked").len(), 2);
}
