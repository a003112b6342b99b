//! The metadata plane of one broker: what stands between those who read and write metadata and the metadata group.
//! Lives on: core 0. Sans-IO: beside the [`Group`], which every verb gets, it sees only arguments; what is to be done comes out of
//! [`Plane::take`].
//!
//! ```text
//!  submit ─► leads? ─ yes ─► one entry for all writes of a turn ─► Group … committed ─┐
//!              │             └► Speculate: slices apply it at once (the overlay)      │
//!              └─ no ──► Forward to the leader, again and again, under one number     ▼
//!  answer ◄── shown by every core's view ◄── publish, in log order ◄── results of the slices
//!         ◄── fast path: durable here, results there, and the leader lease holds
//! ```
//!
//! | module | is |
//! |---|---|
//! | `message` | what planes say to each other |
//! | `flow` | entries on their way through the slices, published in log order |
//! | `writes` | writes of this broker: proposed or forwarded until they are answered |
//! | `leading` | what only the leader does: entries, answers to forwards, the fast path |
//! | `members` | the group's members and the brokers' state, brought in line by the leader |
//! | `leases` | the leader's lease, the read lease, reads without one |
//!
//! Invariants: a write is answered once; what is answered at [`Acks::Quorum`] is committed; what the fast path answers was durable
//! here while the lease held; indices are published in order, each once.

mod flow;
mod leading;
mod leases;
mod members;
mod message;
mod room;
mod writes;

pub use flow::{SliceEntry, SliceOp, check_entry};
pub use message::{Accepted, Acks, Ask, PlaneMessage, Progress, Quorum, Refused};
pub use writes::{Submission, Until, WriteError, Written};

use crate::{
    group::{ENTRY_NORMAL, Entry, Group, ReadIndex},
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
use writes::Write;

/// A peer's id in every Raft group: the broker's node id, and a number that its disk drew when it was set up. A broker that
/// returns with an emptied disk is another peer; an id is never used again.
pub fn peer_id(node: i32, disk: u32) -> u64 {
    (u64::from(node as u32) << 32) | u64::from(disk.max(1))
}

/// The broker that a peer belongs to.
pub fn node_of(peer: u64) -> i32 {
    (peer >> 32) as i32
}

/// Names a write or a question until its answer.
pub type Token = u64;

/// Who this broker is, and its times.
#[derive(Clone, Debug)]
pub struct PlaneConfig {
    pub node: i32,
    /// Of this process; later ones are larger.
    pub incarnation: u64,
    /// How long the leader's lease runs from the sending of the question that a quorum answered. Shorter than the least
    /// election timeout less one tick, by what clocks may drift apart in that time.
    pub leader_lease: Duration,
    pub read_lease: Duration,
    /// How often a read lease is renewed.
    pub probe_every: Duration,
    /// Requests and bytes that one entry holds at most; one request alone may be larger.
    pub entry_requests_max: usize,
    /// Requests after which a call of [`Plane::propose`] takes no further writes.
    pub turn_requests_max: usize,
    pub entry_bytes_max: usize,
    /// Voters that the group should have, unless the setting `metadata.voters` says otherwise.
    pub voters_wanted: usize,
    /// A broker that is not heard of for so long is fenced.
    pub session_timeout: Duration,
    /// Topics that are made whether brokers have memory for them or not, by name: those that the brokers themselves
    /// need.
    pub always_made: fn(&str) -> bool,
}

impl PlaneConfig {
    /// The times that brokers use, with ticks of 100 ms and an election timeout of at least 8 of them.
    pub fn new(node: i32, incarnation: u64) -> Self {
        Self {
            node,
            incarnation,
            leader_lease: Duration::from_millis(600),
            read_lease: Duration::from_secs(5),
            probe_every: Duration::from_secs(1),
            entry_requests_max: 1024,
            turn_requests_max: 16,
            entry_bytes_max: 256 << 10,
            voters_wanted: 1,
            session_timeout: Duration::from_secs(3),
            always_made: |_| false,
        }
    }
}

/// What a broker's plane has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlaneStats {
    /// Requests acknowledged on the fast path, by their commit though they had asked for the fast path, and by their commit as
    /// they had asked. Counted where they were proposed.
    pub wal_writes: u64,
    pub fallbacks: u64,
    pub quorum_writes: u64,
    /// Writes sent to the leader, once for each attempt.
    pub forwarded_writes: u64,
    pub heartbeats_sent: u64,
    pub heartbeats_received: u64,
}

