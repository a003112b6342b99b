//! Requests in every API and version: valid ones survive a round trip, damaged ones are rejected cheaply.

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use kafka_protocol::messages as kafka;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use testkit::allocations;

use crate::codec::api::{ApiKey, Unsupported};
use crate::codec::fetch::{FetchPartition, FetchRequest, FetchTopic, ForgottenTopic};
use crate::codec::header::RequestHeader;
use crate::codec::produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef};
use crate::codec::request::{DecodeError, Request, decode, decode_header, encode};
use crate::codec::wire::{ELEMENTS_MAX, Malformed};
use crate::testing::generate;

/// The maximum bytes that decoding a frame may allocate. Decoded elements take many times their bytes on the wire,
/// but in proportion.
fn allocation_max(frame: &[u8]) -> usize {
    2048 + 256 * frame.len()
}

fn decode_cheaply(frame: &Bytes) -> Result<Request, DecodeError> {
    let (result, allocated) = allocations::during(|| decode(frame));
    assert!(allocated <= allocation_max(frame), "{allocated} bytes allocated for {frame:02x?}");
    result.map(|(_, request)| request)
}

/// The schemas, our codec and the crate's codec agree byte for byte, in every version.
#[test]
fn valid_requests_survive_a_round_trip() {
    let mut rng = Rng::with_seed(1);
    for (api, version) in generate::versions() {
        for round in 0..60 {
            let frame = generate::request(api, version, false, &mut rng);
            let (header, request) = decode(&frame).unwrap_or_else(|e| panic!("round {round}: {e}\n{frame:02x?}"));
            assert_eq!((header.api, header.version, request.api()), (api, version, api));
            let again = encode(&header, &request).unwrap().into_bytes();
            assert_eq!(again[..4], (frame.len() as i32).to_be_bytes());
            assert_eq!(again.slice(4..), frame, "{api:?} version {version}, round {round}");
        }
    }
}

#[test]
fn unknown_tagged_fields_are_passed_over() {
    let mut rng = Rng::with_seed(2);
    for (api, version) in generate::versions().filter(|(api, version)| api.is_flexible(*version)) {
        for _ in 0..30 {
            let frame = generate::request(api, version, true, &mut rng);
            decode(&frame).unwrap_or_else(|e| panic!("{e}\n{frame:02x?}"));
        }
    }
}

/// Compares our Produce and Fetch with the crate's encoder and decoder.
#[test]
fn produce_and_fetch_agree_with_the_codec() {
    fn theirs<T: Decodable + Encodable>(body: &[u8], version: i16) -> BytesMut {
        let mut input = Bytes::copy_from_slice(body);
        let message = T::decode(&mut input, version).unwrap();
        assert!(input.is_empty());
        let mut out = BytesMut::new();
        message.encode(&mut out, version).unwrap();
        out
    }
    let mut rng = Rng::with_seed(3);
    for (api, version) in generate::versions() {
        for _ in 0..60 {
            let frame = generate::request(api, version, false, &mut rng);
            let (header, _) = decode(&frame).unwrap();
            let header_bytes =
                8 + 2 + header.client_id.map_or(0, |id| id.len()) + usize::from(api.is_flexible(version));
            let body = &frame[header_bytes..];
            match api {
                ApiKey::Produce if version >= 3 => assert_eq!(theirs::<kafka::ProduceRequest>(body, version), body),
                ApiKey::Fetch => assert_eq!(theirs::<kafka::FetchRequest>(body, version), body),
                _ => {}
            }
        }
    }
}

