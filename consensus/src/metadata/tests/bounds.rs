//! Bytes from untrusted senders are bounded, and so are the answers to them. The bytes that we write stay far below
//! the bounds.

use crate::generated::metadata::millrace::metadata as fb;
use crate::metadata::{encoding::RestoreError, *};
use flatbuffers::{FlatBufferBuilder, InvalidFlatbuffer};
use types::{RaftIndex, Term};

/// A topic whose partitions have one replica each.
fn topic(partitions: u64) -> Arc<Topic> {
    let partitions = (0..partitions)
        .map(|group| Partition { group: GroupId(group), replicas: vec![1], founders: vec![1 << 32] })
        .collect();
    Arc::new(Topic { name: "t".into(), id: Uuid::nil(), partitions, configs: BTreeMap::new(), created_ms: 0 })
}

fn named(length: usize) -> Query {
    Query::GetTopic { name: "x".repeat(length) }
}

#[test]
fn more_queries_than_one_request_may_hold_are_refused() {
    let queries = vec![Query::ListBrokers; QUERIES_MAX];
    assert_eq!(decode_queries(&encode_queries(&queries)), Ok(queries));
    let queries = vec![Query::ListBrokers; QUERIES_MAX + 1];
    assert_eq!(decode_queries(&encode_queries(&queries)), Err(DecodeError::TooManyQueries(QUERIES_MAX + 1)));
}

#[test]
fn versions_that_do_not_know_that_a_node_id_is_taken_read_a_rejection_that_they_know() {
    let (node, incarnation, address) = (2, 9, "host:9092".into());
    let results = [
        Ok(Err(Rejection::NodeIdTaken { node, incarnation, address })),
        Ok(Err(Rejection::StaleBroker { node, incarnation })),
    ];
    let bytes = encode_results(&results);
    assert_eq!(decode_results(&bytes).unwrap(), results);
    let answers = flatbuffers::root::<fb::Results<'_>>(&bytes).unwrap().answers();
    let known = |at: usize| (answers.get(at).kind(), answers.get(at).first(), answers.get(at).second());
    assert_eq!(known(0), known(1));
}

#[test]
fn answers_end_where_they_fill_what_one_request_gets() {
    let answer = QueryAnswer::Topic(topic(10_000));
    let alone = encode_query_answers(std::slice::from_ref(&answer)).len();
    let bytes = encode_query_answers(&vec![answer.clone(); QUERIES_MAX]);
    assert!((ANSWERS_BYTES_MAX..ANSWERS_BYTES_MAX + 2 * alone).contains(&bytes.len()), "{} bytes", bytes.len());
    let answers = decode_query_answers(&bytes).unwrap();
    let told = answers.iter().take_while(|found| **found == answer).count();
    assert!((ANSWERS_BYTES_MAX / alone..QUERIES_MAX).contains(&told), "{told} answers");
    assert_eq!(answers.len(), QUERIES_MAX);
    assert!(answers[told..].iter().all(|answer| *answer == QueryAnswer::TooLarge));
}

#[test]
fn bytes_that_tell_one_part_many_times_are_refused() {
    // One query with a long name. A forged list references it as each of its queries.
    let mut out = FlatBufferBuilder::new();
    let name = Some(out.create_string(&"x".repeat(1 << 16)));
    let body = fb::GetTopic::create(&mut out, &fb::GetTopicArgs { name }).as_union_value();
    let query = fb::Query::create(&mut out, &fb::QueryArgs { body_type: fb::QueryBody::GetTopic, body: Some(body) });
    let queries = Some(out.create_vector(&[query; QUERIES_MAX]));
    let root = fb::Queries::create(&mut out, &fb::QueriesArgs { queries });
    out.finish(root, None);
    let refused = decode_queries(out.finished_data());
    assert_eq!(refused, Err(DecodeError::Invalid(InvalidFlatbuffer::ApparentSizeTooLarge)));
    // The same number of separate queries is accepted.
    let queries = vec![named(1 << 16); QUERIES_MAX];
    assert_eq!(decode_queries(&encode_queries(&queries)), Ok(queries));
}

