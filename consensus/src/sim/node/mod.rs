//! The groups of one broker, driven as a core drives them. A turn handles completions, hands records to the
//! journal, sends what may be sent, and applies committed entries. The metadata group also has its plane, its
//! slices and a view.

mod meta;

use super::{
    Bug, SimClock,
    disk::{Checkpoint, Record, SimDisk},
    net::SimTransport,
    oracle::{Seen, Violation},
};
use crate::{
    group::{
        Entry, Group, GroupConfig, Member, Message, MessageType,
        descriptor::{Descriptor, EntryData},
    },
    plane::{PlaneConfig, PlaneMessage, Token, WriteError, Written, node_of},
};
use bytes::Bytes;
use meta::{Meta, mark};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use types::{GroupId, HardState, Position, RaftIndex, Term};

/// The metadata group. The other groups stand for partitions.
pub const META: GroupId = GroupId(0);

/// A message between nodes.
#[derive(Clone, Debug)]
pub enum Wire {
    Raft(GroupId, Message),
    /// A MsgSnapshot, and the state that it announces.
    Snapshot(Message, Bytes),
    /// The sending node, and its message.
    Plane(i32, PlaneMessage),
}

/// The state machine of a group.
pub(super) enum Machine {
    Meta(Box<Meta>),
    Partition {
        /// The offset after the last applied record.
        end: u64,
    },
}

pub(super) struct Replica {
    pub(super) group: Group,
    pub(super) machine: Machine,
    /// The offset after each batch in the log, committed or not, by index. The next batch begins at the last one.
    ends: BTreeMap<RaftIndex, u64>,
    /// The term and vote that were last handed to the journal.
    staged: (Term, u64),
    led: Option<Term>,
}

/// A Ready whose records are being written.
struct Persisting {
    position: u64,
    group: GroupId,
    number: u64,
    entries: Vec<Entry>,
    messages: Vec<Message>,
}

pub struct Node {
    pub id: u64,
    pub(super) clock: SimClock,
    transport: SimTransport<Wire>,
    pub disk: SimDisk,
    rng: fastrand::Rng,
    pub(super) replicas: BTreeMap<GroupId, Replica>,
    persisting: VecDeque<Persisting>,
    tick: Duration,
    tick_at: Duration,
    pub(super) bug: Option<Bug>,
    /// Events for the oracle.
    pub seen: Vec<Seen>,
    /// Answers for clients.
    pub written: Vec<(Token, Result<Written, WriteError>)>,
    pub read: Vec<(Token, Result<(), WriteError>)>,
}

/// The longest time, in µs, that a result takes from the core that owns a slice to the core that drives the group.
const CORE_HOP_MAX_US: u64 = 3_000;

impl Node {
    #[expect(clippy::too_many_arguments, reason = "one call, in the cluster")]
    pub fn start(
        configs: &[GroupConfig],
        plane: PlaneConfig,
        contacts: &[i32],
        clock: SimClock,
        transport: SimTransport<Wire>,
        disk: SimDisk,
        seed: u64,
        tick: Duration,
        bug: Option<Bug>,
    ) -> Result<Self, Violation> {
        let id = configs[0].peer;
        let mut replicas = BTreeMap::new();
        for config in configs {
            let image = disk.image(config.group);
            let staged = (image.hard_state.term, image.hard_state.vote);
            let ends = image.entries.iter().filter_map(|entry| Some((entry.index, end_of(entry)?))).collect();
            let machine = restore(config.group, &image.checkpoint, &plane, contacts);
            let mut group = Group::new(config.clone(), image.restored())
                .map_err(|error| Violation(format!("node {id} cannot start: {error}")))?;
            if let Machine::Meta(meta) = &machine
                && let Some(mark) = meta.newest.as_ref().and_then(|newest| mark(&group, newest))
            {
                group.set_snapshot(mark);
            }
            if config.group == META && group.voters() == [id] {
                group.campaign();
            }
            replicas.insert(config.group, Replica { group, machine, ends, staged, led: None });
        }
        let tick_at = clock.now() + tick;
        let mut node = Self {
            id,
            clock,
            transport,
            disk,
            rng: fastrand::Rng::with_seed(seed),
            replicas,
            persisting: VecDeque::new(),
            tick,
            tick_at,
            bug,
            seen: Vec::new(),
            written: Vec::new(),
            read: Vec::new(),
        };
        node.turn();
        Ok(node)
    }

