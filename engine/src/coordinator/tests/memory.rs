//! The counted bytes are no less than what groups really take from the allocator, whatever the groups look like.

use bytes::Bytes;
use net::{
    StrBytes,
    messages::{
        GroupId, JoinGroupRequest, OffsetCommitRequest, SyncGroupRequest, TopicName,
        join_group_request::JoinGroupRequestProtocol,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        sync_group_request::SyncGroupRequestAssignment,
    },
};

use super::world::{AnyTopics, text};
use crate::coordinator::{AppendId, Config, Context, Coordinator, GroupRequest, GroupResponse, Now, Output, Room};
use testkit::allocations::held;

/// Memory of a coordinator without groups.
const EMPTY_BYTES: i64 = 4096;
/// A count that is several times too high would refuse clients without need.
const TOO_HIGH: i64 = 3;

/// A coordinator that clients fill.
struct Filled {
    coordinator: Coordinator<u64>,
    token: u64,
    /// Appends are committed at once.
    stores: bool,
    open: Vec<AppendId>,
    log: Vec<Bytes>,
    /// Bytes that `log` takes.
    logged: i64,
}

fn now() -> Now {
    Now { mono_ms: 1, wall_ms: 1_700_000_000_000 }
}

impl Filled {
    fn new(stores: bool) -> Filled {
        let config = Config { group_initial_rebalance_delay_ms: 0, ..Config::default() };
        let (open, log) = (Vec::with_capacity(10_000), Vec::with_capacity(100_000));
        let coordinator = Coordinator::new(config, 1);
        let mut filled = Filled { coordinator, token: 0, stores, open, log, logged: 0 };
        filled.coordinator.loaded(now());
        filled
    }

    fn ask(&mut self, version: i16, request: impl Into<GroupRequest>) -> Option<GroupResponse> {
        self.token += 1;
        let context = Context { version, client_id: text("client"), client_host: text("/10.0.0.1") };
        let room = Room { bytes: usize::MAX, new_groups: usize::MAX };
        let topics = AnyTopics::default();
        let outputs = self.coordinator.step(now(), &topics, room, &context, request.into(), self.token);
        self.take(outputs)
    }

    /// Returns the last answer.
    fn take(&mut self, outputs: Vec<Output<u64>>) -> Option<GroupResponse> {
        let mut last = None;
        for output in outputs {
            match output {
                Output::Reply { response, .. } => last = Some(response),
                Output::Append { id, batch } if self.stores => {
                    let before = held();
                    self.log.push(Bytes::copy_from_slice(&batch));
                    self.logged += held() - before;
                    let outputs = self.coordinator.appended(now(), id, Ok(()));
                    last = self.take(outputs).or(last);
                }
                Output::Append { id, .. } => self.open.push(id),
                Output::NoRoom { .. } => panic!("there is room"),
            }
        }
        last
    }

    fn commit(&mut self, group: &str, topic: &str, partitions: i32, metadata: &str) {
        let partition = |index| {
            let metadata = Some(text(metadata)).filter(|text| !text.is_empty());
            OffsetCommitRequestPartition::default().with_partition_index(index).with_committed_metadata(metadata)
        };
        let topic = OffsetCommitRequestTopic::default()
            .with_name(TopicName(text(topic)))
            .with_partitions((0..partitions).map(partition).collect());
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        self.ask(9, request);
    }

    /// Joins a group with these protocols; with version 4 and later only an id is issued.
    fn join(&mut self, version: i16, group: &str, instance: Option<&str>, protocols: &[(&str, usize)]) -> StrBytes {
        let protocol = |(name, bytes): &(&str, usize)| {
            JoinGroupRequestProtocol::default().with_name(text(name)).with_metadata(vec![b'm'; *bytes].into())
        };
        let request = JoinGroupRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_group_instance_id(instance.map(text))
            .with_session_timeout_ms(60_000)
            .with_rebalance_timeout_ms(60_000)
            .with_protocol_type(text("consumer"))
            .with_protocols(protocols.iter().map(protocol).collect());
        match self.ask(version, request) {
            Some(GroupResponse::JoinGroup(joined)) => joined.member_id,
            _ => StrBytes::new(),
        }
    }

    /// Stores an assignment of so many bytes for the only member.
    fn assign(&mut self, group: &str, member: StrBytes, bytes: usize) {
        let assignment = SyncGroupRequestAssignment::default()
            .with_member_id(member.clone())
            .with_assignment(vec![b'a'; bytes].into());
        let request = SyncGroupRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_generation_id(1)
            .with_member_id(member)
            .with_assignments(vec![assignment]);
        self.ask(3, request);
    }

