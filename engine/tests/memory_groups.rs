//! Consumer groups take memory until they are deleted or expire. All groups of a core together stay within a share of
//! the budget: what needs more is refused, and the groups that exist go on.

mod support;

use std::ops::Range;

use net::client::blocking::Client;
use net::errors::{self, ErrorCode};
use net::messages::join_group_request::JoinGroupRequestProtocol;
use net::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use net::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use net::messages::{DeleteGroupsRequest, GroupId, JoinGroupRequest, OffsetCommitRequest, OffsetFetchRequest};

use support::broker::Broker;
use support::cluster::wait_until;
use support::wire;

const MIB: usize = 1 << 20;
/// The smallest budget that a broker accepts. Groups get a sixteenth, and new ones half of that.
const BUDGET: usize = 64 * MIB;
const SHARE: usize = BUDGET / 16;
/// Further memory of the process, as in `memory_clients`.
const BESIDES: usize = 96 * MIB;
const TOPIC: &str = "topic";
const PARTITIONS: i32 = 300;

const HELD: &str = "millrace_memory_consumer_groups_bytes";
const REFUSED: &str = "millrace_consumer_groups_refused_total";

fn start(budget: usize) -> Broker {
    let budget = format!("memory.budget.bytes={budget}");
    let broker = Broker::start_with(&["--cores", "0", "--set", &budget, "--set", "group.initial.rebalance.delay.ms=0"]);
    let mut client = wire::connect(&broker);
    let created = wire::create_topic(&mut client, TOPIC, PARTITIONS, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    wire::await_coordinator(&mut client, "any");
    broker
}

/// The peak memory of the process, in bytes.
fn peak(broker: &Broker) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.pid())).expect("the broker runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

/// Waits until groups hold so many bytes: the metrics show the present a little later.
fn wait_until_held(broker: &Broker, bytes: Range<usize>) {
    wait_until("bytes held by groups", || bytes.contains(&(broker.metric(HELD) as usize)));
}

/// Joins a group as a new member that stays for minutes.
fn join(client: &mut Client, group: &str, metadata: usize) -> Result<(), ErrorCode> {
    let protocol =
        JoinGroupRequestProtocol::default().with_name(wire::text("range")).with_metadata(vec![b'm'; metadata].into());
    let mut join = JoinGroupRequest::default()
        .with_group_id(GroupId(wire::text(group)))
        .with_protocol_type(wire::text("consumer"))
        .with_protocols(vec![protocol])
        .with_session_timeout_ms(600_000)
        .with_rebalance_timeout_ms(600_000);
    let mut joined = client.call(join.clone()).expect("JoinGroup is answered");
    if errors::check(joined.error_code) == Err(ErrorCode::MemberIdRequired) {
        join.member_id = joined.member_id;
        joined = client.call(join).expect("JoinGroup is answered");
    }
    errors::check(joined.error_code)
}

/// Commits offsets for a group without members, and returns the outcome of each.
fn commit(
    client: &mut Client,
    group: &str,
    partitions: Range<i32>,
    offset: i64,
    metadata: usize,
) -> Vec<Result<(), ErrorCode>> {
    let partition = |index| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(index)
            .with_committed_offset(offset)
            .with_committed_metadata(Some(wire::text(&"m".repeat(metadata))))
    };
    let topic = OffsetCommitRequestTopic::default()
        .with_name(wire::topic_name(TOPIC))
        .with_partitions(partitions.map(partition).collect());
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(wire::text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let answer = client.call(request).expect("OffsetCommit is answered");
    answer.topics[0].partitions.iter().map(|partition| errors::check(partition.error_code)).collect()
}

/// The offsets that the coordinator knows.
fn committed(client: &mut Client, group: &str, partitions: Range<i32>) -> Vec<i64> {
    let mut offsets = Vec::new();
    wait_until("a loaded coordinator", || {
        let topic = OffsetFetchRequestTopics::default()
            .with_name(wire::topic_name(TOPIC))
            .with_partition_indexes(partitions.clone().collect());
        let asked = OffsetFetchRequestGroup::default().with_group_id(GroupId(wire::text(group)));
        let request = OffsetFetchRequest::default().with_groups(vec![asked.with_topics(Some(vec![topic]))]);
        let answer = client.call(request).expect("OffsetFetch is answered").groups.remove(0);
        if answer.error_code == errors::NONE {
            offsets = answer.topics[0].partitions.iter().map(|partition| partition.committed_offset).collect();
        }
        answer.error_code == errors::NONE
    });
    offsets
}

fn delete(client: &mut Client, groups: impl Iterator<Item = String>) {
    let names = groups.map(|group| GroupId(wire::text(&group))).collect();
    let answer = client.call(DeleteGroupsRequest::default().with_groups_names(names)).expect("it is answered");
    assert!(answer.results.iter().all(|result| result.error_code == errors::NONE), "{:?}", answer.results);
}

#[test]
fn groups_beyond_their_share_are_refused_and_the_others_go_on() {
    const METADATA: usize = 900_000;
    const CARELESS: usize = 400;
    let refused = Err(ErrorCode::CoordinatorNotAvailable);
    let broker = start(BUDGET);
    let mut client = wire::connect(&broker);
    let mut worker = wire::OnlyMember::new("worker");
    assert_eq!(worker.assign(&mut client, 1000), Ok(()));
    assert!(commit(&mut client, "frugal", 0..100, 1, 10).iter().all(Result::is_ok));

    // 360 MB of members, one in each group.
    let joined: Vec<_> = (0..CARELESS).map(|n| join(&mut client, &format!("careless-{n}"), METADATA)).collect();
    assert!(peak(&broker) < BUDGET + BESIDES, "{} MiB", peak(&broker) / MIB);
    let first = joined.iter().position(|outcome| *outcome == refused).expect("it is refused");
    assert!((1..=SHARE / 2 / METADATA).contains(&first), "{first} groups");
    assert!(joined[first..].iter().all(|outcome| *outcome == refused), "{joined:?}");
    broker.wait_for_log("a refused group", |line| {
        line.contains("refused a request of a consumer group") && line.contains("raise memory.budget.bytes")
    });
    wait_until("refused groups to be counted", || broker.metric(REFUSED) >= (CARELESS - first) as f64);

    // Small groups fill what is left for new ones.
    let small = (0..10_000).find(|n| commit(&mut client, &format!("small-{n}"), 0..1, 1, 0) == [refused]);
    assert!(small.is_some_and(|small| small > 2), "{small:?}");
    wait_until_held(&broker, SHARE / 2 - 4096..SHARE / 2 + 1);

    // Groups that exist may grow: members join, and offsets are added, up to the whole share.
    assert_eq!(join(&mut client, "small-2", 1000), Ok(()));
    let outcomes: Vec<_> =
        (0..3).flat_map(|part| commit(&mut client, "frugal", part * 100..part * 100 + 100, 2, 4096)).collect();
    assert_eq!(outcomes, vec![Ok(()); 300]);
    let growing = (0..100).flat_map(|n| commit(&mut client, &format!("small-{}", n % 2), 0..100, 3, 4096));
    let growing: Vec<_> = growing.take(400).collect();
    let too_large = Err(ErrorCode::InvalidCommitOffsetSize);
    let first = growing.iter().position(|outcome| *outcome == too_large).expect("one is refused");
    assert!(first > 50 && growing[..first].iter().all(Result::is_ok), "{growing:?}");
    wait_until_held(&broker, SHARE - 8192..SHARE + 1);
    assert_eq!(join(&mut client, "careless-0", METADATA), refused);
    assert_eq!(worker.assign(&mut client, 500_000), refused);

    // Groups store again what they have.
    assert_eq!(commit(&mut client, "frugal", 0..100, 4, 4096), vec![Ok(()); 100]);
    assert_eq!(committed(&mut client, "frugal", 0..100), vec![4; 100]);
    assert_eq!(wire::produce(&mut client, TOPIC, 0, wire::batch(&[b"served"])).error_code, errors::NONE);
    assert!(peak(&broker) < BUDGET + BESIDES, "{} MiB", peak(&broker) / MIB);

    // Groups that are deleted make room.
    delete(&mut client, ["frugal".to_owned(), "small-0".to_owned(), "small-1".to_owned()].into_iter());
    assert_eq!(worker.assign(&mut client, 500_000), Ok(()));
}

/// A broker whose budget was lowered, or that takes over the groups of another one, has more than its share.
#[test]
fn a_broker_loads_all_groups_and_serves_them_but_takes_no_more() {
    const GROUPS: i64 = 6;
    /// Without the groups' and their topics' names.
    const ALL: usize = GROUPS as usize * PARTITIONS as usize * (4096 + 256);
    let mut broker = start(4 * BUDGET);
    let mut client = wire::connect(&broker);
    let group = |number: i64| format!("group-{number}");
    for number in 0..GROUPS {
        for part in 0..3 {
            let outcomes = commit(&mut client, &group(number), part * 100..part * 100 + 100, number, 4096);
            assert_eq!(outcomes, vec![Ok(()); 100]);
        }
    }
    const { assert!(ALL > SHARE * 3 / 2) };
    wait_until_held(&broker, ALL..ALL + 100_000);
    broker.set("memory.budget.bytes", &BUDGET.to_string());
    broker.kill_and_begin();

    let mut client = wire::connect(&broker);
    for number in 0..GROUPS {
        assert_eq!(committed(&mut client, &group(number), 0..PARTITIONS), vec![number; PARTITIONS as usize]);
    }
    wait_until_held(&broker, ALL..ALL + 100_000);
    assert_eq!(broker.metric("millrace_memory_consumer_groups_max_bytes") as usize, SHARE);
    broker.wait_for_log("groups beyond their share", |line| {
        line.contains("memory.budget.bytes is enough for") && line.contains("serves all of them")
    });
    assert_eq!(commit(&mut client, &group(0), 0..100, 77, 4096), vec![Ok(()); 100]);
    assert_eq!(commit(&mut client, "new", 0..1, 1, 0), [Err(ErrorCode::CoordinatorNotAvailable)]);
    assert_eq!(join(&mut client, &group(0), 10), Err(ErrorCode::CoordinatorNotAvailable));
    assert!(peak(&broker) < BUDGET + BESIDES, "{} MiB", peak(&broker) / MIB);
    delete(&mut client, (1..GROUPS).map(group));
    assert_eq!(commit(&mut client, "new", 0..1, 1, 0), [Ok(())]);
    assert_eq!(committed(&mut client, &group(0), 0..100), vec![77; 100]);
}
