//! Rules that scripts cannot express well: sizes, loading, and contracts with the engine.

use std::collections::BTreeSet;

use bytes::Bytes;
use net::{
    codec::{
        header::RequestHeader,
        request::{self, Request},
    },
    errors::ErrorCode,
    messages::{
        DeleteGroupsRequest, GroupId, HeartbeatRequest, JoinGroupRequest, ListGroupsRequest, OffsetCommitRequest,
        OffsetFetchRequest, SyncGroupRequest, TopicName,
        join_group_request::JoinGroupRequestProtocol,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
        sync_group_request::SyncGroupRequestAssignment,
    },
};

use super::world::{AnyTopics, World, read, text};
use crate::coordinator::{
    AppendId, Config, Context, Coordinator, GroupRequest, GroupResponse, MEMBER_BYTES_MAX, Now, Output,
    PENDING_MEMBERS_MAX, Room, SEARCH_TURN_ENTRIES, shorten_filter,
};

fn context(version: i16) -> Context {
    Context { version, client_id: text("c"), client_host: text("/10.0.0.1") }
}

fn join(metadata: Bytes) -> JoinGroupRequest {
    JoinGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(metadata)])
}

fn commit(group: &str, topic: &str, partitions: i32) -> OffsetCommitRequest {
    let partition =
        |index| OffsetCommitRequestPartition::default().with_partition_index(index).with_committed_offset(1);
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(text(topic)))
        .with_partitions((0..partitions).map(partition).collect());
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic])
}

fn error(replies: &[(u64, GroupResponse)]) -> i16 {
    match replies {
        [(_, GroupResponse::JoinGroup(response))] => response.error_code,
        [(_, GroupResponse::SyncGroup(response))] => response.error_code,
        [(_, GroupResponse::Heartbeat(response))] => response.error_code,
        [(_, GroupResponse::OffsetCommit(response))] => response.topics[0].partitions[0].error_code,
        other => panic!("one answer was expected: {other:?}"),
    }
}

/// Topics of several sizes. Between them are topics that are gone, whose offsets count for nothing.
#[test]
fn all_offsets_of_a_group_are_read_in_parts_and_told_once() {
    let mut world = World::new(Config::default());
    let sizes = [("a", 1), ("b", 700), ("c", 1500), ("d", 1), ("e", 3000), ("f", 2), ("g", 5)];
    let gone = ["a", "c", "g"];
    for (token, (topic, partitions)) in (1..).zip(sizes) {
        assert_eq!(world.step(token, &context(8), commit("g", topic, partitions)), []);
    }
    world.commit_all();
    gone.iter().for_each(|topic| world.delete_topic(topic));
    let left = sizes.iter().filter(|(topic, _)| !gone.contains(topic));
    let left: Vec<(String, Vec<i32>)> =
        left.map(|(topic, partitions)| (topic.to_string(), (0..*partitions).collect())).collect();
    // From version 8 on, next to other groups.
    let group = |name| OffsetFetchRequestGroup::default().with_group_id(GroupId(text(name))).with_topics(None);
    let groups = ["g", "unknown", "g"].map(group).to_vec();
    let replies = world.step(100, &context(8), OffsetFetchRequest::default().with_groups(groups));
    let [(_, GroupResponse::OffsetFetch(fetched))] = &replies[..] else { panic!("{replies:?}") };
    let told = fetched.groups.iter().map(|group| {
        let topics = group.topics.iter().map(|topic| {
            (topic.name.to_string(), topic.partitions.iter().map(|partition| partition.partition_index).collect())
        });
        (group.group_id.to_string(), topics.collect())
    });
    let whole = || ("g".to_owned(), left.clone());
    assert_eq!(told.collect::<Vec<_>>(), [whole(), ("unknown".to_owned(), Vec::new()), whole()]);
    // Before, for one group.
    let one = OffsetFetchRequest::default().with_group_id(GroupId(text("g"))).with_topics(None);
    let replies = world.step(101, &context(7), one);
    let [(_, GroupResponse::OffsetFetch(fetched))] = &replies[..] else { panic!("{replies:?}") };
    let told = fetched.topics.iter().map(|topic| {
        (topic.name.to_string(), topic.partitions.iter().map(|partition| partition.partition_index).collect())
    });
    assert_eq!(told.collect::<Vec<_>>(), left);
}

