//! A rollback leaves no trace of any speculated change. A committed speculation equals a direct application.

use crate::metadata::*;
use std::collections::BTreeSet;
use types::{RaftIndex, Term};

/// The number of topics that commands concern. Few, so that commands collide.
const TOPICS: u128 = 4;

/// The random source of one run.
struct Luck {
    rng: fastrand::Rng,
    sequence: u64,
    next_group: u64,
}

impl Luck {
    fn new(seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), sequence: 0, next_group: 0 }
    }

    fn request(&mut self) -> Request {
        let command = self.command();
        let origin = self.rng.bool().then(|| {
            // Sometimes an earlier request again, or a node that has restarted.
            self.sequence += self.rng.u64(..3);
            let sequence = self.sequence.max(1);
            let incarnation = 1 + sequence / 40;
            Origin { node: self.rng.i32(1..3), incarnation, sequence, lowest_open: sequence.saturating_sub(3) }
        });
        Request { origin, command, no_room: None }
    }

    fn command(&mut self) -> Command {
        let number = self.rng.u128(..TOPICS);
        let (name, id) = (format!("t{number}").into(), Uuid::from_u128(number));
        let partition = self.rng.u32(..3);
        let node = self.rng.i32(1..4);
        match self.rng.u8(..13) {
            0 => Command::DeleteTopic { name, id },
            1 => {
                self.next_group += 2;
                let replicas = vec![vec![1], vec![2]];
                Command::CreatePartitions {
                    name,
                    id,
                    present: 2,
                    first_group: self.next_group,
                    replicas,
                    peers: Vec::new(),
                }
            }
            2 => {
                let value = self.rng.bool().then(|| self.rng.u8(..).to_string());
                Command::UpdateTopicConfig { name, id, changes: vec![("retention.ms".to_owned(), value)] }
            }
            3 => Command::AllocateProducerIds { count: self.rng.u32(1..100) },
            4 => Command::AssignPartition { name, id, partition, present: vec![1], replicas: vec![2] },
            5 => {
                let report = LeaderReport { partition, term: Term(self.rng.u64(1..5)), leader: 1, voters: vec![1] };
                Command::SetPartitionLeader { name, id, leaders: vec![report] }
            }
            6 => {
                let mut offset = || self.rng.u64(..9);
                let (high_watermark, log_start, end_offset) = (offset(), offset(), offset());
                let watermarks = vec![WatermarkReport { partition, high_watermark, log_start, end_offset }];
                Command::UpdateHighWatermark { name, id, node, watermarks }
            }
            7 => {
                let disk = 100 * node as u64 + self.rng.u64(1..4);
                Command::RegisterBroker { broker: broker(node, disk, self.rng.u64(1..4)) }
            }
            8 => {
                let incarnation = self.rng.u64(1..4);
                Command::UpdateBrokerStatus { node, incarnation, status: BrokerStatus::Fenced }
            }
            9 => Command::UnregisterBroker { node },
            10 => Command::SetFeatureLevel { name: "f".to_owned(), level: self.rng.u16(..4) },
            11 => {
                let changes = vec![("metadata.acks".to_owned(), self.rng.bool().then(|| "leader".to_owned()))];
                Command::UpdateClusterConfig { node: self.rng.bool().then_some(node), changes }
            }
            _ => {
                self.next_group += 2;
                Command::CreateTopic {
                    name,
                    id,
                    first_group: self.next_group,
                    replicas: vec![vec![1], vec![2]],
                    configs: BTreeMap::new(),
                    created_ms: 7,
                    peers: Vec::new(),
                }
            }
        }
    }
}

fn broker(node: i32, disk: u64, incarnation: u64) -> Broker {
    let address = HostPort { host: "h".to_owned(), port: 1 };
    Broker {
        node,
        peer: disk,
        incarnation,
        kafka: address.clone(),
        peer_addr: address,
        cores: 1,
        rack: None,
        version: "1".to_owned(),
        status: BrokerStatus::Alive,
        largest_entry: 0,
        replicas_max: 0,
        partitions_max: 0,
    }
}

fn at<'a>(slices: &'a mut [Slice], request: &Request) -> &'a mut Slice {
    let id = request.command.slice();
    slices.iter_mut().find(|slice| slice.id() == id).expect("the slice is there")
}

/// The slices that requests of [`Luck`] can reach.
fn reached() -> Vec<Slice> {
    let topics = (0..TOPICS).map(|number| slice_of_topic(&format!("t{number}")));
    let ids: BTreeSet<SliceId> = topics.chain([slice_of_cluster()]).collect();
    ids.into_iter().map(Slice::new).collect()
}

