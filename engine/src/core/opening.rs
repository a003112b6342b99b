//! Opens and drops this core's partitions in turns: a topic may have 10,000 of them, and a start opens all that there
//! are.
//! Lives on: every core.
//!
//! Until it is open, a partition answers as one without a known leader. Nobody finds a partition that is to be dropped,
//! since the view has it no more. If the broker stops before, the next start drops its log.
//!
//! Bound: the partitions of the view with a replica on this core, and those of topics that were just deleted.

use super::Core;
use crate::{config::topic::TopicConfig, partition::TopicPartition};
use consensus::metadata::Topic;
use runtime::sync::Notify;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
};
use types::GroupId;

/// Partitions that are opened or dropped in one turn. Each takes some ten microseconds.
pub const PARTITIONS_A_TURN: usize = 256;

/// The partitions of one core that are to be opened or dropped.
#[derive(Default)]
pub struct Opening {
    queue: RefCell<BTreeMap<GroupId, TopicPartition>>,
    dropped: RefCell<VecDeque<GroupId>>,
    /// Partitions that could not be recovered. Until the next start they are not opened: without what the store
    /// recovered of them, they would pass for new ones.
    unrecovered: RefCell<BTreeSet<GroupId>>,
    /// Notified when a partition is added, and after each turn.
    changed: Notify,
}

impl Opening {
    pub fn add(&self, group: GroupId, name: TopicPartition) {
        if self.unrecovered.borrow().contains(&group) {
            return;
        }
        if self.queue.borrow_mut().insert(group, name).is_none() {
            self.changed.notify();
        }
    }

    /// The partition's topic was deleted.
    pub fn drop_soon(&self, group: GroupId) {
        self.queue.borrow_mut().remove(&group);
        self.unrecovered.borrow_mut().remove(&group);
        self.dropped.borrow_mut().push_back(group);
        self.changed.notify();
    }

    /// The partition cannot be recovered.
    pub fn give_up(&self, group: GroupId) {
        self.unrecovered.borrow_mut().insert(group);
    }

    pub fn has(&self, group: GroupId) -> bool {
        self.queue.borrow().contains_key(&group)
    }

    /// Resolves once no partition waits to be opened.
    pub async fn done(&self) {
        loop {
            let seen = self.changed.version();
            if self.queue.borrow().is_empty() {
                return;
            }
            self.changed.past(seen).await;
        }
    }

    fn first(&self) -> Option<(GroupId, TopicPartition)> {
        self.queue.borrow_mut().pop_first()
    }
}

/// Opens and drops partitions for as long as the core runs.
pub async fn run(core: Rc<Core>) {
    loop {
        let seen = core.opening.changed.version();
        if core.drop_some() + core.open_some() == 0 {
            core.opening.changed.past(seen).await;
            continue;
        }
        core.opening.changed.notify();
        runtime::give_way().await;
    }
}

impl Core {
    /// Drops the partitions of one turn. Returns their number.
    fn drop_some(self: &Rc<Self>) -> usize {
        let mut queue = self.opening.dropped.borrow_mut();
        let count = queue.len().min(PARTITIONS_A_TURN);
        let turn: Vec<GroupId> = queue.drain(..count).collect();
        drop(queue);
        turn.into_iter().for_each(|group| self.drop_group(group));
        count
    }

    /// Opens the partitions of one turn. Returns their number.
    fn open_some(self: &Rc<Self>) -> usize {
        let mut latest: Option<(Arc<Topic>, Rc<TopicConfig>)> = None;
        for opened in 0..PARTITIONS_A_TURN {
            let Some((group, name)) = self.opening.first() else { return opened };
            let Some(topic) = self.view(|view| view.topic(&name.topic).cloned()) else { continue };
            let Some(meta) = topic.partitions.get(name.partition as usize).filter(|meta| meta.group == group) else {
                continue;
            };
            let config = match &latest {
                Some((known, config)) if Arc::ptr_eq(known, &topic) => config.clone(),
                _ => Rc::new(self.topic_config(&topic)),
            };
            latest = Some((topic.clone(), config.clone()));
            self.open_partition(name, meta, config);
        }
        PARTITIONS_A_TURN
    }
}
