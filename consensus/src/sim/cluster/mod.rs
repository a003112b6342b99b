//! Nodes, clients and faults: one event after the other. All invariants are checked after each event.

mod clients;

use super::{
    Bug, SimClock, SimDisk, Summary,
    bug::Planted,
    net::{NetFaults, SimNet, SimTransport},
    node::{META, Node, Wire},
    oracle::{History, Seen, Violation},
};
use crate::{
    group::{Entry, GroupConfig, election_jitter},
    metadata::{self, AskedTooLate},
    plane::{PlaneConfig, node_of, peer_id},
};
use bytes::Bytes;
use clients::{Clients, Op};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};
use types::{GroupId, RaftIndex, Term};

const TICK: Duration = Duration::from_millis(100);
const ELECTION_TICKS: usize = 8;
/// The time, from the start, in which faults happen. Then all faults are healed, and the cluster must recover.
pub(super) const FAULTS_FOR: Duration = Duration::from_secs(12);
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// The metadata group and two partitions.
pub(super) const GROUPS: u64 = 3;
/// Entries that partitions keep below the index that every node has, since earlier messages may still ask for them.
/// Also the most entries that a leader of the metadata keeps for peers that lag.
pub(super) const KEPT_ENTRIES: u64 = 20;

pub(super) enum Power {
    Up(Box<Node>),
    Down(SimDisk),
}

pub(super) struct Slot {
    number: i32,
    /// The number of the node's disk. Another disk makes the node another peer.
    pub(super) disk_number: u32,
    incarnation: u64,
    /// The configurations of its groups. `start` fills in the peer.
    configs: Vec<GroupConfig>,
    pub(super) clock: SimClock,
    pub(super) power: Option<Power>,
    /// The node does nothing before this time.
    pub(super) paused_until: Duration,
    /// A client asks the node for something as soon as it resumes.
    pub(super) asked_meanwhile: bool,
}

impl Slot {
    pub(super) fn peer(&self) -> u64 {
        peer_id(self.number, self.disk_number)
    }

    pub(super) fn node(&self) -> Option<&Node> {
        match &self.power {
            Some(Power::Up(node)) => Some(node),
            _ => None,
        }
    }

    pub(super) fn node_mut(&mut self) -> Option<&mut Node> {
        match &mut self.power {
            Some(Power::Up(node)) => Some(node),
            _ => None,
        }
    }

    pub(super) fn disk(&self) -> &SimDisk {
        match self.power.as_ref().expect("a node is up or down") {
            Power::Up(node) => &node.disk,
            Power::Down(disk) => disk,
        }
    }
}

/// Variants are declared in the order in which simultaneous events happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    GoesOn(usize),
    Arrival,
    Tick(usize),
    Synced(usize),
    Slices(usize),
    Client,
    Fault,
}

pub(super) struct Cluster {
    pub(super) rng: fastrand::Rng,
    pub(super) clock: SimClock,
    pub(super) net: Rc<RefCell<SimNet<Wire>>>,
    pub(super) slots: Vec<Slot>,
    pub(super) histories: Vec<History>,
    /// The term and data of batches whose producers wait, by the node that took them, group and index.
    open: BTreeMap<(u64, GroupId, RaftIndex), (Term, Bytes)>,
    pub(super) clients: Clients,
    /// The first answer to each request, by node, incarnation and sequence.
    answers: BTreeMap<(i32, u64, u64), String>,
    pub(super) client_at: Option<Duration>,
    pub(super) fault_at: Option<Duration>,
    pub(super) worst_net: NetFaults,
    /// The node whose disk may be emptied. The other nodes' disks are a majority.
    pub(super) may_be_emptied: Option<usize>,
    pub(super) bug: Option<Bug>,
    pub(super) summary: Summary,
}