/// Runs some slices ahead of the commit index, and gives others committed entries only. Returns the committed state
/// of both.
fn run_ahead(seed: u64, entries: u64) -> (Vec<Slice>, Vec<Slice>) {
    let mut luck = Luck::new(seed);
    let (mut ahead, mut plain) = (reached(), reached());
    let mut open: Vec<(u64, Request)> = Vec::new();
    for index in 1..=entries {
        let request = luck.request();
        at(&mut ahead, &request).speculate(RaftIndex::new(index), &request).ok();
        ahead.iter().for_each(Slice::check);
        open.push((index, request));
        match luck.rng.u8(..6) {
            0 => {
                ahead.iter_mut().for_each(Slice::roll_back);
                open.clear();
            }
            1 | 2 => {
                let up_to = luck.rng.u64(open[0].0..=index);
                ahead.iter_mut().for_each(|slice| slice.commit(RaftIndex::new(up_to)));
                for (_, request) in open.extract_if(.., |(index, _)| *index <= up_to) {
                    at(&mut plain, &request).apply_request(&request).ok();
                }
            }
            _ => {}
        }
        let committed: Vec<Slice> = ahead.iter().map(Slice::committed).collect();
        assert_eq!(committed, plain, "seed {seed}, entry {index}");
    }
    (ahead.iter().map(Slice::committed).collect(), plain)
}

/// All slices of a cluster, with these in their places.
fn all_with(slices: Vec<Slice>) -> Vec<Slice> {
    let mut all = Slice::all();
    for slice in slices {
        let at = usize::from(slice.id().0);
        all[at] = slice;
    }
    all
}

#[test]
fn rolling_back_leaves_no_trace() {
    for seed in 0..500 {
        let (committed, plain) = run_ahead(seed, 100);
        let (mut committed, mut plain) = (all_with(committed), all_with(plain));
        let bytes = join(RaftIndex::new(100), &mut plain);
        assert_eq!(join(RaftIndex::new(100), &mut committed), bytes, "seed {seed}");
        assert_eq!(restore(&bytes).unwrap(), (RaftIndex::new(100), plain), "seed {seed}");
    }
}

#[test]
fn rolling_back_brings_back_answers_that_were_too_many() {
    let asks = |sequence| Request {
        origin: Some(Origin { node: 1, incarnation: 1, sequence, lowest_open: 1 }),
        command: Command::AllocateProducerIds { count: 1 },
        no_room: None,
    };
    let mut slice = Slice::new(slice_of_cluster());
    for sequence in 2..ANSWERS_MAX as u64 + 2 {
        slice.apply_request(&asks(sequence)).unwrap();
    }
    let full = slice.clone();
    // The first answer is itself the oldest and is evicted at once. The second one evicts another answer.
    for sequence in [1, ANSWERS_MAX as u64 + 2] {
        slice.speculate(RaftIndex::new(sequence), &asks(sequence)).unwrap();
        slice.check();
        assert_ne!(slice, full);
        assert_eq!(slice.committed(), full, "sequence {sequence}");
        slice.roll_back();
        assert_eq!(slice, full, "sequence {sequence}");
    }
}

#[test]
fn requests_and_what_they_gave_come_back_from_their_bytes() {
    let mut luck = Luck::new(1);
    let mut slices = Slice::all();
    let mut results: Vec<RequestResult> = Vec::new();
    let requests: Vec<Request> = (0..500).map(|_| luck.request()).collect();
    for request in &requests {
        let applied = at(&mut slices, request).apply_request(request);
        results.push(applied.map(|applied| applied.outcome));
    }
    assert_eq!(decode_requests(&encode_requests(&requests)), Ok(requests));
    assert_eq!(decode_results(&encode_results(&results)), Ok(results));
}

#[test]
fn a_disk_that_was_replaced_does_not_come_back() {
    let mut slice = Slice::new(slice_of_cluster());
    let mut register = |node, disk, incarnation| {
        slice.apply(&Command::RegisterBroker { broker: broker(node, disk, incarnation) }).outcome
    };
    assert_eq!(register(1, 10, 2), Ok(Outcome::BrokerRegistered));
    assert_eq!(register(1, 10, 1), Err(Rejection::StaleBroker { node: 1, incarnation: 2 }));
    assert_eq!(register(1, 11, 1), Ok(Outcome::BrokerRegistered));
    assert_eq!(register(1, 10, 3), Err(Rejection::PeerGone { node: 1, peer: 10 }));
    slice.apply(&Command::UnregisterBroker { node: 1 }).outcome.unwrap();
    let again = slice.apply(&Command::RegisterBroker { broker: broker(1, 11, 9) }).outcome;
    assert_eq!(again, Err(Rejection::PeerGone { node: 1, peer: 11 }));
}

