//! Requests captured from real clients: decoded, checked, and encoded again to exactly the same bytes.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::codec::api::ApiKey;
use crate::codec::header::RequestHeader;
use crate::codec::produce::TopicRef;
use crate::codec::request::{Request, decode, encode};
use crate::records::batch;
use crate::records::record::Records;

struct Golden {
    client: &'static str,
    header: RequestHeader,
    request: Request,
    frame: Bytes,
}

fn golden() -> Vec<Golden> {
    let lines = include_str!("golden/requests.txt").lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let [client, api, version, hex] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let digits = hex.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
            let frame: Bytes = digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect();
            let (header, request) = decode(&frame).unwrap_or_else(|e| panic!("{client}: {e}"));
            assert_eq!((header.api.api().name, header.version.to_string().as_str()), (api, version), "{client}");
            Golden { client, header, request, frame }
        })
        .collect()
}

#[test]
fn they_are_encoded_again_to_the_same_bytes() {
    let golden = golden();
    for Golden { client, header, request, frame } in &golden {
        let again = encode(header, request).unwrap().into_bytes();
        assert_eq!(again[4..], frame[..], "{client} {:?} version {}", header.api, header.version);
        assert!(header.client_id.as_ref().is_some_and(|id| !id.is_empty()), "{client}");
    }
    let clients: BTreeSet<_> = golden.iter().map(|g| g.client).collect();
    assert_eq!(clients.len(), 6, "{clients:?}");
}

#[test]
fn produced_batches_are_valid_and_readable() {
    let mut clients = BTreeSet::new();
    for Golden { client, header, request, .. } in golden() {
        let Request::Produce(produce) = request else { continue };
        clients.insert(client);
        assert_eq!(produce.topics.len(), 1);
        assert_eq!(matches!(produce.topics[0].topic, TopicRef::Id(_)), header.version >= 13);
        for partition in &produce.topics[0].partitions {
            let records = partition.records.as_ref().unwrap();
            let checked = batch::validate(records, header.version).unwrap_or_else(|e| panic!("{client}: {e}")).header;
            assert_eq!(checked.partition_leader_epoch.max(0), 0);
            let opened = Records::open(records, 1 << 20).unwrap();
            let values: Vec<_> = opened.iter().map(|record| record.unwrap().value.unwrap().len()).collect();
            assert_eq!(values.len() as i32, checked.record_count);
            assert!(values.iter().all(|length| (1..=3).contains(length)), "{client}: {values:?}");
        }
    }
    assert_eq!(clients.len(), 6, "{clients:?}");
}

#[test]
fn consumers_join_with_a_subscription_and_fetch() {
    let mut fetched = BTreeSet::new();
    for Golden { client, header, request, .. } in golden() {
        match request {
            Request::JoinGroup(join) => {
                assert_eq!(join.protocol_type.as_str(), "consumer", "{client}");
                assert!(!join.protocols.is_empty() && join.session_timeout_ms > 0, "{client}");
            }
            Request::Fetch(fetch) => {
                fetched.insert(client);
                assert_eq!(fetch.replica_id, -1);
                assert!(fetch.max_bytes > 0 && fetch.max_wait_ms > 0, "{client}");
                for topic in &fetch.topics {
                    assert_eq!(matches!(topic.topic, TopicRef::Id(_)), header.version >= 13);
                    assert!(topic.partitions.iter().all(|p| p.fetch_offset >= 0 && p.partition_max_bytes > 0));
                }
            }
            Request::ApiVersions(versions) if header.version >= 3 => {
                assert!(!versions.client_software_name.is_empty(), "{client}");
            }
            _ => {}
        }
    }
    assert_eq!(fetched.len(), 6, "{fetched:?}");
    assert!(golden().iter().any(|g| g.header.api == ApiKey::DescribeTopicPartitions));
}
