//! The groups of a core's partitions, together: their timers, and which cores of other brokers are alive.
//! Lives on: every core, one each.
//!
//! Each core tells the others ten times a second that it is there. As long as it does, groups whose replicas are all at one need no
//! heartbeats of their own: they rest, and cost nothing. When a core falls silent, or comes back as another process, the groups that
//! it has a replica of wake; those that it led elect another leader, their replicas standing one after the other.

mod incoming;

pub use incoming::GroupHost;

use crate::{
    clock,
    cluster::meta::{self, META_CORE},
    core::{Core, core_of},
    partition::Partition,
    rt,
};
use bytes::Bytes;
use consensus::{
    group::{Message, Unfit},
    plane::node_of,
    wire::{Beat, PeerMessage},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};
use wal::record::GroupId;

/// One unit of the groups' timers, and the time between beats.
pub const TICK: Duration = Duration::from_millis(100);
/// A core that is not heard of for so long is lost; for less, if there is no way to its broker either.
const SILENCE_MAX: Duration = Duration::from_millis(800);
const SILENCE_WITHOUT_WAY: Duration = Duration::from_millis(300);
/// After a pause of this core that was so long, silence says nothing about others.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a broker that stops waits for others to take over its leaderships.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);
/// While the disk is full, what is led here all the same is offered to others so often.
const GIVE_AWAY_EVERY: Duration = Duration::from_secs(3);
/// A broker that is back leads its partitions again once it has been there for so long.
const SETTLED: Duration = Duration::from_secs(3);
/// Messages that are dropped since no replica can have sent them are told so often; all are counted.
const REFUSAL_TOLD_EVERY: Duration = Duration::from_secs(10);
/// Messages kept for groups that are not known here yet.
const EARLY_MAX: usize = 4096;
/// Bytes of one of them at most.
const EARLY_BYTES_MAX: usize = 4096;

/// What is known of one core of another broker.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Duration,
    since: Duration,
    incarnation: u64,
    healthy: bool,
    there: bool,
}

/// A message for a group that this broker has not heard of.
type Early = (GroupId, Message, Vec<(usize, Bytes)>);

#[derive(Default)]
pub struct Groups {
    /// Those whose timers run.
    awake: RefCell<BTreeSet<GroupId>>,
    heard: RefCell<BTreeMap<(i32, u16), Heard>>,
    early: RefCell<VecDeque<Early>>,
    /// The peers to which there was a way a moment ago.
    ways: RefCell<BTreeSet<u64>>,
    /// Leaderships are being handed over: this broker takes none.
    leaving: Cell<bool>,
    /// When leaderships are offered to others the next time, should the disk be full then.
    give_away_at: Cell<Duration>,
    ran_for: Cell<Duration>,
    /// When a message that can't be one was told of the last time, by whether it may mean a loss.
    refusal_told: [Cell<Option<Duration>>; 2],
}

impl Groups {
    /// How long this core has run, in ticks. Unlike by [`clock::now`], a pause takes no time.
    pub fn ran_for(&self) -> Duration {
        self.ran_for.get()
    }

    pub(crate) fn stirs(&self, group: GroupId) {
        self.awake.borrow_mut().insert(group);
    }

    pub(crate) fn rests(&self, group: GroupId) {
        self.awake.borrow_mut().remove(&group);
    }

    /// A planted bug: a group at rest does not hear of brokers that come and go, neither from them nor by the metadata.
    #[cfg(test)]
    pub(crate) fn sleeps_on(&self, group: GroupId) -> bool {
        crate::sim::planted(crate::sim::Bug::QuietGroupSleepsOn) && !self.awake.borrow().contains(&group)
    }

    /// How many groups' timers run.
    pub fn awake(&self) -> usize {
        self.awake.borrow().len()
    }

    fn heard(&self, core: &Core, group: GroupId, node: i32) -> Option<Heard> {
        let cores = core.view(|view| view.broker(node).map(|broker| broker.cores)).unwrap_or(1).max(1);
        let there = core_of(group, usize::from(cores)).0 as u16;
        self.heard.borrow().get(&(node, there)).copied().filter(|heard| heard.there)
    }