/// The tagged fields that Fetch defines.
#[test]
fn tagged_fields_of_fetch_are_read() {
    use kafka::fetch_request::{FetchPartition, FetchTopic, ReplicaState};
    for version in 12..=18i16 {
        let mut partition = FetchPartition::default().with_partition(3);
        let mut request = kafka::FetchRequest::default().with_cluster_id(Some("c".into()));
        if version >= 15 {
            let state = ReplicaState::default().with_replica_id(5.into()).with_replica_epoch(6);
            request = request.with_replica_state(state);
        }
        if version >= 17 {
            partition = partition.with_replica_directory_id(uuid::Uuid::from_u128(7));
        }
        if version >= 18 {
            partition = partition.with_high_watermark(8);
        }
        let topic = FetchTopic::default().with_partitions(vec![partition]);
        let mut body = BytesMut::new();
        request.with_topics(vec![topic]).encode(&mut body, version).unwrap();
        let body = body.freeze();
        let mut reader = crate::codec::wire::Reader::new(&body);
        let read = crate::codec::fetch::FetchRequest::read(&mut reader, version).unwrap();
        reader.finish().unwrap();
        assert_eq!(read.cluster_id.as_deref(), Some("c"));
        assert_eq!((read.replica_id, read.replica_epoch), if version >= 15 { (5, 6) } else { (-1, -1) });
        let partition = &read.topics[0].partitions[0];
        assert_eq!(partition.partition, 3);
        assert_eq!(partition.replica_directory_id.as_u128(), if version >= 17 { 7 } else { 0 });
        assert_eq!(partition.high_watermark, if version >= 18 { 8 } else { i64::MAX });
        let mut again = BytesMut::new();
        read.write(&mut again, version).unwrap();
        assert_eq!(again, body);
    }
}

#[test]
fn a_request_cut_anywhere_is_refused() {
    let mut rng = Rng::with_seed(4);
    for (api, version) in generate::versions() {
        for _ in 0..4 {
            let frame = generate::request(api, version, true, &mut rng);
            for cut in 0..frame.len() {
                let cut_frame = frame.slice(..cut);
                match decode_cheaply(&cut_frame) {
                    Err(DecodeError::Malformed { .. }) => {}
                    other => panic!("{api:?} version {version} cut at {cut} of {}: {other:?}", frame.len()),
                }
            }
            // Bytes after the message are ignored: librdkafka 2.16 pads its Metadata requests.
            let longer = Bytes::from([&frame[..], &[0, 0, 0]].concat());
            assert_eq!(decode_cheaply(&longer), decode_cheaply(&frame), "{api:?} version {version}");
        }
    }
}

/// Absurd lengths at every position are rejected or harmless. They never cause a panic or a large allocation.
#[test]
fn absurd_lengths_anywhere_cost_nothing() {
    const ABSURD: &[&[u8]] = &[
        &[0x7f, 0xff, 0xff, 0xff],
        &[0x80, 0, 0, 0],
        &[0xff, 0xff, 0xff, 0xfe],
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xff, 0xff, 0xff, 0xff, 0x7f],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x7f, 0xff],
        &[0x80, 0x80, 0x80, 0x80, 0x08],
    ];
    let mut rng = Rng::with_seed(5);
    for (api, version) in generate::versions() {
        let frame = generate::request(api, version, true, &mut rng);
        for at in 4..frame.len() {
            for absurd in ABSURD {
                let mut overwritten = frame.to_vec();
                let n = absurd.len().min(frame.len() - at);
                overwritten[at..at + n].copy_from_slice(&absurd[..n]);
                let _ = decode_cheaply(&overwritten.into());
                let spliced = [&frame[..at], absurd, &frame[at..]].concat();
                let _ = decode_cheaply(&spliced.into());
            }
        }
    }
}

#[test]
fn random_bytes_cost_nothing() {
    for seed in 0..200 {
        let mut rng = Rng::with_seed(seed);
        for (api, version) in generate::versions() {
            let mut frame = BytesMut::new();
            frame.extend_from_slice(&(api as i16).to_be_bytes());
            frame.extend_from_slice(&version.to_be_bytes());
            // Correlation id, no client id and no tags in the header, so that the random bytes land in the body.
            frame.extend_from_slice(&[0, 0, 0, 1, 0xff, 0xff]);
            frame.extend_from_slice(&[0][..usize::from(api.is_flexible(version))]);
            let small = rng.bool();
            let length = rng.usize(..60);
            frame.extend((0..length).map(|_| if small { rng.u8(..4) } else { rng.u8(..) }));
            let _ = decode_cheaply(&frame.freeze());
        }
        let length = rng.usize(..60);
        let noise: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
        let _ = decode_cheaply(&noise.into());
    }
}

