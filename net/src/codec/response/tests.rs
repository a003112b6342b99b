//! Responses in every version, read back by the codec crate.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages as kafka;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use testkit::allocations;
use uuid::Uuid;

use crate::client::Answer;
use crate::codec::api::{ApiKey, TABLE};
use crate::codec::bounds;
use crate::codec::encode::write_control;
use crate::codec::fetch::{
    AbortedTransaction, EpochEnd, FetchPartitionResponse, FetchResponse, FetchTopicResponse, LeaderHint, NodeEndpoint,
    TopicRef,
};
use crate::codec::header::RequestHeader;
use crate::codec::parts::{Parts, PartsBuilder};
use crate::codec::produce::{ProducePartitionResponse, ProduceResponse, ProduceTopicResponse, RecordError};
use crate::codec::response::{EncodeError, Response, encode, encode_api_versions_fallback};
use crate::codec::table::each_api;
use crate::codec::wire::Reader;
use crate::errors::ErrorCode;
use crate::testing::generate;

fn header(api: ApiKey, version: i16) -> RequestHeader {
    RequestHeader { api, version, correlation_id: 77, client_id: None }
}

/// Checks and removes the length prefix and the header.
fn body_of(parts: Parts, api: ApiKey, version: i16) -> Bytes {
    let frame = parts.into_bytes();
    assert_eq!(frame[..4], ((frame.len() - 4) as i32).to_be_bytes());
    let message = frame.slice(4..);
    let mut reader = Reader::new(&message);
    assert_eq!(RequestHeader::read_response_header(api, version, &mut reader), Ok(77));
    reader.rest()
}

fn read_back<R: kafka_protocol::protocol::Request>(response: impl Into<Response>, version: i16) -> R::Response {
    let api = ApiKey::from_i16(R::KEY).unwrap();
    let parts = encode(&header(api, version), response.into()).unwrap_or_else(|e| panic!("version {version}: {e}"));
    let mut body = body_of(parts, api, version);
    let response = R::Response::decode(&mut body, version).unwrap();
    assert!(body.is_empty(), "{} bytes left in version {version}", body.len());
    response
}

fn topic(by_id: bool) -> TopicRef {
    if by_id { TopicRef::Id(Uuid::from_u128(5)) } else { TopicRef::Name("orders".into()) }
}

fn endpoint() -> NodeEndpoint {
    NodeEndpoint { node_id: 3, host: "h3".into(), port: 9092, rack: Some("r".into()) }
}

#[test]
fn produce_answers_read_back_in_every_version() {
    let stored = ProducePartitionResponse::stored(0, 1 << 33, 55, 11);
    let leader = LeaderHint { leader_id: 3, leader_epoch: 9 };
    let refused = ProducePartitionResponse {
        record_errors: vec![RecordError { batch_index: 2, message: Some("bad".into()) }],
        current_leader: Some(leader),
        ..ProducePartitionResponse::refused(1, ErrorCode::NotLeaderOrFollower, Some("moved".into()))
    };
    for version in 3..=13 {
        let response = ProduceResponse {
            topics: vec![ProduceTopicResponse {
                topic: topic(version >= 13),
                partitions: vec![stored.clone(), refused.clone()],
            }],
            throttle_time_ms: 4,
            node_endpoints: vec![endpoint()],
        };
        let back = read_back::<kafka::ProduceRequest>(response, version);
        assert_eq!(back.throttle_time_ms, 4);
        let topic = &back.responses[0];
        match version {
            13 => assert_eq!(topic.topic_id, Uuid::from_u128(5)),
            _ => assert_eq!(topic.name.as_str(), "orders"),
        }
        let (first, second) = (&topic.partition_responses[0], &topic.partition_responses[1]);
        assert_eq!((first.index, first.error_code, first.base_offset), (0, 0, 1 << 33));
        assert_eq!(first.log_append_time_ms, 55);
        assert_eq!(first.log_start_offset, if version >= 5 { 11 } else { -1 });
        assert_eq!((second.index, second.error_code, second.base_offset), (1, 6, -1));
        if version >= 8 {
            assert_eq!(second.error_message.as_deref(), Some("moved"));
            assert_eq!(second.record_errors[0].batch_index, 2);
            assert_eq!(second.record_errors[0].batch_index_error_message.as_deref(), Some("bad"));
        }
        if version >= 10 {
            assert_eq!(first.current_leader.leader_id, -1);
            assert_eq!((second.current_leader.leader_id.0, second.current_leader.leader_epoch), (3, 9));
            let endpoint = &back.node_endpoints[0];
            assert_eq!((endpoint.node_id.0, endpoint.host.as_str(), endpoint.port), (3, "h3", 9092));
            assert_eq!(endpoint.rack.as_deref(), Some("r"));
        } else {
            assert!(back.node_endpoints.is_empty());
        }
    }
}

