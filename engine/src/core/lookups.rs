//! Requests' queries of the view.

use super::{
    Core, Leadership,
    metadata_topic::{self, METADATA_TOPIC},
};
use crate::{
    cluster::{internal_topics, meta::largest::FRAMED_BYTES_MAX},
    config::{timestamps::TimestampBounds, topic::TopicConfig},
};
use consensus::{
    group::descriptor::ENTRY_DATA_BYTES_MAX,
    metadata::{BrokerStatus, Topic, View},
};
use net::{
    codec::produce::{LeaderHint, TopicRef},
    errors::ErrorCode,
    turn::ENTRIES_A_TURN,
};
use std::{ops::Bound, sync::Arc};
use types::{GroupId, LeaderEpoch, META_GROUP};

impl Core {
    /// The largest batch that this core's ring and the frames between brokers can take.
    pub fn largest_taken(&self) -> u64 {
        let ring = self.store.entry_bytes_max() - ENTRY_DATA_BYTES_MAX;
        ring.min(FRAMED_BYTES_MAX) as u64
    }

    /// The largest batch that partitions take now. A topic's own limit may be lower.
    pub fn largest_entry(&self) -> usize {
        let cluster = self.view(|view| view.cluster_config().largest_entry());
        self.largest_taken().min(cluster.unwrap_or(u64::MAX)) as usize
    }
}

impl Core {
    /// Host and port that are advertised to clients.
    pub fn advertised(&self) -> (&str, u16) {
        (&self.advertised.0, self.advertised.1)
    }

    /// A topic by its name or id. Also finds the metadata's own log.
    pub fn find_topic(&self, topic: &TopicRef) -> Option<Arc<Topic>> {
        match topic {
            log if metadata_topic::is(log) => Some(metadata_topic::topic(self)),
            TopicRef::Name(name) => self.view(|view| view.topic(name.as_str()).cloned()),
            TopicRef::Id(id) => self.view(|view| view.topic_by_id(*id).cloned()),
        }
    }

    /// The next topics in the order of their names, at most as many as fit a turn.
    pub fn next_topics(&self, from: Bound<&str>) -> Vec<Arc<Topic>> {
        self.view(|view| view.topics_from(from).take(ENTRIES_A_TURN).cloned().collect())
    }

    /// The group of a partition, by its topic's name or id.
    pub fn find_group(&self, topic: &TopicRef, partition: i32) -> Result<GroupId, ErrorCode> {
        if metadata_topic::is(topic) {
            return if partition == 0 { Ok(META_GROUP) } else { Err(ErrorCode::UnknownTopicOrPartition) };
        }
        let view = self.view.borrow();
        let (topic, unknown) = match topic {
            TopicRef::Name(name) => (view.topic(name.as_str()), ErrorCode::UnknownTopicOrPartition),
            TopicRef::Id(id) => (view.topic_by_id(*id), ErrorCode::UnknownTopicId),
        };
        let partitions = &topic.ok_or(unknown)?.partitions;
        let number = usize::try_from(partition).map_err(|_| ErrorCode::UnknownTopicOrPartition)?;
        partitions.get(number).map(|meta| meta.group).ok_or(ErrorCode::UnknownTopicOrPartition)
    }

    /// A topic's settings, including those that it inherits from this broker.
    pub fn topic_config(&self, topic: &Topic) -> TopicConfig {
        TopicConfig::resolve(&internal_topics::in_force(&topic.name, &topic.configs), &self.inherited)
    }

    /// The range of timestamps that a topic accepts from producers. `None`: any.
    pub fn timestamp_bounds(&self, topic: &TopicRef) -> Option<TimestampBounds> {
        let view = self.view.borrow();
        let topic = match topic {
            TopicRef::Name(name) => view.topic(name.as_str()),
            TopicRef::Id(id) => view.topic_by_id(*id),
        };
        TimestampBounds::of(&topic?.configs, &self.config)
    }

    /// The leader to try instead, for an answer of NOT_LEADER_OR_FOLLOWER (KIP-951).
    pub fn leader_hint(&self, topic: &TopicRef, partition: i32) -> Option<LeaderHint> {
        let leader = self.leader_of(self.find_group(topic, partition).ok()?)?;
        Some(LeaderHint { leader_id: leader.node, leader_epoch: leader.epoch.get() })
    }

    /// The name of a topic that belongs to the broker itself. `None` for all others.
    pub fn internal(&self, topic: &TopicRef) -> Option<&'static str> {
        let found = match topic {
            log if metadata_topic::is(log) => return Some(METADATA_TOPIC),
            TopicRef::Name(name) => internal_topics::find(name.as_str()),
            TopicRef::Id(id) => {
                self.view(|view| view.topic_by_id(*id).and_then(|topic| internal_topics::find(&topic.name)))
            }
        };
        found.map(|topic| topic.name)
    }

    /// Waits until this core knows a leader for each of `groups`. Groups that are deleted or stop meanwhile are
    /// skipped.
    pub async fn leaders_known(&self, mut groups: Vec<GroupId>) {
        loop {
            let seen = self.view_changed.version();
            let may_come = |group: GroupId| self.view(|view| view.has_group(group)) && !self.has_stopped(group);
            // All must have a leader, so it is enough to look at the last one. Each group is looked at once, plus
            // one at each change.
            while groups.pop_if(|group| self.leader_of(*group).is_some() || !may_come(*group)).is_some() {}
            if groups.is_empty() {
                return;
            }
            self.view_changed.past(seen).await;
        }
    }

    /// A partition's leader, as the local replica knows it. If the metadata names a live leader of a newer epoch,
    /// that one counts.
    pub fn leader_of(&self, group: GroupId) -> Option<Leadership> {
        if group == META_GROUP {
            return self.controller().map(|node| Leadership { node, epoch: LeaderEpoch::NONE });
        }
        let here = self.leaders.borrow().get(&group).copied();
        let known = here.map_or(LeaderEpoch::NONE, |here| here.epoch);
        let told = self.view(|view| led_elsewhere(view, group, self.node())).filter(|told| told.epoch > known);
        told.or(here.filter(|here| here.node >= 0))
    }
}

/// A partition's leader as the metadata has it. An entry that names this broker is left out: if the broker does not
/// know of its leadership itself, the entry is from an earlier process.
fn led_elsewhere(view: &View, group: GroupId, own: i32) -> Option<Leadership> {
    let reported = view.leader(group)?;
    let alive = view.broker(reported.leader).is_some_and(|broker| broker.status == BrokerStatus::Alive);
    (alive && reported.leader != own)
        .then_some(Leadership { node: reported.leader, epoch: reported.term.leader_epoch() })
}
