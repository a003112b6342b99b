//! The leader's check that brokers have memory for the partitions that writes create. Only the leader sees all of
//! these writes, in the order of the log.
//!
//! A broker that gets a request checks its view first, to place replicas where there is room and to reject early.
//! Requests that arrive at the same time, on any broker, can all pass that check. The leader therefore counts
//! again, for each request, what the log already creates. It logs a rejected request as rejected, so that every
//! slice gives the same answer.

use super::Plane;
use crate::metadata::{Placed, Request};

impl Plane {
    /// Rejects requests of the next entry that create partitions for which a broker has no memory. It does nothing
    /// until every registered broker reports how many replicas it has memory for: only then can every broker decode
    /// the rejection.
    pub(super) fn refuse_without_room(&self, requests: &mut [Request]) {
        let creates = |request: &mut Request| {
            // Only this function may set `no_room`.
            request.no_room = None;
            request.command.new_replicas().is_some()
        };
        let any = requests.iter_mut().map(creates).fold(false, |any, creates| any | creates);
        if !any || self.cluster.brokers().any(|broker| broker.replicas_max == 0) {
            return;
        }
        let mut placed = self.cluster.placed().clone();
        placed.join(&self.flow.placed());
        for request in requests {
            let Some((name, replicas)) = request.command.new_replicas() else { continue };
            let more = Placed::of(&*replicas);
            match placed.check_room(self.cluster.brokers(), &more) {
                Err(no_room) if !(self.config.always_made)(name) => {
                    // Nobody needs the replicas any more, and without them the entry is smaller.
                    replicas.clear();
                    request.no_room = Some(no_room);
                }
                _ => placed.join(&more),
            }
        }
    }
}
