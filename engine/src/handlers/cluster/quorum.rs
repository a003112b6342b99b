//! DescribeQuorum (KIP-595, KIP-836, KIP-853): the metadata group as its leader sees it, under the topic name that
//! Kafka's tools use.
//!
//! Offsets are Raft indices: a replica's log end is the last index that it is known to have, and the high watermark
//! is the commit index.

use crate::handlers::refusal::Refusal;
use crate::{cluster::meta, core::Core, long_work::Work};
use consensus::{
    metadata::Broker,
    plane::{Progress, Quorum, node_of},
};
use net::{
    StrBytes, Uuid,
    errors::ErrorCode,
    messages::{
        BrokerId, DescribeQuorumRequest, DescribeQuorumResponse, TopicName,
        describe_quorum_response::{Listener, Node, PartitionData, ReplicaState, TopicData},
    },
};
use runtime::clock;
use std::{collections::BTreeSet, rc::Rc};

/// Kafka's name of the metadata log, and its only partition.
const METADATA_TOPIC: &str = "__cluster_metadata";
const METADATA_PARTITION: i32 = 0;

/// The name of the peers' listener. Kafka's tools want capitals.
const LISTENER: StrBytes = StrBytes::from_static_str("PEER");

/// Kafka's value for an unknown time.
const UNKNOWN: i64 = -1;

pub async fn describe(core: &Rc<Core>, request: DescribeQuorumRequest) -> DescribeQuorumResponse {
    if !asks_for_metadata(&request) {
        return unknown_partitions(core, request).await;
    }
    match meta::describe_quorum(core).await {
        Ok(quorum) => {
            let peers = core.view(|view| {
                let addr = |broker: &Broker| (broker.node, broker.peer_addr.host.clone(), broker.peer_addr.port);
                view.brokers().map(|broker| addr(broker)).collect()
            });
            tell(&quorum, peers, clock::wall_ms())
        }
        Err(error) => {
            let Refusal { code, message } = error.into();
            // A Kafka broker that does not lead the quorum answers this.
            let code = if code == ErrorCode::NotController { ErrorCode::NotLeaderOrFollower } else { code };
            DescribeQuorumResponse::default()
                .with_error_code(code.code())
                .with_error_message(Some(StrBytes::from_string(message)))
        }
    }
}

/// As in Kafka, a request can name only this one partition.
fn asks_for_metadata(request: &DescribeQuorumRequest) -> bool {
    match &request.topics[..] {
        [topic] if topic.topic_name.0.as_str() == METADATA_TOPIC => {
            matches!(&topic.partitions[..], [partition] if partition.partition_index == METADATA_PARTITION)
        }
        _ => false,
    }
}

fn unknown(partition: i32) -> PartitionData {
    PartitionData::default().with_partition_index(partition).with_error_code(ErrorCode::UnknownTopicOrPartition.code())
}

async fn unknown_partitions(core: &Rc<Core>, request: DescribeQuorumRequest) -> DescribeQuorumResponse {
    let (mut work, mut topics) = (Work::on(core), Vec::new());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            work.entry().await;
            partitions.push(unknown(partition.partition_index));
        }
        topics.push(TopicData::default().with_partitions(partitions).with_topic_name(topic.topic_name));
    }
    DescribeQuorumResponse::default().with_topics(topics)
}

/// A registered broker's peer address: node, host, port.
type PeerAddr = (i32, String, u16);

fn tell(quorum: &Quorum, peers: Vec<PeerAddr>, now_ms: i64) -> DescribeQuorumResponse {
    let replica = |progress: &Progress| {
        // The leader has heard from itself now, and has everything.
        let ago = |ms: Option<u64>| match ms {
            _ if progress.peer == quorum.leader => now_ms,
            Some(ms) => now_ms.saturating_sub_unsigned(ms),
            None => UNKNOWN,
        };
        ReplicaState::default()
            .with_replica_id(BrokerId(node_of(progress.peer)))
            .with_replica_directory_id(directory_id(progress.peer))
            .with_log_end_offset(progress.matched.get() as i64)
            .with_last_fetch_timestamp(ago(progress.heard_ms_ago))
            .with_last_caught_up_timestamp(ago(progress.caught_up_ms_ago))
    };
    let partition = PartitionData::default()
        .with_partition_index(METADATA_PARTITION)
        .with_leader_id(BrokerId(node_of(quorum.leader)))
        .with_leader_epoch(quorum.term.leader_epoch().get())
        .with_high_watermark(quorum.commit.get() as i64)
        .with_current_voters(quorum.voters.iter().map(replica).collect())
        .with_observers(quorum.learners.iter().map(replica).collect());
    let topic = TopicData::default()
        .with_topic_name(TopicName(StrBytes::from_static_str(METADATA_TOPIC)))
        .with_partitions(vec![partition]);
    let members: BTreeSet<i32> = quorum.voters.iter().chain(&quorum.learners).map(|one| node_of(one.peer)).collect();
    let nodes = peers.into_iter().filter(|(node, ..)| members.contains(node)).map(|(node, host, port)| {
        let listener = Listener::default().with_name(LISTENER).with_host(StrBytes::from_string(host)).with_port(port);
        Node::default().with_node_id(BrokerId(node)).with_listeners(vec![listener])
    });
    DescribeQuorumResponse::default().with_topics(vec![topic]).with_nodes(nodes.collect())
}

