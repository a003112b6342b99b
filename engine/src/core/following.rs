//! Follows the view: queues this core's partitions to be opened and dropped, and announces their leaders to the other
//! cores.

use super::{Core, CoreId, Leadership, messages::Notice};
use crate::{
    config::{topic::TopicConfig, value::HostPort},
    partition::{Led, Partition, RecoverError, TopicPartition, restored},
};
use consensus::{
    group::{Group, GroupConfig, Restored, descriptor},
    metadata::{self, Broker, Delta, Slice, Topic, View},
};
use std::{
    cell::{LazyCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};
use types::{GroupId, LeaderEpoch, META_CORE, META_GROUP, Position, RaftIndex, Term};

/// Ticks without a leader before a replica of a partition stands for election, and ticks between two replicas'
/// attempts.
const ELECTION_TICKS: usize = 8;
const STAND_APART: usize = 3;
/// Entries per partition that a leader keeps in memory for lagging peers. Older ones are read from its log.
const KEPT_ENTRIES: u64 = 256;

impl Core {
    /// Installs the slices of this core and the whole view, as of the snapshot that core 0 read.
    pub fn install(self: &Rc<Self>, index: RaftIndex, slices: Vec<Slice>, image: &[Delta]) {
        self.slices.borrow_mut().extend(slices.into_iter().map(|slice| (slice.id(), slice)));
        let before = self.view.replace(View::new(index, image));
        // A later snapshot omits topics that were deleted in between.
        for topic in before.topics().filter(|topic| self.view(|view| view.topic_by_id(topic.id).is_none())) {
            self.follow(&Delta::TopicDeleted(topic.clone()));
        }
        image.iter().for_each(|change| self.follow(change));
        self.view_changed.notify();
    }

    /// Applies published deltas to the view, and to this core's partitions.
    pub fn show(self: &Rc<Self>, deltas: &[(RaftIndex, Vec<Delta>)]) {
        for (index, changes) in deltas {
            self.view.borrow_mut().apply(*index, changes);
            for change in changes {
                self.follow(change);
            }
        }
        self.view_changed.notify();
    }

    /// Updates partitions, settings and leaderships of this core after one change of the view.
    fn follow(self: &Rc<Self>, change: &Delta) {
        match change {
            Delta::Topic(topic) => self.follow_topic(topic),
            Delta::Broker(broker) => self.follow_broker(broker),
            Delta::BrokerGone(node) => self.peers().forget(*node),
            Delta::GonePeers(peers) => self.peers().set_gone(peers.clone()),
            Delta::TopicDeleted(topic) => {
                for group in topic.partitions.iter().map(|partition| partition.group) {
                    match self.owner(group) == self.id() {
                        true => self.opening.drop_soon(group),
                        false => self.drop_group(group),
                    }
                }
                self.coordinators.topic_deleted(self);
            }
            // These are looked up in the view when needed.
            Delta::Leaders(_) | Delta::Watermarks(_) | Delta::Features(_) | Delta::ClusterConfig(_) => {}
        }
    }

    /// Takes another broker's address. The broker may also be a new peer.
    fn follow_broker(self: &Rc<Self>, broker: &Broker) {
        if broker.node == self.node() {
            return;
        }
        let address = HostPort { host: broker.peer_addr.host.clone(), port: broker.peer_addr.port };
        self.peers().set_address(broker.node, address.to_string());
        self.peers().set_registered(broker.node, broker.peer);
        for partition in self.partitions_that(|partition| partition.has_replica_on(broker.node)) {
            partition.on_core_reachable(self);
        }
    }

    fn follow_topic(self: &Rc<Self>, topic: &Arc<Topic>) {
        // Lazy, because for most topics other cores and brokers hold all partitions.
        let config = LazyCell::new(|| Rc::new(self.topic_config(topic)));
        for (number, meta) in topic.partitions.iter().enumerate() {
            let group = meta.group;
            if self.owner(group) != self.id() || !meta.replicas.contains(&self.node()) {
                continue;
            }
            // The metadata's log is replayed from before the topic's deletion, which the store has already carried
            // out.
            if self.store.was_removed(group) {
                continue;
            }
            match self.partition(group) {
                Some(partition) => {
                    self.store.set_options(group, config.log_options());
                    partition.set_config(Rc::clone(&config));
                }
                None => {
                    let name = TopicPartition { topic: topic.name.clone(), partition: number as i32 };
                    self.opening.add(group, name);
                }
            }
        }
    }

    /// Starts a partition's replica, from what the store recovered or empty. If recovery fails, the partition stays
    /// without a leader and reports why, and its log stays as it is. The other partitions serve.
    pub(super) fn open_partition(
        self: &Rc<Self>,
        name: TopicPartition,
        meta: &metadata::Partition,
        config: Rc<TopicConfig>,
    ) {
        let group = meta.group;
        let recovered = self.unclaimed.borrow_mut().remove(&group);
        let (identity, replicas) = (self.group_config(meta), meta.replicas.clone());
        let opened = match &recovered {
            None => {
                self.store.create_group(group, config.log_options());
                let empty =
                    Restored { gone: Some(Position { index: RaftIndex::ZERO, term: Term(0) }), ..Restored::default() };
                let raft = Group::new(identity, empty).expect("a new group needs nothing from storage");
                Ok(Partition::new(name.clone(), group, raft, config, replicas))
            }
            Some(recovered) => {
                self.store.set_options(group, config.log_options());
                let gone = Position { index: recovered.first_index.prev(), term: recovered.first_prev_term };
                let found = Restored { gone: Some(gone), ..restored(recovered) };
                Group::new(identity, found)
                    .map_err(RecoverError::from)
                    .and_then(|raft| Partition::recovered(name.clone(), raft, config, replicas, recovered))
            }
        };
        match opened {
            Ok(partition) => {
                let partition = Rc::new(partition);
                self.partitions.borrow_mut().insert(group, partition.clone());
                partition.count_producers(self);
                partition.begin(self, recovered.is_none());
                for (message, payloads) in self.groups.take_early(group) {
                    partition.receive(self, message, payloads);
                }
                self.ready_loop.wake(partition);
            }
            Err(why) => {
                tracing::error!(partition = %name, %why, "cannot recover a partition; it stays without a leader");
                self.opening.give_up(group);
                let notice = format!("partition {name} cannot be recovered, and stays without a leader here: {why}");
                self.metrics.stopped.add(group, notice);
                self.metrics.groups_stopped.set(self.metrics.groups_stopped.get() + 1);
            }
        }
    }

    /// The only replica of a group always runs as this broker's current peer, even on a new disk. Larger groups
    /// list their founding peers.
    fn group_config(&self, meta: &metadata::Partition) -> GroupConfig {
        let single = GroupConfig {
            beside: descriptor::bytes_beside,
            holds: descriptor::check_entry,
            has_leases: false,
            kept_entries_max: KEPT_ENTRIES,
            ..GroupConfig::single(meta.group, self.identity.peer)
        };
        if meta.replicas.len() == 1 {
            return single;
        }
        let place = meta.replicas.iter().position(|node| *node == self.node()).unwrap_or(0);
        GroupConfig {
            voters: meta.founders.clone(),
            election_ticks: ELECTION_TICKS,
            // One replica after the other, in the order of preference.
            election_jitter: (place * STAND_APART).min(ELECTION_TICKS) + (meta.group.0 % 2) as usize,
            heartbeat_ticks: 2,
            ..single
        }
    }

    /// Removes a group that the metadata no longer names, including its files.
    pub(super) fn drop_group(self: &Rc<Self>, group: GroupId) {
        self.leaders.borrow_mut().remove(&group);
        if self.owner(group) != self.id() {
            return;
        }
        self.unclaimed.borrow_mut().remove(&group);
        let closed = self.partitions.borrow_mut().remove(&group);
        if let Some(partition) = closed {
            partition.close(self);
            self.coordinators.resign(group);
        }
        // The replica may be on another broker.
        if self.store.log(group).is_some()
            && let Err(error) = self.store.remove_group(group)
        {
            self.storage_failed(&error.to_string());
        }
    }

    /// Called once the metadata is complete and its partitions are open. Unclaimed logs belong to topics that were
    /// deleted before their logs were removed here.
    pub fn drop_unclaimed(self: &Rc<Self>) {
        let is_orphan = |group: &GroupId| *group != META_GROUP && !self.opening.has(*group);
        let orphans: BTreeSet<GroupId> = self.unclaimed.borrow().keys().copied().filter(is_orphan).collect();
        for group in orphans {
            tracing::info!(group = group.0, "removing a log that no topic names");
            self.drop_group(group);
        }
    }

    /// Queues a change of a partition's leader. The other cores hear of it at the end of this turn.
    /// Sends the changes that were announced since the last call.
    pub fn tell_leaders(self: &Rc<Self>) {
        let told = self.untold.take();
        if told.is_empty() {
            return;
        }
        let led: Arc<[_]> = told.into();
        for to in (0..self.cores()).map(CoreId) {
            self.tell(to, Notice::Led { led: led.clone() });
        }
    }

    /// Takes changes that the owner of their partitions announced.
    pub(super) fn are_led(&self, led: &[Led]) {
        let mut leaders = self.leaders.borrow_mut();
        for led in led {
            let known = leaders.get(&led.group).map_or(LeaderEpoch::NONE, |known| known.epoch);
            if led.epoch >= known {
                leaders.insert(led.group, Leadership { node: led.node.unwrap_or(-1), epoch: led.epoch });
            }
        }
        drop(leaders);
        if self.id() == META_CORE {
            let own = led.iter().filter(|led| led.node == Some(self.node()));
            self.unreported.borrow_mut().extend(own.map(|led| (led.group, led.clone())));
        }
        self.view_changed.notify();
    }

    /// On core 0: this broker's leaderships that are not reported to other brokers yet.
    pub fn unreported(&self) -> &RefCell<BTreeMap<GroupId, Led>> {
        &self.unreported
    }
}
