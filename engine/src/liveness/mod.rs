//! Liveness of Raft groups: the timers of this core's groups, and which cores of other brokers are alive.
//! Lives on: every core, one each.
//!
//! Each core sends a beat to the others ten times a second. While the beats arrive, a group whose replicas have
//! caught up needs no heartbeats of its own: it rests and costs nothing. When a core falls silent or returns as
//! another process, the groups with a replica on that core wake. The groups that it led elect another leader; their
//! replicas stand for election one after the other.

use crate::partition::{
    Partition,
    host::{self, in_turns},
};
use bytes::Bytes;
use consensus::{
    group::{Message, Succession, Unfit},
    plane::node_of,
    wire::{Beat, PeerMessage},
};
use runtime::{clock, sync::Flag};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};
use types::{GroupId, META_CORE, Term, core_of, planted};

#[cfg(test)]
mod tests;

/// One unit of the groups' timers, and the interval between beats.
pub const TICK: Duration = Duration::from_millis(100);
/// After this much silence a core counts as lost. The second, shorter limit applies when its broker is also
/// unreachable.
const SILENCE_MAX: Duration = Duration::from_millis(800);
const SILENCE_WITHOUT_WAY: Duration = Duration::from_millis(300);
/// After a pause of this length, this core cannot conclude anything from the silence of others.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a stopping broker waits for others to take over its leaderships.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);
/// While the disk is full, how often the remaining leaderships are offered to others.
const GIVE_AWAY_EVERY: Duration = Duration::from_secs(3);
/// A returning broker gets its leaderships back once it has been alive for this long.
const SETTLED: Duration = Duration::from_secs(3);
/// How often dropped messages are logged that no replica can have sent. The metrics count all of them.
const REFUSAL_TOLD_EVERY: Duration = Duration::from_secs(10);
/// Messages kept for groups that are still unknown here. When full, the oldest is dropped.
const EARLY_MAX: usize = 4096;
/// Most payload bytes of one such message. A larger one is dropped.
const EARLY_BYTES_MAX: usize = 4096;

/// A core, as the timers of its groups see it.
pub trait Host: host::Host {
    fn groups(&self) -> &Groups;
    /// The number of cores of a broker, by the metadata.
    fn cores_of(&self, node: i32) -> Option<u16>;
    /// Distinguishes this process from earlier ones of this broker.
    fn incarnation(&self) -> u64;
    /// Whether this broker knows who leads the metadata.
    fn knows_controller(&self) -> bool;
    /// Hands the leadership of the metadata to another broker, if this one has it and another can lead.
    fn give_metadata_away(self: &Rc<Self>);
    fn has_failed(&self) -> bool;
    fn has_full_disk(&self) -> bool;
    /// Set once this broker sends and takes no more messages.
    fn peers_ended(&self) -> &Flag;
    /// Whether there is a connection to the broker.
    fn has_way_to(&self, node: i32) -> bool;
    /// The peers to which there are connections.
    fn reached(&self) -> BTreeSet<u64>;
    fn send_to_all(&self, message: &PeerMessage);
    fn partitions_that(&self, are: impl Fn(&Partition) -> bool) -> Vec<Rc<Partition>>;
}

/// The latest knowledge of one core of another broker.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Duration,
    since: Duration,
    incarnation: u64,
    healthy: bool,
    there: bool,
}

/// A message for a group that this broker does not know yet.
type Early = (GroupId, Message, Vec<(usize, Bytes)>);

#[derive(Default)]
pub struct Groups {
    /// Groups whose timers run.
    awake: RefCell<BTreeSet<GroupId>>,
    heard: RefCell<BTreeMap<(i32, u16), Heard>>,
    early: RefCell<VecDeque<Early>>,
    /// The peers that were reachable at the last tick.
    ways: RefCell<BTreeSet<u64>>,
    /// This broker is handing over its leaderships and accepts none.
    leaving: Cell<bool>,
    /// When leaderships are next offered to others, if the disk is full then.
    give_away_at: Cell<Duration>,
    ran_for: Cell<Duration>,
    /// When a dropped message was last logged, by whether it suggests a loss.
    refusal_told: [Cell<Option<Duration>>; 2],
}

impl Groups {
    /// How long this core has run, counted in ticks. Unlike with [`clock::now`], a pause does not count.
    pub fn ran_for(&self) -> Duration {
        self.ran_for.get()
    }

    pub(crate) fn wake_timers(&self, group: GroupId) {
        self.awake.borrow_mut().insert(group);
    }

    pub(crate) fn stop_timers(&self, group: GroupId) {
        self.awake.borrow_mut().remove(&group);
    }

    /// A planted bug: a resting group ignores brokers that come and go, whether by beats or by the metadata.
    pub(crate) fn sleeps_on(&self, group: GroupId) -> bool {
        planted!(QuietGroupSleepsOn) && !self.awake.borrow().contains(&group)
    }

    /// Number of groups whose timers run.
    pub fn awake(&self) -> usize {
        self.awake.borrow().len()
    }

