//! The rules of replicated partitions, one by one, on three brokers. They say which replicas each kind of ack waits
//! for, which one leads, and which are in sync. They also say how a broker catches up after a long absence.

mod support;

use std::collections::BTreeSet;

use bytes::Buf;
use net::client::blocking::Client;
use net::errors::{self, ErrorCode};
use net::messages::create_topics_request::CreatableTopic;
use net::messages::elect_leaders_request::TopicPartitions;
use net::messages::metadata_response::MetadataResponsePartition;
use net::messages::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
use net::messages::{
    BrokerId, CreateTopicsRequest, DescribeTopicPartitionsRequest, ElectLeadersRequest, OffsetForLeaderEpochRequest,
};
use net::records::record::Records;

use support::cluster::{Cluster, wait_until};
use support::proxy::Mode;
use support::wire::{self, topic_name};

const BROKERS: usize = 3;
const TOPIC: &str = "rules";
/// Leaders stay where they are unless a test moves them.
const STAY: &str = "auto.leader.rebalance.enable=false";
const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;
const ALL: i16 = -1;

fn client(cluster: &Cluster, i: usize) -> Client {
    wire::connect(cluster.broker(i))
}

/// A topic with one partition that has a replica on every broker.
fn create(cluster: &Cluster, settings: &[(&str, &str)]) {
    let created = wire::create_topic(&mut client(cluster, 0), TOPIC, 1, BROKERS as i16, settings);
    assert_eq!(errors::check(created.error_code), Ok(()), "{:?}", created.error_message);
}

/// The topic's only partition, as a broker shows it.
fn shown(cluster: &Cluster, i: usize) -> MetadataResponsePartition {
    wire::partitions(&mut client(cluster, i), TOPIC).remove(0)
}

/// The node that leads, as a broker other than `but` shows it.
fn leader_but(cluster: &Cluster, but: Option<usize>) -> usize {
    let asked = (0..BROKERS).find(|i| Some(*i) != but).expect("there are others");
    let mut leader = None;
    wait_until("leader of the partition", || {
        let node = shown(cluster, asked).leader_id.0;
        leader = (node > 0).then(|| node as usize - 1).filter(|leader| Some(*leader) != but);
        leader.is_some()
    });
    leader.expect("just found")
}

fn leader(cluster: &Cluster) -> usize {
    leader_but(cluster, None)
}

fn in_sync(cluster: &Cluster, i: usize) -> BTreeSet<usize> {
    shown(cluster, i).isr_nodes.iter().map(|node| node.0 as usize - 1).collect()
}

fn wait_until_in_sync(cluster: &Cluster, through: usize, wanted: &[usize]) {
    let wanted = wanted.iter().copied().collect();
    wait_until("such a set of replicas in sync", || in_sync(cluster, through) == wanted);
}

fn wait_until_whole(cluster: &Cluster) {
    (0..BROKERS).for_each(|i| wait_until_in_sync(cluster, i, &[0, 1, 2]));
}

fn produce(cluster: &Cluster, i: usize, acks: i16, timeout_ms: i32, value: &str) -> Result<i64, ErrorCode> {
    let mut request = wire::produce_request(TOPIC, 0, acks, wire::batch(&[value.as_bytes()]));
    request.timeout_ms = timeout_ms;
    let response = client(cluster, i).produce(request).expect("an answer");
    let answer = &response.responses[0].partition_responses[0];
    errors::check(answer.error_code).map(|()| answer.base_offset)
}

/// Produces to the current leader until the record is acknowledged. Returns the offset.
fn produce_somehow(cluster: &Cluster, but: Option<usize>, value: &str) -> i64 {
    let mut offset = None;
    wait_until("acknowledgement", || {
        offset = produce(cluster, leader_but(cluster, but), ALL, 5000, value).ok();
        offset.is_some()
    });
    offset.expect("just acknowledged")
}

/// The values from an offset on, as far as one broker returns them.
fn values(cluster: &Cluster, i: usize, from: i64) -> Result<Vec<(i64, String)>, ErrorCode> {
    let mut found = Vec::new();
    let mut client = client(cluster, i);
    let mut next = from;
    loop {
        let response = client.fetch(wire::fetch_request(TOPIC, 0, next, 0, 0)).expect("an answer");
        let partition = &response.responses[0].partitions[0];
        errors::check(response.error_code)?;
        errors::check(partition.error_code)?;
        let mut batches = partition.records.clone().unwrap_or_default();
        let before = found.len();
        while !batches.is_empty() {
            let records = Records::open(&batches, 1 << 20).expect("a batch as it was sent");
            for record in records.iter().map(|record| record.expect("a record as it was sent")) {
                let value = String::from_utf8(record.value.expect("a value").to_vec()).expect("text");
                if record.offset >= next {
                    found.push((record.offset, value));
                }
            }
            batches.advance(records.header().byte_count);
        }
        if found.len() == before {
            return Ok(found);
        }
        next = found.last().expect("not empty").0 + 1;
    }
}

