//! Whether brokers have memory for the partitions that writes create: the leader alone sees all of them, in the order
//! of the log.
//!
//! A broker that is asked looks at its view first, to place replicas where there is room and to refuse early. Requests
//! that come at the same time, on any broker, all pass that look; so the leader counts again what the log has before
//! each. What it refuses is in the log as refused, so that every slice says the same.

use super::Plane;
use crate::metadata::{Placed, Request};

impl Plane {
    /// Refuses those requests of the next entry for whose partitions a broker has no memory. Once every registered
    /// broker says how much it has: then each of them can read the refusal, too.
    pub(super) fn refuse_without_room(&self, requests: &mut [Request]) {
        let creates = |request: &mut Request| {
            // Only this is to say so.
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
                    // Nobody needs them any more, and the log has no room to give away.
                    replicas.clear();
                    request.no_room = Some(no_room);
                }
                _ => placed.join(&more),
            }
        }
    }
}
