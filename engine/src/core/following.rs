//! The view, and what follows from it: the partitions that a core opens and drops, and whom it tells of their leaders.

use super::{Core, CoreId, Leadership, Led};
use crate::{
    cluster::meta::{META_CORE, META_GROUP},
    config::{topic::TopicConfig, value::HostPort},
    partition::{Partition, TopicPartition},
};
use consensus::{
    group::{Entry, Group, GroupConfig, HardState, Position, Restored, TermRun, descriptor},
    metadata::{self, Broker, Delta, Slice, Topic, View},
};
use std::{
    cell::{LazyCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};
use wal::{record::GroupId, store::RecoveredGroup};

/// Ticks without a leader before a replica of a partition stands for election, and between those that do.
const ELECTION_TICKS: usize = 8;
const STAND_APART: usize = 3;
/// Entries that a leader keeps in memory for peers that lack them, of one partition; more are read from its log.
const KEPT_ENTRIES: u64 = 256;

impl Core {
    /// Takes the slices of this core and the whole view, as of the snapshot that core 0 read.
    pub fn install(self: &Rc<Self>, index: u64, slices: Vec<Slice>, image: &[Delta]) {
        self.slices.borrow_mut().extend(slices.into_iter().map(|slice| (slice.id(), slice)));
        let before = self.view.replace(View::new(index, image));
        // A snapshot that came later leaves out what was deleted meanwhile.
        for topic in before.topics().filter(|topic| self.view(|view| view.topic_by_id(topic.id).is_none())) {
            self.follow(&Delta::TopicDeleted(topic.clone()));
        }
        image.iter().for_each(|change| self.follow(change));
        self.view_changed.notify();
    }

    /// Applies published deltas to the view and makes this core's partitions follow it.
    pub fn show(self: &Rc<Self>, deltas: &[(u64, Vec<Delta>)]) {
        for (index, changes) in deltas {
            self.view.borrow_mut().apply(*index, changes);
            for change in changes {
                self.follow(change);
            }
        }
        self.view_changed.notify();
    }

    /// Makes partitions, settings and leaderships of this core agree with one change of the view.
    fn follow(self: &Rc<Self>, change: &Delta) {
        match change {
            Delta::Topic(topic) => self.follow_topic(topic),
            Delta::Broker(broker) => self.follow_broker(broker),
            Delta::BrokerGone(node) => self.peers().forget(*node),
            Delta::GonePeers(peers) => self.peers().set_gone(peers.clone()),
            Delta::TopicDeleted(topic) => {
                for partition in &topic.partitions {
                    self.drop_group(GroupId(partition.group));
                }
                self.coordinators.topic_deleted(self);
            }
            // Looked up in the view when they are needed.
            Delta::Leaders(_) | Delta::Watermarks(_) | Delta::Features(_) | Delta::ClusterConfig(_) => {}
        }
    }

    /// Another broker is where it says, and may be another peer than before.
    fn follow_broker(self: &Rc<Self>, broker: &Broker) {
        if broker.node == self.node() {
            return;
        }
        let address = HostPort { host: broker.peer_addr.host.clone(), port: broker.peer_addr.port };
        self.peers().set_address(broker.node, address.to_string());
        for partition in self.partitions_that(|partition| partition.concerns(broker.node)) {
            partition.meets(self);
        }
    }

    fn follow_topic(self: &Rc<Self>, topic: &Arc<Topic>) {
        // Of most topics other cores and brokers have all partitions.
        let config = LazyCell::new(|| Rc::new(self.topic_config(topic)));
        for (number, meta) in topic.partitions.iter().enumerate() {
            let group = GroupId(meta.group);
            if self.owner(group) != self.id() || !meta.replicas.contains(&self.node()) {
                continue;
            }
            // The metadata's log is replayed from before the topic's deletion, which the store has carried out already.
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
                    self.open_partition(name, meta, Rc::clone(&config));
                }
            }
        }
    }

    /// Starts a partition's replica from what the store recovered, or anew. One that can't be brought back stays without a
    /// leader and says why; the others serve.
    fn open_partition(self: &Rc<Self>, name: TopicPartition, meta: &metadata::Partition, config: Rc<TopicConfig>) {
        let group = GroupId(meta.group);
        let recovered = self.unclaimed.borrow_mut().remove(&group);
        let (identity, replicas) = (self.group_config(meta), meta.replicas.clone());
        let opened = match &recovered {
            None => {
                self.store.create_group(group, config.log_options());
                let empty = Restored { gone: Some(Position { index: 0, term: 0 }), ..Restored::default() };
                let raft = Group::new(identity, empty).expect("a new group needs nothing from storage");
                Ok(Partition::new(name.clone(), group, raft, config, replicas))
            }
            Some(recovered) => {
                self.store.set_options(group, config.log_options());
                let gone = Position { index: recovered.first_index - 1, term: recovered.first_prev_term };
                let found = Restored { gone: Some(gone), ..restored(recovered) };
                Group::new(identity, found).map_err(|error| error.to_string()).and_then(|raft| {
                    let opened = Partition::recovered(name.clone(), raft, config, replicas, recovered);
                    opened.map_err(|error| error.to_string())
                })
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
                tracing::error!(partition = %name, why, "a partition can't be brought back; it stays without a leader");
                let notice = format!("partition {name} can't be brought back, and stays without a leader here: {why}");
                self.metrics.stopped.add(group.0, notice);
                self.metrics.groups_stopped.set(self.metrics.groups_stopped.get() + 1);
            }
        }
    }

    /// A partition's only replica is whatever disk its broker has; the peers of several are told apart.
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
            // One after the other, in the order of preference.
            election_jitter: (place * STAND_APART).min(ELECTION_TICKS) + (meta.group % 2) as usize,
            heartbeat_ticks: 2,
            ..single
        }
    }

    /// Forgets a group that the metadata no longer names, files and all.
    fn drop_group(self: &Rc<Self>, group: GroupId) {
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
        // Its replica may be on another broker.
        if self.store.log(group).is_some()
            && let Err(error) = self.store.remove_group(group)
        {
            self.storage_failed(&error.to_string());
        }
    }

    /// Once the metadata is complete: what no topic claims belongs to topics deleted while the removal was on its way.
    pub fn drop_unclaimed(self: &Rc<Self>) {
        let unclaimed = self.unclaimed.borrow().keys().copied().filter(|group| *group != META_GROUP).collect();
        let orphans: BTreeSet<GroupId> = unclaimed;
        for group in orphans {
            tracing::info!(group = group.0, "removing a log that no topic names");
            self.drop_group(group);
        }
    }

    /// Tells the other cores, at the end of this turn, who leads a partition of this core.
    pub fn announce_leader(self: &Rc<Self>, led: Led) {
        self.untold.borrow_mut().push(led);
    }

    /// Sends what [`Core::announce_leader`] gathered.
    pub fn tell_leaders(self: &Rc<Self>) {
        let told = self.untold.take();
        if told.is_empty() {
            return;
        }
        let told: Arc<[_]> = told.into();
        for to in (0..self.cores()).map(CoreId) {
            let told = told.clone();
            self.post(to, move |there| there.are_led(&told));
        }
    }

    fn are_led(&self, led: &[Led]) {
        let mut leaders = self.leaders.borrow_mut();
        for led in led {
            let known = leaders.get(&led.group).map_or(-1, |known| known.epoch);
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

    /// On core 0: leaderships that other brokers have not been told.
    pub fn unreported(&self) -> &RefCell<BTreeMap<GroupId, Led>> {
        &self.unreported
    }
}

/// What the group needs to go on from where the store found it.
pub fn restored(recovered: &RecoveredGroup) -> Restored {
    let state = recovered.hard_state;
    // The tail begins above the lesser of what is flushed and what is applied; below, terms are all that Raft needs.
    let first = recovered.tail.first().map_or(recovered.flushed_index + 1, |entry| entry.index);
    let before = first - 1;
    let runs = &recovered.terms;
    let term = runs[..runs.partition_point(|run| run.first_index <= before)]
        .last()
        .map_or(recovered.first_prev_term, |run| run.term);
    Restored {
        hard_state: HardState { term: state.term, vote: state.vote, commit: state.commit },
        conf_state: recovered.app.conf_state.clone(),
        terms: runs.iter().map(|run| TermRun { first_index: run.first_index, term: run.term }).collect(),
        gone: None,
        before: (before > 0).then_some(Position { index: before, term }),
        applied: recovered.app.index,
        entries: recovered
            .tail
            .iter()
            .map(|entry| Entry {
                index: entry.index,
                term: entry.term,
                entry_type: entry.entry_type,
                data: entry.data.clone(),
            })
            .collect(),
    }
}