    /// Whether the core of a broker that has a group's replica is alive.
    pub fn is_there(&self, core: &Core, group: GroupId, node: i32) -> bool {
        self.heard(core, group, node).is_some()
    }

    /// Whether it may be asked to lead.
    pub fn can_lead(&self, core: &Core, group: GroupId, node: i32) -> bool {
        self.heard(core, group, node).is_some_and(|heard| heard.healthy)
    }

    /// Whether some core of a broker that has been heard of is silent now, or says that it is not well.
    pub fn is_ill(&self, node: i32) -> bool {
        let heard = self.heard.borrow();
        let mut of_node = heard.iter().filter(|((of, _), _)| *of == node);
        of_node.any(|(_, heard)| !heard.there || !heard.healthy)
    }

    /// Messages that came before their group was known.
    pub fn take_early(&self, group: GroupId) -> Vec<(Message, Vec<(usize, Bytes)>)> {
        let mut early = self.early.borrow_mut();
        let (mine, others) = early.drain(..).partition(|(of, ..)| *of == group);
        *early = others;
        drop(early);
        let mine: VecDeque<Early> = mine;
        mine.into_iter().map(|(_, message, payloads)| (message, payloads)).collect()
    }

    /// Large ones come again soon enough.
    fn keep_early(&self, group: GroupId, message: Message, payloads: Vec<(usize, Bytes)>) {
        if payloads.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > EARLY_BYTES_MAX {
            return;
        }
        let mut early = self.early.borrow_mut();
        if early.len() >= EARLY_MAX {
            early.pop_front();
        }
        early.push_back((group, message, payloads));
    }

