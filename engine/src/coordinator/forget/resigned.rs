//! The remains of a coordinator that has resigned: requests to answer, and memory to free. Both are done in turns. A
//! coordinator may have 100,000 groups, and one group as many offsets.

use net::{StrBytes, errors::ErrorCode};

use super::SEARCH_TURN_ENTRIES;
use crate::coordinator::{
    Coordinator,
    env::{Now, Output, Then, Tombstones},
    group::{Group, Member},
};

/// The rest of a coordinator that has resigned.
pub struct Resigned<T>(Coordinator<T>);

impl<T> Coordinator<T> {
    /// The partition is no longer led here. [`Resigned::turn`] answers all waiting requests NOT_COORDINATOR, so that
    /// clients look for the new coordinator.
    pub fn resign(self) -> Resigned<T> {
        Resigned(self)
    }

    fn refuse_member(&mut self, id: StrBytes, member: Member<T>) {
        let mut env = self.env(Now::default());
        if let Some(joining) = member.joining {
            env.refuse_join(joining, id, ErrorCode::NotCoordinator);
        }
        if let Some(syncing) = member.syncing {
            env.refuse_sync(syncing, ErrorCode::NotCoordinator);
        }
    }
}

impl<T> Resigned<T> {
    /// Whether nothing is left to answer or to free.
    pub fn is_empty(&self) -> bool {
        self.0.groups.is_empty() && self.0.appends.open.is_empty() && self.0.timers.len() == 0
    }

    /// Frees [`SEARCH_TURN_ENTRIES`] groups, members, offsets and timers, or the rest, and answers the requests among
    /// them.
    pub fn turn(&mut self) -> Vec<Output<T>> {
        let mut entries = 0;
        while entries < SEARCH_TURN_ENTRIES && !self.is_empty() {
            entries += self.free_one();
        }
        std::mem::take(&mut self.0.out)
    }

    /// Frees one entry of a group; after the last group, an append in flight with all its entries; then a timer.
    /// Returns the number of entries.
    fn free_one(&mut self) -> usize {
        let Some((_, group)) = self.0.groups.iter_mut().next() else { return self.free_append() };
        match group.members.pop_first() {
            Some((id, member)) => self.0.refuse_member(id, *member),
            None if group.free_part() => {}
            None => drop(self.0.groups.pop_first()),
        }
        1
    }

    fn free_append(&mut self) -> usize {
        let Some((_, then)) = self.0.appends.open.pop_first() else {
            self.0.timers.pop_first();
            return 1;
        };
        let entries = 1 + match &then {
            Then::Offsets { changes, .. } => changes.len(),
            Then::Assignment { assignments, .. } => assignments.len(),
            Then::Tombstones(Tombstones { offsets, groups, .. }) => offsets.len() + groups.len(),
            Then::StaticMember { .. } | Then::Emptied { .. } => 0,
        };
        self.0.follow_up(Now::default(), then, Err(ErrorCode::NotCoordinator));
        entries
    }
}

impl<T> Group<T> {
    /// Frees an offset, or else another small part. `false`: there is none.
    fn free_part(&mut self) -> bool {
        let Some((topic, partitions)) = self.offsets.iter_mut().next() else {
            return self.uncommitted.pop_first().is_some() || self.static_members.pop_first().is_some();
        };
        partitions.pop_first();
        if partitions.is_empty() {
            let topic = topic.clone();
            self.offsets.remove(&topic);
        }
        true
    }
}
