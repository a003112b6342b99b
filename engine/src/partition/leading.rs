//! The timed work of a partition's replicas: elections, announcing the leader and the in-sync replicas, rest,
//! handover.
//!
//! A group rests once a majority of its voters is reachable, every reachable replica has the whole log, and all of it
//! is committed. Its timers then stand still, and the heartbeats between the brokers' cores replace its own (see
//! [`crate::liveness`]). Any event wakes the group.

use super::{Led, Partition, errors::PartitionError, host::Host};
use consensus::{
    group::{Member, Succession},
    plane::node_of,
    wire::{PeerMessage, Rest},
};
use std::{rc::Rc, time::Duration};
use types::{LeaderEpoch, Position, RaftIndex, Term};

/// Ticks without a new entry before a group may rest.
const RESTS_AFTER: u32 = 5;
/// When a leader is lost, its replicas stand for election one after another, in the order of preference, this many
/// ticks apart.
const STAND_APART: u32 = 3;
/// How long a new leader counts its peers as in sync before they have reported their position.
const SHOW_WITHIN: Duration = Duration::from_secs(1);
/// How long appends wait at most for the end of a handover. It is an election timeout, after which the leader aborts
/// it.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);
/// A learner that lacks at most this many entries may become a voter. A handover prefers peers within the same
/// bound.
const NEARLY_ALL: u64 = 64;

impl Partition {
    /// Acts on a change of leader.
    pub(super) fn follow_leader(&self, core: &Rc<impl Host>) {
        let (leads_in, leader) = self.replica.with(|raft| (raft.is_leader().then(|| raft.term()), raft.leader()));
        let led_in = self.led_term.replace(leads_in);
        if led_in.is_some() && led_in != leads_in {
            self.established.set(false);
            self.in_sync.borrow_mut().clear();
            self.excused_until.borrow_mut().clear();
            // This replica can't know whether those entries survive. The client retries, and the next leader
            // answers.
            let mut state = self.state.borrow_mut();
            if self.handing_over_until.get().is_some() {
                self.held.borrow_mut().extend(state.take_waiting());
            }
            state.refuse_all(PartitionError::NotLeader);
            state.gaps.clear();
            drop(state);
            core.resigned(self.group());
            self.end_pacing(core);
            self.wake_fetches();
            self.count_health(core);
        }
        if leader.is_some() {
            self.stands_in.set(None);
        }
        if let Some((node, epoch)) = self.told.get()
            && leader.map(node_of) != Some(node)
        {
            self.told.set(None);
            self.announce(core, None, epoch);
        }
        if self.told.get().is_none() && leader.is_some() {
            // The leader was only out of sight: the first entry of its term is applied already.
            let epoch = self.state.borrow().epochs.last().map(|(epoch, _)| *epoch);
            if let Some(epoch) = epoch {
                self.is_led(core, epoch.term());
            }
        }
    }

    /// The first entry of a leader's term is applied. The leader now has everything that was committed before, and
    /// may serve.
    pub(super) fn is_led(&self, core: &Rc<impl Host>, term: Term) {
        let (leader, current, is_me) = self.replica.with(|raft| (raft.leader(), raft.term(), raft.is_leader()));
        let Some(node) = leader.filter(|_| current == term).map(node_of) else { return };
        if is_me {
            self.established.set(true);
            let peers = self.replica.with(|raft| raft.progress());
            let now = runtime::clock::now();
            let until = now + SHOW_WITHIN;
            *self.excused_until.borrow_mut() = peers.iter().map(|peer| (peer.peer, until)).collect();
            *self.in_sync.borrow_mut() = self.now_in_sync(core, now);
        }
        self.told.set(Some((node, term.leader_epoch())));
        self.announce(core, Some(node), term.leader_epoch());
        self.end_hand_over();
    }

    /// A leader is known, or the hand-over has failed: appends that met it are answered.
    pub(super) fn end_hand_over(&self) {
        if self.handing_over_until.take().is_some() {
            self.held.take().into_iter().for_each(|held| held.keep(Err(PartitionError::NotLeader)));
        }
    }