/// What is to be done now, in this order.
#[derive(Debug, Default)]
pub struct Turn {
    pub slices: Vec<SliceOp>,
    /// For every core's view; [`Plane::shown`] once all have it.
    pub publish: Vec<(u64, Vec<Delta>)>,
    /// To brokers, by node.
    pub sends: Vec<(i32, PlaneMessage)>,
    pub written: Vec<(Token, Result<Written, WriteError>)>,
    /// Reads that may be answered now from what every view shows.
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
    /// The next group id; ids are given out in log order and never again.
    next_group: u64,
    flow: Flow,
    lead: Option<Lead>,
    writes: BTreeMap<Token, Write>,
    /// Writes to be tried in the next turn.
    to_try: VecDeque<Token>,
    /// Writes that wait for an index to be shown.
    settling: BTreeSet<(u64, Token)>,
    questions: BTreeMap<Token, Question>,
    read_lease: ReadLease,
    cluster: Cluster,
    /// Writes of the leader itself, whose answers nobody waits for.
    own_writes: BTreeSet<Token>,
    /// The last index that every view shows.
    shown: u64,
    /// The leader as the group knows it, by peer, and as other brokers have named it, by node.
    known_leader: Option<u64>,
    hinted_leader: Option<i32>,
    /// Brokers to be asked who leads.
    contacts: Vec<i32>,
    next_contact: usize,
    /// The log can take no more for now.
    held_back: bool,
    /// A mistake for the simulation to find.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) bug: Option<crate::sim::Bug>,
}

