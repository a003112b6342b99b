//! One broker's groups, driven as a core drives them: a turn takes completions in, hands records to the journal, sends what may be
//! sent, and applies what is committed.

use super::{
    Bug,
    disk::{Checkpoint, Record, SimDisk},
    oracle::{Seen, Violation},
};
use crate::{
    descriptor::{Descriptor, EntryData},
    group::{Entry, Group, GroupConfig, HardState, Member, Message, Position},
    metadata::{self, Request, Slice, View},
    seam::{Clock, Transport},
};
use bytes::Bytes;
use raft::eraftpb::MessageType;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// The group of the metadata; the others stand for partitions.
pub const META: u64 = 0;

/// What committed entries are applied to.
enum Machine {
    Meta {
        slices: Vec<Slice>,
        view: Box<View>,
    },
    /// The offset behind the last record applied.
    Partition {
        end: u64,
    },
}

struct Replica {
    group: Group,
    machine: Machine,
    /// The offset behind each batch in the log, committed or not: the next one begins where the last ends.
    ends: BTreeMap<u64, u64>,
    /// Term and vote as they were last handed to the journal.
    staged: (u64, u64),
    led: Option<u64>,
}

/// A Ready on its way to the disk.
struct Persisting {
    position: u64,
    group: u64,
    number: u64,
    entries: Vec<Entry>,
    messages: Vec<Message>,
}

pub struct Node<C, T> {
    pub id: u64,
    clock: C,
    transport: T,
    pub disk: SimDisk,
    replicas: BTreeMap<u64, Replica>,
    persisting: VecDeque<Persisting>,
    tick: Duration,
    tick_at: Duration,
    bug: Option<Bug>,
    /// What the oracle is to hear of.
    pub seen: Vec<Seen>,
}

impl<C: Clock, T: Transport<Message = (u64, Message)>> Node<C, T> {
    pub fn start(
        configs: &[GroupConfig],
        clock: C,
        transport: T,
        disk: SimDisk,
        tick: Duration,
        bug: Option<Bug>,
    ) -> Result<Self, Violation> {
        let id = configs[0].peer;
        let mut replicas = BTreeMap::new();
        for config in configs {
            let image = disk.image(config.group);
            let staged = (image.hard_state.term, image.hard_state.vote);
            let ends = image.entries.iter().filter_map(|entry| Some((entry.index, end_of(entry)?))).collect();
            let machine = restore(config.group, &image.checkpoint);
            let group = Group::new(config.clone(), image.restored())
                .map_err(|error| Violation(format!("node {id} cannot start: {error}")))?;
            replicas.insert(config.group, Replica { group, machine, ends, staged, led: None });
        }
        let tick_at = clock.now() + tick;
        Ok(Self {
            id,
            clock,
            transport,
            disk,
            replicas,
            persisting: VecDeque::new(),
            tick,
            tick_at,
            bug,
            seen: Vec::new(),
        })
    }

    pub fn group(&self, group: u64) -> &Group {
        &self.replicas[&group].group
    }

    /// When the next tick is due, by this node's clock.
    pub fn tick_at(&self) -> Duration {
        self.tick_at
    }

    /// Missed ticks are not replayed.
    pub fn tick(&mut self) {
        self.replicas.values_mut().for_each(|replica| replica.group.tick());
        self.tick_at = self.clock.now() + self.tick;
        self.turn();
    }

    pub fn step(&mut self, group: u64, message: Message) {
        self.replicas.get_mut(&group).expect("every node has every group").group.step(message);
        self.turn();
    }

    /// The journal's sync is over.
    pub fn synced(&mut self) {
        self.disk.synced();
        self.turn();
    }

    /// Proposes requests to the metadata group.
    pub fn propose_requests(&mut self, requests: &[Request]) -> Option<(Position, Bytes)> {
        let data = metadata::encode_requests(requests);
        let position = self.replicas.get_mut(&META)?.group.propose(data.clone()).ok()?;
        self.turn();
        Some((position, data))
    }

