//! Nodes, clients and faults: one event after the other, everything that must hold checked after each.

use super::{
    SimClock, SimDisk,
    net::{Envelope, NetFaults, SimNet, SimTransport},
    node::{META, Node},
    oracle::{History, Seen, Violation},
};
use crate::{
    group::{Entry, GroupConfig, Member, Message, election_jitter},
    metadata::{self, AskedTooLate, Command, Origin, Request},
};
use bytes::Bytes;
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};
use uuid::Uuid;

/// A mistake that can be planted, to show that the simulation would see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A Ready counts as durable as soon as it is handed to the journal.
    AcknowledgedBeforeSync,
    /// Votes and acknowledgements leave before what they promise is durable.
    AnsweredBeforeSync,
    /// Records say nothing of the vote.
    VoteNotRecorded,
    /// Records say nothing of what is committed.
    CommitNotRecorded,
    /// A request that comes twice is applied twice.
    RetryAppliedTwice,
    /// A node whose disk was emptied comes back as the same peer.
    EmptiedDiskReturns,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub nodes: usize,
    pub events: u64,
    /// Over all that happened: equal for equal runs.
    pub trace: u32,
    pub crashes: u64,
    pub elections: u64,
    pub committed: u64,
    pub acked: u64,
    pub requests: u64,
    /// Requests that were applied when they came again.
    pub retried: u64,
    /// Changes of the members that were proposed.
    pub members_changed: u64,
}

const TICK: Duration = Duration::from_millis(100);
const ELECTION_TICKS: usize = 8;
/// For so long everything fails; then all is healed and must recover.
const FAULTS_FOR: Duration = Duration::from_secs(12);
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// The metadata and two partitions.
const GROUPS: u64 = 3;
/// Entries kept below what every node has: messages of before may still ask for them.
const KEPT_ENTRIES: u64 = 20;

type Wire = (u64, Message);
type SimNode = Node<SimClock, SimTransport<Wire>>;

enum Power {
    Up(SimNode),
    Down(SimDisk),
}

struct Slot {
    configs: Vec<GroupConfig>,
    clock: SimClock,
    power: Option<Power>,
    /// Does nothing before this time, then goes on.
    paused_until: Duration,
}

impl Slot {
    fn node(&self) -> Option<&SimNode> {
        match &self.power {
            Some(Power::Up(node)) => Some(node),
            _ => None,
        }
    }

    fn node_mut(&mut self) -> Option<&mut SimNode> {
        match &mut self.power {
            Some(Power::Up(node)) => Some(node),
            _ => None,
        }
    }

    fn disk(&self) -> &SimDisk {
        match self.power.as_ref().expect("a node is up or down") {
            Power::Up(node) => &node.disk,
            Power::Down(disk) => disk,
        }
    }
}

/// Declared in the order in which events of one moment happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Tick(usize),
    Synced(usize),
    Client,
    Fault,
}

struct Cluster {
    rng: fastrand::Rng,
    clock: SimClock,
    net: Rc<RefCell<SimNet<Wire>>>,
    slots: Vec<Slot>,
    histories: Vec<History>,
    /// Proposals whose clients wait, by the node that took them, group and index: term and data.
    open: BTreeMap<(u64, u64, u64), (u64, Bytes)>,
    /// Requests that have no answer yet, by sequence; asked again now and then.
    unanswered: BTreeMap<u64, Command>,
    /// What requests got when they were first applied.
    answers: BTreeMap<u64, String>,
    client_at: Option<Duration>,
    fault_at: Option<Duration>,
    worst_net: NetFaults,
    bug: Option<Bug>,
    next_topic: u64,
    summary: Summary,
}

/// Runs one cluster, all of whose luck comes from the seed. Every node starts empty; the end state is checked too.
pub fn run(seed: u64, bug: Option<Bug>) -> Result<Summary, Violation> {
    let mut cluster = Cluster::new(seed, bug);
    for at in 0..cluster.slots.len() {
        cluster.start(at)?;
    }
    while cluster.clock.time() < FAULTS_FOR {
        cluster.step()?;
    }
    cluster.heal()?;
    cluster.recover()?;
    Ok(cluster.finish())
}