    /// A message was dropped that no replica of the group can have sent.
    pub fn refused(&self, core: &Core, group: GroupId, from: u64, unfit: &Unfit) {
        core.metrics.raft_messages_refused_total.add(1);
        let is_loss = unfit.is_possible_loss();
        core.metrics.raft_possible_losses_total.add(u64::from(is_loss));
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

    /// A core of another broker is alive.
    fn note(&self, core: &Rc<Core>, node: i32, beat: Beat) {
        let now = clock::now();
        let before = self.heard.borrow().get(&(node, beat.core)).copied();
        let is_same = before.is_some_and(|before| before.incarnation == beat.incarnation && before.there);
        let since = before.filter(|_| is_same).map_or(now, |before| before.since);
        let heard = Heard { at: now, since, incarnation: beat.incarnation, healthy: beat.healthy, there: true };
        self.heard.borrow_mut().insert((node, beat.core), heard);
        if !is_same {
            // It may have come back with fewer cores.
            self.heard.borrow_mut().retain(|(of, core), _| *of != node || *core < beat.cores);
            let concerned = concerned(core, node, beat.core, beat.cores);
            tracing::info!(node, core = beat.core, partitions = concerned.len(), "a core of another broker is there");
            concerned.iter().for_each(|partition| match before {
                Some(before) if before.incarnation != beat.incarnation => partition.loses(core, node),
                _ => partition.meets(core),
            });
        }
    }
}

/// The partitions that a core of another broker has a replica of.
fn concerned(core: &Core, node: i32, there: u16, cores: u16) -> Vec<Rc<Partition>> {
    core.partitions_that(|partition| {
        partition.concerns(node) && core_of(partition.group(), usize::from(cores.max(1))).0 == usize::from(there)
    })
}

/// Runs the timers of this core's groups, and tells others that it is there, until the broker stops.
pub async fn run(core: Rc<Core>) {
    let mut last = clock::now();
    while !core.lifecycle.peers_ended.is_set() {
        rt::sleep(TICK).await;
        let now = clock::now();
        core.groups.ran_for.set(core.groups.ran_for() + TICK);
        let beat = Beat {
            incarnation: core.identity.incarnation,
            core: core.id().0 as u16,
            cores: core.cores() as u16,
            // A broker that hears nothing of the metadata's leader does not learn of new partitions.
            healthy: is_well(&core) && core.controller().is_some(),
        };
        if core.has_failed() {
            return core.peers().send_to_all(&PeerMessage::Beat(beat));
        }
        if now - last > PAUSE {
            core.groups.heard.borrow_mut().values_mut().for_each(|heard| heard.at = heard.at.max(now));
        }
        last = now;
        core.peers().send_to_all(&PeerMessage::Beat(beat));
        mark_silent(&core, now);
        meet_reached(&core);
        if core.has_full_disk() && now >= core.groups.give_away_at.get() {
            core.groups.give_away_at.set(now + GIVE_AWAY_EVERY);
            give_away(&core);
        }
        let awake: Vec<GroupId> = core.groups.awake.borrow().iter().copied().collect();
        for group in awake {
            match core.partition(group) {
                Some(partition) => partition.tick(&core, now),
                None => core.groups.rests(group),
            }
        }
        core.metrics.replication_groups_awake.set(core.groups.awake() as u64);
    }
}

/// Whether this core may lead as well as any other.
pub fn is_well(core: &Core) -> bool {
    !core.has_failed() && !core.groups.leaving.get() && !core.has_full_disk()
}

/// The disk is full: others lead what this core led, as long as there are some that are well. With its ring it goes on as a follower.
fn give_away(core: &Rc<Core>) {
    if core.id() == META_CORE {
        meta::give_away(core);
    }
    for partition in core.partitions_that(Partition::is_shared) {
        partition.give_away(core);
    }
}

fn mark_silent(core: &Rc<Core>, now: Duration) {
    let mut lost = Vec::new();
    for ((node, of), heard) in core.groups.heard.borrow_mut().iter_mut().filter(|(_, heard)| heard.there) {
        let most = if core.peers().is_there(*node) { SILENCE_MAX } else { SILENCE_WITHOUT_WAY };
        if now.saturating_sub(heard.at) > most {
            heard.there = false;
            lost.push((*node, *of));
        }
    }
    for (node, of) in lost {
        let cores = core.view(|view| view.broker(node).map(|broker| broker.cores)).unwrap_or(1);
        let concerned = concerned(core, node, of, cores);
        tracing::info!(node, core = of, partitions = concerned.len(), "a core of another broker is silent");
        #[cfg(test)]
        let concerned: Vec<_> =
            concerned.into_iter().filter(|partition| !core.groups.sleeps_on(partition.group())).collect();
        concerned.iter().for_each(|partition| partition.loses(core, node));
    }
}

/// Groups that came to rest without a peer to which there was no way go on, now that there is one.
fn meet_reached(core: &Rc<Core>) {
    let ways = core.peers().reached();
    let before = core.groups.ways.replace(ways.clone());
    for node in ways.difference(&before).map(|peer| node_of(*peer)) {
        let concerned = core.partitions_that(|partition| partition.concerns(node));
        concerned.iter().for_each(|partition| partition.meets(core));
    }
}

/// Brings leaderships back to the preferred replicas, every now and then.
pub async fn rebalance(core: Rc<Core>) {
    let every = Duration::from_secs(core.config.leader_imbalance_check_interval_seconds);
    while !core.is_stopping() {
        rt::sleep(every).await;
        if !core.config.auto_leader_rebalance_enable || core.groups.leaving.get() {
            continue;
        }
        let now = clock::now();
        let prefer = |partition: &Rc<Partition>| {
            let heard = core.groups.heard(&core, partition.group(), partition.replicas()[0]);
            if heard.is_some_and(|heard| heard.healthy && now.saturating_sub(heard.since) >= SETTLED) {
                partition.prefer(&core);
            }
        };
        core.for_partitions_in_turns(prefer).await;
    }
}

/// Hands over what this core leads, before the broker stops, as far as there is somebody who can.
pub async fn hand_over(core: Rc<Core>) {
    core.groups.leaving.set(true);
    let until = clock::now() + HAND_OVER_MAX;
    loop {
        let led = core.partitions_that(|partition| partition.is_shared() && partition.leads());
        let mut left = 0;
        for partition in led {
            left += usize::from(partition.hand_over(&core, None));
        }
        if left == 0 || clock::now() >= until {
            tracing::info!(core = core.id().0, left, "leaderships of partitions are handed over");
            return;
        }
        rt::sleep(Duration::from_millis(50)).await;
    }
}
