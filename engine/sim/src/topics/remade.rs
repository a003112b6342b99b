//! A client that commits offsets of a topic, deletes the topic and creates it again. No offset of a former topic may
//! count for a later one.

use crate::{
    clients::{ask_within, text},
    cluster::Cluster,
    exec::{self, World},
    node::Node,
};
use net::{
    codec::{request::Request, response::Response},
    errors::{self, ErrorCode},
    messages::{
        CreateTopicsRequest, DeleteTopicsRequest, FindCoordinatorRequest, GroupId, OffsetCommitRequest,
        OffsetFetchRequest, TopicName,
        create_topics_request::CreatableTopic,
        delete_topics_request::DeleteTopicState,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
    },
};
use runtime as rt;
use std::{collections::BTreeSet, ops::Range, rc::Rc, time::Duration};

const TOPIC: &str = "remade";
const GROUP: &str = "keepers";
const PATIENCE: Range<Duration> = Duration::from_millis(300)..Duration::from_secs(6);
/// An offset encodes the topic in which it was committed: the topic's number times this constant, plus a counter.
const OFFSETS: i64 = 1_000_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn name() -> TopicName {
    TopicName(text(TOPIC))
}

struct Keeper {
    cluster: Rc<Cluster>,
    world: Rc<World>,
    coordinator: Option<Rc<Node>>,
    /// Number of topics that have been deleted for certain.
    deleted: i64,
    committed: i64,
    /// Commits without an answer. They may arrive at any time, and count for the topic that exists then.
    unanswered: BTreeSet<i64>,
}

impl Cluster {
    pub(crate) async fn remake(self: Rc<Self>) {
        let world = exec::world();
        let mut keeper = Keeper {
            cluster: self.clone(),
            world: world.clone(),
            coordinator: None,
            deleted: 0,
            committed: 0,
            unanswered: BTreeSet::new(),
        };
        while !self.over.get() {
            keeper.create().await;
            keeper.fetch().await;
            for _ in 0..world.number(1..=4) {
                keeper.commit().await;
                keeper.fetch().await;
                rt::sleep(world.draw(ms(5)..ms(400))).await;
            }
            keeper.delete().await;
            if world.chance(0.5) {
                keeper.fetch().await;
            }
        }
    }
}

impl Keeper {
    async fn ask(&self, node: &Rc<Node>, request: impl Into<Request>, version: i16) -> Option<Response> {
        ask_within(node, request.into(), version, self.world.draw(PATIENCE)).await
    }

    async fn create(&self) {
        while !self.cluster.over.get() {
            let replicas = 1 + self.world.place(3) as i16;
            let topic =
                CreatableTopic::default().with_name(name()).with_num_partitions(1).with_replication_factor(replicas);
            let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5_000);
            if let Some(Response::CreateTopics(response)) = self.ask(&self.cluster.any_node(), request, 7).await
                && matches!(errors::check(response.topics[0].error_code), Ok(()) | Err(ErrorCode::TopicAlreadyExists))
            {
                return;
            }
            rt::sleep(ms(200)).await;
        }
    }

    async fn delete(&mut self) {
        while !self.cluster.over.get() {
            let topic = DeleteTopicState::default().with_name(Some(name()));
            let request = DeleteTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5_000);
            if let Some(Response::DeleteTopics(response)) = self.ask(&self.cluster.any_node(), request, 6).await
                && matches!(
                    errors::check(response.responses[0].error_code),
                    Ok(()) | Err(ErrorCode::UnknownTopicOrPartition)
                )
            {
                self.deleted += 1;
                self.cluster.summary.borrow_mut().topics_deleted += 1;
                return;
            }
            rt::sleep(ms(200)).await;
        }
    }

    async fn coordinator(&mut self) -> Option<Rc<Node>> {
        if self.coordinator.is_none() || self.world.chance(0.02) {
            let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(GROUP)]);
            let answer = self.ask(&self.cluster.any_node(), request, 4).await?;
            let Response::FindCoordinator(response) = answer else { return None };
            let found = &response.coordinators[0];
            let mut nodes = self.cluster.nodes.iter();
            self.coordinator = nodes.find(|node| found.error_code == 0 && node.id == found.node_id.0).cloned();
        }
        self.coordinator.clone()
    }

    async fn commit(&mut self) {
        let Some(coordinator) = self.coordinator().await else { return };
        self.committed += 1;
        let offset = self.deleted * OFFSETS + self.committed;
        let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
        let topic = OffsetCommitRequestTopic::default().with_name(name()).with_partitions(vec![partition]);
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(text(GROUP)))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        match self.ask(&coordinator, request, 9).await {
            Some(Response::OffsetCommit(response)) if response.topics[0].partitions[0].error_code == 0 => {}
            Some(_) => self.coordinator = None,
            None => {
                self.unanswered.insert(offset);
                self.coordinator = None;
            }
        }
    }

    async fn fetch(&mut self) {
        let Some(coordinator) = self.coordinator().await else { return };
        let topic = OffsetFetchRequestTopics::default().with_name(name()).with_partition_indexes(vec![0]);
        let group =
            OffsetFetchRequestGroup::default().with_group_id(GroupId(text(GROUP))).with_topics(Some(vec![topic]));
        let request = OffsetFetchRequest::default().with_groups(vec![group]);
        let Some(Response::OffsetFetch(response)) = self.ask(&coordinator, request, 8).await else {
            self.coordinator = None;
            return;
        };
        let found = &response.groups[0];
        if found.error_code != 0 || found.topics[0].partitions[0].error_code != 0 {
            self.coordinator = None;
            return;
        }
        let offset = found.topics[0].partitions[0].committed_offset;
        if offset >= 0 && offset / OFFSETS != self.deleted && !self.unanswered.contains(&offset) {
            self.cluster.violated(format!(
                "{TOPIC}: the offset of topic {} is told as one of topic {}",
                offset / OFFSETS,
                self.deleted
            ));
        }
        if offset >= 0 {
            self.cluster.summary.borrow_mut().offsets_of_remade += 1;
        }
    }
}
