//! The view that a core has of all topics. Lives on: every core, one each. Follows the slices' deltas in log order.
//! Topics are shared, never copied.
//!
//! Invariant: a view applies every index exactly once, in order.

use super::{Broker, ClusterConfig, Delta, PartitionLeader, Placed, Topic, Watermark};
use ahash::{AHashMap, AHashSet};
use std::{collections::BTreeMap, ops::Bound, sync::Arc};
use types::{GroupId, RaftIndex};
use uuid::Uuid;

#[derive(Default)]
pub struct View {
    /// The last index whose deltas are applied.
    index: RaftIndex,
    by_name: BTreeMap<Arc<str>, Arc<Topic>>,
    by_id: AHashMap<Uuid, Arc<Topic>>,
    groups: AHashSet<GroupId>,
    /// The highest group id that this view has ever contained.
    newest_group: u64,
    leaders: AHashMap<GroupId, PartitionLeader>,
    watermarks: AHashMap<GroupId, Watermark>,
    brokers: BTreeMap<i32, Arc<Broker>>,
    features: Arc<BTreeMap<String, u16>>,
    settings: Arc<ClusterConfig>,
    placed: Placed,
}

impl View {
    /// Builds the view from the image of a snapshot at `index`.
    pub fn new<'a>(index: RaftIndex, image: impl IntoIterator<Item = &'a Delta>) -> Self {
        let mut view = Self { index, ..Self::default() };
        image.into_iter().for_each(|delta| view.change(delta));
        view
    }

    /// The last index that the view shows.
    pub fn index(&self) -> RaftIndex {
        self.index
    }

    /// Applies the changes of the entry at `index`.
    pub fn apply(&mut self, index: RaftIndex, deltas: &[Delta]) {
        assert_eq!(index, self.index.next(), "a view follows the log without gaps");
        self.index = index;
        deltas.iter().for_each(|delta| self.change(delta));
    }

    fn change(&mut self, delta: &Delta) {
        match delta {
            Delta::Topic(topic) => {
                self.groups.extend(topic.partitions.iter().map(|partition| partition.group));
                let newest = topic.partitions.iter().map(|partition| partition.group.0).max();
                self.newest_group = self.newest_group.max(newest.unwrap_or(0));
                let before = self.by_id.insert(topic.id, topic.clone());
                self.placed.replace(before.as_deref(), Some(topic));
                self.by_name.insert(topic.name.clone(), topic.clone());
            }
            Delta::TopicDeleted(topic) => {
                for partition in &topic.partitions {
                    self.groups.remove(&partition.group);
                    self.leaders.remove(&partition.group);
                    self.watermarks.remove(&partition.group);
                }
                let before = self.by_id.remove(&topic.id);
                self.placed.replace(before.as_deref(), None);
                self.by_name.remove(&topic.name);
            }
            Delta::Leaders(leaders) => self.leaders.extend(leaders.iter().cloned()),
            Delta::Watermarks(watermarks) => self.watermarks.extend(watermarks.iter().copied()),
            Delta::Broker(broker) => {
                self.brokers.insert(broker.node, broker.clone());
            }
            Delta::BrokerGone(node) => {
                self.brokers.remove(node);
            }
            // Only the leader of the metadata group needs the peers that are gone.
            Delta::GonePeers(_) => {}
            Delta::Features(features) => self.features = features.clone(),
            Delta::ClusterConfig(settings) => self.settings = settings.clone(),
        }
    }

    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.by_name.get(name)
    }

    pub fn topic_by_id(&self, id: Uuid) -> Option<&Arc<Topic>> {
        self.by_id.get(&id)
    }

    /// All topics, ordered by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_name.values()
    }

    pub fn topic_count(&self) -> usize {
        self.by_name.len()
    }

    /// The number of partitions of all topics.
    pub fn partition_count(&self) -> usize {
        self.groups.len()
    }

    /// The topics from a name on, ordered by name.
    pub fn topics_from<'a>(&'a self, from: Bound<&str>) -> impl Iterator<Item = &'a Arc<Topic>> {
        self.by_name.range::<str, _>((from, Bound::Unbounded)).map(|(_, topic)| topic)
    }

    /// Whether some topic has a partition with this group.
    pub fn has_group(&self, group: GroupId) -> bool {
        self.groups.contains(&group)
    }

    /// The highest group id that this view has shown. Ids rise in the order in which topics and partitions are
    /// created.
    pub fn newest_group(&self) -> u64 {
        self.newest_group
    }

    /// The leader of a group, as it reported itself.
    pub fn leader(&self, group: GroupId) -> Option<&PartitionLeader> {
        self.leaders.get(&group)
    }

    /// The offsets of a group's log, as its leader reported them.
    pub fn watermark(&self, group: GroupId) -> Option<Watermark> {
        self.watermarks.get(&group).copied()
    }

    /// All registered brokers, ordered by node.
    pub fn brokers(&self) -> impl Iterator<Item = &Arc<Broker>> {
        self.brokers.values()
    }

    pub fn broker(&self, node: i32) -> Option<&Arc<Broker>> {
        self.brokers.get(&node)
    }

    /// The number of partitions, and the number of replicas on each broker.
    pub fn placed(&self) -> &Placed {
        &self.placed
    }

    /// Small commands that create, change and delete a topic and allocate producer ids.
    pub fn check_counts(&self) {
        let mut counted = Placed::default();
        self.topics().for_each(|topic| counted.replace(None, Some(topic)));
        assert_eq!(self.placed, counted);
    }

    /// The level of each feature that the whole cluster supports.
    pub fn features(&self) -> &BTreeMap<String, u16> {
        &self.features
    }

    /// Broker settings that were changed at run time.
    pub fn cluster_config(&self) -> &ClusterConfig {
        &self.settings
    }
}