    fn announce(&self, core: &Rc<impl Host>, node: Option<i32>, epoch: LeaderEpoch) {
        self.count_health(core);
        let in_sync = self.in_sync.borrow().clone();
        core.announce_leader(Led { group: self.group(), name: self.name.clone(), node, epoch, in_sync });
    }

    /// Answers the appends that are committed and stored by `min.insync.replicas` replicas.
    pub(super) fn answer_committed(&self) {
        let wanted = self.config.borrow().min_insync_replicas;
        let upto = self.replica.with(|raft| {
            let applied = raft.applied();
            // A committed entry is on a majority.
            if !raft.is_leader() || wanted <= raft.voters().len() / 2 + 1 {
                return applied;
            }
            let mut matched: Vec<RaftIndex> =
                raft.progress().iter().filter(|peer| peer.voter).map(|peer| peer.matched).collect();
            matched.sort_unstable_by(|a, b| b.cmp(a));
            matched.get(wanted - 1).map_or(RaftIndex::ZERO, |enough| applied.min(*enough))
        });
        let mut state = self.state.borrow_mut();
        while let Some(done) = state.waiting.pop_front_if(|waiting| waiting.index <= upto) {
            done.promise.keep(Ok(done.appended));
        }
    }

    /// The nodes that this leader sees in sync now, in the order of the replicas.
    fn now_in_sync(&self, core: &Rc<impl Host>, now: Duration) -> Vec<i32> {
        let excused_until = self.excused_until.borrow();
        let peers = self.replica.with(|raft| (raft.progress(), raft.commit(), raft.peer()));
        let (progress, commit, me) = peers;
        let is_in_sync = |node: &i32| {
            progress.iter().any(|peer| {
                let is_excused = || excused_until.get(&peer.peer).is_some_and(|until| now < *until);
                let is_close = || peer.matched >= commit || is_excused();
                let is_there = || self.is_there(core, peer.peer);
                node_of(peer.peer) == *node && peer.voter && (peer.peer == me || (is_there() && is_close()))
            })
        };
        self.replicas.borrow().iter().copied().filter(is_in_sync).collect()
    }

    /// The nodes in sync, if this replica leads.
    pub fn in_sync(&self) -> Option<Vec<i32>> {
        self.leads().then(|| self.in_sync.borrow().clone())
    }

    /// One tick of the group's timers.
    pub fn tick(self: &Rc<Self>, core: &Rc<impl Host>, now: Duration) {
        match self.stands_in.get() {
            Some(0) => {
                self.stands_in.set(None);
                self.replica.with(|raft| raft.campaign());
            }
            Some(ticks) => self.stands_in.set(Some(ticks - 1)),
            None => self.replica.with(|raft| raft.tick()),
        }
        if self.leads() {
            self.watch_peers(core, now);
            self.reconcile_members(core);
        }
        if self
            .handing_over_until
            .get()
            .is_some_and(|until| now >= until || (self.leads() && !self.replica.with(|raft| raft.is_handing_over())))
        {
            self.end_hand_over();
        }
        self.catch_up.tick();
        core.ready_loop().wake(self.clone());
        let last = self.replica.with(|raft| raft.last_index());
        let (before, ticks) = self.ticked.get();
        let ticks = if last == before { ticks.saturating_add(1) } else { 0 };
        self.ticked.set((last, ticks));
        if ticks >= RESTS_AFTER && self.established.get() {
            self.rest_if_settled(core);
        }
    }

    /// Whether the broker's core is reachable as this peer. A broker on a new disk is a new peer, which becomes a
    /// voter once caught up.
    pub(super) fn is_there(&self, core: &Rc<impl Host>, peer: u64) -> bool {
        core.is_there(self.group(), node_of(peer)) && core.has_peer(peer)
    }