#[test]
fn named_offsets_are_weighed_by_themselves_however_many_their_group_has() {
    let mut world = World::new(Config::default());
    let mut large = commit("g", "large", 100);
    large.topics[0].partitions.iter_mut().for_each(|p| p.committed_metadata = Some(text(&"m".repeat(4096))));
    for (token, commit) in (1..).zip([large, commit("g", "small", 1000)]) {
        assert_eq!(world.step(token, &context(8), commit), []);
    }
    world.commit_all();
    let weigh = |topic: &str, partitions: Vec<i32>| {
        let topic = OffsetFetchRequestTopics::default().with_name(TopicName(text(topic)));
        let group = OffsetFetchRequestGroup::default().with_group_id(GroupId(text("g")));
        let group = group.with_topics(Some(vec![topic.with_partition_indexes(partitions)]));
        let request = GroupRequest::from(OffsetFetchRequest::default().with_groups(vec![group]));
        // The answer is no larger than that.
        read(&world.coordinator, &world.topics, &context(8), &request);
        request.wanted(8).map(|wanted| world.coordinator.weigh(&wanted).0).sum::<usize>()
    };
    let small = weigh("small", (0..300).collect());
    assert!(small < 300 * 200, "{small}");
    let large = weigh("large", vec![7; 10]);
    assert!((10 * 4096..10 * 4096 + 3000).contains(&large), "{large}");
    assert!(weigh("unknown", (0..300).collect()) <= small + 10);
}

#[test]
fn groups_are_listed_in_parts_each_once() {
    let mut world = World::new(Config::default());
    let names: BTreeSet<String> = (0..2500).map(|number| format!("group-{number}")).collect();
    for (token, name) in (1..).zip(&names) {
        assert_eq!(world.step(token, &context(8), commit(name, "t", 1)), []);
    }
    world.commit_all();
    let list = |filter: &[&str]| {
        ListGroupsRequest::default().with_states_filter(filter.iter().map(|name| text(name)).collect())
    };
    let mut listed = |token, filter: &[&str]| {
        let replies = world.step(token, &context(4), list(filter));
        let [(_, GroupResponse::ListGroups(listed))] = &replies[..] else { panic!("{replies:?}") };
        listed.groups.iter().map(|group| group.group_id.to_string()).collect::<Vec<_>>()
    };
    assert!(listed(10_000, &[]).iter().eq(&names));
    assert!(listed(10_001, &["Stable", "empty"]).iter().eq(&names));
    assert!(listed(10_002, &["Stable"]).is_empty());
}

#[test]
fn members_with_many_protocols_agree_on_the_one_that_all_have() {
    let mut world = World::new(Config::default());
    let many = |first: usize| {
        let named = |number| JoinGroupRequestProtocol::default().with_name(text(&format!("p{number}")));
        join(Bytes::new()).with_protocols((first..first + 10_000).map(named).collect())
    };
    assert_eq!(world.step(1, &context(3), many(0)), []);
    assert_eq!(world.step(2, &context(3), many(9_999)), []);
    assert_eq!(error(&world.step(3, &context(3), many(10_000))), ErrorCode::InconsistentGroupProtocol.code());
    let joined = world.pass(10_000);
    let chosen = joined.iter().flat_map(|(_, replies)| replies).map(|(_, reply)| match reply {
        GroupResponse::JoinGroup(joined) => joined.protocol_name.clone(),
        other => panic!("{other:?} answers no JoinGroup"),
    });
    assert_eq!(chosen.collect::<Vec<_>>(), [Some(text("p9999")), Some(text("p9999"))]);
}