/// Runs one cluster. The seed decides everything random. Every node starts empty. The final state is checked too.
pub fn run(seed: u64, bug: Option<Bug>) -> Result<Summary, Violation> {
    let _planted = Planted::begin(bug);
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
        // A single broker, a usual cluster, or one with more nodes than voters.
        let (nodes, voters) = [(1, 1), (3, 3), (3, 3), (5, 3)][rng.usize(..4)];
        let worst_net = NetFaults {
            dropped: rng.f64() * 0.2,
            doubled: rng.f64() * 0.1,
            delay_max: Duration::from_micros(rng.u64(500..200_000)),
            ..NetFaults::NONE
        };
        let net = Rc::new(RefCell::new(SimNet::new(rng.u64(..), worst_net)));
        let clock = SimClock::default();
        let founding: Vec<u64> = (1..=voters).map(|node| peer_id(node, 1)).collect();
        let slots = (1..=nodes).map(|number| {
            let jitter_seed = rng.u64(..);
            let config = |group| GroupConfig {
                voters: founding.clone(),
                election_ticks: ELECTION_TICKS,
                election_jitter: election_jitter(jitter_seed, group, ELECTION_TICKS),
                // Partitions have no snapshots yet, so the leader must keep all entries that a replica lacks.
                kept_entries_max: if group == META { KEPT_ENTRIES } else { u64::MAX },
                ..GroupConfig::single(group, peer_id(number, 1))
            };
            Slot {
                number,
                disk_number: 1,
                incarnation: 0,
                configs: (0..GROUPS).map(GroupId).map(config).collect(),
                clock: clock.drifting(rng.i32(-20_000..=20_000)),
                power: Some(Power::Down(SimDisk::new(
                    clock.clone(),
                    rng.u64(..),
                    Duration::from_micros(rng.u64(100..30_000)),
                ))),
                paused_until: Duration::ZERO,
                asked_meanwhile: false,
            }
        });
        let slots: Vec<Slot> = slots.collect();
        Self {
            clock,
            net,
            histories: (0..GROUPS).map(|_| History::default()).collect(),
            open: BTreeMap::new(),
            clients: Clients::default(),
            answers: BTreeMap::new(),
            client_at: Some(Duration::ZERO),
            fault_at: Some(Duration::from_secs(1)),
            worst_net,
            may_be_emptied: (nodes > 1 && rng.bool()).then(|| rng.usize(..nodes as usize)),
            bug,
            summary: Summary { nodes: slots.len(), ..Summary::default() },
            slots,
            rng,
        }
    }

    pub(super) fn start(&mut self, at: usize) -> Result<(), Violation> {
        let contacts: Vec<i32> = self.slots.iter().map(|slot| slot.number).collect();
        let slot = &mut self.slots[at];
        let Some(Power::Down(mut disk)) = slot.power.take() else { unreachable!("only a node that is down starts") };
        if self.bug == Some(Bug::EmptiedDiskReturns) && self.rng.u8(..) < 128 {
            disk.empty();
        }
        let peer = slot.peer();
        for (group, history) in (0..).zip(&mut self.histories) {
            history.started(peer, disk.image(GroupId(group)).checkpoint.index);
        }
        slot.configs.iter_mut().for_each(|config| config.peer = peer);
        slot.incarnation += 1;
        let plane = PlaneConfig {
            voters_wanted: slot.configs[0].voters.len(),
            ..PlaneConfig::new(slot.number, slot.incarnation)
        };
        let transport = SimTransport { from: peer, clock: self.clock.clone(), net: self.net.clone() };
        let (configs, clock, seed) = (&slot.configs, slot.clock.clone(), self.rng.u64(..));
        let node = Node::start(configs, plane, &contacts, clock, transport, disk, seed, TICK, self.bug)?;
        slot.power = Some(Power::Up(Box::new(node)));
        self.register(at);
        Ok(())
    }

    /// The node registers itself with the cluster.
    pub(super) fn register(&mut self, at: usize) {
        let (number, peer, incarnation) = (self.slots[at].number, self.slots[at].peer(), self.slots[at].incarnation);
        self.submit(at, Op::registration(number, peer, incarnation));
    }

    pub(super) fn crash(&mut self, at: usize) {
        let Some(Power::Up(node)) = self.slots[at].power.take() else { unreachable!("only a node that is up crashes") };
        let id = node.id;
        let mut disk = node.disk;
        disk.crash();
        self.slots[at].power = Some(Power::Down(disk));
        self.open.retain(|(node, _, _), _| *node != id);
        self.clients.node_is_gone(at);
        self.summary.crashes += 1;
    }

    fn next_event(&self) -> (Duration, Event) {
        let mut events: Vec<(Duration, Event)> = Vec::with_capacity(2 * self.slots.len() + 3);
        events.extend(self.net.borrow().next_at().map(|at| (at, Event::Arrival)));
        events.extend(self.client_at.map(|at| (at, Event::Client)));
        events.extend(self.fault_at.map(|at| (at, Event::Fault)));
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(node) = slot.node() else { continue };
            events.extend(slot.asked_meanwhile.then_some((slot.paused_until, Event::GoesOn(at))));
            let tick_at = slot.clock.when(node.tick_at());
            events.push((tick_at.max(slot.paused_until), Event::Tick(at)));
            events.extend(node.disk.next_at().map(|done| (done.max(slot.paused_until), Event::Synced(at))));
            let slices_at = node.slices_at().map(|here| slot.clock.when(here));
            events.extend(slices_at.map(|here| (here.max(slot.paused_until), Event::Slices(at))));
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
            Event::GoesOn(at) => {
                self.slots[at].asked_meanwhile = false;
                self.ask_metadata_at(at);
            }
            Event::Arrival => self.arrival(),
            Event::Tick(at) => self.node(at).tick(),
            Event::Synced(at) => self.node(at).synced(),
            Event::Slices(at) => self.node(at).slices_did(),
            Event::Client => self.client(),
            Event::Fault => self.fault()?,
        }
        self.look()
    }

    pub(super) fn node(&mut self, at: usize) -> &mut Node {
        self.slots[at].node_mut().expect("the event is one of a node that is up")
    }

    fn arrival(&mut self) {
        let Some(envelope) = self.net.borrow_mut().arrive() else { return };
        let slot = &mut self.slots[node_of(envelope.to) as usize - 1];
        if slot.paused_until > self.clock.time() {
            return self.net.borrow_mut().put_back(slot.paused_until, envelope);
        }
        if let Some(node) = slot.node_mut() {
            node.receive(envelope.message);
        }
    }

    /// Passes the events of the nodes to the histories, and their answers to the clients.
    fn look(&mut self) -> Result<(), Violation> {
        for at in 0..self.slots.len() {
            let Some(node) = self.slots[at].node_mut() else { continue };
            let (seen, written) = (std::mem::take(&mut node.seen), std::mem::take(&mut node.written));
            let read = std::mem::take(&mut node.read);
            for seen in seen {
                if let Seen::Applied { node, group, entry, result, .. } = &seen {
                    self.applied(*node, *group, entry, result)?;
                }
                self.summary.restored += u64::from(matches!(seen, Seen::Restored { .. }));
                self.histories[seen.group().0 as usize].see(seen)?;
            }
            self.hear(at, written, read)?;
        }
        self.check_leases()
    }

    /// While a node holds the leader's lease, no node leads in a newer term.
    fn check_leases(&self) -> Result<(), Violation> {
        let newest = self.histories[META.0 as usize].newest_term();
        let holders = self.slots.iter().filter(|slot| slot.paused_until <= self.clock.time());
        for node in holders.filter_map(Slot::node).filter(|node| node.holds_lease()) {
            let term = node.group(META).term();
            if term < newest {
                return Err(Violation(format!(
                    "node {} holds the lease of term {term} while another node leads in term {newest}",
                    node.id
                )));
            }
        }
        Ok(())
    }

    fn applied(&mut self, node: u64, group: GroupId, entry: &Entry, result: &str) -> Result<(), Violation> {
        let is_new = entry.index > self.histories[group.0 as usize].last();
        if group == META && entry.is_command() && is_new {
            self.answered(entry, result)?;
        }
        if let Some((term, data)) = self.open.remove(&(node, group, entry.index))
            && term == entry.term
        {
            self.histories[group.0 as usize].ack(entry.index, data);
        }
        Ok(())
    }

    pub(super) fn is_paused(&self, at: usize) -> bool {
        self.slots[at].paused_until > self.clock.time()
    }

    /// A client asks a node for something.
    fn client(&mut self) {
        self.client_at = Some(self.clock.time() + Duration::from_micros(self.rng.u64(1_000..40_000)));
        let group = GroupId(self.rng.u64(..GROUPS));
        if group == META {
            return self.ask_metadata();
        }
        let mut at = self.rng.usize(..self.slots.len());
        if self.rng.u8(..4) > 0 {
            let leads = |slot: &Slot| slot.node().is_some_and(|node| node.group(group).is_leader());
            at = self.slots.iter().position(leads).unwrap_or(at);
        }
        if self.is_paused(at) {
            return;
        }
        let count = self.rng.u32(1..100);
        let Some(node) = self.slots[at].node_mut() else { return };
        if let Some((position, data)) = node.propose_batch(group, count) {
            // In time: even if the proposal was applied in this turn, `look` reads that only after this insertion.
            self.open.insert((node.id, group, position.index), (position.term, data));
        }
    }

    /// A request gets the same answer every time it is committed, unless the slice has forgotten the answer.
    fn answered(&mut self, entry: &Entry, result: &str) -> Result<(), Violation> {
        let requests = metadata::decode_requests(&entry.data).unwrap_or_default();
        for (request, outcome) in requests.iter().zip(result.lines()) {
            let Some(origin) = request.origin.filter(|_| outcome != format!("{AskedTooLate:?}")) else { continue };
            let asked = (origin.node, origin.incarnation, origin.sequence);
            match self.answers.get(&asked) {
                Some(first) if first != outcome => {
                    return Err(Violation(format!("request {asked:?} was applied twice: {first}, then {outcome}")));
                }
                Some(_) => self.summary.retried += 1,
                None => {
                    self.answers.insert(asked, outcome.to_owned());
                }
            }
        }
        Ok(())
    }

    /// A healed cluster must commit again. Once clients stop asking, every operation must get its answer, and all
    /// voters of each group must agree.
    fn recover(&mut self) -> Result<(), Violation> {
        let deadline = self.clock.time() + RECOVERY_MAX;
        let acked: Vec<u64> = self.histories.iter().map(History::acked).collect();
        let written = self.summary.written;
        self.step_until(deadline, "commit", |cluster| {
            let partitions = cluster.histories.iter().zip(&acked).skip(1);
            cluster.summary.written > written + 3
                && partitions.clone().all(|(history, before)| history.acked() > before + 3)
        })?;
        self.client_at = None;
        self.step_until(deadline, "answer", |cluster| cluster.clients.is_quiet())?;
        self.step_until(deadline, "agree", |cluster| (0..GROUPS).all(|group| cluster.agrees(GroupId(group))))?;
        let mut metadata = BTreeMap::new();
        for node in self.slots.iter().filter_map(Slot::node) {
            let (index, state) = node.metadata()?;
            if *metadata.entry(index).or_insert_with(|| state.clone()) != state {
                return Err(Violation(format!("two nodes have different metadata at index {index}")));
            }
        }
        self.check_fast_writes()?;
        self.check_histories()?;
        (0..).zip(&self.histories).try_for_each(|(group, history)| history.check_acked(GroupId(group)))
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

    /// Whether a group has a leader and all its voters have applied everything in the newest leader's log. For the
    /// metadata group, every node's view must also show everything that the node has applied.
    fn agrees(&self, group: GroupId) -> bool {
        let shows_all = |node: &Node| node.shows() == node.group(META).applied();
        if group == META && !self.slots.iter().filter_map(Slot::node).all(shows_all) {
            return false;
        }
        let groups = || self.slots.iter().filter_map(|slot| slot.node().map(|node| (node.id, node.group(group))));
        let newest = groups().filter(|(_, group)| group.is_leader()).max_by_key(|(_, group)| group.term());
        newest.is_some_and(|(_, leader)| {
            let voters = leader.voters();
            groups().filter(|(id, _)| voters.contains(id)).all(|(_, group)| group.applied() == leader.last_index())
        })
    }

    fn describe(&self) -> String {
        let nodes = self.slots.iter().filter_map(Slot::node);
        let lines = nodes.flat_map(|node| (0..GROUPS).map(|group| (node.id, node.group(GroupId(group))))).map(|(id, group)| {
            format!(
                "\n  node {id} group {}: term {} leader {:?} voters {:?} applied {} commit {} stable {} last {} terms {:?} progress {:?}",
                group.id(),
                group.term(),
                group.leader(),
                group.voters(),
                group.applied(),
                group.commit(),
                group.stable(),
                group.last_index(),
                group.terms().last(),
                group.describe_progress(),
            )
        });
        lines.collect()
    }

    fn finish(mut self) -> Summary {
        self.summary.committed = self.histories.iter().map(History::committed).sum();
        self.summary.acked = self.histories.iter().map(History::acked).sum::<u64>() + self.summary.written;
        self.summary.elections = self.histories.iter().map(History::leaders).sum();
        self.summary
    }
}