/// The case for which the bounds exist: a small frame that claims 2^31 elements, for the first array of Metadata (in
/// both encodings), Produce and Fetch.
#[test]
fn a_claim_of_two_to_the_31_elements_allocates_nothing() {
    let cases: [(ApiKey, i16, &[u8], &[u8]); 4] = [
        (ApiKey::Metadata, 0, &[], &[0x7f, 0xff, 0xff, 0xff]),
        (ApiKey::Metadata, 9, &[], &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        (ApiKey::Produce, 3, &[0xff, 0xff, 0, 1, 0, 0, 0, 0], &[0x7f, 0xff, 0xff, 0xff]),
        (ApiKey::Fetch, 4, &[0; 17], &[0x7f, 0xff, 0xff, 0xff]),
    ];
    for (api, version, before, claim) in cases {
        let mut frame = BytesMut::new();
        frame.extend_from_slice(&(api as i16).to_be_bytes());
        frame.extend_from_slice(&version.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 1, 0xff, 0xff]);
        frame.extend_from_slice(&[0][..usize::from(api.is_flexible(version))]);
        frame.extend_from_slice(before);
        frame.extend_from_slice(claim);
        frame.resize(40, 0);
        let frame = frame.freeze();
        let (result, allocated) = allocations::during(|| decode(&frame));
        // 24: the bytes that `Bytes` allocates to share its buffer.
        assert!(allocated <= 24, "{allocated} bytes");
        let Err(DecodeError::Malformed { source, .. }) = result else { panic!("{api:?} accepted") };
        assert!(matches!(source, Malformed::Count { field: "topics", .. }), "{source}");
    }
}

#[test]
fn elements_are_bounded_over_the_whole_request() {
    let count = ELEMENTS_MAX as i32 + 1;
    let mut frame = BytesMut::from(&[0u8, 3, 0, 0, 0, 0, 0, 1, 0xff, 0xff][..]);
    frame.extend_from_slice(&count.to_be_bytes());
    frame.resize(frame.len() + 2 * count as usize, 0);
    let (result, allocated) = allocations::during(|| decode(&frame.freeze()));
    let Err(DecodeError::Malformed { source, .. }) = result else { panic!("accepted") };
    assert_eq!(source, Malformed::Elements { field: "topics", at: 0 });
    assert!(allocated < 1024, "{allocated}");
}

