//! Who writes and reads the metadata, at any node, and what they may believe of the answers.
//!
//! Two judges hear the answers. What clients saw, and nothing else, goes into the histories of [`Promises`], which are judged at
//! the end. Beside that the log is a witness that speaks at once: an answer names its index, so a write's index lies above those
//! of all writes that were acknowledged before it was asked for, and a read shows them; that the same index means the same to
//! all is the oracle's to see.

use super::{
    Bug,
    cluster::{Cluster, SimNode},
    model::{FEATURE, RETENTION, SETTING},
    node::META,
    oracle::Violation,
    promises::{Promises, STALE_MAX, Told},
};
use crate::{
    metadata::{Broker, BrokerStatus, Command, HostPort, LeaderReport, Outcome, WatermarkReport},
    plane::{Acks, Submission, Token, Until, WriteError, Written},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;

/// Answers come within this time, or it is an error that there is none.
const WITHIN_MS: std::ops::Range<u64> = 1_000..8_000;
/// Topics that are written and read at a time. Few, so that clients meet.
const TOPICS_AT_ONCE: u64 = 6;
/// How many producer ids are asked for. Of a few sizes only: which of many unanswered calls fill a gap is a search without end
/// if all are different.
const ID_COUNTS: [u32; 3] = [1, 10, 1000];
/// A topic that has so many partitions gets no more.
const PARTITIONS_MAX: usize = 8;

/// Something that a client asked of a node.
pub(super) struct Op {
    kind: Kind,
    /// All writes up to this index were acknowledged before.
    above: u64,
    /// When it was asked for.
    begun: Duration,
}

enum Kind {
    Write(Submission),
    Register(Submission),
    Unregister(Submission),
    Read,
}

#[derive(Default)]
pub(super) struct Clients {
    open: BTreeMap<(usize, Token), Op>,
    /// The largest index of a write that was acknowledged and is committed.
    acked: u64,
    /// By time, the value of `acked` since.
    acked_since: VecDeque<(Duration, u64)>,
    /// Index and term of what the fast path acknowledged.
    fast: Vec<(u64, u64)>,
    next_topic: u64,
    /// Each creation has an id of its own.
    next_id: u128,
    next_level: u16,
    pub(super) promises: Promises,
    /// What a read by lease has shown to be wrong.
    fault: Option<Violation>,
}

impl Op {
    fn new(kind: Kind) -> Self {
        Self { kind, above: 0, begun: Duration::ZERO }
    }

    pub(super) fn registration(node: i32, peer: u64, incarnation: u64) -> Self {
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
    pub(super) fn node_is_gone(&mut self, at: usize) {
        for (_, op) in self.open.extract_if(.., |(node, _), _| *node == at) {
            if let Kind::Write(write) = op.kind {
                self.promises.unanswered(op.begun, &write.commands);
            }
        }
    }

    /// Whether nobody waits for an answer but nodes for theirs.
    pub(super) fn is_quiet(&self) -> bool {
        self.open.values().all(|op| matches!(op.kind, Kind::Register(_)))
    }

    /// The topics that clients are interested in.
    fn topics_now(&self) -> impl Iterator<Item = Arc<str>> + use<> {
        (self.next_topic.saturating_sub(TOPICS_AT_ONCE - 1)..=self.next_topic).map(topic_name)
    }

    fn acked(&mut self, now: Duration, index: u64) {
        if index > self.acked {
            self.acked = index;
            self.acked_since.push_back((now, index));
        }
    }

    /// What every leased read must show by now.
    fn acked_long_ago(&mut self, now: Duration) -> u64 {
        let long_ago = now.saturating_sub(STALE_MAX);
        while self.acked_since.get(1).is_some_and(|(since, _)| *since <= long_ago) {
            self.acked_since.pop_front();
        }
        self.acked_since.front().filter(|(since, _)| *since <= long_ago).map_or(0, |(_, index)| *index)
    }
}

impl Cluster {
    /// Hands an operation to a node.
    pub(super) fn submit(&mut self, at: usize, mut op: Op) {
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

    /// A client asks some node to write or read metadata.
    pub(super) fn ask_metadata(&mut self) {
        let at = self.rng.usize(..self.slots.len());
        if !self.is_paused(at) && self.slots[at].node().is_some() {
            self.ask_metadata_at(at);
        }
    }

    /// A client asks this node, which is up.
    pub(super) fn ask_metadata_at(&mut self, at: usize) {
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

    /// Somebody says that the node whose disk may be lost does not belong to the cluster any more.
    pub(super) fn unregister(&mut self) {
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
                let violation = format!("node {} shows {shows} under a lease, and {must_show} is old", node.id);
                self.clients.fault = Some(Violation(violation));
            }
            for name in self.clients.topics_now() {
                self.clients.promises.read_leased(at, now, &name, node.read_topic(&name));
            }
            self.clients.promises.read_settings_leased(at, now, node.read_settings());
        }
    }

    /// When all voters agree, those that show all read their part of what clients ever asked for: the histories are complete.
    pub(super) fn check_histories(&mut self) -> Result<(), Violation> {
        let end = self.clock.time();
        let after = end + Duration::from_micros(1);
        let shows = |at: usize| self.slots[at].node().map(SimNode::shows);
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
        let checked = self.clients.promises.check(end, &self.histories[META as usize])?;
        self.summary.calls += checked.calls;
        self.summary.keys += checked.keys;
        self.summary.given_up += checked.given_up;
        self.summary.lost += checked.lost;
        Ok(())
    }

    /// Takes a node's answers to its clients.
    pub(super) fn hear(
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
                (Ok(written), Kind::Unregister(write)) => {
                    self.has_written(at, op.above, &write, &written)?;
                    if matches!(written.results[..], [Ok(Ok(Outcome::BrokerUnregistered))]) {
                        // Its disk must not come back.
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
                    // What was never sent is not done; the history is to hold without it.
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

    /// Whether the log is a witness in this run, too.
    fn log_is_heard(&self) -> bool {
        !self.bug.is_some_and(Bug::is_for_histories)
    }

    fn has_written(&mut self, at: usize, above: u64, write: &Submission, written: &Written) -> Result<Told, Violation> {
        let Written { term, index, .. } = *written;
        let history = &self.histories[META as usize];
        let committed = history.term_of(index) == Some(term);
        if committed {
            self.summary.written += 1;
            if index <= above {
                return Err(Violation(format!("a write at {index} was asked for when {above} was acknowledged")));
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
                "node {number} acknowledged {index} of term {term} alone, when somebody led in term {newest}"
            )));
        }
        self.summary.fast += 1;
        self.clients.fast.push((index, term));
        Ok(Told::Alone { index, term })
    }

    /// What the fast path acknowledged is lost only if its leader was deposed.
    pub(super) fn check_fast_writes(&self) -> Result<(), Violation> {
        let history = &self.histories[META as usize];
        for (index, term) in &self.clients.fast {
            if history.term_of(*index) != Some(*term) && history.newest_term() == *term {
                return Err(Violation(format!("what the fast path acknowledged at {index} is lost in its own term")));
            }
        }
        Ok(())
    }

    /// A command as this node's view suggests it; now and then as nothing suggests it.
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
                let report = LeaderReport { partition, term: self.rng.u64(1..9), leader: 1, voters: vec![1] };
                Command::SetPartitionLeader { name, id, leaders: vec![report] }
            }
            5 => {
                let high_watermark = self.rng.u64(..1000);
                let report = WatermarkReport { partition, high_watermark, log_start: 0, end_offset: high_watermark };
                Command::UpdateHighWatermark { name, id, node: 1, watermarks: vec![report] }
            }
            6 if self.rng.bool() => {
                // Mostly upwards, as its levels are; now and then back.
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

fn topic_name(number: u64) -> Arc<str> {
    format!("topic-{number}").into()
}
