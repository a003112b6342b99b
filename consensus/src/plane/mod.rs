//! The metadata plane of one broker: the layer between the readers and writers of metadata and the metadata group.
//! Lives on: core 0. Sans-IO: it sees only its arguments and the [`Group`], which most verbs get. [`Plane::take`]
//! returns the work to do.
//!
//! ```text
//!  submit ─► leads? ─ yes ─► one entry for all writes of a turn ─► Group … committed ─┐
//!              │             └► Speculate: slices apply it at once (the overlay)      │
//!              └─ no ──► Forward to the leader, with retries, under one number        ▼
//!  answer ◄── shown by every core's view ◄── publish, in log order ◄── results of the slices
//!         ◄── fast path: durable here, results complete, and the leader lease holds
//! ```
//!
//! | module | is |
//! |---|---|
//! | `message` | messages between planes |
//! | `flow` | entries on their way through the slices, published in log order |
//! | `writes` | writes of this broker: proposed or forwarded until they are answered |
//! | `asked` | forwarded writes that wait at the leader for their entry |
//! | `leading` | the leader's work: entries, answers to forwarded writes, the fast path |
//! | `room` | the leader's check that brokers have memory for new partitions |
//! | `size` | the check that every broker can store an entry |
//! | `weight` | the most bytes that a command takes in an entry |
//! | `members` | the group's members and the brokers' liveness, kept up to date by the leader |
//! | `leases` | the leader's lease, the read lease, reads without a lease |
//!
//! Invariants:
//!
//! - A write is answered once.
//! - A write that is answered at [`Acks::Quorum`] is committed.
//! - A write that the fast path answers was durable here while the lease held.
//! - Indices are published in order, each once.

mod asked;
mod flow;
mod leading;
mod leases;
mod members;
mod message;
mod room;
mod size;
mod weight;
mod writes;

pub use asked::ANSWER_MAX;
pub use flow::{SliceEntry, SliceOp, check_entry};
pub use message::{Accepted, Acks, Ask, PlaneMessage, Progress, Quorum, Refused};
pub use size::ENTRY_BYTES;
pub use types::{node_of, peer_id};
pub use weight::weight;
pub use writes::{Submission, Until, WriteError, Written};

use crate::{
    group::{ENTRY_NORMAL, Entry, EntryError, Group, ReadIndex},
    metadata::{Applied, AskedTooLate, Delta},
};
use flow::Flow;
use leading::Lead;
use leases::{Question, ReadLease};
use members::Cluster;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use types::RaftIndex;
use writes::Write;

/// The least time between two lines about messages that no broker sends.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Identifies a write or a question until its answer.
pub type Token = u64;

/// This broker's identity, timings and limits.
#[derive(Clone, Debug)]
pub struct PlaneConfig {
    pub node: i32,
    /// The incarnation of this process. Later processes have larger ones.
    pub incarnation: u64,
    /// How long the leader's lease lasts after it sent a question that a quorum has answered. It must be shorter
    /// than the least election timeout less one tick, by as much as clocks may drift apart in that time.
    pub leader_lease: Duration,
    pub read_lease: Duration,
    /// How often a read lease is renewed.
    pub probe_every: Duration,
    /// Once an entry has this many requests, it takes no further writes. A write stays whole.
    pub entry_requests: usize,
    /// The largest entry, in bytes, that this broker's ring can store.
    pub largest_entry: u64,
    /// The number of voters that the group should have, unless the setting `metadata.voters` differs.
    pub voters_wanted: usize,
    /// A broker that the leader has not heard from for this long is fenced.
    pub session_timeout: Duration,
    /// Returns whether the topic of this name is created even if brokers have no memory for it. These are the
    /// topics that the brokers themselves need.
    pub always_made: fn(&str) -> bool,
}

impl PlaneConfig {
    /// The timings that brokers use, with ticks of 100 ms and an election timeout of at least 8 ticks.
    pub fn new(node: i32, incarnation: u64) -> Self {
        Self {
            node,
            incarnation,
            leader_lease: Duration::from_millis(600),
            read_lease: Duration::from_secs(5),
            probe_every: Duration::from_secs(1),
            entry_requests: 16,
            largest_entry: u64::MAX,
            voters_wanted: 1,
            session_timeout: Duration::from_secs(3),
            always_made: |_| false,
        }
    }
}