    /// A peer that has the log up to the previous tick is caught up, and stays in sync for
    /// `replica.lag.time.max.ms` even if it lags. A peer that was away must catch up first.
    fn watch_peers(&self, core: &Rc<impl Host>, now: Duration) {
        let (before, _) = self.ticked.get();
        let until = now + Duration::from_millis(core.config().replica_lag_time_max_ms);
        let mut excused_until = self.excused_until.borrow_mut();
        for peer in self.replica.with(|raft| raft.progress()) {
            if !self.is_there(core, peer.peer) {
                excused_until.remove(&peer.peer);
            } else if peer.matched >= before {
                excused_until.insert(peer.peer, until);
            }
        }
        drop(excused_until);
        let in_sync = self.now_in_sync(core, now);
        if *self.in_sync.borrow() == in_sync {
            return;
        }
        let shrunk = in_sync.len() < self.in_sync.borrow().len();
        tracing::debug!(partition = %self.name, ?in_sync, "the replicas in sync have changed");
        let too_few = in_sync.len() < self.config.borrow().min_insync_replicas;
        *self.in_sync.borrow_mut() = in_sync;
        if let Some((node, epoch)) = self.told.get() {
            self.announce(core, Some(node), epoch);
        }
        if shrunk && too_few {
            // These batches are in the log and may survive, but with fewer replicas than `min.insync.replicas` asks
            // for.
            for waiting in self.state.borrow_mut().waiting.drain(..) {
                waiting.promise.keep(Err(PartitionError::TooFewInSyncSince));
            }
        }
    }

    fn rest_if_settled(&self, core: &Rc<impl Host>) {
        let Some((at, there)) = self.replica.with(|raft| raft.at_rest(|peer| self.is_there(core, peer))) else {
            return;
        };
        for peer in there {
            core.send_on(
                net::peer::Lane::Data,
                peer,
                PeerMessage::Rest(Rest { group: self.group(), at: Position { ..at } }),
            );
        }
        core.stop_timers(self.group());
    }

    /// The replica is open. The preferred leader of a new group stands for election at once. A group of one has no
    /// other candidate.
    pub fn begin(self: &Rc<Self>, core: &Rc<impl Host>, is_new: bool) {
        let is_preferred = self.replicas.borrow()[0] == core.node();
        self.count_health(core);
        if !self.is_shared() || (is_new && is_preferred) {
            self.replica.with(|raft| raft.campaign());
        }
        self.wake_timers(core);
    }

    /// A core of another broker is reachable, perhaps as a new peer.
    pub fn on_core_reachable(self: &Rc<Self>, core: &Rc<impl Host>) {
        if core.sleeps_on(self.group()) {
            return;
        }
        self.wake_timers(core);
        core.ready_loop().wake(self.clone());
    }

    /// A core of another broker is lost or has restarted. If it led this partition, another replica must stand for
    /// election.
    pub fn on_core_lost(self: &Rc<Self>, core: &Rc<impl Host>, node: i32) {
        let leader = self.replica.with(|raft| raft.leader()).map(node_of);
        if leader == Some(node) {
            self.replica.with(|raft| raft.lose_leader());
            let replicas = self.replicas.borrow();
            let others = replicas
                .iter()
                .filter(|other| **other == core.node() || (**other != node && core.is_there(self.group(), **other)));
            let place = match core.is_well() {
                true => others.take_while(|other| **other != core.node()).count(),
                // Last, after all other replicas.
                false => replicas.len(),
            };
            self.stands_in.set(Some(place as u32 * STAND_APART));
        }
        self.wake_timers(core);
        core.ready_loop().wake(self.clone());
    }

