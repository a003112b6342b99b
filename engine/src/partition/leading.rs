//! What the replicas of a partition do by the clock: elect, say who leads and who is in sync, rest, hand over.
//!
//! A group whose replicas are all at one, committed, rests: its timers stand still, and the beats of the brokers' cores stand for its
//! heartbeats (see [`crate::liveness`]). Whatever happens to it wakes it.

use super::Partition;
use crate::{
    core::{Core, Led},
    liveness,
};
use consensus::{
    group::{Member, Position},
    plane::node_of,
    wire::{PeerMessage, Rest},
};
use net::errors::ErrorCode;
use std::{rc::Rc, time::Duration};

/// Ticks without anything new before a group may rest.
const RESTS_AFTER: u32 = 5;
/// Ticks between the replicas of a partition that stand for election because its leader is lost, in the order of their preference.
const STAND_APART: u32 = 3;
/// How long a new leader takes its peers for in sync before they have shown what they have.
const SHOW_WITHIN: Duration = Duration::from_secs(1);
/// How long appends that meet a hand-over wait for its end: an election timeout, after which the leader gives it up.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);
/// Entries that a learner may lack and still be made a voter.
const NEARLY_ALL: u64 = 64;

impl Partition {
    /// What follows from who leads now.
    pub(super) fn follow_leader(&self, core: &Rc<Core>) {
        let (leads_in, leader) = self.replica.with(|raft| (raft.is_leader().then(|| raft.term()), raft.leader()));
        let led_in = self.led_term.replace(leads_in);
        if led_in.is_some() && led_in != leads_in {
            self.established.set(false);
            self.in_sync.borrow_mut().clear();
            self.excused_until.borrow_mut().clear();
            // Whether their entries last is not known here: who asks again is answered by the next leader.
            let mut state = self.state.borrow_mut();
            if self.handing_over_until.get().is_some() {
                self.held.borrow_mut().extend(state.take_waiting());
            }
            state.refuse_all(ErrorCode::NotLeaderOrFollower);
            state.gaps.clear();
            drop(state);
            core.coordinators.resign(self.group());
            self.wake_fetches();
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
            // It was only out of sight: its term's first entry is applied already.
            let epoch = self.state.borrow().epochs.last().map(|(epoch, _)| *epoch);
            if let Some(epoch) = epoch {
                self.is_led(core, epoch as u64);
            }
        }
    }

    /// The first entry of a leader's term is applied: it leads, with everything that was committed before.
    pub(super) fn is_led(&self, core: &Rc<Core>, term: u64) {
        let (leader, current, is_me) = self.replica.with(|raft| (raft.leader(), raft.term(), raft.is_leader()));
        let Some(node) = leader.filter(|_| current == term).map(node_of) else { return };
        if is_me {
            self.established.set(true);
            let peers = self.replica.with(|raft| raft.progress());
            let now = crate::clock::now();
            let until = now + SHOW_WITHIN;
            *self.excused_until.borrow_mut() = peers.iter().map(|peer| (peer.peer, until)).collect();
            *self.in_sync.borrow_mut() = self.now_in_sync(core, now);
        }
        self.told.set(Some((node, term as i32)));
        self.announce(core, Some(node), term as i32);
        self.end_hand_over();
    }

    /// A leader is known, or the hand-over has failed: appends that met it are answered.
    pub(super) fn end_hand_over(&self) {
        if self.handing_over_until.take().is_some() {
            self.held.take().into_iter().for_each(|held| held.keep(Err(ErrorCode::NotLeaderOrFollower)));
        }
    }

    fn announce(&self, core: &Rc<Core>, node: Option<i32>, epoch: i32) {
        let in_sync = self.in_sync.borrow().clone();
        core.announce_leader(Led { group: self.group(), name: self.name.clone(), node, epoch, in_sync });
    }

    /// Answers appends that are committed, and that `min.insync.replicas` have.
    pub(super) fn answer_committed(&self) {
        let wanted = self.config.borrow().min_insync_replicas;
        let upto = self.replica.with(|raft| {
            let applied = raft.applied();
            // What is committed is on a majority.
            if !raft.is_leader() || wanted <= raft.voters().len() / 2 + 1 {
                return applied;
            }
            let mut matched: Vec<u64> =
                raft.progress().iter().filter(|peer| peer.voter).map(|peer| peer.matched).collect();
            matched.sort_unstable_by(|a, b| b.cmp(a));
            matched.get(wanted - 1).map_or(0, |enough| applied.min(*enough))
        });
        let mut state = self.state.borrow_mut();
        while let Some(done) = state.waiting.pop_front_if(|waiting| waiting.index <= upto) {
            done.promise.keep(Ok(done.appended));
        }
    }

