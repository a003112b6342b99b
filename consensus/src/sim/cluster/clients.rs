//! Clients that read and write the metadata at any node, and checks of their answers.
//!
//! Two judges check the answers. The histories of [`Promises`] contain only what clients saw; they are judged at
//! the end. The log judges at once, because an answer names its index. A write's index must be above those of all
//! writes that were acknowledged before the write began. A linearizable read must show all writes that were
//! acknowledged before the read began. The oracle checks that an index means the same on every node.

use super::Cluster;
use crate::{
    metadata::{Broker, BrokerStatus, Command, HostPort, LeaderReport, Outcome, Rejection, WatermarkReport},
    plane::{Acks, Submission, Token, Until, WriteError, Written},
    sim::{
        Bug,
        model::{FEATURE, RETENTION, SETTING},
        node::{META, Node},
        oracle::Violation,
        promises::{Promises, STALE_MAX, Told},
    },
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use types::{RaftIndex, Term};
use uuid::Uuid;

/// The range, in ms, of an operation's time limit. After that, the node answers with an error.
const WITHIN_MS: std::ops::Range<u64> = 1_000..8_000;
/// The number of topics in use at a time. Few, so that clients collide.
const TOPICS_AT_ONCE: u64 = 6;
/// The sizes of producer id blocks. Only a few sizes: if all were different, the search for the unanswered calls
/// that fill a gap would never end.
const ID_COUNTS: [u32; 3] = [1, 10, 1000];
/// A topic with at least this many partitions gets no more.
const PARTITIONS_MAX: usize = 8;

/// An operation that a client asked of a node.
pub(in crate::sim) struct Op {
    kind: Kind,
    /// The largest index that was acknowledged when the operation began.
    above: RaftIndex,
    /// The virtual time at which the operation began.
    begun: Duration,
}

enum Kind {
    Write(Submission),
    Register(Submission),
    Unregister(Submission),
    Read,
}

#[derive(Default)]
pub(in crate::sim) struct Clients {
    open: BTreeMap<(usize, Token), Op>,
    /// The largest index of a write that is acknowledged and committed.
    acked: RaftIndex,
    /// The values of `acked`, each with the time since which it holds. Ascending.
    acked_since: VecDeque<(Duration, RaftIndex)>,
    /// The index and term of each write that the fast path acknowledged.
    fast: Vec<(RaftIndex, Term)>,
    next_topic: u64,
    /// Each creation gets an id of its own.
    next_id: u128,
    next_level: u16,
    pub(in crate::sim) promises: Promises,
    /// A violation that a leased read found. The next `hear` returns it.
    fault: Option<Violation>,
}

impl Op {
    fn new(kind: Kind) -> Self {
        Self { kind, above: RaftIndex::ZERO, begun: Duration::ZERO }
    }

    pub(in crate::sim) fn registration(node: i32, peer: u64, incarnation: u64) -> Self {
        let address = HostPort { host: format!("n{node}"), port: 1 };
        let broker = Broker {
            node,
            peer,
            incarnation,
            kafka: address.clone(),
            peer_addr: address,
            cores: 1,
            rack: None,
            version: String::new(),
            status: BrokerStatus::Alive,
            largest_entry: 0,
            replicas_max: 0,
            partitions_max: 0,
        };
        Self::new(Kind::Register(submission(vec![Command::RegisterBroker { broker }])))
    }
}

fn submission(commands: Vec<Command>) -> Submission {
    Submission { commands, acks: Acks::Quorum, until: Until::Shown, deadline: Duration::ZERO }
}

impl Clients {
    pub(in crate::sim) fn node_is_gone(&mut self, at: usize) {
        for (_, op) in self.open.extract_if(.., |(node, _), _| *node == at) {
            if let Kind::Write(write) = op.kind {
                self.promises.unanswered(op.begun, &write.commands);
            }
        }
    }

    /// Whether only registrations of nodes still wait for an answer.
    pub(in crate::sim) fn is_quiet(&self) -> bool {
        self.open.values().all(|op| matches!(op.kind, Kind::Register(_)))
    }

    /// The names of the topics in use.
    fn topics_now(&self) -> impl Iterator<Item = Arc<str>> + use<> {
        (self.next_topic.saturating_sub(TOPICS_AT_ONCE - 1)..=self.next_topic).map(topic_name)
    }

    fn acked(&mut self, now: Duration, index: RaftIndex) {
        if index > self.acked {
            self.acked = index;
            self.acked_since.push_back((now, index));
        }
    }

    /// The index that every leased read must show by now.
    fn acked_long_ago(&mut self, now: Duration) -> RaftIndex {
        let long_ago = now.saturating_sub(STALE_MAX);
        while self.acked_since.get(1).is_some_and(|(since, _)| *since <= long_ago) {
            self.acked_since.pop_front();
        }
        self.acked_since.front().filter(|(since, _)| *since <= long_ago).map_or(RaftIndex::ZERO, |(_, index)| *index)
    }
}

impl Cluster {
    /// Submits an operation to a node.
    pub(in crate::sim) fn submit(&mut self, at: usize, mut op: Op) {
        (op.above, op.begun) = (self.clients.acked, self.clock.time());
        let within = Duration::from_millis(self.rng.u64(WITHIN_MS));
        let node = self.node(at);
        let token = match &op.kind {
            Kind::Read => node.ask_to_read(within),
            Kind::Write(write) | Kind::Register(write) | Kind::Unregister(write) => {
                let deadline = node.now() + within;
                node.submit(Submission { deadline, ..write.clone() })
            }
        };
        self.clients.open.insert((at, token), op);
    }

    /// A client asks a random node to read or write metadata. Nothing happens if the node is down or paused.
    pub(in crate::sim) fn ask_metadata(&mut self) {
        let at = self.rng.usize(..self.slots.len());
        if !self.is_paused(at) && self.slots[at].node().is_some() {
            self.ask_metadata_at(at);
        }
    }

    /// A client asks this node, which must be up.
    pub(in crate::sim) fn ask_metadata_at(&mut self, at: usize) {
        let kind = match self.rng.u8(..8) {
            0 => return self.read_by_lease(at),
            1 | 2 => Kind::Read,
            _ => {
                let commands = (0..self.rng.usize(1..4)).map(|_| self.command(at)).collect();
                let acks = if self.rng.bool() { Acks::Leader } else { Acks::Quorum };
                let until = if self.rng.bool() { Until::Acked } else { Until::Shown };
                Kind::Write(Submission { acks, until, ..submission(commands) })
            }
        };
        self.submit(at, Op::new(kind));
    }

    /// Unregisters the node whose disk may be emptied, through another node.
    pub(in crate::sim) fn unregister(&mut self) {
        let Some(gone) = self.may_be_emptied() else { return };
        let others = (0..self.slots.len()).filter(|at| *at != gone);
        let at = others.into_iter().find(|at| self.slots[*at].node().is_some() && !self.is_paused(*at));
        if let Some(at) = at {
            let commands = vec![Command::UnregisterBroker { node: gone as i32 + 1 }];
            self.submit(at, Op::new(Kind::Unregister(submission(commands))));
        }
    }

    fn read_by_lease(&mut self, at: usize) {
        let now = self.clock.time();
        let must_show = self.clients.acked_long_ago(now);
        let node = self.slots[at].node().expect("it is up");
        if node.has_read_lease() {
            self.summary.leased_reads += 1;
            let shows = node.shows();
            if shows < must_show && self.log_is_heard() {
                let violation = format!("node {} shows {shows} under a lease, but it must show {must_show}", node.id);
                self.clients.fault = Some(Violation(violation));
            }
            for name in self.clients.topics_now() {
                self.clients.promises.read_leased(at, now, &name, node.read_topic(&name));
            }
            self.clients.promises.read_settings_leased(at, now, node.read_settings());
        }
    }

    /// Once all voters agree, nodes with the newest view read every topic that a client ever named, and the
    /// settings. This completes the histories, which are then checked.
    pub(in crate::sim) fn check_histories(&mut self) -> Result<(), Violation> {
        let end = self.clock.time();
        let after = end + Duration::from_micros(1);
        let shows = |at: usize| self.slots[at].node().map(Node::shows);
        let newest = (0..self.slots.len()).filter_map(shows).max();
        let nodes: Vec<usize> = (0..self.slots.len()).filter(|at| shows(*at) == newest).collect();
        let first = newest.and(nodes.first().copied());
        let names: Vec<Arc<str>> = self.clients.promises.topics().cloned().collect();
        for (name, at) in names.iter().zip(nodes.into_iter().cycle()) {
            let shows = self.node(at).read_topic(name);
            self.clients.promises.read(at, after, after, name, shows);
        }
        if let Some(at) = first {
            let shows = self.node(at).read_settings();
            self.clients.promises.read_settings(at, after, after, shows);
        }
        let checked = self.clients.promises.check(end, &self.histories[META.0 as usize])?;
        self.summary.calls += checked.calls;
        self.summary.keys += checked.keys;
        self.summary.given_up += checked.given_up;
        self.summary.lost += checked.lost;
        Ok(())
    }

    /// Handles a node's answers to its clients.
    pub(in crate::sim) fn hear(
        &mut self,
        at: usize,
        written: Vec<(Token, Result<Written, WriteError>)>,
        read: Vec<(Token, Result<(), WriteError>)>,
    ) -> Result<(), Violation> {
        if let Some(violation) = self.clients.fault.take() {
            return Err(violation);
        }
        let now = self.clock.time();
        for (token, result) in written {
            let Some(op) = self.clients.open.remove(&(at, token)) else { continue };
            match (result, op.kind) {
                (Ok(written), Kind::Write(write)) => {
                    let told = self.has_written(at, op.above, &write, &written)?;
                    self.clients.promises.written(at, op.begun, now, &write.commands, &written, told);
                }
                // The leader refuses them, without an entry, as long as the node, or another disk of it, is alive.
                (Ok(written), Kind::Unregister(_)) if is_refused(&written) => {}
                (Ok(written), Kind::Register(_)) if is_refused(&written) => self.register(at),
                (Ok(written), Kind::Unregister(write)) => {
                    self.has_written(at, op.above, &write, &written)?;
                    if matches!(written.results[..], [Ok(Ok(Outcome::BrokerUnregistered))]) {
                        // The disk of the unregistered node must not come back.
                        let gone = self.may_be_emptied().expect("it was unregistered");
                        self.empty(gone)?;
                    }
                }
                (Ok(written), Kind::Register(write)) => {
                    self.has_written(at, op.above, &write, &written)?;
                }
                (Err(_), Kind::Register(_)) => self.register(at),
                (Err(error), Kind::Write(write)) => {
                    self.summary.unanswered += 1;
                    // With any other error the write was never sent, so it had no effect. The history must hold
                    // without it.
                    if error == WriteError::TimedOut {
                        self.clients.promises.unanswered(op.begun, &write.commands);
                    }
                }
                (Err(_), _) => self.summary.unanswered += 1,
                (Ok(_), Kind::Read) => unreachable!("a read is no write"),
            }
        }
        for (token, result) in read {
            let Some(op) = self.clients.open.remove(&(at, token)) else { continue };
            if result.is_err() {
                self.summary.unanswered += 1;
                continue;
            }
            self.summary.reads += 1;
            let Some(node) = self.slots[at].node() else { continue };
            for name in self.clients.topics_now() {
                self.clients.promises.read(at, op.begun, now, &name, node.read_topic(&name));
            }
            self.clients.promises.read_settings(at, op.begun, now, node.read_settings());
            if node.shows() < op.above && self.log_is_heard() {
                let (id, shows, above) = (node.id, node.shows(), op.above);
                return Err(Violation(format!(
                    "node {id} shows {shows} to a read that began when {above} was acknowledged"
                )));
            }
        }
        Ok(())
    }

    /// Whether this run also checks reads against the log.
    fn log_is_heard(&self) -> bool {
        !self.bug.is_some_and(Bug::is_for_histories)
    }

    fn has_written(
        &mut self,
        at: usize,
        above: RaftIndex,
        write: &Submission,
        written: &Written,
    ) -> Result<Told, Violation> {
        let Written { term, index, .. } = *written;
        let history = &self.histories[META.0 as usize];
        let committed = history.term_of(index) == Some(term);
        if committed {
            self.summary.written += 1;
            if index <= above {
                return Err(Violation(format!("a write at {index} was requested after {above} was acknowledged")));
            }
            let now = self.clock.time();
            self.clients.acked(now, index);
            return Ok(Told::Committed);
        }
        let number = at + 1;
        let may_be_alone = write.acks == Acks::Leader && write.until == Until::Acked;
        if !may_be_alone || write.commands.iter().any(Command::is_quorum_only) {
            return Err(Violation(format!(
                "node {number} answered for {index} of term {term}, which is not committed"
            )));
        }
        let newest = history.newest_term();
        if newest > term {
            return Err(Violation(format!(
                "node {number} acknowledged {index} of term {term} alone, when a node led in term {newest}"
            )));
        }
        self.summary.fast += 1;
        self.clients.fast.push((index, term));
        Ok(Told::Alone { index, term })
    }

    /// A write that the fast path acknowledged may be lost only if its leader was deposed.
    pub(in crate::sim) fn check_fast_writes(&self) -> Result<(), Violation> {
        let history = &self.histories[META.0 as usize];
        for (index, term) in &self.clients.fast {
            if history.term_of(*index) != Some(*term) && history.newest_term() == *term {
                return Err(Violation(format!("the fast path acknowledged {index}, but its own term lost it")));
            }
        }
        Ok(())
    }

    /// Makes a command that mostly fits this node's view.
    fn command(&mut self, at: usize) -> Command {
        let next = self.clients.next_topic;
        let name = topic_name(self.rng.u64(next.saturating_sub(TOPICS_AT_ONCE - 1)..=next));
        let shown = self.node(at).view().topic(&name).map(|topic| (topic.id, topic.partitions.len()));
        let (shown_id, shown_count) = shown.filter(|_| self.rng.u8(..8) > 0).unzip();
        let id = shown_id.unwrap_or_else(|| Uuid::from_u128(self.rng.u128(..=self.clients.next_id)));
        let replicas = vec![vec![1, 2, 3]; self.rng.usize(1..4)];
        let partition = self.rng.u32(..3);
        match self.rng.u8(..10) {
            0 => Command::DeleteTopic { name, id },
            1 => {
                let present = shown_count.filter(|count| *count < PARTITIONS_MAX).unwrap_or(PARTITIONS_MAX + 1) as u32;
                Command::CreatePartitions { name, id, present, first_group: 0, replicas, peers: Vec::new() }
            }
            2 => {
                let value = self.rng.bool().then(|| self.rng.u16(..).to_string());
                Command::UpdateTopicConfig { name, id, changes: vec![(RETENTION.to_owned(), value)] }
            }
            3 => Command::AllocateProducerIds { count: ID_COUNTS[self.rng.usize(..ID_COUNTS.len())] },
            4 => {
                let report = LeaderReport { partition, term: Term(self.rng.u64(1..9)), leader: 1, voters: vec![1] };
                Command::SetPartitionLeader { name, id, leaders: vec![report] }
            }
            5 => {
                let high_watermark = self.rng.u64(..1000);
                let report = WatermarkReport { partition, high_watermark, log_start: 0, end_offset: high_watermark };
                Command::UpdateHighWatermark { name, id, node: 1, watermarks: vec![report] }
            }
            6 if self.rng.bool() => {
                // Levels mostly rise, as they should. Sometimes a command asks for a lower one.
                let level = self.clients.next_level.saturating_sub(u16::from(self.rng.u8(..4) == 0));
                self.clients.next_level += u16::from(self.rng.u8(..4) == 0);
                Command::SetFeatureLevel { name: FEATURE.to_owned(), level }
            }
            6 => {
                let value = self.rng.bool().then(|| self.rng.u16(..).to_string());
                Command::UpdateClusterConfig { node: None, changes: vec![(SETTING.to_owned(), value)] }
            }
            _ => {
                self.clients.next_topic += u64::from(self.rng.u8(..4) == 0);
                self.clients.next_id += 1;
                Command::CreateTopic {
                    name,
                    id: Uuid::from_u128(self.clients.next_id),
                    first_group: 0,
                    replicas,
                    configs: BTreeMap::new(),
                    created_ms: self.clock.time().as_millis() as i64,
                    peers: Vec::new(),
                }
            }
        }
    }
}

fn is_refused(written: &Written) -> bool {
    matches!(written.results[..], [Ok(Err(Rejection::StaleBroker { .. } | Rejection::NodeIdTaken { .. }))])
}

fn topic_name(number: u64) -> Arc<str> {
    format!("topic-{number}").into()
}