    /// Proposes a batch of so many records to a partition; its base offset comes from the log's end in the same step.
    pub fn propose_batch(&mut self, group: u64, count: u32) -> Option<(Position, Bytes)> {
        let replica = self.replicas.get_mut(&group)?;
        let base_offset = replica.ends.last_key_value().map_or(replica.applied_end(), |(_, end)| *end);
        let batch = Descriptor { base_offset, count, bytes: 100 * count, crc: count, max_timestamp: -1 };
        let data = EntryData::Batch(batch).encode();
        let position = replica.group.propose(data.clone()).ok()?;
        replica.ends.insert(position.index, base_offset + u64::from(count));
        self.turn();
        Some((position, data))
    }

    pub fn propose_members(&mut self, group: u64, changes: &[Member]) -> bool {
        let replica = self.replicas.get_mut(&group).expect("every node has every group");
        let proposed = replica.group.propose_members(changes).is_ok();
        self.turn();
        proposed
    }

    /// Writes a group's checkpoint; the log forgets what it covers, up to `forget`.
    pub fn checkpoint(&mut self, group: u64, forget: u64) {
        let replica = self.replicas.get_mut(&group).expect("every node has every group");
        let index = replica.group.applied();
        let state = match &mut replica.machine {
            Machine::Meta { slices, .. } => metadata::join(index, slices),
            Machine::Partition { end } => Bytes::copy_from_slice(&end.to_le_bytes()),
        };
        self.seen.push(Seen::State { group, index, state: state.clone() });
        let forget = replica.group.compact(forget);
        let checkpoint = Checkpoint { index, conf_state: replica.group.conf_state(), state };
        self.disk.checkpoint(group, checkpoint, forget);
    }

    /// Everything that can be done without waiting.
    fn turn(&mut self) {
        loop {
            while self.persisting.front().is_some_and(|next| {
                next.position <= self.disk.durable() || self.bug == Some(Bug::AcknowledgedBeforeSync)
            }) {
                let done = self.persisting.pop_front().expect("it was just looked at");
                let replica = self.replicas.get_mut(&done.group).expect("every node has every group");
                replica.group.on_persisted(done.number);
                self.seen.extend(done.entries.into_iter().map(|entry| Seen::Appended { group: done.group, entry }));
                self.send(done.group, done.messages);
            }
            let working = self.replicas.iter().find(|(_, replica)| replica.group.has_work()).map(|(group, _)| *group);
            match working {
                Some(group) => self.take_ready(group),
                None => break,
            }
        }
        self.disk.sync();
        for (group, replica) in &mut self.replicas {
            replica.group.check();
            // A lone voter leads before its term is durable, but nobody knows until then.
            let leads = replica.group.is_leader() && replica.group.has_durable_term();
            let leads = leads.then(|| replica.group.term());
            if let Some(term) = leads.filter(|_| leads != replica.led) {
                let log = replica.group.terms().to_vec();
                self.seen.push(Seen::Leads { node: self.id, group: *group, term, log });
            }
            replica.led = leads;
        }
    }

    fn take_ready(&mut self, group: u64) {
        let replica = self.replicas.get_mut(&group).expect("it has work");
        let Some(ready) = replica.group.ready() else { return };
        let mut alone = ready.entries.is_empty();
        let bug = self.bug;
        let recorded = |state: HardState| match bug {
            Some(Bug::VoteNotRecorded) => HardState { vote: 0, ..state },
            Some(Bug::CommitNotRecorded) => HardState { commit: 0, ..state },
            _ => state,
        };
        for entry in &ready.entries {
            replica.ends.split_off(&entry.index);
            if let Some(end) = end_of(entry) {
                replica.ends.insert(entry.index, end);
            }
            let hard_state = recorded(replica.group.hard_state_with(entry.index));
            self.disk.append(Record { group, hard_state, entry: Some(entry.clone()) });
        }
        let hard_state = recorded(replica.group.hard_state());
        alone &= replica.staged != (hard_state.term, hard_state.vote);
        if alone {
            self.disk.append(Record { group, hard_state, entry: None });
        }
        replica.staged = (hard_state.term, hard_state.vote);
        let mut late = ready.persisted_messages;
        let mut now = ready.messages;
        if self.bug == Some(Bug::AnsweredBeforeSync) {
            now.append(&mut late);
        }
        // What needs no record of its own is durable with whatever was appended before it, never earlier.
        self.persisting.push_back(Persisting {
            position: self.disk.end(),
            group,
            number: ready.number,
            entries: ready.entries,
            messages: late,
        });
        for entry in &ready.committed {
            let replica = self.replicas.get_mut(&group).expect("it has work");
            let result = replica.machine.apply(entry, bug);
            let term = replica.group.term();
            self.seen.push(Seen::Applied { node: self.id, group, term, entry: entry.clone(), result });
            replica.group.applied_to(entry.index);
        }
        self.send(group, now);
    }