    /// The nodes in sync, as this leader sees them: in the order of the replicas.
    fn now_in_sync(&self, core: &Core, now: Duration) -> Vec<i32> {
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

    /// One unit of the group's timers has passed.
    pub fn tick(self: &Rc<Self>, core: &Rc<Core>, now: Duration) {
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
        core.ready_loop.wake(self.clone());
        let last = self.replica.with(|raft| raft.last_index());
        let (before, ticks) = self.ticked.get();
        let ticks = if last == before { ticks.saturating_add(1) } else { 0 };
        self.ticked.set((last, ticks));
        if ticks >= RESTS_AFTER && self.established.get() {
            self.rest_if_settled(core);
        }
    }

    /// Whether the broker's core is there, as this peer: on a new disk it is another, which becomes a voter once it has everything.
    fn is_there(&self, core: &Core, peer: u64) -> bool {
        core.groups.is_there(core, self.group(), node_of(peer)) && core.peers().has_peer(peer)
    }

    /// Who has everything that there was a tick ago has caught up, and may fall behind for a while; who was away has to catch up first.
    fn watch_peers(&self, core: &Rc<Core>, now: Duration) {
        let (before, _) = self.ticked.get();
        let until = now + Duration::from_millis(core.config.replica_lag_time_max_ms);
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
            // They are in the log, and may last; but not as safely as was asked for.
            for waiting in self.state.borrow_mut().waiting.drain(..) {
                waiting.promise.keep(Err(ErrorCode::NotEnoughReplicasAfterAppend));
            }
        }
    }

    fn rest_if_settled(&self, core: &Rc<Core>) {
        let Some((at, there)) = self.replica.with(|raft| raft.at_rest(|peer| self.is_there(core, peer))) else {
            return;
        };
        for peer in there {
            core.peers().send_on(
                net::peer::Lane::Data,
                peer,
                PeerMessage::Rest(Rest { group: self.group().0, at: Position { ..at } }),
            );
        }
        core.groups.rests(self.group());
    }

    /// The replica is open: whoever is to lead a new group stands for election at once; nobody else can lead a group of one.
    pub fn begin(self: &Rc<Self>, core: &Rc<Core>, is_new: bool) {
        let is_preferred = self.replicas.borrow()[0] == core.node();
        if !self.is_shared() || (is_new && is_preferred) {
            self.replica.with(|raft| raft.campaign());
        }
        self.stir(core);
    }

    /// A core of another broker is there, perhaps as another peer.
    pub fn meets(self: &Rc<Self>, core: &Rc<Core>) {
        #[cfg(test)]
        if core.groups.sleeps_on(self.group()) {
            return;
        }
        self.stir(core);
        core.ready_loop.wake(self.clone());
    }

    /// A core of another broker is lost, or has begun anew: if it led this partition, another has to.
    pub fn loses(self: &Rc<Self>, core: &Rc<Core>, node: i32) {
        let leader = self.replica.with(|raft| raft.leader()).map(node_of);
        if leader == Some(node) {
            self.replica.with(|raft| raft.lose_leader());
            let replicas = self.replicas.borrow();
            let others = replicas.iter().filter(|other| {
                **other == core.node() || (**other != node && core.groups.is_there(core, self.group(), **other))
            });
            let place = match liveness::is_well(core) {
                true => others.take_while(|other| **other != core.node()).count(),
                // Behind all others.
                false => replicas.len(),
            };
            self.stands_in.set(Some(place as u32 * STAND_APART));
        }
        self.stir(core);
        core.ready_loop.wake(self.clone());
    }

    /// Brings the group's members in line with the brokers as they are now: one that has lost its disk is another peer.
    fn reconcile_members(&self, core: &Rc<Core>) {
        let wanted: Vec<u64> = core.view(|view| {
            let peer_of = |node: &i32| view.broker(*node).map(|broker| broker.peer);
            self.replicas.borrow().iter().filter_map(peer_of).collect()
        });
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
                progress.iter().any(|known| known.peer == *peer && known.active && known.matched + NEARLY_ALL >= last)
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

    /// Whether the members are not those that the brokers are now.
    pub fn concerns(&self, node: i32) -> bool {
        self.replicas.borrow().contains(&node)
    }

    /// Hands the lead over to the peer that is closest to this leader, the preferred one first; `false` if there is none.
    pub fn hand_over(self: &Rc<Self>, core: &Rc<Core>, to: Option<i32>) -> bool {
        let replicas = self.replicas.borrow();
        let place = |node: i32| replicas.iter().position(|replica| *replica == node).unwrap_or(usize::MAX);
        let target = self.replica.with(|raft| {
            let (me, last) = (raft.peer(), raft.last_index());
            let is_able = |peer: u64| {
                let node = node_of(peer);
                peer != me && to.is_none_or(|to| to == node) && core.groups.can_lead(core, self.group(), node)
            };
            let able = raft.progress().into_iter().filter(|peer| peer.voter && is_able(peer.peer));
            able.min_by_key(|peer| (last.saturating_sub(peer.matched) > NEARLY_ALL, place(node_of(peer.peer))))
        });
        drop(replicas);
        let Some(target) = target else { return false };
        self.stir(core);
        self.replica.with(|raft| raft.hand_over(target.peer));
        self.handing_over_until.set(Some(crate::clock::now() + HAND_OVER_MAX));
        core.ready_loop.wake(self.clone());
        true
    }

    /// Hands over to whoever can lead better than this broker can now.
    pub fn give_away(self: &Rc<Self>, core: &Rc<Core>) {
        if self.leads() && !self.replica.with(|raft| raft.is_handing_over()) && self.hand_over(core, None) {
            tracing::info!(partition = %self.name, "giving a leadership away");
        }
    }

    /// Hands over to the preferred leader, if that is another that can lead and has everything that there was a tick ago. With more to
    /// replicate first, the partition would take no writes meanwhile.
    pub fn prefer(self: &Rc<Self>, core: &Rc<Core>) -> bool {
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