fn elect(cluster: &Cluster, i: usize, kind: i8, partitions: Option<&[i32]>) -> Vec<(i32, Result<(), ErrorCode>)> {
    let topics = partitions.map(|partitions| {
        vec![TopicPartitions::default().with_topic(topic_name(TOPIC)).with_partitions(partitions.to_vec())]
    });
    let request =
        ElectLeadersRequest::default().with_election_type(kind).with_topic_partitions(topics).with_timeout_ms(10_000);
    let response = client(cluster, i).call(request).expect("an answer");
    assert_eq!(errors::check(response.error_code), Ok(()));
    let results = response.replica_election_results.iter().flat_map(|topic| &topic.partition_result);
    results.map(|one| (one.partition_id, errors::check(one.error_code))).collect()
}

/// Makes the preferred leader lead again. It may have come back a moment ago.
fn elect_preferred(cluster: &Cluster, i: usize) {
    wait_until("election of the preferred leader", || elect(cluster, i, PREFERRED, Some(&[0])) == [(0, Ok(()))]);
}

fn followers(leader: usize) -> [usize; 2] {
    [(leader + 1) % BROKERS, (leader + 2) % BROKERS]
}

#[test]
fn acks_all_is_refused_before_and_after_the_append_while_too_few_replicas_are_in_sync() {
    let cluster = Cluster::start(BROKERS, &["--set", STAY]);
    create(&cluster, &[("min.insync.replicas", "3")]);
    let leader = leader(&cluster);
    let [behind, other] = followers(leader);
    wait_until_whole(&cluster);
    assert_eq!(produce(&cluster, leader, ALL, 10_000, "all three"), Ok(0));

    cluster.broker(behind).signal(libc::SIGSTOP);
    let answer = produce(&cluster, leader, ALL, 10_000, "appended, then found to be on two");
    assert_eq!(answer, Err(ErrorCode::NotEnoughReplicasAfterAppend));
    wait_until_in_sync(&cluster, leader, &[leader, other]);
    assert_eq!(produce(&cluster, leader, ALL, 10_000, "never appended"), Err(ErrorCode::NotEnoughReplicas));
    assert_eq!(produce(&cluster, leader, 1, 10_000, "only the leader's disk is asked for"), Ok(2));
    let mut asked = client(&cluster, other);
    let described = asked.call(DescribeTopicPartitionsRequest::default().with_response_partition_limit(10)).unwrap();
    let described = described.topics.iter().find(|topic| topic.name.as_ref().is_some_and(|name| &**name == TOPIC));
    let described = described.expect("it is described");
    assert_eq!((described.error_code, described.partitions[0].error_code), (errors::NONE, errors::NONE));
    let isr: BTreeSet<i32> = described.partitions[0].isr_nodes.iter().map(|node| node.0).collect();
    assert_eq!(isr, BTreeSet::from([leader as i32 + 1, other as i32 + 1]));

    cluster.broker(behind).signal(libc::SIGCONT);
    wait_until_whole(&cluster);
    assert_eq!(produce(&cluster, leader, ALL, 10_000, "all three again"), Ok(3));
    let expected =
        ["all three", "appended, then found to be on two", "only the leader's disk is asked for", "all three again"];
    let found = values(&cluster, leader, 0).unwrap();
    assert_eq!(found, (0..).zip(expected.map(str::to_owned)).collect::<Vec<_>>());
    for follower in [behind, other] {
        assert_eq!(values(&cluster, follower, 0), Err(ErrorCode::NotLeaderOrFollower));
    }
}

#[test]
fn a_leader_without_its_replicas_acknowledges_for_its_own_disk_alone_and_says_in_time_that_all_is_not_done() {
    let cluster = Cluster::start(BROKERS, &["--set", STAY]);
    create(&cluster, &[]);
    let leader = leader(&cluster);
    wait_until_whole(&cluster);
    assert_eq!(produce(&cluster, leader, ALL, 10_000, "kept"), Ok(0));
    cluster.set_all_ways(leader, Mode::Silent);
    assert_eq!(produce(&cluster, leader, 1, 10_000, "acknowledged by one"), Ok(1));
    assert_eq!(produce(&cluster, leader, ALL, 100, "acknowledged by none"), Err(ErrorCode::RequestTimedOut));
    let [one, _] = followers(leader);
    let new = leader_but(&cluster, Some(leader));
    assert_ne!(new, leader);
    assert_eq!(produce_somehow(&cluster, Some(leader), "of the new leader"), 1);
    wait_until("leader that has stepped down", || {
        produce(&cluster, leader, 1, 1000, "of nobody") == Err(ErrorCode::NotLeaderOrFollower)
    });
    cluster.set_all_ways(leader, Mode::Open);
    wait_until_whole(&cluster);
    let expected = vec![(0, "kept".to_owned()), (1, "of the new leader".to_owned())];
    assert_eq!(values(&cluster, new, 0).unwrap(), expected);
    // The records that only the old leader had are gone from its own disk, too.
    let preferred = shown(&cluster, one).replica_nodes[0].0 as usize - 1;
    assert_eq!(preferred, leader, "the first leader is the preferred one");
    elect_preferred(&cluster, one);
    wait_until("records at the first leader", || values(&cluster, leader, 0) == Ok(expected.clone()));
}