#[test]
fn a_filter_keeps_each_name_once_and_one_that_no_group_has() {
    let mut filter = Vec::new();
    for name in ["stable", "Nonsense", "Stable", "Empty", "more nonsense", "EMPTY", "classic"] {
        shorten_filter(&mut filter, text(name));
    }
    assert_eq!(filter, ["stable", "Nonsense", "Empty", "classic"].map(text));
}

#[test]
fn nothing_is_served_before_the_log_is_read() {
    let mut coordinator: Coordinator<u32> = Coordinator::new(Config::default(), 1);
    let loading = ErrorCode::CoordinatorLoadInProgress.code();
    let context = context(5);
    let mut ask = |request: GroupRequest| {
        let mut outputs =
            coordinator.step(Now::default(), &AnyTopics::default(), Room::default(), &context, request, 1);
        let Some(Output::Reply { token: 1, response }) = outputs.pop() else { panic!("it is answered at once") };
        assert!(outputs.is_empty());
        response
    };
    let GroupResponse::JoinGroup(joined) = ask(join(Bytes::new()).into()) else { panic!("it is of its kind") };
    assert_eq!(joined.error_code, loading);
    let GroupResponse::OffsetCommit(committed) = ask(commit("g", "t", 1).into()) else { panic!("it is of its kind") };
    assert_eq!(committed.topics[0].partitions[0].error_code, loading);
    // A loading coordinator must not make a member believe that it was removed.
    let GroupResponse::Heartbeat(beat) = ask(HeartbeatRequest::default().into()) else { panic!("it is of its kind") };
    assert_eq!(beat.error_code, 0);
    let fetched = read(&coordinator, &AnyTopics::default(), &context, &OffsetFetchRequest::default().into());
    let GroupResponse::OffsetFetch(fetched) = fetched else { panic!("it is of its kind") };
    assert_eq!(fetched.error_code, loading);
}

#[test]
fn a_member_may_bring_so_much_and_no_more() {
    let mut world = World::new(Config::default());
    let room = MEMBER_BYTES_MAX - "consumer".len() - "range".len() - "c".len();
    let replies = world.step(1, &context(9), join(Bytes::from(vec![0; room])));
    assert_eq!(error(&replies), ErrorCode::MemberIdRequired.code());
    let replies = world.step(2, &context(9), join(Bytes::from(vec![0; room + 1])));
    assert_eq!(error(&replies), ErrorCode::InvalidRequest.code());
    let replies = world.step(3, &context(9), join(Bytes::new()).with_protocol_type(text(&"x".repeat(40_000))));
    assert_eq!(error(&replies), ErrorCode::InvalidRequest.code());
    let long_client = Context { client_id: text(&"x".repeat(32_767)), ..context(9) };
    let replies = world.step(4, &long_client, join(Bytes::new()));
    assert_eq!(error(&replies), ErrorCode::InvalidRequest.code());
    let replies = world.step(5, &context(9), join(Bytes::new()).with_group_id(GroupId(text(&"g".repeat(32_768)))));
    assert_eq!(error(&replies), ErrorCode::InvalidGroupId.code());
    let replies = world.step(6, &context(9), commit("g", &"t".repeat(32_768), 1));
    assert_eq!(error(&replies), ErrorCode::InvalidTopicException.code());
}

#[test]
fn member_ids_given_out_are_bounded() {
    let mut world = World::new(Config::default());
    let mut ids = Vec::new();
    for token in 0..=PENDING_MEMBERS_MAX as u64 {
        let replies = world.step(token, &context(4), join(Bytes::new()));
        let GroupResponse::JoinGroup(given) = &replies[0].1 else { panic!("it is of its kind") };
        ids.push(given.member_id.clone());
    }
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "ids are unique");
    let oldest = join(Bytes::new()).with_member_id(ids[0].clone());
    assert_eq!(error(&world.step(5000, &context(4), oldest)), ErrorCode::UnknownMemberId.code());
    let second = join(Bytes::new()).with_member_id(ids[1].clone());
    assert_eq!(world.step(5001, &context(4), second), [], "it is in, and waits");
}