/// Counters of a broker's plane since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlaneStats {
    /// Three ways in which requests were acknowledged. `wal_writes`: on the fast path. `fallbacks`: by their
    /// commit, although they had asked for the fast path. `quorum_writes`: by their commit, as they had asked.
    ///
    /// The leader that proposed them counts them. A truncated write is also counted as a fallback, by the broker it
    /// was submitted to.
    pub wal_writes: u64,
    pub fallbacks: u64,
    pub quorum_writes: u64,
    /// Writes forwarded to the leader, counted once per attempt.
    pub forwarded_writes: u64,
    pub heartbeats_sent: u64,
    pub heartbeats_received: u64,
}

/// The work to do now, in this order.
#[derive(Debug, Default)]
pub struct Turn {
    pub slices: Vec<SliceOp>,
    /// Deltas for every core's view, by index. Call [`Plane::shown`] once all views have them.
    pub publish: Vec<(RaftIndex, Vec<Delta>)>,
    /// Messages to brokers, by node.
    pub sends: Vec<(i32, PlaneMessage)>,
    pub written: Vec<(Token, Result<Written, WriteError>)>,
    /// Reads that may be answered now from the state that every view shows.
    pub reads: Vec<(Token, Result<(), WriteError>)>,
    pub described: Vec<(Token, Result<Quorum, WriteError>)>,
}

impl Turn {
    pub fn is_empty(&self) -> bool {
        let Self { slices, publish, sends, written, reads, described } = self;
        let answers = written.is_empty() && reads.is_empty() && described.is_empty();
        slices.is_empty() && publish.is_empty() && sends.is_empty() && answers
    }
}

pub struct Plane {
    config: PlaneConfig,
    out: Turn,
    stats: PlaneStats,
    next_token: Token,
    next_sequence: u64,
    /// The next group id. Ids are assigned in log order and never reused.
    next_group: u64,
    flow: Flow,
    lead: Option<Lead>,
    writes: BTreeMap<Token, Write>,
    /// Writes to try in the next turn.
    to_try: VecDeque<Token>,
    /// Writes that wait until their index is shown.
    settling: BTreeSet<(RaftIndex, Token)>,
    questions: BTreeMap<Token, Question>,
    read_lease: ReadLease,
    cluster: Cluster,
    /// The leader's own writes. Nobody waits for their answers.
    own_writes: BTreeSet<Token>,
    /// The last index that every view shows.
    shown: RaftIndex,
    /// The leader's peer id as the group knows it, and the leader's node as other brokers have named it.
    known_leader: Option<u64>,
    hinted_leader: Option<i32>,
    /// Brokers to ask who leads.
    contacts: Vec<i32>,
    next_contact: usize,
    /// When a line about a message that no broker sends was last logged.
    told: Option<Duration>,
}

impl Plane {
    /// Creates the plane of a group whose slices and views show everything up to `applied`. `group_high` is the
    /// largest group id in them.
    pub fn new(config: PlaneConfig, applied: RaftIndex, group_high: u64) -> Self {
        Self {
            config,
            out: Turn::default(),
            stats: PlaneStats::default(),
            next_token: 1,
            next_sequence: 1,
            next_group: group_high + 1,
            flow: Flow::new(applied),
            lead: None,
            writes: BTreeMap::new(),
            to_try: VecDeque::new(),
            settling: BTreeSet::new(),
            questions: BTreeMap::new(),
            read_lease: ReadLease::default(),
            cluster: Cluster::default(),
            own_writes: BTreeSet::new(),
            shown: applied,
            known_leader: None,
            hinted_leader: None,
            contacts: Vec::new(),
            next_contact: 0,
            told: None,
        }
    }

    pub fn stats(&self) -> PlaneStats {
        self.stats
    }