    pub fn group(&self, group: GroupId) -> &Group {
        &self.replicas[&group].group
    }

    /// The time, on this node's clock, at which the next tick is due.
    pub fn tick_at(&self) -> Duration {
        self.tick_at
    }

    /// The time, on this node's clock, at which the next results of slices arrive.
    pub fn slices_at(&self) -> Option<Duration> {
        self.meta().coming.front().map(|(at, _)| *at)
    }

    /// Ticks all groups once. Missed ticks are not replayed.
    pub fn tick(&mut self) {
        for (group, replica) in &mut self.replicas {
            match &mut replica.machine {
                Machine::Meta(meta) => meta.plane.tick(&mut replica.group, self.clock.now()),
                Machine::Partition { .. } => replica.group.tick(),
            }
            debug_assert_eq!(replica.group.id(), *group);
        }
        self.tick_at = self.clock.now() + self.tick;
        if self.group(META).snapshot_wanted() {
            self.snapshot();
        }
        self.turn();
    }

    /// Handles the results of slices that have arrived.
    pub fn slices_did(&mut self) {
        let now = self.clock.now();
        loop {
            let (group, meta) = self.meta_parts();
            let Some((_, coming)) = meta.coming.pop_front_if(|(at, _)| *at <= now) else { break };
            meta.plane.slices_did(group, now, coming.generation, coming.index, coming.results);
            self.carry_out();
        }
        self.turn();
    }

    pub fn receive(&mut self, wire: Wire) {
        let now = self.clock.now();
        match wire {
            Wire::Raft(group, message) => {
                let replica = self.replicas.get_mut(&group).expect("every node has every group");
                replica.group.step(message);
                if let Machine::Meta(meta) = &mut replica.machine {
                    meta.plane.observe(&mut replica.group, now);
                }
            }
            Wire::Snapshot(message, state) => self.take_snapshot(message, state),
            Wire::Plane(from, message) => {
                let (group, meta) = self.meta_parts();
                meta.plane.receive(group, now, from, message);
            }
        }
        self.turn();
    }

    /// Handles the end of the journal's sync.
    pub fn synced(&mut self) {
        self.disk.synced();
        self.turn();
    }

    /// Proposes a batch of `count` records to a partition. The same step takes the base offset from the log's end.
    pub fn propose_batch(&mut self, group: GroupId, count: u32) -> Option<(Position, Bytes)> {
        let replica = self.replicas.get_mut(&group)?;
        let base_offset = replica.ends.last_key_value().map_or(replica.applied_end(), |(_, end)| *end);
        let batch = Descriptor { base_offset, count, bytes: 100 * count, crc: count, max_timestamp: -1 };
        let data = EntryData::Batch(batch).encode();
        let position = replica.group.propose(data.clone()).ok()?;
        replica.ends.insert(position.index, base_offset + u64::from(count));
        self.turn();
        Some((position, data))
    }

    pub fn propose_members(&mut self, group: GroupId, changes: &[Member]) -> bool {
        let replica = self.replicas.get_mut(&group).expect("every node has every group");
        let proposed = replica.group.propose_members(changes).is_ok();
        self.turn();
        proposed
    }

    /// Writes a checkpoint of a partition. The log drops the entries that it covers, up to `forget`.
    pub fn checkpoint(&mut self, group: GroupId, forget: RaftIndex) {
        let replica = self.replicas.get_mut(&group).expect("every node has every group");
        let index = replica.group.applied();
        let Machine::Partition { end } = &replica.machine else { unreachable!("the metadata has snapshots") };
        let state = Bytes::copy_from_slice(&end.to_le_bytes());
        self.seen.push(Seen::State { group, index, state: state.clone() });
        let forget = replica.group.compact(forget);
        let checkpoint = Checkpoint { index, conf_state: replica.group.conf_state(), state };
        self.disk.checkpoint(group, checkpoint, forget);
    }

    /// Does everything that is possible without waiting.
    pub(super) fn turn(&mut self) {
        loop {
            self.complete();
            let now = self.clock.now();
            let (group, meta) = self.meta_parts();
            meta.plane.propose(group, now, |_| true);
            self.carry_out();
            let working = self.replicas.iter().find(|(_, replica)| replica.group.has_work()).map(|(group, _)| *group);
            match working {
                Some(group) => self.take_ready(group),
                None => break,
            }
        }
        self.disk.sync();
        for (group, replica) in &mut self.replicas {
            replica.group.check();
            // A lone voter leads before its term is durable, but no other node can know until then.
            let leads = replica.group.is_leader() && replica.group.has_durable_term();
            let leads = leads.then(|| replica.group.term());
            if let Some(term) = leads.filter(|_| leads != replica.led) {
                let log = replica.group.terms().to_vec();
                self.seen.push(Seen::Leads { node: self.id, group: *group, term, log });
            }
            replica.led = leads;
        }
    }

