//! A group coordinator that resigns while it loads: the load ends, and the next one begins anew.

use super::told::logged;
use crate::counts::{Calm, PARTITIONS, TOPIC};
use engine::{
    coordinator::{host, partition_of},
    handlers::OFFSETS_TOPIC,
};
use net::{
    StrBytes,
    codec::{request::Request, response::Response},
    errors::NONE,
    messages::{
        FindCoordinatorRequest, GroupId as GroupName, OffsetCommitRequest, OffsetFetchRequest, TopicName,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
    },
    turn::BYTES_A_TURN,
};
use std::{rc::Rc, time::Duration};
use types::GroupId;

const GROUP: &str = "group";
/// The length of the metadata of each offset.
const METADATA: usize = 2048;
/// Turns that a load takes at least.
const TURNS: usize = 8;
/// Longer than a request waits for a load.
const A_WHILE: Duration = Duration::from_secs(5);

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn topic() -> TopicName {
    TopicName(text(TOPIC))
}

/// Asks the only broker.
fn ask(calm: &Calm, request: impl Into<Request>, version: i16) -> Response {
    calm.ask(&calm.nodes[0], vec![(request.into(), version)]).pop().expect("it is answered")
}

/// Commits offsets until their log takes so many turns to load. Returns the last offset.
fn commit(calm: &Calm) -> i64 {
    let rounds = (TURNS * BYTES_A_TURN).div_ceil(METADATA * PARTITIONS as usize) as i64;
    for round in 1..=rounds {
        let partition = |index| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(index)
                .with_committed_offset(round)
                .with_committed_metadata(Some(text(&"m".repeat(METADATA))))
        };
        let topic = OffsetCommitRequestTopic::default()
            .with_name(topic())
            .with_partitions((0..PARTITIONS).map(partition).collect());
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupName(text(GROUP)))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        let Response::OffsetCommit(answer) = ask(calm, request, 8) else { panic!("it is of its kind") };
        assert!(answer.topics[0].partitions.iter().all(|partition| partition.error_code == NONE));
    }
    rounds
}

fn fetch(calm: &Calm) -> Vec<i64> {
    let topic =
        OffsetFetchRequestTopics::default().with_name(topic()).with_partition_indexes((0..PARTITIONS).collect());
    let group = OffsetFetchRequestGroup::default().with_group_id(GroupName(text(GROUP)));
    let request = OffsetFetchRequest::default().with_groups(vec![group.with_topics(Some(vec![topic]))]);
    let Response::OffsetFetch(answer) = ask(calm, request, 8) else { panic!("it is of its kind") };
    assert_eq!(answer.groups[0].error_code, NONE);
    answer.groups[0].topics[0].partitions.iter().map(|partition| partition.committed_offset).collect()
}

/// Loads the group's coordinator for so many steps.
fn load(calm: &Calm, group: GroupId, steps: usize) {
    let core = calm.nodes[0].core().expect("it runs");
    calm.world.spawn(calm.nodes[0].process, async move {
        host::load_soon(core, group).await;
    });
    let end = calm.world.time() + A_WHILE;
    for _ in 0..steps {
        calm.world.step(end);
    }
}

fn resign(calm: &Calm, group: GroupId) {
    let core = calm.nodes[0].core().expect("it runs");
    calm.world.within(calm.nodes[0].process, || core.coordinators.resign(group));
    calm.pass(A_WHILE);
}

#[test]
fn a_load_stops_once_its_coordinator_has_resigned() {
    let calm = Calm::new(8, 1);
    ask(&calm, FindCoordinatorRequest::default().with_coordinator_keys(vec![text(GROUP)]), 4);
    let last = commit(&calm);
    let core = calm.nodes[0].core().expect("it runs");
    let group = core.view(|view| {
        let partitions = &view.topic(OFFSETS_TOPIC).expect("it was created").partitions;
        partitions[partition_of(GROUP, partitions.len() as i32) as usize].group
    });
    let partition = core.partition(group).expect("it is here");
    // This one and the core's, and none of a load.
    const AT_REST: usize = 2;
    let (mut steps, mut stopped) = (0, 0);
    resign(&calm, group);
    while !logged(|| load(&calm, group, steps)).contains("group coordinator loaded") {
        let has_begun = Rc::strong_count(&partition) > AT_REST;
        let lines = logged(|| resign(&calm, group));
        if has_begun {
            assert!(!lines.contains("group coordinator"), "after {steps} steps: {lines}");
            assert_eq!(Rc::strong_count(&partition), AT_REST, "after {steps} steps");
            stopped += 1;
        } else {
            // It has begun since.
            resign(&calm, group);
        }
        steps += 1;
    }
    assert!(stopped > TURNS, "a load has {stopped} steps");
    assert!(fetch(&calm).into_iter().eq((0..PARTITIONS).map(|_| last)));
}