#[test]
fn many_small_elements_are_not_taken_for_forged() {
    const MANY: usize = 20_000;
    let (name, id): (Arc<str>, _) = ("".into(), Uuid::nil());
    let watermark = WatermarkReport { partition: 0, high_watermark: 0, log_start: 0, end_offset: 0 };
    let leader = LeaderReport { partition: 0, term: Term(0), leader: 0, voters: Vec::new() };
    for command in [
        Command::AllocateProducerIds { count: 0 },
        Command::UnregisterBroker { node: 0 },
        Command::UpdateBrokerStatus { node: 0, incarnation: 0, status: BrokerStatus::Fenced },
        Command::SetFeatureLevel { name: String::new(), level: 1 },
        Command::DeleteTopic { name: name.clone(), id },
    ] {
        let commands = vec![command; MANY];
        assert_eq!(decode(&encode(&commands)), Ok(commands));
    }
    for command in [
        Command::SetPartitionLeader { name: name.clone(), id, leaders: vec![leader; MANY] },
        Command::UpdateHighWatermark { name: name.clone(), id, node: 0, watermarks: vec![watermark; MANY] },
        Command::UpdateTopicConfig { name: name.clone(), id, changes: vec![(String::new(), None); MANY] },
        Command::CreatePartitions {
            name,
            id,
            present: 0,
            first_group: 0,
            replicas: vec![Vec::new(); MANY],
            peers: vec![],
        },
    ] {
        let requests = vec![Request::from(command)];
        assert_eq!(decode_requests(&encode_requests(&requests)), Ok(requests));
    }
    for result in [
        Err(AskedTooLate),
        Ok(Ok(Outcome::TopicDeleted)),
        Ok(Ok(Outcome::ProducerIds { first: 0, count: 1 })),
        Ok(Ok(Outcome::TopicCreated(topic(1)))),
        Ok(Err(Rejection::UnknownTopic("".into()))),
    ] {
        let results = vec![result; MANY];
        assert_eq!(decode_results(&encode_results(&results)), Ok(results));
    }
    for answer in
        [QueryAnswer::NotFound, QueryAnswer::Count(0), QueryAnswer::Brokers(Vec::new()), QueryAnswer::TooLarge]
    {
        let answers = vec![answer; MANY];
        assert_eq!(decode_query_answers(&encode_query_answers(&answers)), Ok(answers));
    }
    for none in [encode(&[]), encode_requests(&[])] {
        assert_eq!((decode(&none), decode_requests(&none)), (Ok(Vec::new()), Ok(Vec::new())));
    }
    assert_eq!(decode_results(&encode_results(&[])), Ok(Vec::new()));
    assert_eq!(decode_queries(&encode_queries(&[])), Ok(Vec::new()));
    assert_eq!(decode_query_answers(&encode_query_answers(&[])), Ok(Vec::new()));
}

/// A snapshot whose slices are all the same one, with one topic of this name and so many references to one partition.
fn forged(name: &str, partitions: usize) -> Vec<u8> {
    let mut out = FlatBufferBuilder::new();
    let replicas = Some(out.create_vector(&[1]));
    let partition = fb::Partition::create(&mut out, &fb::PartitionArgs { group: 7, replicas, founders: None });
    let partitions = Some(out.create_vector(&vec![partition; partitions]));
    let configs = Some(out.create_vector::<flatbuffers::WIPOffset<fb::Config<'_>>>(&[]));
    let (name, id) = (Some(out.create_string(name)), fb::Uuid::new(1, 2));
    let topic = fb::TopicArgs { name, id: Some(&id), partitions, configs, created_ms: 0 };
    let topic = fb::Topic::create(&mut out, &topic);
    let topics = Some(out.create_vector(&[topic]));
    let slice = fb::Slice::create(&mut out, &fb::SliceArgs { topics, ..fb::SliceArgs::default() });
    let slices = Some(out.create_vector(&[slice; types::SLICES]));
    let root = fb::Snapshot::create(&mut out, &fb::SnapshotArgs { index: 1, slices });
    out.finish(root, None);
    out.finished_data().to_vec()
}

#[test]
fn snapshots_that_refer_to_one_part_many_times_are_refused() {
    use InvalidFlatbuffer::{ApparentSizeTooLarge, TooManyTables};
    let long = restore(&forged(&"x".repeat(1 << 16), 1));
    assert!(matches!(long, Err(RestoreError::Invalid(ApparentSizeTooLarge))), "{long:?}");
    let many = restore(&forged("x", 100_000));
    assert!(matches!(many, Err(RestoreError::Invalid(ApparentSizeTooLarge | TooManyTables))), "{many:?}");
}

#[test]
fn a_snapshot_of_any_size_is_read_back() {
    let watermark = Watermark { high_watermark: 0, log_start: 0, end_offset: 0 };
    let leader = PartitionLeader { term: Term(1), leader: 1, voters: Vec::new() };
    for partitions in [0, 1, 200_000] {
        let mut slices = Slice::all();
        let slice = &mut slices[usize::from(slice_of_topic("t").0)];
        slice.topics = Arc::new(BTreeMap::from([("t".into(), topic(partitions))]));
        slice.leaders = Arc::new((0..partitions).map(|group| (GroupId(group), leader.clone())).collect());
        slice.watermarks = Arc::new((0..partitions).map(|group| (GroupId(group), watermark)).collect());
        let snapshot = join(RaftIndex::new(1), &mut slices);
        assert_eq!(restore(&snapshot), Ok((RaftIndex::new(1), slices)), "{partitions} partitions");
    }
}