    fn heard(&self, core: &impl Host, group: GroupId, node: i32) -> Option<Heard> {
        let cores = core.cores_of(node).unwrap_or(1).max(1);
        let there = core_of(group, usize::from(cores)).0 as u16;
        self.heard.borrow().get(&(node, there)).copied().filter(|heard| heard.there)
    }

    /// Whether the broker's core that has the group's replica is alive.
    pub fn is_there(&self, core: &impl Host, group: GroupId, node: i32) -> bool {
        self.heard(core, group, node).is_some()
    }

    /// Whether that core is alive and healthy, so that it may be asked to lead.
    pub fn can_lead(&self, core: &impl Host, group: GroupId, node: i32) -> bool {
        self.heard(core, group, node).is_some_and(|heard| heard.healthy)
    }

    /// Whether some known core of the broker is silent or reports that it is unhealthy.
    pub fn is_ill(&self, node: i32) -> bool {
        let heard = self.heard.borrow();
        let mut of_node = heard.iter().filter(|((of, _), _)| *of == node);
        of_node.any(|(_, heard)| !heard.there || !heard.healthy)
    }

    /// Removes and returns the messages that arrived before their group was known.
    pub fn take_early(&self, group: GroupId) -> Vec<(Message, Vec<(usize, Bytes)>)> {
        let mut early = self.early.borrow_mut();
        let (mine, others) = early.drain(..).partition(|(of, ..)| *of == group);
        *early = others;
        drop(early);
        let mine: VecDeque<Early> = mine;
        mine.into_iter().map(|(_, message, payloads)| (message, payloads)).collect()
    }

    /// Keeps a message for a group that is not known yet. Large messages are dropped, because the sender soon
    /// retries.
    pub(crate) fn keep_early(&self, group: GroupId, message: Message, payloads: Vec<(usize, Bytes)>) {
        if payloads.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > EARLY_BYTES_MAX {
            return;
        }
        let mut early = self.early.borrow_mut();
        if early.len() >= EARLY_MAX {
            early.pop_front();
        }
        early.push_back((group, message, payloads));
    }

    /// Counts and logs a dropped message that no replica of the group can have sent.
    pub fn refused(&self, core: &impl Host, group: GroupId, from: u64, unfit: &Unfit) {
        core.metrics().raft_messages_refused_total.add(1);
        let is_loss = unfit.is_possible_loss();
        core.metrics().raft_possible_losses_total.add(u64::from(is_loss));
        let told = &self.refusal_told[usize::from(is_loss)];
        let now = clock::now();
        if told.get().is_some_and(|at| now < at + REFUSAL_TOLD_EVERY) {
            return tracing::debug!(group = group.0, from, %unfit, "a message of another replica was dropped");
        }
        told.set(Some(now));
        let node = node_of(from);
        if is_loss {
            tracing::error!(group = group.0, node, from, %unfit, "a message of another replica was dropped");
        } else {
            tracing::warn!(group = group.0, node, from, %unfit, "a message of another replica was dropped");
        }
    }

    /// Records a beat from a core of another broker.
    pub fn note(&self, core: &Rc<impl Host>, node: i32, beat: Beat) {
        let now = clock::now();
        let before = self.heard.borrow().get(&(node, beat.core)).copied();
        let is_same = before.is_some_and(|before| before.incarnation == beat.incarnation && before.there);
        let since = before.filter(|_| is_same).map_or(now, |before| before.since);
        let heard = Heard { at: now, since, incarnation: beat.incarnation, healthy: beat.healthy, there: true };
        self.heard.borrow_mut().insert((node, beat.core), heard);
        if !is_same {
            // The broker may have returned with fewer cores.
            self.heard.borrow_mut().retain(|(of, core), _| *of != node || *core < beat.cores);
            let concerned = concerned(&**core, node, beat.core, beat.cores);
            tracing::info!(node, core = beat.core, partitions = concerned.len(), "a core of another broker is alive");
            concerned.iter().for_each(|partition| match before {
                Some(before) if before.incarnation != beat.incarnation => partition.on_core_lost(core, node),
                _ => partition.on_core_reachable(core),
            });
        }
    }
}

/// The partitions with a replica on that core of another broker.
fn concerned(core: &impl Host, node: i32, there: u16, cores: u16) -> Vec<Rc<Partition>> {
    core.partitions_that(|partition| {
        partition.has_replica_on(node) && core_of(partition.group(), usize::from(cores.max(1))).0 == usize::from(there)
    })
}