#[test]
fn queries_are_answered_from_the_view_and_come_back_from_their_bytes() {
    let mut luck = Luck::new(5);
    let mut slices = Slice::all();
    for _ in 0..300 {
        let request = Request::from(luck.command());
        at(&mut slices, &request).apply_request(&request).ok();
    }
    let image: Vec<Delta> = slices.iter().flat_map(Slice::image).collect();
    let view = View::new(RaftIndex::new(300), &image);
    let name = view.topics().next().expect("some topic is left").name.to_string();
    let queries = vec![
        Query::GetTopic { name: name.clone() },
        Query::GetTopic { name: "none".to_owned() },
        Query::ListTopics { after: None, limit: 2 },
        Query::ListTopics { after: Some(name.clone()), limit: 9 },
        Query::GetBroker { node: 1 },
        Query::ListBrokers,
        Query::GetPartitionAssignment { name: name.clone(), partition: 0 },
        Query::GetHighWatermark { name: name.clone(), partition: 1 },
        Query::GetPartitionCount { name: name.clone() },
    ];
    assert_eq!(decode_queries(&encode_queries(&queries)), Ok(queries.clone()));
    let answers: Vec<QueryAnswer> = queries.iter().map(|query| view.answer(query)).collect();
    assert!(matches!(&answers[0], QueryAnswer::Topic(topic) if *topic.name == name));
    assert_eq!(answers[1], QueryAnswer::NotFound);
    assert!(matches!(&answers[3], QueryAnswer::Names(names) if names.iter().all(|found| **found > *name)));
    assert!(matches!(&answers[8], QueryAnswer::Count(2..)));
    assert_eq!(decode_query_answers(&encode_query_answers(&answers)), Ok(answers));
}

#[test]
fn a_view_that_followed_every_change_is_the_view_of_the_image() {
    for seed in 0..200 {
        let mut luck = Luck::new(seed);
        let (mut slices, mut followed) = (reached(), View::default());
        for index in 1..=100 {
            let request = luck.request();
            let applied = at(&mut slices, &request).apply_request(&request);
            followed.apply(RaftIndex::new(index), &applied.map(|applied| applied.deltas).unwrap_or_default());
        }
        let image: Vec<Delta> = slices.iter().flat_map(Slice::image).collect();
        let view = View::new(RaftIndex::new(100), &image);
        assert!(followed.topics().eq(view.topics()), "seed {seed}");
        assert!(followed.brokers().eq(view.brokers()), "seed {seed}");
        assert_eq!(followed.features(), view.features(), "seed {seed}");
        assert_eq!(followed.cluster_config(), view.cluster_config(), "seed {seed}");
        for group in (1..luck.next_group + 2).map(GroupId) {
            assert_eq!(followed.has_group(group), view.has_group(group), "seed {seed}, group {group}");
            assert_eq!(followed.leader(group), view.leader(group), "seed {seed}, group {group}");
            assert_eq!(followed.watermark(group), view.watermark(group), "seed {seed}, group {group}");
        }
        for topic in view.topics() {
            assert_eq!(followed.topic_by_id(topic.id), Some(topic), "seed {seed}");
        }
    }
}

#[test]
fn a_slice_keeps_no_memory_for_changes_that_are_decided() {
    let name: Arc<str> = "large".into();
    let id = Uuid::from_u128(1);
    let create = Command::CreateTopic {
        name: name.clone(),
        id,
        first_group: 10,
        replicas: vec![vec![1]; 3_000],
        configs: BTreeMap::new(),
        created_ms: 0,
        peers: Vec::new(),
    };
    let mut slices = Slice::all();
    let delete = Request { origin: None, command: Command::DeleteTopic { name, id }, no_room: None };
    let slice = at(&mut slices, &delete);
    slice.apply(&create).outcome.expect("it is made");
    for decide in [Slice::roll_back, |slice: &mut Slice| slice.commit(RaftIndex::new(2))] {
        slice.speculate(RaftIndex::new(2), &delete).expect("it is the first").outcome.expect("it is deleted");
        assert!(slice.undo_capacity() > 3_000);
        decide(slice);
        assert!(slice.undo_capacity() <= 16, "{}", slice.undo_capacity());
    }
}