#[test]
fn leaders_are_elected_when_a_client_asks() {
    let mut cluster = Cluster::start(BROKERS, &["--set", STAY]);
    create(&cluster, &[]);
    wait_until_whole(&cluster);
    let preferred = leader(&cluster);
    assert_eq!(shown(&cluster, 0).replica_nodes[0], BrokerId(preferred as i32 + 1));
    let [one, _] = followers(preferred);
    assert_eq!(elect(&cluster, one, PREFERRED, Some(&[0])), [(0, Err(ErrorCode::ElectionNotNeeded))]);
    assert_eq!(elect(&cluster, one, PREFERRED, Some(&[7])), [(7, Err(ErrorCode::UnknownTopicOrPartition))]);
    assert_eq!(elect(&cluster, one, UNCLEAN, Some(&[0])), [(0, Err(ErrorCode::ElectionNotNeeded))]);
    assert_eq!(elect(&cluster, one, PREFERRED, None), [], "none needs it");

    cluster.kill9(preferred);
    let stand_in = leader_but(&cluster, Some(preferred));
    assert_ne!(stand_in, preferred);
    produce_somehow(&cluster, Some(preferred), "while it is away");
    let refused = elect(&cluster, one, PREFERRED, Some(&[0]));
    assert_eq!(refused, [(0, Err(ErrorCode::PreferredLeaderNotAvailable))]);
    cluster.begin(preferred);
    wait_until_whole(&cluster);
    assert_eq!(leader(&cluster), stand_in, "it stays until somebody asks");
    for asked in [preferred, one] {
        if asked == preferred {
            assert_eq!(elect(&cluster, asked, PREFERRED, None), [(0, Ok(()))]);
        } else {
            // Another broker learns of the election a moment later. Then it answers that no election is needed.
            let preferred = BrokerId(preferred as i32 + 1);
            wait_until("news of the election", || shown(&cluster, asked).leader_id == preferred);
            assert_eq!(elect(&cluster, asked, PREFERRED, Some(&[0])), [(0, Err(ErrorCode::ElectionNotNeeded))]);
        }
        assert_eq!(shown(&cluster, asked).leader_id, BrokerId(preferred as i32 + 1), "told once it is so");
    }
    assert_eq!(values(&cluster, preferred, 0).unwrap(), [(0, "while it is away".to_owned())]);
}