/// Runs the timers of this core's groups and sends its beats, until the broker stops or this core's storage fails.
pub async fn run(core: Rc<impl Host>) {
    let mut last = clock::now();
    while !core.peers_ended().is_set() {
        runtime::sleep(TICK).await;
        let now = clock::now();
        core.groups().ran_for.set(core.groups().ran_for() + TICK);
        let beat = Beat {
            incarnation: core.incarnation(),
            core: core.id().0 as u16,
            cores: core.cores() as u16,
            // A broker that cannot reach the metadata leader does not learn of new partitions.
            healthy: is_well(&*core) && core.knows_controller(),
        };
        if core.has_failed() {
            return core.send_to_all(&PeerMessage::Beat(beat));
        }
        if now - last > PAUSE {
            core.groups().heard.borrow_mut().values_mut().for_each(|heard| heard.at = heard.at.max(now));
        }
        last = now;
        core.send_to_all(&PeerMessage::Beat(beat));
        mark_silent(&core, now);
        meet_reached(&core);
        if core.has_full_disk() && now >= core.groups().give_away_at.get() {
            core.groups().give_away_at.set(now + GIVE_AWAY_EVERY);
            give_away(&core);
        }
        let awake: Vec<GroupId> = core.groups().awake.borrow().iter().copied().collect();
        for group in awake {
            match core.partition(group) {
                Some(partition) => partition.tick(&core, now),
                None => core.groups().stop_timers(group),
            }
        }
        core.metrics().replication_groups_awake.set(core.groups().awake() as u64);
    }
}

/// Whether this core can lead as well as any other.
pub fn is_well(core: &impl Host) -> bool {
    !core.has_failed() && !core.groups().leaving.get() && !core.has_full_disk()
}

/// The disk is full: offers leaderships to healthy replicas elsewhere. As a follower, this core goes on with the room
/// in its ring.
fn give_away(core: &Rc<impl Host>) {
    if core.id() == META_CORE {
        core.give_metadata_away();
    }
    for partition in core.partitions_that(Partition::is_shared) {
        partition.give_away(core);
    }
}

fn mark_silent(core: &Rc<impl Host>, now: Duration) {
    let mut lost = Vec::new();
    for ((node, of), heard) in core.groups().heard.borrow_mut().iter_mut().filter(|(_, heard)| heard.there) {
        let most = if core.has_way_to(*node) { SILENCE_MAX } else { SILENCE_WITHOUT_WAY };
        if now.saturating_sub(heard.at) > most {
            heard.there = false;
            lost.push((*node, *of));
        }
    }
    for (node, of) in lost {
        let cores = core.cores_of(node).unwrap_or(1);
        let mut concerned = concerned(&**core, node, of, cores);
        tracing::info!(node, core = of, partitions = concerned.len(), "a core of another broker is silent");
        concerned.retain(|partition| !core.groups().sleeps_on(partition.group()));
        concerned.iter().for_each(|partition| partition.on_core_lost(core, node));
    }
}

/// Wakes groups that may have gone to rest while a peer was unreachable, now that it is reachable.
fn meet_reached(core: &Rc<impl Host>) {
    let ways = core.reached();
    let before = core.groups().ways.replace(ways.clone());
    for node in ways.difference(&before).map(|peer| node_of(*peer)) {
        let concerned = core.partitions_that(|partition| partition.has_replica_on(node));
        concerned.iter().for_each(|partition| partition.on_core_reachable(core));
    }
}

/// Moves leaderships back to the preferred replicas, once per check interval.
pub async fn rebalance(core: Rc<impl Host>) {
    let every = Duration::from_secs(core.config().leader_imbalance_check_interval_seconds);
    while !core.stopping().is_set() {
        runtime::sleep(every).await;
        if !core.config().auto_leader_rebalance_enable || core.groups().leaving.get() {
            continue;
        }
        let now = clock::now();
        let prefer = |partition: &Rc<Partition>| {
            let heard = core.groups().heard(&*core, partition.group(), partition.replicas()[0]);
            if heard.is_some_and(|heard| heard.healthy && now.saturating_sub(heard.since) >= SETTLED) {
                partition.prefer(&core);
            }
        };
        in_turns(&core, prefer).await;
    }
}

/// Hands over this core's leaderships before the broker stops, where another replica can take over.
pub async fn hand_over(core: Rc<impl Host>) {
    core.groups().leaving.set(true);
    let until = clock::now() + HAND_OVER_MAX;
    let mut begun = BTreeMap::new();
    loop {
        let mut is_over = true;
        for partition in core.partitions_that(|partition| partition.is_shared() && partition.leads()) {
            if partition.hand_over(&core, None) {
                begun.insert(partition.group(), partition.term());
                is_over = false;
            }
        }
        if is_over || clock::now() >= until {
            return tell_of_hand_over(&*core, &begun);
        }
        runtime::sleep(Duration::from_millis(50)).await;
    }
}

/// Logs what has become of the leaderships, by group and term, that were to be handed over.
fn tell_of_hand_over(core: &impl Host, begun: &BTreeMap<GroupId, Term>) {
    let (mut left, mut lost) = (0, 0);
    for (group, term) in begun {
        match core.partition(*group).map(|partition| partition.succession(*term)) {
            Some(Succession::Leads) => left += 1,
            Some(Succession::SteppedDown) => lost += 1,
            Some(Succession::Open | Succession::Passed(_)) | None => {}
        }
    }
    let core = core.id().0;
    if left > 0 {
        tracing::warn!(core, left, "gave up handing over partition leaderships; others take them after an election");
    }
    if lost > 0 {
        tracing::warn!(
            core,
            lost,
            "lost partition leaderships while handing them over, because no majority of their replicas answered; \
             others take them after an election"
        );
    }
    if left + lost == 0 {
        tracing::info!(core, "handed over the partition leaderships that others can take");
    }
}