    /// Handles the completions of the journal.
    fn complete(&mut self) {
        while self
            .persisting
            .front()
            .is_some_and(|next| next.position <= self.disk.durable() || self.bug == Some(Bug::AcknowledgedBeforeSync))
        {
            let mut done = self.persisting.pop_front().expect("it was just looked at");
            if self.bug == Some(Bug::CompletedOutOfOrder)
                && let Some(at) = self.persisting.iter().rposition(|later| later.group == done.group)
            {
                // A later completion implies all earlier ones of its group. This bug reports it too early.
                let later = self.persisting.remove(at).expect("it was just found");
                done.number = later.number;
                done.messages.extend(later.messages);
                self.persisting.retain(|between| between.group != done.group || between.number > done.number);
            }
            let now = self.clock.now();
            let replica = self.replicas.get_mut(&done.group).expect("every node has every group");
            replica.group.on_persisted(done.number);
            if let Machine::Meta(meta) = &mut replica.machine {
                meta.plane.persisted(&replica.group, now);
            }
            self.seen.extend(done.entries.into_iter().map(|entry| Seen::Appended { group: done.group, entry }));
            self.send(done.group, done.messages);
            self.carry_out();
        }
    }

    fn take_ready(&mut self, group: GroupId) {
        let replica = self.replicas.get_mut(&group).expect("it has work");
        let Some(ready) = replica.group.ready() else { return };
        let mut alone = ready.entries.is_empty();
        let bug = self.bug;
        let recorded = |state: HardState| match bug {
            Some(Bug::VoteNotRecorded) => HardState { vote: 0, ..state },
            Some(Bug::CommitNotRecorded) => HardState { commit: RaftIndex::ZERO, ..state },
            _ => state,
        };
        if let Some(mark) = &ready.snapshot {
            alone = false;
            let hard_state = recorded(replica.group.hard_state_with(mark.at.index));
            let Machine::Meta(meta) = &mut replica.machine else { unreachable!("only the metadata has snapshots") };
            let newest = meta.newest.clone().expect("a snapshot is staged before it is stepped");
            assert_eq!(newest.index, mark.at.index, "the group takes the snapshot that was staged");
            meta.install(&newest);
            self.seen.push(Seen::Restored { node: self.id, group, index: mark.at.index });
            let restart = Some((mark.at, newest));
            self.disk.append(Record { group, hard_state, entry: None, restart });
        }
        for entry in &ready.entries {
            replica.ends.split_off(&entry.index);
            if let Some(end) = end_of(entry) {
                replica.ends.insert(entry.index, end);
            }
            let hard_state = recorded(replica.group.hard_state_with(entry.index));
            self.disk.append(Record { group, hard_state, entry: Some(entry.clone()), restart: None });
        }
        let hard_state = recorded(replica.group.hard_state());
        alone &= replica.staged != (hard_state.term, hard_state.vote);
        if alone {
            self.disk.append(Record { group, hard_state, entry: None, restart: None });
        }
        replica.staged = (hard_state.term, hard_state.vote);
        let mut late = ready.persisted_messages;
        let mut now = ready.messages;
        if self.bug == Some(Bug::AnsweredBeforeSync) {
            now.append(&mut late);
        }
        // A Ready without records of its own is durable once all records before it are, never earlier.
        self.persisting.push_back(Persisting {
            position: self.disk.end(),
            group,
            number: ready.number,
            entries: ready.entries,
            messages: late,
        });
        self.apply(group, ready.committed);
        let clock = self.clock.now();
        let replica = self.replicas.get_mut(&group).expect("it has work");
        if let Machine::Meta(meta) = &mut replica.machine {
            meta.plane.still_leads(&replica.group, clock, &ready.reads);
        }
        self.send(group, now);
        self.carry_out();
    }

