//! The answers that a broker may still give after it was cut off and before it has noticed.

use super::{clients::text, counts::Calm, net::net, node::Node};
use net::{
    codec::{request::Request, response::Response},
    messages::{
        FindCoordinatorRequest, GroupId, OffsetCommitRequest, OffsetFetchRequest, TopicName,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
    },
};
use std::{rc::Rc, time::Duration};

const GROUP: &str = "group";
const TOPIC: &str = "counts";

fn coordinator<'a>(calm: &'a Calm, asked: &Node) -> Option<&'a Rc<Node>> {
    let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(GROUP)]);
    let answers = calm.ask(asked, vec![(request.into(), 4)]);
    let [Response::FindCoordinator(response)] = &answers[..] else { panic!("{answers:?}") };
    let found = &response.coordinators[0];
    // Until another broker leads the group's partition, the group has no coordinator.
    assert!(found.error_code == 0 || found.node_id.0 == -1, "{found:?}");
    calm.nodes.iter().find(|node| node.id == found.node_id.0)
}

fn commit(offset: i64) -> (Request, i16) {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
    let topic = OffsetCommitRequestTopic::default().with_name(TopicName(text(TOPIC))).with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default().with_group_id(GroupId(text(GROUP))).with_topics(vec![topic]);
    (request.with_generation_id_or_member_epoch(-1).into(), 8)
}

fn assert_committed(answers: &[Response]) {
    let [Response::OffsetCommit(response)] = answers else { panic!("{answers:?}") };
    assert_eq!(response.topics[0].partitions[0].error_code, 0);
}

fn fetch() -> (Request, i16) {
    let topic = OffsetFetchRequestTopics::default().with_name(TopicName(text(TOPIC))).with_partition_indexes(vec![0]);
    let group = OffsetFetchRequestGroup::default().with_group_id(GroupId(text(GROUP))).with_topics(Some(vec![topic]));
    (OffsetFetchRequest::default().with_groups(vec![group]).into(), 8)
}

#[test]
fn offsets_are_not_fetched_from_a_coordinator_that_was_cut_off() {
    for seed in 0..3 {
        let calm = Calm::new(seed, 3);
        let former = coordinator(&calm, &calm.nodes[0]).expect("all is well");
        assert_committed(&calm.ask(former, vec![commit(1)]));
        let others: Vec<&Rc<Node>> = calm.nodes.iter().filter(|node| node.id != former.id).collect();
        for other in &others {
            net().cut(former.id, other.id);
            net().cut(other.id, former.id);
        }
        let next = loop {
            calm.pass(Duration::from_millis(5));
            if let Some(next) = coordinator(&calm, others[0]).filter(|next| next.id != former.id) {
                break next;
            }
        };
        assert_committed(&calm.ask(next, vec![commit(2)]));
        let answers = calm.ask(former, vec![fetch()]);
        let [Response::OffsetFetch(response)] = &answers[..] else { panic!("{answers:?}") };
        assert_ne!(response.groups[0].error_code, 0, "seed {seed}: {response:?}");
    }
}