impl Cluster {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        // A lone broker, a usual cluster, and one with more nodes than voters.
        let (nodes, voters) = [(1, 1), (3, 3), (3, 3), (5, 3)][rng.usize(..4)];
        let worst_net = NetFaults {
            dropped: rng.f64() * 0.2,
            doubled: rng.f64() * 0.1,
            delay_max: Duration::from_micros(rng.u64(500..200_000)),
            ..NetFaults::NONE
        };
        let net = Rc::new(RefCell::new(SimNet::new(rng.u64(..), worst_net)));
        let clock = SimClock::default();
        let slots = (1..=nodes).map(|peer| {
            let jitter_seed = rng.u64(..);
            let config = |group| GroupConfig {
                voters: (1..=voters).collect(),
                election_ticks: ELECTION_TICKS,
                election_jitter: election_jitter(jitter_seed, group, ELECTION_TICKS),
                ..GroupConfig::single(group, peer)
            };
            Slot {
                configs: (0..GROUPS).map(config).collect(),
                clock: clock.drifting(rng.i32(-20_000..=20_000)),
                power: Some(Power::Down(SimDisk::new(
                    clock.clone(),
                    rng.u64(..),
                    Duration::from_micros(rng.u64(100..30_000)),
                ))),
                paused_until: Duration::ZERO,
            }
        });
        let slots: Vec<Slot> = slots.collect();
        Self {
            clock,
            net,
            histories: (0..GROUPS).map(|_| History::default()).collect(),
            open: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            answers: BTreeMap::new(),
            client_at: Some(Duration::ZERO),
            fault_at: Some(Duration::from_secs(1)),
            worst_net,
            bug,
            next_topic: 0,
            summary: Summary { nodes: slots.len(), ..Summary::default() },
            slots,
            rng,
        }
    }

    fn start(&mut self, at: usize) -> Result<(), Violation> {
        let slot = &mut self.slots[at];
        let Some(Power::Down(mut disk)) = slot.power.take() else { unreachable!("only a node that is down starts") };
        let id = slot.configs[0].peer;
        if self.bug == Some(Bug::EmptiedDiskReturns) && self.rng.u8(..) < 128 {
            disk.empty();
        }
        for (group, history) in (0..).zip(&mut self.histories) {
            history.started(id, disk.image(group).checkpoint.index);
        }
        let transport = SimTransport { from: id, clock: self.clock.clone(), net: self.net.clone() };
        let node = Node::start(&slot.configs, slot.clock.clone(), transport, disk, TICK, self.bug)?;
        slot.power = Some(Power::Up(node));
        Ok(())
    }

    fn crash(&mut self, at: usize) {
        let Some(Power::Up(node)) = self.slots[at].power.take() else { unreachable!("only a node that is up crashes") };
        let id = node.id;
        let mut disk = node.disk;
        disk.crash();
        self.slots[at].power = Some(Power::Down(disk));
        self.open.retain(|(node, _, _), _| *node != id);
        self.summary.crashes += 1;
    }

    fn next_event(&self) -> (Duration, Event) {
        let mut events: Vec<(Duration, Event)> = Vec::with_capacity(2 * self.slots.len() + 3);
        events.extend(self.net.borrow().next_at().map(|at| (at, Event::Arrival)));
        events.extend(self.client_at.map(|at| (at, Event::Client)));
        events.extend(self.fault_at.map(|at| (at, Event::Fault)));
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(node) = slot.node() else { continue };
            let tick_at = slot.clock.when(node.tick_at());
            events.push((tick_at.max(slot.paused_until), Event::Tick(at)));
            events.extend(node.disk.next_at().map(|done| (done.max(slot.paused_until), Event::Synced(at))));
        }
        events.into_iter().min().expect("a node that is up ticks, and faults end")
    }

    fn step(&mut self) -> Result<(), Violation> {
        let (time, event) = self.next_event();
        self.clock.advance_to(time.max(self.clock.time()));
        self.summary.events += 1;
        let mark = format!("{} {event:?}", time.as_micros());
        self.summary.trace = crc32c::crc32c_append(self.summary.trace, mark.as_bytes());
        match event {
            Event::Arrival => self.arrival(),
            Event::Tick(at) => self.node(at).tick(),
            Event::Synced(at) => self.node(at).synced(),
            Event::Client => self.client(),
            Event::Fault => self.fault()?,
        }
        self.look()
    }

    fn node(&mut self, at: usize) -> &mut SimNode {
        self.slots[at].node_mut().expect("the event is one of a node that is up")
    }

    fn arrival(&mut self) {
        let Some(envelope) = self.net.borrow_mut().arrive() else { return };
        let slot = &mut self.slots[envelope.to as usize - 1];
        if slot.paused_until > self.clock.time() {
            return self.net.borrow_mut().put_back(slot.paused_until, envelope);
        }
        let Envelope { message: (group, message), .. } = envelope;
        if let Some(node) = slot.node_mut() {
            node.step(group, message);
        }
    }

    /// Shows the histories what the nodes did, and answers clients.
    fn look(&mut self) -> Result<(), Violation> {
        for at in 0..self.slots.len() {
            let Some(node) = self.slots[at].node_mut() else { continue };
            for seen in std::mem::take(&mut node.seen) {
                if let Seen::Applied { node, group, entry, result, .. } = &seen {
                    self.applied(*node, *group, entry, result)?;
                }
                self.histories[seen.group() as usize].see(seen)?;
            }
        }
        Ok(())
    }

    fn applied(&mut self, node: u64, group: u64, entry: &Entry, result: &str) -> Result<(), Violation> {
        let is_new = entry.index > self.histories[group as usize].committed();
        if group == META && entry.is_command() && is_new {
            self.answered(entry, result)?;
        }
        if let Some((term, data)) = self.open.remove(&(node, group, entry.index))
            && term == entry.term
        {
            if group == META {
                let requests = metadata::decode_requests(&data).expect("it was encoded by the client");
                for origin in requests.iter().filter_map(|request| request.origin) {
                    self.unanswered.remove(&origin.sequence);
                }
            }
            self.histories[group as usize].ack(entry.index, data);
        }
        Ok(())
    }

    fn is_paused(&self, at: usize) -> bool {
        self.slots[at].paused_until > self.clock.time()
    }

    /// Somebody writes, mostly to a node that leads; others refuse.
    fn client(&mut self) {
        self.client_at = Some(self.clock.time() + Duration::from_micros(self.rng.u64(1_000..40_000)));
        let group = self.rng.u64(..GROUPS);
        let mut at = self.rng.usize(..self.slots.len());
        if self.rng.u8(..4) > 0 {
            let leads = |slot: &Slot| slot.node().is_some_and(|node| node.group(group).is_leader());
            at = self.slots.iter().position(leads).unwrap_or(at);
        }
        if self.is_paused(at) {
            return;
        }
        let requests = if group == META { self.requests() } else { Vec::new() };
        let count = self.rng.u32(1..100);
        let Some(node) = self.slots[at].node_mut() else { return };
        let proposed = if group == META { node.propose_requests(&requests) } else { node.propose_batch(group, count) };
        if let Some((position, data)) = proposed {
            // A lone voter's proposal may be applied within the turn, but never before its sync.
            self.open.insert((node.id, group, position.index), (position.term, data));
        }
    }

    /// Some new requests, or some that have no answer yet.
    fn requests(&mut self) -> Vec<Request> {
        let count = self.rng.usize(1..4);
        if self.rng.u8(..4) > 0 || self.unanswered.is_empty() {
            for _ in 0..count {
                let sequence = self.summary.requests + 1;
                self.summary.requests = sequence;
                let command = self.command();
                self.unanswered.insert(sequence, command);
            }
            return self.asked(self.summary.requests + 1 - count as u64, count);
        }
        let sequences: Vec<u64> = self.unanswered.keys().copied().collect();
        let from = sequences[self.rng.usize(..sequences.len())];
        self.asked(from, count)
    }

    fn asked(&self, from: u64, count: usize) -> Vec<Request> {
        let lowest_open = *self.unanswered.keys().next().expect("something is unanswered");
        let requests = self.unanswered.range(from..).take(count).map(|(sequence, command)| {
            let origin = Origin { node: 1, incarnation: 1, sequence: *sequence, lowest_open };
            Request { origin: Some(origin), command: command.clone() }
        });
        requests.collect()
    }

    /// A request gets the same answer however often it is applied, unless it is refused.
    fn answered(&mut self, entry: &Entry, result: &str) -> Result<(), Violation> {
        let requests = metadata::decode_requests(&entry.data).unwrap_or_default();
        for (request, outcome) in requests.iter().zip(result.lines()) {
            let sequence = request.origin.map_or(0, |origin| origin.sequence);
            if outcome == format!("{AskedTooLate:?}") {
                continue;
            }
            match self.answers.get(&sequence) {
                Some(first) if first != outcome => {
                    return Err(Violation(format!("request {sequence} was applied twice: {first}, then {outcome}")));
                }
                Some(_) => self.summary.retried += 1,
                None => {
                    self.answers.insert(sequence, outcome.to_owned());
                }
            }
        }
        Ok(())
    }

    fn command(&mut self) -> Command {
        let topic = self.rng.u64(self.next_topic.saturating_sub(20)..=self.next_topic);
        let (name, id) = (format!("topic-{topic}").into(), Uuid::from_u128(u128::from(topic)));
        let replicas = vec![vec![1, 2, 3]; self.rng.usize(1..4)];
        let first_group = 1 + 100 * self.next_topic;
        match self.rng.u8(..6) {
            0 => Command::DeleteTopic { name, id },
            1 => Command::CreatePartitions { name, id, present: self.rng.u32(1..4), first_group, replicas },
            2 => {
                let value = self.rng.bool().then(|| self.rng.u16(..).to_string());
                Command::UpdateTopicConfig { name, id, changes: vec![("retention.ms".to_owned(), value)] }
            }
            3 => Command::AllocateProducerIds { count: self.rng.u32(1..1000) },
            _ => {
                self.next_topic += 1;
                let created_ms = self.clock.time().as_millis() as i64;
                Command::CreateTopic { name, id, first_group, replicas, configs: BTreeMap::new(), created_ms }
            }
        }
    }

    fn fault(&mut self) -> Result<(), Violation> {
        self.fault_at = Some(self.clock.time() + Duration::from_millis(self.rng.u64(5..400)));
        let at = self.rng.usize(..self.slots.len());
        let up = self.slots[at].node().is_some();
        let (one, other) = (at as u64 + 1, self.rng.u64(1..=self.slots.len() as u64));
        let later = |rng: &mut fastrand::Rng| Duration::from_millis(rng.u64(1..3000));
        match self.rng.u8(..16) {
            0..3 if up => self.crash(at),
            0..7 if !up => self.start(at)?,
            3 => self.net.borrow_mut().cut(one, other),
            4 => self.net.borrow_mut().heal(),
            5 => self.slots[at].paused_until = self.clock.time() + later(&mut self.rng),
            6 => self.slots[at].clock.jump(later(&mut self.rng)),
            7 => self.net.borrow_mut().faults = NetFaults::NONE,
            8 => self.net.borrow_mut().faults = self.worst_net,
            9..13 if up && !self.is_paused(at) => self.checkpoint(at),
            13.. if self.slots.len() > 3 => self.change_members(),
            _ => {}
        }
        Ok(())
    }

    fn checkpoint(&mut self, at: usize) {
        let group = self.rng.u64(..GROUPS);
        let history = &self.histories[group as usize];
        // Snapshots are not sent yet, so what a node lacks must be kept.
        let everywhere = self.slots.iter().map(|slot| slot.disk().agrees_up_to(group, |index| history.term_of(index)));
        let forget = everywhere.min().unwrap_or(0).saturating_sub(KEPT_ENTRIES);
        self.node(at).checkpoint(group, forget);
    }

    /// Some group's leader is asked for other voters.
    fn change_members(&mut self) {
        let group = self.rng.u64(..GROUPS);
        let mut wanted: Vec<u64> = (1..=self.slots.len() as u64).collect();
        self.rng.shuffle(&mut wanted);
        let demoted = self.rng.bool();
        wanted.truncate([1, 2, 3, 3, 3, 5][self.rng.usize(..6)]);
        let leads = |slot: &&mut Slot| slot.node().is_some_and(|node| node.group(group).is_leader());
        let Some(node) = self.slots.iter_mut().find(leads).and_then(Slot::node_mut) else { return };
        let present = node.group(group).voters();
        let added = wanted.iter().filter(|peer| !present.contains(peer)).map(|peer| Member::Voter(*peer));
        let removed = present.iter().filter(|peer| !wanted.contains(peer));
        let removed = removed.map(|peer| if demoted { Member::Learner(*peer) } else { Member::Removed(*peer) });
        let changes: Vec<Member> = added.chain(removed).collect();
        if !changes.is_empty() && node.propose_members(group, &changes) {
            self.summary.members_changed += 1;
        }
    }

    /// Ends all faults; every node runs.
    fn heal(&mut self) -> Result<(), Violation> {
        self.fault_at = None;
        let mut net = self.net.borrow_mut();
        net.heal();
        net.faults = NetFaults::NONE;
        drop(net);
        for at in 0..self.slots.len() {
            self.slots[at].paused_until = Duration::ZERO;
            if self.slots[at].node().is_none() {
                self.start(at)?;
            }
        }
        Ok(())
    }

    /// A healed cluster commits again; once clients are quiet, all members of each group have the same.
    fn recover(&mut self) -> Result<(), Violation> {
        let deadline = self.clock.time() + RECOVERY_MAX;
        let acked: Vec<u64> = self.histories.iter().map(History::acked).collect();
        self.step_until(deadline, "commit", |cluster| {
            cluster.histories.iter().zip(&acked).all(|(history, before)| history.acked() > before + 3)
        })?;
        self.client_at = None;
        self.step_until(deadline, "agree", |cluster| (0..GROUPS).all(|group| cluster.agrees(group)))?;
        let mut metadata = BTreeMap::new();
        for node in self.slots.iter_mut().filter_map(Slot::node_mut) {
            let (index, state) = node.metadata()?;
            if *metadata.entry(index).or_insert_with(|| state.clone()) != state {
                return Err(Violation(format!("two states of the metadata at index {index}")));
            }
        }
        (0..).zip(&self.histories).try_for_each(|(group, history)| history.check_acked(group))
    }

    fn step_until(&mut self, deadline: Duration, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        while !done(self) {
            if self.clock.time() > deadline {
                return Err(Violation(format!("the healed cluster does not {what} again:{}", self.describe())));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Whether a group has one leader, and all voters have applied all that it has.
    fn agrees(&self, group: u64) -> bool {
        let groups = || self.slots.iter().filter_map(|slot| slot.node().map(|node| (node.id, node.group(group))));
        let newest = groups().filter(|(_, group)| group.is_leader()).max_by_key(|(_, group)| group.term());
        newest.is_some_and(|(_, leader)| {
            let voters = leader.voters();
            groups().filter(|(id, _)| voters.contains(id)).all(|(_, group)| group.applied() == leader.last_index())
        })
    }

    fn describe(&self) -> String {
        let nodes = self.slots.iter().filter_map(Slot::node);
        let lines = nodes.flat_map(|node| (0..GROUPS).map(|group| (node.id, node.group(group)))).map(|(id, group)| {
            format!(
                "\n  node {id} group {}: term {} leader {:?} voters {:?} applied {} commit {} stable {} last {} terms {:?}",
                group.id(),
                group.term(),
                group.leader(),
                group.voters(),
                group.applied(),
                group.commit(),
                group.stable(),
                group.last_index(),
                group.terms().last(),
            )
        });
        lines.collect()
    }

    fn finish(mut self) -> Summary {
        self.summary.committed = self.histories.iter().map(History::committed).sum();
        self.summary.acked = self.histories.iter().map(History::acked).sum();
        self.summary.elections = self.histories.iter().map(History::leaders).sum();
        self.summary
    }
}
