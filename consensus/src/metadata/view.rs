//! What a core knows of all topics.
//! Lives on: every core, one each. Follows the slices' deltas in log order; topics are shared, never copied.
//!
//! Invariant: indices are applied in order, each once.

use super::{Delta, Topic};
use ahash::{AHashMap, AHashSet};
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

#[derive(Default)]
pub struct View {
    /// The last index whose deltas are in.
    index: u64,
    by_name: BTreeMap<Arc<str>, Arc<Topic>>,
    by_id: AHashMap<Uuid, Arc<Topic>>,
    groups: AHashSet<u64>,
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
                self.by_id.insert(topic.id, topic.clone());
                self.by_name.insert(topic.name.clone(), topic.clone());
            }
            Delta::TopicDeleted(topic) => {
                for partition in &topic.partitions {
                    self.groups.remove(&partition.group);
                }
                self.by_id.remove(&topic.id);
                self.by_name.remove(&topic.name);
            }
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

    /// Whether some topic has a partition with this group.
    pub fn has_group(&self, group: u64) -> bool {
        self.groups.contains(&group)
    }
}