    fn lone_member(&mut self, group: &str, instance: Option<&str>, assigned: usize) {
        // Static members join with a version that knows them.
        let member = self.join(if instance.is_some() { 5 } else { 3 }, group, instance, &[("range", 100)]);
        self.assign(group, member, assigned);
    }
}

/// Asserts that what `fill` makes the coordinator hold is counted.
fn assert_counted(what: &str, stores: bool, fill: impl Fn(&mut Filled)) -> Filled {
    let mut filled = Filled::new(stores);
    let before = held();
    fill(&mut filled);
    let held = held() - before - filled.logged;
    assert_held(what, held, filled.coordinator.bytes() as i64);
    filled
}

fn assert_held(what: &str, held: i64, counted: i64) {
    assert!(held <= counted + EMPTY_BYTES, "{what}: {held} bytes are held, {counted} are counted");
    assert!(counted < held * TOO_HIGH, "{what}: {held} bytes are held, {counted} are counted");
}

#[test]
fn the_memory_of_groups_is_counted() {
    assert_counted("groups with one offset", true, |filled| {
        (0..2_000).for_each(|n| filled.commit(&format!("group-{n}"), "topic", 1, ""));
    });
    assert_counted("groups with one member", true, |filled| {
        (0..2_000).for_each(|n| filled.lone_member(&format!("group-{n}"), None, 100));
    });
    assert_counted("groups with one static member", true, |filled| {
        (0..2_000).for_each(|n| filled.lone_member(&format!("group-{n}"), Some("instance"), 0));
    });
    assert_counted("groups with large assignments", true, |filled| {
        (0..100).for_each(|n| filled.lone_member(&format!("group-{n}"), None, 100_000));
    });
    assert_counted("issued ids", true, |filled| {
        (0..2_000).for_each(|n| drop(filled.join(4, &format!("group-{n}"), None, &[("range", 100)])));
    });
    assert_counted("issued ids of one group", true, |filled| {
        (0..1_000).for_each(|_| drop(filled.join(4, "group", None, &[("range", 100)])));
    });
    assert_counted("members of one group", true, |filled| {
        let protocols = [("range", 50), ("roundrobin", 50), ("sticky", 50)];
        (0..1_000).for_each(|_| drop(filled.join(3, "group", None, &protocols)));
    });
    assert_counted("members with a large subscription", true, |filled| {
        (0..10).for_each(|_| drop(filled.join(3, "group", None, &[("range", 500_000)])));
    });
    assert_counted("offsets of one topic", true, |filled| filled.commit("group", "topic", 20_000, ""));
    assert_counted("offsets with metadata", true, |filled| filled.commit("group", "topic", 2_000, &"m".repeat(50)));
    assert_counted("offsets of many topics", true, |filled| {
        (0..3_000).for_each(|n| filled.commit("group", &format!("a-topic-with-a-long-name-{n}"), 1, ""));
    });
}

#[test]
fn a_record_that_is_being_stored_is_counted_until_its_end() {
    let commits = |filled: &mut Filled| (0..500).for_each(|_| filled.commit("group", "topic", 20, &"m".repeat(50)));
    let assignments = |filled: &mut Filled| {
        (0..100).for_each(|n| filled.lone_member(&format!("group-{n}"), None, 100_000));
    };
    for (what, fill) in [("commits", &commits as &dyn Fn(&mut Filled)), ("assignments", &assignments)] {
        let mut filled = assert_counted(what, false, fill);
        let open = filled.coordinator.bytes();
        for (at, id) in std::mem::take(&mut filled.open).into_iter().enumerate() {
            let outcome = if at % 2 == 0 { Ok(()) } else { Err(net::errors::ErrorCode::NotEnoughReplicas) };
            filled.coordinator.appended(now(), id, outcome);
            filled.coordinator.check();
        }
        assert!(filled.coordinator.bytes() < open / 3 * 2, "{what}");
    }
}

#[test]
fn the_memory_of_a_load_is_counted() {
    let filled = assert_counted("groups of all kinds", true, |filled| {
        for n in 0..1_000 {
            let group = format!("group-{n}");
            filled.commit(&group, "topic", 10, "metadata");
            filled.lone_member(&group, (n % 2 == 0).then_some("instance"), 1_000);
        }
    });
    let before = held();
    let mut loaded: Coordinator<u64> = Coordinator::new(Config::default(), 2);
    filled.log.iter().for_each(|batch| assert!(loaded.replay(&AnyTopics::default(), batch).is_empty()));
    loaded.loaded(now());
    assert_held("the same from the log", held() - before, loaded.bytes() as i64);
}
