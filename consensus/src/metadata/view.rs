//! What a core knows of all topics.
//! Lives on: every core, one each. Follows the slices' deltas in log order; topics are shared, never copied.
//!
//! Invariant: indices are applied in order, each once.

use super::{Broker, ClusterConfig, Delta, PartitionLeader, Placed, Topic, Watermark};
use ahash::{AHashMap, AHashSet};
use std::{collections::BTreeMap, ops::Bound, sync::Arc};
use uuid::Uuid;

#[derive(Default)]
pub struct View {
    /// The last index whose deltas are in.
    index: u64,
    by_name: BTreeMap<Arc<str>, Arc<Topic>>,
    by_id: AHashMap<Uuid, Arc<Topic>>,
    groups: AHashSet<u64>,
    /// The highest of all groups that there were.
    newest_group: u64,
    leaders: AHashMap<u64, PartitionLeader>,
    watermarks: AHashMap<u64, Watermark>,
    brokers: BTreeMap<i32, Arc<Broker>>,
    features: Arc<BTreeMap<String, u16>>,
    settings: Arc<ClusterConfig>,
    placed: Placed,
}

impl View {
    /// The view that the image of a snapshot at `index` gives.
    pub fn new<'a>(index: u64, image: impl IntoIterator<Item = &'a Delta>) -> Self {
        let mut view = Self { index, ..Self::default() };
        image.into_iter().for_each(|delta| view.change(delta));
        view
    }

    /// The last index that it shows.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Takes what the entry at `index` changed.
    pub fn apply(&mut self, index: u64, deltas: &[Delta]) {
        assert_eq!(index, self.index + 1, "a view follows the log without gaps");
        self.index = index;
        deltas.iter().for_each(|delta| self.change(delta));
    }

    fn change(&mut self, delta: &Delta) {
        match delta {
            Delta::Topic(topic) => {
                self.groups.extend(topic.partitions.iter().map(|partition| partition.group));
                let newest = topic.partitions.iter().map(|partition| partition.group).max();
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
            // Only the metadata group's leader asks who is gone.
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

    /// All topics by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_name.values()
    }

    pub fn topic_count(&self) -> usize {
        self.by_name.len()
    }

    /// Partitions of all topics.
    pub fn partition_count(&self) -> usize {
        self.groups.len()
    }

    /// Topics by name, from a name on.
    pub fn topics_from<'a>(&'a self, from: Bound<&str>) -> impl Iterator<Item = &'a Arc<Topic>> {
        self.by_name.range::<str, _>((from, Bound::Unbounded)).map(|(_, topic)| topic)
    }

    /// Whether some topic has a partition with this group.
    pub fn has_group(&self, group: u64) -> bool {
        self.groups.contains(&group)
    }

    /// The group given out last, as far as is shown: ids rise with the order in which topics and partitions are made.
    pub fn newest_group(&self) -> u64 {
        self.newest_group
    }

    /// Who leads a group, as its leader reported.
    pub fn leader(&self, group: u64) -> Option<&PartitionLeader> {
        self.leaders.get(&group)
    }

    /// How far a group's log has come, as its leader reported.
    pub fn watermark(&self, group: u64) -> Option<Watermark> {
        self.watermarks.get(&group).copied()
    }

    /// All registered brokers, by node.
    pub fn brokers(&self) -> impl Iterator<Item = &Arc<Broker>> {
        self.brokers.values()
    }

    pub fn broker(&self, node: i32) -> Option<&Arc<Broker>> {
        self.brokers.get(&node)
    }

    /// How many partitions there are, and how many replicas each broker has of them.
    pub fn placed(&self) -> &Placed {
        &self.placed
    }

    /// Asserts that what is counted as it changes is what a count of everything gives. For tests and simulation.
    pub fn check_counts(&self) {
        let mut counted = Placed::default();
        self.topics().for_each(|topic| counted.replace(None, Some(topic)));
        assert_eq!(self.placed, counted);
    }

    /// The level of each feature that the whole cluster has.
    pub fn features(&self) -> &BTreeMap<String, u16> {
        &self.features
    }

    /// Settings of brokers that were changed at run time.
    pub fn cluster_config(&self) -> &ClusterConfig {
        &self.settings
    }
}