    /// Sets the other brokers that may know who leads.
    pub fn set_contacts(&mut self, nodes: impl IntoIterator<Item = i32>) {
        let own = self.config.node;
        self.contacts = nodes.into_iter().filter(|node| *node != own).collect();
    }

    /// Sets the state of the cluster from the slices, at the start or after a snapshot.
    pub fn begin_from<'a>(&mut self, image: impl IntoIterator<Item = &'a Delta>) {
        self.cluster = Cluster::default();
        image.into_iter().for_each(|delta| self.cluster.follow(delta));
    }

    /// Takes the work to do now.
    pub fn take(&mut self) -> Turn {
        self.out.written.retain(|(token, _)| !self.own_writes.remove(token));
        std::mem::take(&mut self.out)
    }

    /// The last index that was published to the views.
    pub fn published(&self) -> RaftIndex {
        self.flow.published()
    }

    /// Whether this broker leads and has applied everything that was committed before its term.
    pub fn is_established(&self) -> bool {
        self.lead.as_ref().is_some_and(|lead| lead.established)
    }

    /// The broker that leads, as far as this broker knows.
    pub fn leader(&self) -> Option<i32> {
        self.known_leader.map(node_of).or(self.hinted_leader)
    }

    /// Whether a line about a message that no broker sends may be logged. A faulty broker can cause one with each of
    /// its messages.
    fn may_tell(&mut self, now: Duration) -> bool {
        let may = self.told.is_none_or(|told| now >= told + TOLD_EVERY);
        if may {
            self.told = Some(now);
        }
        may
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        self.next_token - 1
    }

    fn ask(&self, number: Token) -> Ask {
        Ask { incarnation: self.config.incarnation, number }
    }

    fn send(&mut self, node: i32, message: PlaneMessage) {
        self.out.sends.push((node, message));
    }
}

/// The plane's inputs.
impl Plane {
    /// Advances the timers of the group and of the plane by one tick.
    pub fn tick(&mut self, group: &mut Group, now: Duration) {
        group.tick();
        self.observe(group, now);
        self.tick_leases(group, now);
        self.tick_members(group, now);
        self.tick_writes(group, now);
        self.tick_asked(now);
        self.tick_questions(group, now);
    }

    /// Updates the known leader. Call it after each step of the group, before its Ready is taken.
    pub fn observe(&mut self, group: &mut Group, now: Duration) {
        let leads = group.is_leader().then(|| group.term());
        if self.lead.as_ref().map(|lead| lead.term) != leads {
            self.resign(group.leader(), now);
            self.lead = leads.map(Lead::new);
        }
        if self.known_leader != group.leader() {
            self.known_leader = group.leader();
            if self.known_leader.is_some() {
                self.hinted_leader = None;
                self.try_all(now);
            }
        }
    }

    /// Proposes new writes, or forwards them to the leader. Call it before the group's Ready is taken. A leader
    /// proposes one entry per call; the next call, before the next Ready, proposes more.
    ///
    /// `has_room` tells whether the log has room for an entry of this many bytes. A write without room waits, and so
    /// do those after it, until its deadline or, if it was forwarded, for [`ANSWER_MAX`].
    pub fn propose(&mut self, group: &mut Group, now: Duration, has_room: impl FnMut(usize) -> bool) {
        self.observe(group, now);
        match &self.lead {
            Some(lead) if lead.established => self.propose_next(group, now, has_room),
            // This leader will soon be established. Any other broker could only name this one.
            Some(_) => {}
            None => self.forward_all(group, now),
        }
        self.ask_if_wanted(group, now);
    }