#[test]
fn stored_members_keep_no_frames_alive() {
    let mut world = World::new(Config { group_initial_rebalance_delay_ms: 0, ..Config::default() });
    let frame = Bytes::from(vec![b'x'; 1 << 16]);
    let replies = world.step(1, &context(3), join(frame.slice(10..20)));
    let GroupResponse::JoinGroup(joined) = &replies[0].1 else { panic!("it is of its kind") };
    let assignment = SyncGroupRequestAssignment::default()
        .with_member_id(joined.member_id.clone())
        .with_assignment(frame.slice(20..30));
    let sync = SyncGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_member_id(joined.member_id.clone())
        .with_generation_id(1)
        .with_assignments(vec![assignment]);
    assert_eq!(world.step(2, &context(4), sync), []);
    let mut offsets = commit("g", "t", 1);
    offsets.topics[0].name = TopicName(net::StrBytes::from_utf8(frame.slice(30..40)).unwrap());
    offsets.topics[0].partitions[0].committed_metadata = Some(net::StrBytes::from_utf8(frame.slice(40..50)).unwrap());
    world.commit();
    offsets.member_id = joined.member_id.clone();
    offsets.generation_id_or_member_epoch = 1;
    assert_eq!(world.step(3, &context(9), offsets), []);
    let replies = world.commit();
    assert_eq!(error(&replies), 0);
    drop(replies);
    assert!(frame.is_unique(), "nothing of the requests is held");
}

/// A request as a connection receives it, and its frame. The request's strings and bytes are slices of the frame.
fn received(request: impl Into<Request>, version: i16) -> (Bytes, GroupRequest) {
    let request = request.into();
    let header = RequestHeader { api: request.api(), version, correlation_id: 1, client_id: None };
    let frame = request::encode(&header, &request).expect("the request is valid").into_bytes().slice(4..);
    let (_, request) = request::decode(&frame).expect("it was encoded");
    (frame, GroupRequest::try_from(request).expect("it is for a group"))
}

#[test]
fn a_member_that_waits_or_lives_does_not_hold_on_to_frames() {
    let mut world = World::new(Config { group_initial_rebalance_delay_ms: 0, ..Config::default() });
    let mut token = 0;
    let mut send = |what: &str, version: i16, request: Request| {
        let (frame, request) = received(request, version);
        token += 1;
        let mut replies = world.step(token, &context(version), request);
        replies.extend(world.commit_all());
        // An answer may have slices of its own request.
        let answers: Vec<i16> = replies.iter().map(|reply| error(std::slice::from_ref(reply))).collect();
        let ids = replies.into_iter().filter_map(|(_, reply)| match reply {
            GroupResponse::JoinGroup(joined) => Some(text(&joined.member_id)),
            _ => None,
        });
        let ids: Vec<net::StrBytes> = ids.collect();
        assert!(frame.is_unique(), "{what} is in memory");
        (answers, ids)
    };
    let metadata = || Bytes::from(vec![b'm'; 1000]);
    let sync = |member: &net::StrBytes, generation| {
        let sync = SyncGroupRequest::default().with_group_id(GroupId(text("g"))).with_generation_id(generation);
        let assignment = SyncGroupRequestAssignment::default().with_member_id(member.clone());
        sync.with_member_id(member.clone()).with_assignments(vec![assignment.with_assignment(metadata())])
    };
    let (_, ids) = send("the first join", 3, join(metadata()).into());
    let leader = ids[0].clone();
    assert_eq!(send("the assignment", 4, sync(&leader, 1).into()).0, [0]);
    assert_eq!(send("a join that waits", 3, join(metadata()).into()).0, [0; 0]);
    let heartbeat = HeartbeatRequest::default().with_group_id(GroupId(text("g"))).with_member_id(leader.clone());
    let rebalances = ErrorCode::RebalanceInProgress.code();
    assert_eq!(send("a heartbeat", 3, heartbeat.with_generation_id(1).into()).0, [rebalances]);
    let commit = commit("g", "t", 1).with_member_id(leader.clone()).with_generation_id_or_member_epoch(1);
    assert_eq!(send("a commit", 8, commit.into()).0, [0]);
    let (answers, ids) = send("another join", 3, join(metadata()).with_member_id(leader.clone()).into());
    assert_eq!(answers, [0, 0]);
    let follower = ids.iter().find(|id| **id != leader).expect("there are two members");
    assert_eq!(send("a sync that waits", 4, sync(follower, 2).into()).0, [0; 0]);
}