#[test]
fn quiet_partitions_rest_miss_no_death_and_go_back_to_their_preferred_leaders() {
    let mut cluster = Cluster::start(BROKERS, &["--set", "leader.imbalance.check.interval.seconds=1"]);
    create(&cluster, &[]);
    let all_rest =
        |cluster: &Cluster| (0..BROKERS).all(|i| cluster.broker(i).metric("millrace_replication_groups_awake") == 0.0);
    produce_somehow(&cluster, None, "one");
    wait_until("rest of all groups", || all_rest(&cluster));
    produce_somehow(&cluster, None, "two");
    wait_until("rest of all groups", || all_rest(&cluster));
    let preferred = leader(&cluster);
    cluster.kill9(preferred);
    assert_ne!(leader_but(&cluster, Some(preferred)), preferred);
    produce_somehow(&cluster, Some(preferred), "three");
    cluster.begin(preferred);
    wait_until_whole(&cluster);
    wait_until("return of the preferred leader", || leader(&cluster) == preferred);
    wait_until("rest of all groups", || all_rest(&cluster));
    let expected = (0..).zip(["one", "two", "three"].map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(values(&cluster, preferred, 0).unwrap(), expected);
}

/// The end of an epoch according to a leader: the epoch of the answer, and the offset after its last record.
fn epoch_end(cluster: &Cluster, i: usize, epoch: i32) -> (i32, i64) {
    let partition =
        OffsetForLeaderPartition::default().with_partition(0).with_leader_epoch(epoch).with_current_leader_epoch(-1);
    let topic = OffsetForLeaderTopic::default().with_topic(topic_name(TOPIC)).with_partitions(vec![partition]);
    let request = OffsetForLeaderEpochRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
    let response = client(cluster, i).call(request).expect("an answer");
    let end = &response.topics[0].partitions[0];
    assert_eq!(errors::check(end.error_code), Ok(()));
    (end.leader_epoch, end.end_offset)
}

#[test]
fn every_leader_knows_where_each_epoch_ended() {
    let mut cluster = Cluster::start(BROKERS, &["--set", STAY]);
    create(&cluster, &[]);
    wait_until_whole(&cluster);
    let mut ends = Vec::new();
    let mut next = 0;
    for round in 0..3 {
        let leader = leader(&cluster);
        let epoch = shown(&cluster, leader).leader_epoch;
        for record in 0..=round {
            assert_eq!(produce_somehow(&cluster, None, &format!("{round}-{record}")), next);
            next += 1;
        }
        ends.push((epoch, next));
        cluster.kill9(leader);
        let new = leader_but(&cluster, Some(leader));
        for (epoch, end) in &ends {
            assert_eq!(epoch_end(&cluster, new, *epoch), (*epoch, *end), "epoch {epoch} after {round} of 3");
        }
        cluster.begin(leader);
        wait_until_whole(&cluster);
    }
    assert!(ends.is_sorted_by(|a, b| a.0 < b.0), "{ends:?}");
}

#[test]
fn a_replica_behind_the_logs_start_is_given_what_is_left_and_may_lead() {
    let quick = ["--set", STAY, "--set", "log.retention.check.interval.ms=100", "--set", "wal.ring.bytes=16777216"];
    let mut cluster = Cluster::start(BROKERS, &quick);
    create(&cluster, &[("segment.bytes", "65536"), ("retention.bytes", "262144")]);
    wait_until_whole(&cluster);
    let away = leader(&cluster);
    produce_somehow(&cluster, None, "what it has");
    cluster.kill9(away);
    let stand_in = leader_but(&cluster, Some(away));
    let value = |n: i64| format!("{n} {}", "x".repeat(8192));
    let mut last = 0;
    // The entries that the absent broker lacks must be gone from the leader's log and ring.
    while last < 3000 {
        last = produce_somehow(&cluster, Some(away), &value(last + 1));
    }
    let start = |cluster: &Cluster, i: usize| {
        let response = client(cluster, i).fetch(wire::fetch_request(TOPIC, 0, last, 0, 0)).expect("an answer");
        // While another broker leads, the log's start is unknown: -1, which is below every offset.
        let partition = wire::only_partition(&response);
        errors::check(partition.error_code).map_or(-1, |()| partition.log_start_offset)
    };
    wait_until("retention", || start(&cluster, stand_in) > 2000);
    cluster.begin(away);
    wait_until_whole(&cluster);
    let given: f64 = (0..BROKERS).map(|i| cluster.broker(i).metric("millrace_replication_snapshots_total")).sum();
    assert!(given >= 1.0, "it was not given a snapshot");
    elect_preferred(&cluster, stand_in);
    wait_until("its answer", || values(&cluster, away, last).is_ok());
    let from = start(&cluster, away);
    assert!(from > 2000, "it begins at {from}");
    let expected: Vec<(i64, String)> = (from..=last).map(|n| (n, value(n))).collect();
    assert!(values(&cluster, away, from).unwrap() == expected, "other records than were acknowledged");
}

#[test]
fn a_broker_that_is_cut_off_with_an_undecided_change_goes_on_with_what_it_has_alone() {
    let cluster = Cluster::start(BROKERS, &["--cores", "0", "--set", "wal.ring.bytes=16777216"]);
    let leader = cluster.leader();
    let created = wire::create_topic(&mut client(&cluster, leader), "alone", BROKERS as i32, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    let placed = wire::partitions(&mut client(&cluster, leader), "alone");
    let own = placed.iter().find(|partition| partition.leader_id.0 == leader as i32 + 1).expect("one for each");
    cluster.set_all_ways(leader, Mode::Silent);
    let undecided =
        CreatableTopic::default().with_name(topic_name("undecided")).with_num_partitions(1).with_replication_factor(1);
    let undecided = CreateTopicsRequest::default().with_topics(vec![undecided]).with_timeout_ms(500);
    let answer = client(&cluster, leader).call(undecided).expect("an answer");
    assert_ne!(errors::check(answer.topics[0].error_code), Ok(()), "nobody else knows of it");
    // More than the amount at which the ring starts to make room, but less than the ring can hold.
    let value = vec![b'x'; 64 << 10];
    let mut producer = client(&cluster, leader);
    for n in 0..120 {
        let answer = wire::produce(&mut producer, "alone", own.partition_index, wire::batch(&[&value]));
        assert_eq!((errors::check(answer.error_code), answer.base_offset), (Ok(()), n));
    }
    cluster.set_all_ways(leader, Mode::Open);
    let shown = |i| wire::partitions(&mut client(&cluster, i), "alone").len() == BROKERS;
    wait_until("agreement", || (0..BROKERS).all(shown));
}