    /// Sends the entries that the group has committed to the slices. An entry that can't be applied stops the group
    /// before it.
    pub fn committed(&mut self, group: &mut Group, now: Duration, entries: &[Entry]) {
        self.observe(group, now);
        let members_before = (group.voters(), group.learners());
        let mut last = None;
        let mut unreadable = None;
        for entry in entries {
            if entry.entry_type != ENTRY_NORMAL {
                // Only applying a membership change shows whether it can be applied. Later entries must not be
                // applied before that.
                group.applied_to(entry.index);
                if group.unreadable().is_some() {
                    break;
                }
            }
            match self.flow.commit(entry, &mut self.out.slices) {
                Ok(group_end) => self.next_group = self.next_group.max(group_end),
                Err(why) => {
                    unreadable = Some((entry.index, why));
                    break;
                }
            }
            last = Some(entry);
        }
        let Some(last) = last else { return stop(group, unreadable) };
        self.flow.commit_speculated(last.index, &mut self.out.slices);
        group.applied_to(last.index);
        stop(group, unreadable);
        let established = self.is_established();
        if let Some(lead) = &mut self.lead {
            lead.established |= last.term == lead.term;
            if members_before != (group.voters(), group.learners()) {
                // A quorum of the old members need not be a quorum of the new ones.
                lead.lease.give_up();
            }
        }
        if self.is_established() && !established {
            self.try_all(now);
        }
        self.observe(group, now);
        self.publish(group, now);
    }

    /// Reports that more of the log is durable here.
    pub fn persisted(&mut self, group: &Group, now: Duration) {
        self.ack_fast(group, now);
    }

    /// Reports that a snapshot has replaced the log and the slices. Everything up to `index` is applied, and
    /// `group_high` is the largest group id in it.
    pub fn restored<'a>(&mut self, index: RaftIndex, group_high: u64, image: impl IntoIterator<Item = &'a Delta>) {
        assert!(self.lead.is_none(), "a leader gets no snapshot");
        self.begin_from(image);
        self.flow.restart(index);
        self.next_group = self.next_group.max(group_high + 1);
    }

    /// Reports that an owner of slices has applied its part of an entry: each result with its request's place in
    /// the entry.
    pub fn slices_did(
        &mut self,
        group: &Group,
        now: Duration,
        generation: u64,
        index: RaftIndex,
        results: Vec<(usize, Result<Applied, AskedTooLate>)>,
    ) {
        if self.flow.take_results(generation, index, results) {
            self.ack_fast(group, now);
            self.publish(group, now);
        }
    }

    /// Reports that every core's view shows everything up to `index`.
    pub fn shown(&mut self, group: &Group, index: RaftIndex) {
        self.shown = self.shown.max(index);
        self.read_lease.shown(self.shown, self.config.read_lease);
        self.settle_writes(group);
        self.settle_reads();
    }

    /// Handles the group's answers to the question whether this broker still leads.
    pub fn still_leads(&mut self, group: &Group, now: Duration, reads: &[ReadIndex]) {
        for read in reads {
            self.confirmed(group, now, *read);
        }
        if !reads.is_empty() {
            self.ack_fast(group, now);
        }
    }

    /// Handles a message from another broker's plane.
    pub fn receive(&mut self, group: &mut Group, now: Duration, from: i32, message: PlaneMessage) {
        self.observe(group, now);
        match message {
            PlaneMessage::Forward { ask, acks, requests } => {
                self.asked_to_write(group, now, from, ask, acks, requests);
            }
            PlaneMessage::Forwarded { ask, answer } => self.forwarded(group, now, from, ask, answer),
            PlaneMessage::ReadIndex { ask } => self.asked_for_index(group, now, from, ask),
            PlaneMessage::ReadIndexed { ask, answer } => self.indexed(now, from, ask, answer),
            PlaneMessage::Probe { incarnation, sent_at } => self.probed(group, now, from, incarnation, sent_at),
            PlaneMessage::Heartbeat { incarnation, sent_at, commit, .. } => {
                self.heartbeat(now, incarnation, sent_at, commit);
            }
            PlaneMessage::Describe { ask } => self.asked_to_describe(group, now, from, ask),
            PlaneMessage::Described { ask, answer } => self.described(now, from, ask, answer),
        }
    }
}

fn stop(group: &mut Group, unreadable: Option<(RaftIndex, EntryError)>) {
    if let Some((index, why)) = unreadable {
        group.stop(index, why);
    }
}

/// How long to wait for an answer before the next attempt. Attempts are numbered from 0.
fn pause(attempt: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    FIRST * (1 << attempt.min(4))
}

#[cfg(test)]
mod tests;