#[test]
fn a_protocol_type_counts_as_memory_of_its_group() {
    const LENGTH: usize = 30_000;
    let mut world = World::new(Config::default());
    world.bytes_max = 10 * LENGTH;
    let named = |group: u64| {
        join(Bytes::new())
            .with_group_id(GroupId(text(&group.to_string())))
            .with_protocol_type(text(&"t".repeat(LENGTH)))
    };
    let refused = ErrorCode::CoordinatorNotAvailable.code();
    let first = (1..100).find(|token| {
        world
            .step(*token, &context(3), named(*token))
            .iter()
            .any(|(_, reply)| matches!(reply, GroupResponse::JoinGroup(reply) if reply.error_code == refused))
    });
    assert!(first.is_some_and(|first| first <= 10), "{first:?}");
}

#[test]
fn tombstones_are_cut_in_batches() {
    const PARTITIONS: i32 = 10_000;
    let mut world = World::new(Config::default());
    world.step(1, &context(9), commit("g", &"t".repeat(200), PARTITIONS));
    assert_eq!(error(&world.commit()), 0);
    let delete = || DeleteGroupsRequest::default().with_groups_names(["g", "h"].map(|id| GroupId(text(id))).to_vec());
    world.step(2, &context(9), commit("h", "t", 1));
    world.commit();
    // A commit in flight is in the log before the tombstones.
    world.step(3, &context(9), commit("g", "late", 1));
    assert_eq!(world.step(4, &context(2), delete()), []);
    assert_eq!(world.appending.len(), 2, "the commit, and one batch of tombstones");
    world.commit();
    // One of the batches fails: both groups stay, with the offsets that are left.
    assert_eq!(world.commit(), []);
    let replies = world.fail(0, ErrorCode::NotEnoughReplicas);
    let [(4, GroupResponse::DeleteGroups(deleted))] = &replies[..] else { panic!("{replies:?}") };
    let failed = ErrorCode::CoordinatorNotAvailable.code();
    assert!(deleted.results.iter().all(|result| result.error_code == failed), "{deleted:?}");
    assert_eq!((world.coordinator.len(), world.appending.len()), (2, 0));
    world.restart();
    assert_eq!(world.coordinator.len(), 2, "the log says the same");
    assert_eq!(world.step(5, &context(2), delete()), []);
    let (mut replies, mut batches) = (Vec::new(), 0);
    while !world.appending.is_empty() {
        assert_eq!(world.appending.len(), 1, "the next batch follows once this one is in the log");
        assert!(world.appending[0].1.len() < 300 << 10);
        replies.extend(world.commit());
        batches += 1;
    }
    assert!((5..100).contains(&batches), "{batches} batches");
    let [(5, GroupResponse::DeleteGroups(deleted))] = &replies[..] else { panic!("{replies:?}") };
    assert!(deleted.results.iter().all(|result| result.error_code == 0), "{deleted:?}");
    assert!(world.coordinator.is_empty());
    world.restart();
    assert!(world.coordinator.is_empty());
}

/// Number of tombstones in the batches.
fn forgotten<'a>(batches: impl Iterator<Item = &'a Bytes>) -> usize {
    let records =
        |batch: &'a Bytes| net::records::batch::BatchHeader::read(batch).expect("a sound batch").record_count as usize;
    batches.map(records).sum()
}