/// The layouts of Kafka 3.9's ProduceResponse.json. The codec crate no longer supports them.
#[test]
fn produce_answers_of_versions_0_to_2_have_their_own_layout() {
    let refused = ProducePartitionResponse::refused(6, ErrorCode::UnsupportedForMessageFormat, Some("old".into()));
    let response = ProduceResponse {
        topics: vec![ProduceTopicResponse { topic: TopicRef::Name("t".into()), partitions: vec![refused] }],
        throttle_time_ms: 8,
        node_endpoints: Vec::new(),
    };
    let base: &[u8] = b"\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x06\0\x2b\xff\xff\xff\xff\xff\xff\xff\xff";
    let cases = [base.to_vec(), [base, &[0, 0, 0, 8]].concat(), [base, &[0xff; 8], &[0, 0, 0, 8]].concat()];
    for (version, expected) in cases.iter().enumerate() {
        let version = version as i16;
        let parts = encode(&header(ApiKey::Produce, version), response.clone().into()).unwrap();
        assert_eq!(body_of(parts, ApiKey::Produce, version), expected, "version {version}");
    }
}

#[test]
fn fetch_answers_read_back_in_every_version_and_share_their_records() {
    let (one, two) = (Bytes::from(vec![1u8; 300]), Bytes::from(vec![2u8; 200]));
    for version in 4..=18 {
        let found = FetchPartitionResponse {
            aborted_transactions: Some(vec![AbortedTransaction { producer_id: 8, first_offset: 9 }]),
            preferred_read_replica: if version >= 11 { 2 } else { -1 },
            ..FetchPartitionResponse::found(0, 100, 10, vec![one.clone(), two.clone()])
        };
        let refused = FetchPartitionResponse {
            diverging_epoch: Some(EpochEnd { epoch: 4, end_offset: 44 }),
            current_leader: Some(LeaderHint { leader_id: 3, leader_epoch: 9 }),
            ..FetchPartitionResponse::refused(1, ErrorCode::FencedLeaderEpoch)
        };
        let empty = FetchPartitionResponse::found(2, 5, 0, Vec::new());
        let response = FetchResponse {
            throttle_time_ms: 1,
            error_code: 0,
            session_id: 12,
            topics: vec![FetchTopicResponse { topic: topic(version >= 13), partitions: vec![found, refused, empty] }],
            node_endpoints: vec![endpoint()],
        };
        let parts = encode(&header(ApiKey::Fetch, version), response.clone().into()).unwrap();
        let pointers: Vec<_> = parts.iter().map(|part| part.as_ptr()).collect();
        assert!(pointers.contains(&one.as_ptr()) && pointers.contains(&two.as_ptr()), "records were copied");

        let back = read_back::<kafka::FetchRequest>(response, version);
        assert_eq!((back.throttle_time_ms, back.session_id), (1, if version >= 7 { 12 } else { 0 }));
        assert_eq!(back.node_endpoints.len(), usize::from(version >= 16));
        let topic = &back.responses[0];
        match version {
            13.. => assert_eq!(topic.topic_id, Uuid::from_u128(5)),
            _ => assert_eq!(topic.topic.as_str(), "orders"),
        }
        let [found, refused, empty] = &topic.partitions[..] else { panic!("three partitions") };
        assert_eq!((found.high_watermark, found.last_stable_offset), (100, 100));
        assert_eq!(found.log_start_offset, if version >= 5 { 10 } else { -1 });
        assert_eq!(found.records.as_deref(), Some(&[&one[..], &two].concat()[..]));
        let aborted = &found.aborted_transactions.as_ref().unwrap()[0];
        assert_eq!((aborted.producer_id.0, aborted.first_offset), (8, 9));
        assert_eq!(found.preferred_read_replica.0, if version >= 11 { 2 } else { -1 });
        assert_eq!((refused.error_code, refused.high_watermark), (74, -1));
        let hints = (refused.diverging_epoch.end_offset, refused.current_leader.leader_epoch);
        assert_eq!(hints, if version >= 12 { (44, 9) } else { (-1, -1) });
        assert_eq!(empty.records.as_deref(), Some(&[][..]));
        assert_eq!(empty.aborted_transactions, None);
    }
}