impl Plane {
    /// The plane beside a group whose slices and views show everything up to `applied`; `group_high` is the largest group id in them.
    pub fn new(config: PlaneConfig, applied: u64, group_high: u64) -> Self {
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
            held_back: false,
            #[cfg(any(test, feature = "sim"))]
            bug: None,
        }
    }

    pub fn stats(&self) -> PlaneStats {
        self.stats
    }

    /// The other brokers that may know who leads.
    pub fn set_contacts(&mut self, nodes: impl IntoIterator<Item = i32>) {
        let own = self.config.node;
        self.contacts = nodes.into_iter().filter(|node| *node != own).collect();
    }

    /// What the slices say at the start, or after a snapshot.
    pub fn begin_from<'a>(&mut self, image: impl IntoIterator<Item = &'a Delta>) {
        self.cluster = Cluster::default();
        image.into_iter().for_each(|delta| self.cluster.follow(delta));
    }

    /// Whether writes have to wait because the log has no room for them. A leader's alone; they are proposed once it has.
    pub fn hold_back(&mut self, held_back: bool) {
        self.held_back = held_back;
    }

    /// Takes what is to be done now.
    pub fn take(&mut self) -> Turn {
        self.out.written.retain(|(token, _)| !self.own_writes.remove(token));
        std::mem::take(&mut self.out)
    }

    /// The last index that went to the views.
    pub fn published(&self) -> u64 {
        self.flow.published()
    }

    /// Whether this broker leads and knows all that was committed before it did.
    pub fn is_established(&self) -> bool {
        self.lead.as_ref().is_some_and(|lead| lead.established)
    }

    /// The broker that leads, as far as this one knows.
    pub fn leader(&self) -> Option<i32> {
        self.known_leader.map(node_of).or(self.hinted_leader)
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

/// What happens to the plane.
impl Plane {
    /// One tick of the group has passed: its timers and those of the plane.
    pub fn tick(&mut self, group: &mut Group, now: Duration) {
        group.tick();
        self.observe(group, now);
        self.tick_leases(group, now);
        self.tick_members(group, now);
        self.tick_writes(group, now);
        self.tick_questions(group, now);
    }

    /// Notices who leads. To be called whenever the group was stepped, before its Ready is taken.
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

    /// Brings new writes on their way: into the log, or to the leader. To be called before the group's Ready is taken. A leader
    /// takes some at a time, if there are many: the others follow by the call before the next Ready.
    pub fn propose(&mut self, group: &mut Group, now: Duration) {
        self.observe(group, now);
        match &self.lead {
            Some(lead) if lead.established && !self.held_back => self.propose_all(group, now),
            // Soon it will be; whoever is asked instead could only name this broker.
            Some(_) => {}
            None => self.forward_all(now),
        }
        self.ask_if_wanted(group, now);
    }

    /// The group has committed these entries; the slices get them now. One that can't be applied stops the group before
    /// it.
    pub fn committed(&mut self, group: &mut Group, now: Duration, entries: &[Entry]) {
        self.observe(group, now);
        let members_before = (group.voters(), group.learners());
        let mut last = None;
        let mut unreadable = None;
        for entry in entries {
            if entry.entry_type != ENTRY_NORMAL {
                // Whether it can be applied shows when it is; what is behind it must not be by then.
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
                // A quorum of those before need not be one of those now.
                lead.lease.give_up();
            }
        }
        if self.is_established() && !established {
            self.try_all(now);
        }
        self.observe(group, now);
        self.publish(group, now);
    }

    /// More of the log is durable here.
    pub fn persisted(&mut self, group: &Group, now: Duration) {
        self.ack_fast(group, now);
    }

    /// A snapshot has replaced the log and the slices: everything up to `index` is applied, and `group_high` is the largest group
    /// id in it.
    pub fn restored<'a>(&mut self, index: u64, group_high: u64, image: impl IntoIterator<Item = &'a Delta>) {
        assert!(self.lead.is_none(), "a leader gets no snapshot");
        self.begin_from(image);
        self.flow.restart(index);
        self.next_group = self.next_group.max(group_high + 1);
    }

    /// An owner of slices has applied its part of an entry: each result with its place in the entry.
    pub fn slices_did(
        &mut self,
        group: &Group,
        now: Duration,
        generation: u64,
        index: u64,
        results: Vec<(usize, Result<Applied, AskedTooLate>)>,
    ) {
        if self.flow.take_results(generation, index, results) {
            self.ack_fast(group, now);
            self.publish(group, now);
        }
    }

    /// Every core's view shows everything up to `index`.
    pub fn shown(&mut self, group: &Group, now: Duration, index: u64) {
        self.shown = self.shown.max(index);
        self.read_lease.shown(self.shown, self.config.read_lease);
        self.settle_writes(group, now);
        self.settle_reads();
    }

    /// Answers to the group's questions whether this broker still leads.
    pub fn still_leads(&mut self, group: &Group, now: Duration, reads: &[ReadIndex]) {
        for read in reads {
            self.confirmed(group, now, *read);
        }
        if !reads.is_empty() {
            self.ack_fast(group, now);
        }
    }

    /// A message from another broker's plane.
    pub fn receive(&mut self, group: &mut Group, now: Duration, from: i32, message: PlaneMessage) {
        self.observe(group, now);
        match message {
            PlaneMessage::Forward { ask, acks, requests } => self.asked_to_write(group, from, ask, acks, requests),
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

fn stop(group: &mut Group, unreadable: Option<(u64, String)>) {
    if let Some((index, why)) = unreadable {
        group.stop(index, why);
    }
}

/// How long to wait for the answer to the attempt of this number, from 0, before the next.
fn pause(attempt: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    FIRST * (1 << attempt.min(4))
}

#[cfg(test)]
mod tests;
