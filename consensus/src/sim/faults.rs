//! The faults of a run, and healing at its end.

use super::{
    cluster::{Cluster, FAULTS_FOR, GROUPS, KEPT_ENTRIES, Power, Slot},
    net::NetFaults,
    node::META,
    oracle::Violation,
};
use crate::group::Member;
use std::time::Duration;
use types::{GroupId, RaftIndex};

impl Cluster {
    pub(super) fn fault(&mut self) -> Result<(), Violation> {
        self.fault_at = Some(self.clock.time() + Duration::from_millis(self.rng.u64(5..400)));
        let at = self.rng.usize(..self.slots.len());
        let up = self.slots[at].node().is_some();
        let other = self.rng.usize(..self.slots.len());
        match self.rng.u8(..24) {
            0..3 if up => self.crash(at),
            0..7 if !up => self.start(at)?,
            3 => self.cut(at, other),
            4 => self.net.borrow_mut().heal(),
            5 => self.pause(at),
            6 => {
                let (ahead, is_long) = self.a_while();
                self.slots[at].clock.jump(ahead);
                self.summary.clock_steps += 1;
                self.summary.long_clock_steps += u64::from(is_long);
            }
            7 => self.net.borrow_mut().faults = NetFaults::NONE,
            8 => self.net.borrow_mut().faults = self.worst_net,
            9..13 if up && !self.is_paused(at) => self.checkpoint(at),
            13..16 if self.slots.len() > 3 => self.change_members(),
            // A disk that is slow for a while, or full.
            16 if up => self.node(at).disk.sync_max = Duration::from_millis(self.rng.u64(100..3000)),
            17 if up => self.node(at).disk.sync_max = Duration::from_millis(self.rng.u64(1..30)),
            18 if up && self.rng.u8(..3) == 0 => self.node(at).disk.stuck = true,
            19 if self.rng.u8(..3) == 0 => {
                if let Some(at) = self.may_be_emptied.filter(|at| !self.is_paused(*at)) {
                    self.empty(at)?;
                }
            }
            20..23 => self.hand_over(),
            23 if self.rng.u8(..4) == 0 => self.unregister(),
            _ => {}
        }
        Ok(())
    }

    /// Cuts one direction between two nodes, or everything that a node receives, or everything that it sends.
    fn cut(&mut self, at: usize, other: usize) {
        let (node, nodes) = (at as i32 + 1, 1..=self.slots.len() as i32);
        let mut net = self.net.borrow_mut();
        match self.rng.u8(..4) {
            0 => nodes.for_each(|from| net.cut(from, node)),
            1 => nodes.for_each(|to| net.cut(node, to)),
            _ => net.cut(node, other as i32 + 1),
        }
    }

    /// A random time, and whether it is longer than any lease.
    fn a_while(&mut self) -> (Duration, bool) {
        let is_long = self.rng.u8(..4) == 0;
        let ms = if is_long { self.rng.u64(5_500..8_000) } else { self.rng.u64(1..3000) };
        (Duration::from_millis(ms), is_long)
    }

    /// Pauses a node, sometimes for longer than any lease. Requests of clients wait in its sockets meanwhile. One
    /// of them may be the first thing that the node sees when it resumes.
    fn pause(&mut self, at: usize) {
        let (time, is_long) = self.a_while();
        let slot = &mut self.slots[at];
        slot.paused_until = self.clock.time() + time;
        slot.asked_meanwhile = self.rng.bool();
        if slot.node().is_some() && slot.paused_until < FAULTS_FOR {
            self.summary.pauses += 1;
            self.summary.long_pauses += u64::from(is_long);
        }
    }

    /// The leader of the metadata group hands over, as if its broker were about to stop.
    fn hand_over(&mut self) {
        let leads = |slot: &Slot| slot.node().is_some_and(|node| node.group(META).is_leader());
        let leader = (0..self.slots.len()).find(|at| leads(&self.slots[*at]) && !self.is_paused(*at));
        if let Some(leader) = leader {
            self.summary.handovers += u64::from(self.node(leader).hand_over());
        }
    }

    fn checkpoint(&mut self, at: usize) {
        let group = GroupId(self.rng.u64(..GROUPS));
        if group == META {
            return self.node(at).snapshot();
        }
        let history = &self.histories[group.0 as usize];
        // Partitions send no snapshots yet, so entries that some node lacks must be kept.
        let everywhere = self.slots.iter().map(|slot| slot.disk().agrees_up_to(group, |index| history.term_of(index)));
        let forget = everywhere.min().unwrap_or(RaftIndex::ZERO).back(KEPT_ENTRIES);
        self.node(at).checkpoint(group, forget);
    }

    /// Asks a random partition's leader to change the voters.
    fn change_members(&mut self) {
        let group = GroupId(self.rng.u64(1..GROUPS));
        // A node whose disk may be emptied never becomes a new voter: it could not get the entries that it lacks.
        let stays = |at: &usize| Some(*at) != self.may_be_emptied;
        let mut wanted: Vec<u64> = (0..self.slots.len()).filter(stays).map(|at| self.slots[at].peer()).collect();
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

    /// Ends all faults. Every node runs afterwards.
    pub(super) fn heal(&mut self) -> Result<(), Violation> {
        self.fault_at = None;
        let mut net = self.net.borrow_mut();
        net.heal();
        net.faults = NetFaults::NONE;
        drop(net);
        for at in 0..self.slots.len() {
            self.slots[at].paused_until = Duration::ZERO;
            self.slots[at].asked_meanwhile = false;
            if self.slots[at].node().is_some_and(|node| node.disk.stuck) {
                self.crash(at);
            }
            if self.slots[at].node().is_none() {
                self.start(at)?;
            }
            self.node(at).disk.sync_max = Duration::from_millis(5);
        }
        Ok(())
    }

    pub(super) fn may_be_emptied(&self) -> Option<usize> {
        self.may_be_emptied
    }

    /// Gives the node an empty disk, which makes it another peer, and starts it again.
    pub(super) fn empty(&mut self, at: usize) -> Result<(), Violation> {
        if self.slots[at].node().is_some() {
            self.crash(at);
        }
        let slot = &mut self.slots[at];
        let Some(Power::Down(disk)) = &mut slot.power else { unreachable!("it has just crashed") };
        disk.empty();
        slot.disk_number += 1;
        self.summary.emptied += 1;
        self.start(at)
    }
}