/// A disk has no id besides its peer's.
fn directory_id(peer: u64) -> Uuid {
    Uuid::from_u64_pair(peer, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus::plane::peer_id;
    use net::messages::describe_quorum_request;
    use types::RaftIndex;
    use types::Term;

    fn request(topic: &'static str, partitions: &[i32]) -> DescribeQuorumRequest {
        let partitions = partitions
            .iter()
            .map(|partition| describe_quorum_request::PartitionData::default().with_partition_index(*partition));
        let topic = describe_quorum_request::TopicData::default()
            .with_topic_name(TopicName(StrBytes::from_static_str(topic)))
            .with_partitions(partitions.collect());
        DescribeQuorumRequest::default().with_topics(vec![topic])
    }

    #[test]
    fn only_the_metadata_log_has_a_quorum_to_tell_of() {
        assert!(asks_for_metadata(&request(METADATA_TOPIC, &[0])));
        for (topic, partitions) in
            [("orders", &[0][..]), (METADATA_TOPIC, &[1]), (METADATA_TOPIC, &[0, 1]), (METADATA_TOPIC, &[])]
        {
            let request = request(topic, partitions);
            assert!(!asks_for_metadata(&request), "{request:?}");
        }
        assert!(!asks_for_metadata(&DescribeQuorumRequest::default()));
        assert_eq!((unknown(7).partition_index, unknown(7).error_code), (7, 3));
    }

    #[test]
    fn members_are_told_by_node_with_offsets_times_and_addresses() {
        let [leader, behind, silent] = [(1, 7), (2, 8), (9, 3)].map(|(node, disk)| peer_id(node, disk));
        let quorum = Quorum {
            leader,
            term: Term(4),
            commit: RaftIndex::new(120),
            voters: vec![
                Progress { peer: leader, matched: RaftIndex::new(122), heard_ms_ago: None, caught_up_ms_ago: None },
                Progress {
                    peer: behind,
                    matched: RaftIndex::new(100),
                    heard_ms_ago: Some(5),
                    caught_up_ms_ago: Some(900),
                },
            ],
            learners: vec![Progress {
                peer: silent,
                matched: RaftIndex::ZERO,
                heard_ms_ago: None,
                caught_up_ms_ago: None,
            }],
        };
        let peers = [(1, "a", 9291), (2, "b", 65_535), (3, "no member", 1)]
            .map(|(node, host, port)| (node, host.to_owned(), port));
        let told = tell(&quorum, peers.to_vec(), 10_000);
        assert_eq!((told.error_code, told.topics[0].topic_name.0.as_str()), (0, METADATA_TOPIC));
        let partition = &told.topics[0].partitions[0];
        assert_eq!((partition.leader_id.0, partition.leader_epoch, partition.high_watermark), (1, 4, 120));
        let row = |replica: &ReplicaState| {
            let ReplicaState { replica_id, log_end_offset, last_fetch_timestamp, last_caught_up_timestamp, .. } =
                replica;
            (replica_id.0, *log_end_offset, *last_fetch_timestamp, *last_caught_up_timestamp)
        };
        let voters: Vec<_> = partition.current_voters.iter().map(row).collect();
        assert_eq!(voters, [(1, 122, 10_000, 10_000), (2, 100, 9_995, 9_100)]);
        assert_eq!(partition.observers.iter().map(row).collect::<Vec<_>>(), [(9, 0, -1, -1)]);
        let nodes: Vec<_> = told
            .nodes
            .iter()
            .map(|node| (node.node_id.0, node.listeners[0].host.as_str(), node.listeners[0].port))
            .collect();
        assert_eq!(nodes, [(1, "a", 9291), (2, "b", 65_535)]);
        assert!(told.nodes.iter().all(|node| node.listeners[0].name.as_str() == "PEER"));
    }

    #[test]
    fn an_emptied_disk_is_another_directory() {
        let ids = [(1, 7), (1, 8), (2, 7), (0, 1)].map(|(node, disk)| directory_id(peer_id(node, disk)));
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 4);
        assert_eq!(ids[0], directory_id(peer_id(1, 7)));
        assert!(!ids.iter().any(Uuid::is_nil));
    }
}
