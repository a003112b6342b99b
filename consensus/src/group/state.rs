//! The state of a group: what is to be recorded of it, its members, its leader, and how far its log is.

use super::{
    Group,
    interface::{PeerProgress, Succession},
    members,
};
use bytes::Bytes;
use raft::StateRole;
use types::{HardState, RaftIndex, Term, TermRun};

impl Group {
    /// The hard state to record on its own, behind everything handed out so far.
    pub fn hard_state(&self) -> HardState {
        self.hard_state_with(self.raw.store().last())
    }

    /// The hard state to record together with the entry at `index`, behind the records of earlier entries. It also
    /// goes into a checkpoint once `index` is durable.
    ///
    /// Its commit index is never above `index`, so no crash between two records leaves a commit index above the
    /// log's end. The commit index must not get lost either. A peer that acknowledged an entry proposed after a
    /// membership change must not go back to the members before that change.
    pub fn hard_state_with(&self, index: RaftIndex) -> HardState {
        let raft = &self.raw.raft;
        HardState { term: Term(raft.term), vote: raft.vote, commit: self.commit().min(index) }
    }

    /// The members as of [`Group::applied`], encoded for a checkpoint of that index.
    pub fn conf_state(&self) -> Bytes {
        members::encode(&self.raw.raft.prs().conf().to_conf_state())
    }

    /// Like [`Group::conf_state`], with all earlier configurations of the retained log. A group that sends
    /// snapshots of its log's start needs these in its checkpoints.
    pub fn conf_states(&self) -> Bytes {
        members::encode_all(&self.configurations)
    }

    /// The members as of `index`, which the log retains, or which is right before the retained log.
    pub fn conf_state_at(&self, index: RaftIndex) -> Bytes {
        let after = self.configurations.partition_point(|(since, _)| *since <= index);
        members::encode(&self.configurations[after.saturating_sub(1)].1)
    }

    /// The voters, ascending. During a joint configuration these are the incoming voters.
    pub fn voters(&self) -> Vec<u64> {
        let mut voters = self.raw.raft.prs().conf().to_conf_state().take_voters();
        voters.sort_unstable();
        voters
    }

    /// The learners, ascending: they get the log but have no vote.
    pub fn learners(&self) -> Vec<u64> {
        let mut learners = self.raw.raft.prs().conf().to_conf_state().take_learners();
        learners.sort_unstable();
        learners
    }

    /// The progress of each member as this leader knows it, in no particular order.
    pub fn progress(&self) -> Vec<PeerProgress> {
        let prs = self.raw.raft.prs();
        let voters = prs.conf().voters().ids();
        let own = self.raw.raft.id;
        let progress = prs.iter().map(|(peer, progress)| PeerProgress {
            peer: *peer,
            voter: voters.contains(*peer),
            matched: RaftIndex::new(progress.matched),
            active: *peer == own || progress.recent_active,
        });
        progress.collect()
    }

    /// For debugging: where the log begins, and how this leader sees its peers.
    #[cfg(test)]
    pub(crate) fn describe_progress(&self) -> String {
        let first = self.raw.raft.raft_log.first_index();
        let prs = self.raw.raft.prs().iter().filter(|_| self.is_leader());
        let peers = prs.map(|(peer, p)| {
            let (next, full) = (p.next_idx, p.ins.full());
            format!(
                "{peer}: {:?} matched {} next {next} paused {} full {full} active {}",
                p.state, p.matched, p.paused, p.recent_active
            )
        });
        format!("first {first} {:?}", peers.collect::<Vec<_>>())
    }

    pub fn peer(&self) -> u64 {
        self.raw.raft.id
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The leader's id, if this replica knows one.
    pub fn leader(&self) -> Option<u64> {
        Some(self.raw.raft.leader_id).filter(|leader| *leader != 0)
    }

    /// The fate of the leadership that this replica had in `term`.
    pub fn succession(&self, term: Term) -> Succession {
        match self.leader() {
            _ if self.is_leader() => Succession::Leads,
            Some(peer) => Succession::Passed(peer),
            None if self.term() == term => Succession::SteppedDown,
            None => Succession::Open,
        }
    }

    /// This leader's term, once it has committed an entry in it. This is the partition's leader epoch.
    pub fn epoch(&self) -> Option<Term> {
        (self.is_leader() && self.raw.raft.commit_to_current_term()).then_some(self.term())
    }

    pub fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    pub fn commit(&self) -> RaftIndex {
        RaftIndex::new(self.raw.raft.raft_log.committed)
    }

    /// The last applied index. It includes a snapshot that has been handed out, although that may not be durable
    /// yet.
    pub fn applied(&self) -> RaftIndex {
        self.restoring.map_or(RaftIndex::new(self.raw.raft.raft_log.applied), |(_, index)| index)
    }

    /// The last index that is durable here.
    pub fn stable(&self) -> RaftIndex {
        RaftIndex::new(self.raw.raft.raft_log.persisted)
    }

    pub fn last_index(&self) -> RaftIndex {
        RaftIndex::new(self.raw.raft.raft_log.last_index())
    }

    /// Whether this replica's current term is durable. Until then, nobody has seen it lead in that term.
    pub fn has_durable_term(&self) -> bool {
        let (term, since) = self.term_since;
        term == self.term() && self.persisted >= since
    }

    /// The term of an index that the log retains.
    pub fn term_at(&self, index: RaftIndex) -> Option<Term> {
        self.raw.store().term_of(index)
    }

    /// The runs of terms over the retained log, ascending.
    pub fn terms(&self) -> &[TermRun] {
        self.raw.store().terms()
    }

    /// Panics if the group's own invariants do not hold.
    pub fn check(&self) {
        let log = &self.raw.raft.raft_log;
        assert!(log.applied <= log.committed, "applied {} is above committed {}", log.applied, log.committed);
        assert!(log.committed <= log.last_index(), "committed {} is above the end {}", log.committed, log.last_index());
        assert!(log.persisted <= log.last_index(), "persisted {} is above the end {}", log.persisted, log.last_index());
        assert!(log.applied <= log.persisted, "applied {} is above persisted {}", log.applied, log.persisted);
        self.raw.store().check();
    }
}