#[test]
fn a_sweep_looks_at_a_bounded_number_of_offsets_in_a_turn() {
    const GROUPS: usize = 30;
    const PARTITIONS: i32 = 1000;
    let mut world = World::new(Config::default());
    world.pass(1);
    for group in 0..GROUPS as u64 {
        world.step(2 * group, &context(9), commit(&format!("g{group}"), "gone", PARTITIONS));
        world.step(2 * group + 1, &context(9), commit(&format!("g{group}"), "kept", PARTITIONS));
    }
    world.commit_all();
    world.delete_topic("gone");
    let mut turns = 0;
    while world.coordinator.next_deadline() <= Some(world.now.mono_ms + 1) {
        let before = forgotten(world.appending.iter().map(|(_, batch)| batch));
        let due = world.coordinator.next_deadline().expect("a turn is due");
        world.pass(due - world.now.mono_ms);
        let after = forgotten(world.appending.iter().map(|(_, batch)| batch));
        assert!(after - before <= SEARCH_TURN_ENTRIES, "{before} to {after} in one turn");
        turns += 1;
    }
    assert!(turns >= 2 * GROUPS * PARTITIONS as usize / SEARCH_TURN_ENTRIES, "{turns} turns");
    assert_eq!(forgotten(world.appending.iter().map(|(_, batch)| batch)), GROUPS * PARTITIONS as usize);
    world.commit_all();
    let appended = world.log.len();
    world.pass(60_000);
    world.commit_all();
    assert_eq!(world.log.len(), appended, "nothing is written twice");
}

#[test]
fn expired_offsets_are_removed_in_turns() {
    const GROUPS: usize = 30;
    const PARTITIONS: i32 = 1000;
    const EVERY_MS: i64 = 5_000;
    let config =
        Config { offsets_retention_ms: 100, offsets_retention_check_interval_ms: EVERY_MS, ..Config::default() };
    let mut world = World::new(config);
    world.pass(1);
    for group in 0..GROUPS as u64 {
        world.step(group, &context(9), commit(&format!("g{group}"), "old", PARTITIONS));
    }
    world.commit_all();
    let due = world.coordinator.next_deadline().expect("a look is due");
    world.pass(due - world.now.mono_ms - 1);
    let mut turns = 0;
    while world.coordinator.next_deadline() <= Some(world.now.mono_ms + 1) {
        let before = forgotten(world.appending.iter().map(|(_, batch)| batch));
        world.pass(1);
        let after = forgotten(world.appending.iter().map(|(_, batch)| batch));
        assert!(after - before <= SEARCH_TURN_ENTRIES, "{before} to {after} in one turn");
        turns += 1;
    }
    assert!(turns >= GROUPS * PARTITIONS as usize / SEARCH_TURN_ENTRIES, "{turns} turns");
    world.commit_all();
    assert!(world.coordinator.is_empty());
    assert!(world.coordinator.next_deadline() > Some(world.now.mono_ms + 1_000), "the next look is not due yet");
}

/// A group that fits no turn loses its offsets first.
#[test]
fn one_group_with_many_expired_offsets_goes_in_turns() {
    const PARTITIONS: usize = 10 * SEARCH_TURN_ENTRIES;
    const EVERY_MS: i64 = 5_000;
    let config =
        Config { offsets_retention_ms: 100, offsets_retention_check_interval_ms: EVERY_MS, ..Config::default() };
    let mut world = World::new(config);
    world.pass(1);
    world.step(1, &context(9), commit("g", "old", PARTITIONS as i32));
    world.step(2, &context(9), commit("h", "old", 1));
    world.commit_all();
    let due = world.coordinator.next_deadline().expect("a search is due");
    world.pass(due - world.now.mono_ms - 1);
    let (mut turns, mut found) = (0, 0);
    while world.coordinator.next_deadline() <= Some(world.now.mono_ms + 1) {
        world.pass(1);
        let more = forgotten(world.appending.iter().map(|(_, batch)| batch));
        assert!((1..=SEARCH_TURN_ENTRIES).contains(&more), "{more} in one turn");
        world.commit_all();
        (turns, found) = (turns + 1, found + more);
    }
    assert_eq!((world.coordinator.len(), found), (1, PARTITIONS + 2), "a tombstone more for the small group");
    assert!((PARTITIONS / SEARCH_TURN_ENTRIES..20).contains(&turns), "{turns} turns");
    world.pass(EVERY_MS as u64);
    world.commit_all();
    assert!(world.coordinator.is_empty());
    world.restart();
    assert!(world.coordinator.is_empty());
}