    fn apply(&mut self, group: GroupId, committed: Vec<Entry>) {
        let now = self.clock.now();
        let replica = self.replicas.get_mut(&group).expect("it has work");
        match &mut replica.machine {
            Machine::Meta(meta) => {
                meta.unpublished.extend(committed.iter().cloned());
                meta.plane.committed(&mut replica.group, now, &committed);
                self.carry_out();
            }
            Machine::Partition { end } => {
                for entry in committed {
                    if let Some(behind) = end_of(&entry) {
                        let Ok(EntryData::Batch(batch)) = EntryData::decode(&entry.data) else {
                            unreachable!("only batches end at an offset")
                        };
                        assert_eq!(batch.base_offset, *end, "batches follow each other without gaps");
                        *end = behind;
                    }
                    let (term, result) = (replica.group.term(), end.to_string());
                    replica.group.applied_to(entry.index);
                    self.seen.push(Seen::Applied { node: self.id, group, term, entry, result });
                }
            }
        }
    }

    /// Performs what the plane asks for.
    fn carry_out(&mut self) {
        loop {
            let (node, bug, now) = (self.id, self.bug, self.clock.now());
            let hop = Duration::from_micros(self.rng.u64(..CORE_HOP_MAX_US));
            let far = self.rng.u8(..4) == 0;
            let (group, meta) = self.meta_parts();
            let turn = meta.plane.take();
            if turn.is_empty() {
                return;
            }
            for op in turn.slices {
                let Some(coming) = meta.work(op, bug) else { continue };
                // Results of one core arrive in order: none overtakes those in flight.
                if far || !meta.coming.is_empty() {
                    let at = meta.coming.back().map_or(now + hop, |(at, _)| (*at).max(now + hop));
                    meta.coming.push_back((at, coming));
                } else {
                    meta.plane.slices_did(group, now, coming.generation, coming.index, coming.results);
                }
            }
            let mut seen = Vec::new();
            for (index, deltas) in turn.publish {
                meta.view.apply(index, &deltas);
                meta.view.check_counts();
                let entry = meta.unpublished.pop_front().expect("what is published was committed");
                assert_eq!(entry.index, index);
                let result = meta.results.remove(&index).unwrap_or_default();
                seen.push(Seen::Applied { node, group: META, term: group.term(), entry, result });
                meta.plane.shown(group, index);
            }
            self.seen.extend(seen);
            self.written.extend(turn.written);
            self.read.extend(turn.reads);
            for (to, message) in turn.sends {
                self.transport.send(u64::from(to as u32) << 32, Wire::Plane(node_of(node), message));
            }
        }
    }

    fn send(&mut self, group: GroupId, messages: Vec<Message>) {
        for message in messages {
            let granted = message.get_msg_type() == MessageType::MsgRequestVoteResponse && !message.reject;
            if granted || message.get_msg_type() == MessageType::MsgRequestVote {
                // A candidate that requests votes has voted for itself.
                let to = if granted { message.to } else { self.id };
                self.seen.push(Seen::Voted { node: self.id, group, term: Term(message.term), to });
            }
            if message.get_msg_type() != MessageType::MsgSnapshot {
                self.transport.send(message.to, Wire::Raft(group, message));
                continue;
            }
            let announced = message.get_snapshot().get_metadata().index;
            let (group, meta) = self.meta_parts();
            let state = meta.newest.as_ref().filter(|newest| newest.index == RaftIndex::new(announced));
            let state = state.map(|newest| newest.state.clone());
            group.report_snapshot(message.to, state.is_some());
            if let Some(state) = state {
                self.transport.send(message.to, Wire::Snapshot(message, state));
            }
        }
    }
}

impl Replica {
    fn applied_end(&self) -> u64 {
        match &self.machine {
            Machine::Partition { end } => *end,
            Machine::Meta(_) => unreachable!("the metadata group takes no batches"),
        }
    }
}

/// The offset after the batch of an entry. `None` if the entry holds no batch.
fn end_of(entry: &Entry) -> Option<u64> {
    match EntryData::decode(&entry.data) {
        Ok(EntryData::Batch(batch)) if entry.is_command() => Some(batch.base_offset + u64::from(batch.count)),
        _ => None,
    }
}

fn restore(group: GroupId, checkpoint: &Checkpoint, config: &PlaneConfig, contacts: &[i32]) -> Machine {
    if group != META {
        let end = checkpoint.state[..].try_into().map_or(0, u64::from_le_bytes);
        return Machine::Partition { end };
    }
    Machine::Meta(Box::new(Meta::start(checkpoint, config, contacts)))
}
