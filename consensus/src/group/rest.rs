//! Idle groups, which need no timers until something happens.

use super::Group;
use types::{Position, RaftIndex};

impl Group {
    /// Whether this leader is idle: every reachable peer has the whole log, and a majority of the voters is
    /// reachable. An idle group needs no timers until something happens. Returns the last position and the
    /// reachable peers, without this one.
    pub fn at_rest(&self, is_there: impl Fn(u64) -> bool) -> Option<(Position, Vec<u64>)> {
        let raft = &self.raw.raft;
        let last = self.last_index();
        let is_settled = self.epoch().is_some()
            && !self.is_handing_over()
            && !self.raw.has_ready()
            && !raft.has_pending_conf()
            && [self.commit(), self.stable(), self.applied()] == [last; 3];
        if !is_settled || !raft.prs().conf().to_conf_state().voters_outgoing.is_empty() {
            return None;
        }
        let voters = self.voters();
        let (mut there, mut voters_there) = (Vec::new(), 0);
        for (peer, progress) in raft.prs().iter() {
            let is_me = *peer == raft.id;
            if is_me || is_there(*peer) {
                if !is_me && RaftIndex::new(progress.matched) != last {
                    return None;
                }
                voters_there += usize::from(voters.binary_search(peer).is_ok());
                if !is_me {
                    there.push(*peer);
                }
            }
        }
        (voters_there > voters.len() / 2).then_some((Position { index: last, term: self.term() }, there))
    }

    /// Whether this follower's log is durable and committed up to exactly the position that its idle leader
    /// announced.
    pub fn rests_at(&self, at: Position) -> bool {
        !self.is_leader()
            && self.leader().is_some()
            && self.term() == at.term
            && [self.last_index(), self.commit(), self.stable()] == [at.index; 3]
            && !self.raw.has_ready()
    }
}