#[test]
#[should_panic(expected = "appends are committed in order")]
fn a_success_does_not_overtake() {
    let mut world = World::new(Config::default());
    world.step(1, &context(9), commit("g", "t", 1));
    world.step(2, &context(9), commit("g", "t", 1));
    let (second, _) = world.appending[1];
    world.coordinator.appended(world.now, second, Ok(()));
}

#[test]
#[should_panic(expected = "each append is answered once")]
fn an_append_is_answered_once() {
    let mut world = World::new(Config::default());
    world.step(1, &context(9), commit("g", "t", 1));
    world.commit();
    world.coordinator.appended(world.now, AppendId(1), Ok(()));
}

#[test]
fn vacant_groups_leave_no_trace() {
    let mut world = World::new(Config::default());
    world.step(1, &context(4), join(Bytes::new()));
    assert_eq!(world.coordinator.len(), 1);
    world.pass(10_000);
    assert_eq!(world.coordinator.len(), 0, "the id was not used");
    world.step(2, &context(9), join(Bytes::new()).with_protocols(vec![]));
    assert_eq!(world.coordinator.len(), 0, "the join was refused");
    world.step(3, &context(9), commit("g", "t", 1));
    world.fail(0, ErrorCode::NotEnoughReplicas);
    assert_eq!(world.coordinator.len(), 0, "nothing was stored");
    assert!(world.log.is_empty() && world.appending.is_empty());
}

#[test]
fn the_wall_clock_may_jump() {
    let mut world = World::new(Config { group_initial_rebalance_delay_ms: 0, ..Config::default() });
    let replies = world.step(1, &context(3), join(Bytes::new()));
    let GroupResponse::JoinGroup(joined) = &replies[0].1 else { panic!("it is of its kind") };
    world.now.wall_ms += 1 << 40;
    let beat = || {
        HeartbeatRequest::default()
            .with_group_id(GroupId(text("g")))
            .with_member_id(joined.member_id.clone())
            .with_generation_id(1)
    };
    world.pass(9_999);
    let replies = world.step(2, &context(4), beat());
    assert!(matches!(&replies[..], [(2, GroupResponse::Heartbeat(response))] if response.error_code == 0));
    world.now.wall_ms = 0;
    world.pass(10_000);
    let replies = world.step(3, &context(4), beat());
    assert!(matches!(&replies[..], [(3, GroupResponse::Heartbeat(response))] if response.error_code == 25));
}

#[test]
fn a_coordinator_that_resigns_answers_everybody_and_frees_its_groups_in_turns() {
    const OFFSETS: i32 = 5 * SEARCH_TURN_ENTRIES as i32;
    let mut world = World::new(Config::default());
    for (token, (group, topic)) in (1..).zip([("a", "t"), ("a", "u"), ("z", "t")]) {
        assert_eq!(world.step(token, &context(8), commit(group, topic, OFFSETS)), []);
    }
    world.commit_all();
    // A member waits for others, and a commit for the log.
    assert_eq!(world.step(4, &context(3), join(Bytes::new())), []);
    assert_eq!(world.step(5, &context(8), commit("a", "v", OFFSETS)), []);
    let turns = world.resign_in_turns();
    let least = 4 * OFFSETS as usize / SEARCH_TURN_ENTRIES;
    assert!((least..=least + 2).contains(&turns.len()), "{} turns, not {least}", turns.len());
    let replies: Vec<_> = turns.into_iter().flatten().collect();
    assert_eq!(replies.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [4, 5]);
    for reply in replies {
        assert_eq!(error(&[reply]), ErrorCode::NotCoordinator.code());
    }
}