    fn send(&mut self, group: u64, messages: Vec<Message>) {
        for message in messages {
            let granted = message.get_msg_type() == MessageType::MsgRequestVoteResponse && !message.reject;
            if granted || message.get_msg_type() == MessageType::MsgRequestVote {
                // Asking for a vote is voting for oneself.
                let to = if granted { message.to } else { self.id };
                self.seen.push(Seen::Voted { node: self.id, group, term: message.term, to });
            }
            self.transport.send(message.to, (group, message));
        }
    }

    /// The metadata at its applied index, if the view agrees with the slices.
    pub fn metadata(&mut self) -> Result<(u64, Bytes), Violation> {
        let Some(Replica { group, machine: Machine::Meta { slices, view }, .. }) = self.replicas.get_mut(&META) else {
            unreachable!("the metadata group is there from the start")
        };
        let mut topics: Vec<_> = slices.iter().flat_map(Slice::topics).collect();
        topics.sort_unstable_by_key(|topic| &topic.name);
        if view.index() != group.applied() || !view.topics().eq(topics) {
            return Err(Violation(format!("the view of node {} is not what its slices say", self.id)));
        }
        Ok((group.applied(), metadata::join(group.applied(), slices)))
    }
}

impl Replica {
    fn applied_end(&self) -> u64 {
        match &self.machine {
            Machine::Partition { end } => *end,
            Machine::Meta { .. } => unreachable!("the metadata group takes no batches"),
        }
    }
}

impl Machine {
    /// Applies an entry; the result, a line for each request, must be the same on every node.
    fn apply(&mut self, entry: &Entry, bug: Option<Bug>) -> String {
        match self {
            Machine::Meta { slices, view } => {
                let requests = if entry.is_command() {
                    metadata::decode_requests(&entry.data).expect("a committed entry can be read")
                } else {
                    Vec::new()
                };
                let mut deltas = Vec::new();
                let mut outcomes = String::new();
                for request in requests {
                    let slice = &mut slices[usize::from(request.command.slice().0)];
                    let applied = match bug {
                        Some(Bug::RetryAppliedTwice) => Ok(slice.apply(&request.command)),
                        _ => slice.apply_request(&request),
                    };
                    slice.check();
                    match applied {
                        Ok(applied) => {
                            deltas.extend(applied.deltas);
                            outcomes += &format!("{:?}\n", applied.outcome);
                        }
                        Err(too_late) => outcomes += &format!("{too_late:?}\n"),
                    }
                }
                view.apply(entry.index, &deltas);
                outcomes
            }
            Machine::Partition { end } => {
                if let Some(behind) = end_of(entry) {
                    let Ok(EntryData::Batch(batch)) = EntryData::decode(&entry.data) else {
                        unreachable!("only batches end at an offset")
                    };
                    assert_eq!(batch.base_offset, *end, "batches follow each other without gaps");
                    *end = behind;
                }
                end.to_string()
            }
        }
    }
}

/// The offset behind an entry's batch, if it is one of a partition.
fn end_of(entry: &Entry) -> Option<u64> {
    match EntryData::decode(&entry.data) {
        Ok(EntryData::Batch(batch)) if entry.is_command() => Some(batch.base_offset + u64::from(batch.count)),
        _ => None,
    }
}

fn restore(group: u64, checkpoint: &Checkpoint) -> Machine {
    if group != META {
        let end = checkpoint.state[..].try_into().map_or(0, u64::from_le_bytes);
        return Machine::Partition { end };
    }
    if checkpoint.state.is_empty() {
        return Machine::Meta { slices: Slice::all(), view: Box::default() };
    }
    let (index, slices) = metadata::restore(&checkpoint.state).expect("a checkpoint is whole");
    assert_eq!(index, checkpoint.index);
    let image: Vec<_> = slices.iter().flat_map(Slice::image).collect();
    let view = Box::new(View::new(index, &image));
    Machine::Meta { slices, view }
}