/// With [`each_api`]: calls `visit` with each API's request type.
macro_rules! visit_all {
    ($($(#[$doc:meta])* $name:ident($request:ident => $response:ident) $row:tt)*) => {
        $(visit::<kafka::$request>();)*
    };
}

/// The versions whose responses the codec crate supports.
fn versions_of(api: ApiKey) -> std::ops::RangeInclusive<i16> {
    let lowest = if api == ApiKey::Produce { 3 } else { api.api().lowest };
    lowest..=api.api().highest
}

/// The default response of every API can be encoded in every version.
#[test]
fn every_api_answers_in_every_version() {
    fn visit<R: kafka_protocol::protocol::Request>()
    where
        R::Response: Default,
    {
        let api = ApiKey::from_i16(R::KEY).unwrap();
        for version in versions_of(api) {
            let mut parts = PartsBuilder::default();
            write_control(&R::Response::default(), parts.fields(), version).unwrap();
            let body = parts.finish().into_bytes();
            bounds::check_response(api, version, &body).unwrap();
        }
    }
    each_api!(visit_all);
}

/// The response schemas agree with the codec crate's decoder and encoder in every version.
#[test]
fn response_schemas_agree_with_the_codec() {
    fn visit<R: kafka_protocol::protocol::Request>() {
        let api = ApiKey::from_i16(R::KEY).unwrap();
        let mut rng = fastrand::Rng::with_seed(R::KEY as u64);
        for version in versions_of(api) {
            for round in 0..40 {
                let with_tags = round % 2 == 1;
                let body = generate::response(api, version, with_tags, &mut rng);
                bounds::check_response(api, version, &body).unwrap_or_else(|e| panic!("{api:?} {version}: {e}"));
                let mut left = body.clone();
                let response = R::Response::decode(&mut left, version)
                    .unwrap_or_else(|e| panic!("{api:?} version {version}, round {round}: {e}"));
                assert!(left.is_empty(), "{api:?} version {version}: {} bytes left", left.len());
                let mut again = BytesMut::new();
                response.encode(&mut again, version).unwrap();
                let again = again.freeze();
                bounds::check_response(api, version, &again).unwrap();
                // Tagged fields that happen to have the default value are left out when they are encoded again.
                assert!(with_tags || again == body, "{api:?} version {version}");
            }
        }
    }
    each_api!(visit_all);
}

/// A damaged response does not crash a client.
#[test]
fn damaged_answers_are_refused_cheaply() {
    fn visit<R: kafka_protocol::protocol::Request>() {
        let api = ApiKey::from_i16(R::KEY).unwrap();
        let mut rng = fastrand::Rng::with_seed(R::KEY as u64);
        for version in versions_of(api) {
            let body = generate::response(api, version, true, &mut rng);
            for at in 0..body.len() {
                for absurd in [&[0x7f, 0xff, 0xff, 0xff][..], &[0xff, 0xff, 0xff, 0xff, 0x0f], &[0x80, 0, 0, 0]] {
                    let damaged = Bytes::from([&body[..at], absurd, &body[at..]].concat());
                    let answer = Answer { api, version, correlation_id: 0, body: damaged.clone() };
                    let (_, allocated) = allocations::during(|| answer.decode::<R>().is_ok());
                    assert!(allocated <= 4096 + 512 * damaged.len(), "{api:?} version {version} at {at}: {allocated}");
                }
                let cut = Answer { api, version, correlation_id: 0, body: body.slice(..at) };
                assert!(cut.decode::<R>().is_err(), "{api:?} version {version} cut at {at}");
            }
        }
    }
    each_api!(visit_all);
}

/// KIP-511: error 35 in version 0, whatever version the client asked for, so that any client can read it.
#[test]
fn an_unknown_api_versions_version_is_answered_in_version_0() {
    let mut body = body_of(encode_api_versions_fallback(77), ApiKey::ApiVersions, 0);
    let back = kafka::ApiVersionsResponse::decode(&mut body, 0).unwrap();
    assert!(body.is_empty());
    assert_eq!((back.error_code, back.api_keys.len()), (35, TABLE.len()));
    let own = back.api_keys.iter().find(|row| row.api_key == 18).unwrap();
    assert_eq!((own.min_version, own.max_version), (0, 4));
}

#[test]
fn api_versions_answers_with_header_0_in_flexible_versions_too() {
    for version in 0..=4 {
        let back = read_back::<kafka::ApiVersionsRequest>(crate::codec::api::api_versions_response(), version);
        assert_eq!(back.api_keys.len(), TABLE.len());
        let parts =
            encode(&header(ApiKey::ApiVersions, version), crate::codec::api::api_versions_response().into()).unwrap();
        // The error code follows directly after the correlation id, without an empty list of tags.
        assert_eq!(parts.into_bytes()[4..10], [0, 0, 0, 77, 0, 0]);
    }
}

#[test]
fn a_mistaken_answer_is_an_error() {
    let heartbeat = Response::from(kafka::HeartbeatResponse::default());
    let wrong = encode(&header(ApiKey::Fetch, 12), heartbeat).unwrap_err();
    assert_eq!(wrong, EncodeError::OtherApi { header: ApiKey::Fetch, message: ApiKey::Heartbeat });
    let by_name = ProduceResponse {
        topics: vec![ProduceTopicResponse { topic: topic(false), partitions: Vec::new() }],
        ..Default::default()
    };
    let error = encode(&header(ApiKey::Produce, 13), by_name.into()).unwrap_err();
    assert_eq!(error, EncodeError::TopicByWrongKind { wanted: "id" });
    let long = ProduceResponse {
        topics: vec![ProduceTopicResponse {
            topic: TopicRef::Name(StrBytes::from_string("x".repeat(40_000))),
            partitions: Vec::new(),
        }],
        ..Default::default()
    };
    assert!(matches!(encode(&header(ApiKey::Produce, 9), long.into()), Err(EncodeError::TooLong(_))));
}