    /// Updates the group's members to match the brokers' current peers: a broker that lost its disk is a new peer.
    fn reconcile_members(&self, core: &Rc<impl Host>) {
        let wanted: Vec<u64> = self.replicas.borrow().iter().filter_map(|node| core.peer_of(*node)).collect();
        let changes = self.replica.with(|raft| {
            let (voters, learners, last) = (raft.voters(), raft.learners(), raft.last_index());
            let unwanted = learners.iter().filter(|learner| !wanted.contains(learner)).copied();
            if voters.len() == wanted.len() && wanted.iter().all(|peer| voters.contains(peer)) {
                return unwanted.map(Member::Removed).collect();
            }
            let is_new = |peer: &u64| !voters.contains(peer) && !learners.contains(peer);
            if let Some(new) = wanted.iter().copied().find(is_new) {
                return vec![Member::Learner(new)];
            }
            let progress = raft.progress();
            let has_nearly_all = |peer: &u64| {
                progress
                    .iter()
                    .any(|known| known.peer == *peer && known.active && known.matched.plus(NEARLY_ALL) >= last)
            };
            let Some(new) = wanted.iter().copied().find(|peer| learners.contains(peer) && has_nearly_all(peer)) else {
                return Vec::new();
            };
            let gone = voters.iter().filter(|voter| node_of(**voter) == node_of(new)).copied();
            std::iter::once(Member::Voter(new)).chain(gone.map(Member::Removed)).collect()
        });
        if !changes.is_empty() && self.replica.with(|raft| raft.propose_members(&changes)).is_ok() {
            tracing::info!(partition = %self.name, ?changes, "changing the members of a partition's group");
        }
    }

    /// Whether this node holds a replica of the partition.
    pub fn has_replica_on(&self, node: i32) -> bool {
        self.replicas.borrow().contains(&node)
    }

    /// Hands leadership to a voter that can lead, or only to `to` if that is given. Prefers peers that lack at most
    /// `NEARLY_ALL` entries, then the order of the replicas. Returns `false` if there is no candidate.
    pub fn hand_over(self: &Rc<Self>, core: &Rc<impl Host>, to: Option<i32>) -> bool {
        let replicas = self.replicas.borrow();
        let place = |node: i32| replicas.iter().position(|replica| *replica == node).unwrap_or(usize::MAX);
        let target = self.replica.with(|raft| {
            let (me, last) = (raft.peer(), raft.last_index());
            let is_able = |peer: u64| {
                let node = node_of(peer);
                peer != me && to.is_none_or(|to| to == node) && core.can_lead(self.group(), node)
            };
            let able = raft.progress().into_iter().filter(|peer| peer.voter && is_able(peer.peer));
            able.min_by_key(|peer| (peer.matched.plus(NEARLY_ALL) < last, place(node_of(peer.peer))))
        });
        drop(replicas);
        let Some(target) = target else { return false };
        self.wake_timers(core);
        self.replica.with(|raft| raft.hand_over(target.peer));
        self.handing_over_until.set(Some(runtime::clock::now() + HAND_OVER_MAX));
        core.ready_loop().wake(self.clone());
        true
    }

    /// The current Raft term.
    pub fn term(&self) -> Term {
        self.replica.with(|raft| raft.term())
    }

    /// The fate of the leadership that this replica had in `term`.
    pub fn succession(&self, term: Term) -> Succession {
        self.replica.with(|raft| raft.succession(term))
    }

    /// Hands leadership to a broker that is better able to lead than this one is now.
    pub fn give_away(self: &Rc<Self>, core: &Rc<impl Host>) {
        if self.leads() && !self.replica.with(|raft| raft.is_handing_over()) && self.hand_over(core, None) {
            tracing::info!(partition = %self.name, "handing over leadership of a partition");
        }
    }

    /// Hands leadership to the preferred leader, if that is another node, in sync and able to lead. It must have
    /// everything that the log had a tick ago: the partition takes no writes until it has the rest.
    pub fn prefer(self: &Rc<Self>, core: &Rc<impl Host>) -> bool {
        let preferred = self.replicas.borrow()[0];
        let is_in_sync = || self.in_sync.borrow().contains(&preferred);
        let (before, _) = self.ticked.get();
        let is_close = || {
            let progress = self.replica.with(|raft| raft.progress());
            progress.iter().any(|peer| node_of(peer.peer) == preferred && peer.matched >= before)
        };
        let is_ready = self.leads() && preferred != core.node() && is_in_sync() && is_close();
        is_ready && !self.replica.with(|raft| raft.is_handing_over()) && self.hand_over(core, Some(preferred))
    }
}