/// Requests with many small elements, of each kind that a small frame can name most often.
fn requests_with_many_elements() -> Vec<(Request, i16)> {
    const MANY: usize = 5_000;
    let keys = vec![StrBytes::from_static_str("g"); MANY];
    let numbers = || vec![7; MANY];
    let group = || kafka::offset_fetch_request::OffsetFetchRequestGroup::default().with_topics(None);
    let topic = kafka::offset_fetch_request::OffsetFetchRequestTopics::default().with_partition_indexes(numbers());
    let named = group().with_topics(Some(vec![topic]));
    let tags = [(1_000, Bytes::new())].into();
    let tagged = kafka::leave_group_request::MemberIdentity::default().with_unknown_tagged_fields(tags);
    let name = || TopicRef::Name(StrBytes::new());
    let produce = |topics| ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 1, topics };
    let batches = vec![ProducePartition { index: 7, records: None }; MANY];
    let fetch = |topics| FetchRequest::of_consumer(1, 1, 1, topics);
    let fetched = vec![FetchPartition::of_consumer(7, 0, 1); MANY];
    let forgotten = |partitions| ForgottenTopic { topic: name(), partitions };
    vec![
        (kafka::FindCoordinatorRequest::default().with_coordinator_keys(keys).into(), 4),
        (kafka::OffsetFetchRequest::default().with_groups(vec![group(); MANY]).into(), 8),
        (kafka::OffsetFetchRequest::default().with_groups(vec![named]).into(), 8),
        (kafka::LeaveGroupRequest::default().with_members(vec![Default::default(); MANY]).into(), 5),
        (kafka::LeaveGroupRequest::default().with_members(vec![tagged; MANY]).into(), 5),
        (kafka::CreateTopicsRequest::default().with_topics(vec![Default::default(); MANY]).into(), 7),
        (kafka::DescribeConfigsRequest::default().with_resources(vec![Default::default(); MANY]).into(), 4),
        (kafka::JoinGroupRequest::default().with_protocols(vec![Default::default(); MANY]).into(), 9),
        (kafka::SyncGroupRequest::default().with_assignments(vec![Default::default(); MANY]).into(), 5),
        (produce(vec![ProduceTopic { topic: name(), partitions: Vec::new() }; MANY]).into(), 9),
        (produce(vec![ProduceTopic { topic: name(), partitions: batches }]).into(), 9),
        (fetch(vec![FetchTopic { topic: name(), partitions: Vec::new() }; MANY]).into(), 12),
        (fetch(vec![FetchTopic { topic: name(), partitions: fetched }]).into(), 12),
        (FetchRequest { forgotten: vec![forgotten(Vec::new()); MANY], ..fetch(Vec::new()) }.into(), 12),
        (FetchRequest { forgotten: vec![forgotten(numbers())], ..fetch(Vec::new()) }.into(), 12),
    ]
}

/// A decoded element takes no more than it is counted for.
#[test]
fn the_decoded_form_of_a_request_is_bounded_by_its_elements() {
    for (request, version) in requests_with_many_elements() {
        let header = RequestHeader { api: request.api(), version, correlation_id: 1, client_id: None };
        let frame = encode(&header, &request).expect("the request is valid").into_bytes().slice(4..);
        let undecoded = decode_header(&frame).expect("the header is valid");
        let bytes = undecoded.decoded_bytes().expect("the body is valid");
        let (decoded, allocated) = allocations::during(|| undecoded.decode());
        assert_eq!(decoded.map(|(_, decoded)| decoded).as_ref(), Ok(&request));
        let is_near = (allocated..10 * allocated).contains(&bytes);
        assert!(is_near, "{:?}: {allocated} bytes were estimated as {bytes}", request.api());
    }
    let keys = vec![StrBytes::from_static_str("g"); 100];
    let small = kafka::FindCoordinatorRequest::default().with_coordinator_keys(keys);
    let header = RequestHeader { api: ApiKey::FindCoordinator, version: 4, correlation_id: 1, client_id: None };
    let frame = encode(&header, &small.into()).expect("the request is valid").into_bytes().slice(4..);
    assert_eq!(decode_header(&frame).expect("the header is valid").decoded_bytes(), Ok(0));
}

#[test]
fn unsupported_apis_and_versions_are_told_apart() {
    let frame = |key: i16, version: i16| {
        let mut frame = BytesMut::new();
        frame.extend_from_slice(&key.to_be_bytes());
        frame.extend_from_slice(&version.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 9]);
        frame.freeze()
    };
    let error = |key, version| decode(&frame(key, version)).unwrap_err();
    assert_eq!(error(18, 5), DecodeError::ApiVersionsVersion { version: 5, correlation_id: 9 });
    assert_eq!(error(18, -1), DecodeError::ApiVersionsVersion { version: -1, correlation_id: 9 });
    assert_eq!(error(99, 0), DecodeError::Unsupported(Unsupported::Key { key: 99 }));
    assert_eq!(error(1, 3), DecodeError::Unsupported(Unsupported::Version { api: ApiKey::Fetch, version: 3 }));
    assert_eq!(error(1, 3).to_string(), "Fetch version 3 is not supported, only 4 to 18");
    let cut = decode(&Bytes::from_static(&[0, 18, 0])).unwrap_err();
    assert_eq!(cut.to_string(), "malformed request header: api version at byte 2: 2 bytes needed, 1 remain");
}
