//! Removal: DeleteGroups, expired offsets, and groups that have nothing left (KIP-211, KIP-229).
//!
//! The coordinator first appends tombstones. Once they are in the log, it removes the state, just as replaying them
//! would. A group may have several 100,000 offsets, so tombstones are written in turns: those of a DeleteGroups request
//! batch by batch, each once the one before is in the log, and those of expired offsets in the turns of a search.
//! A coordinator that resigns frees everything in turns (`resigned`).

mod resigned;
mod search;

use std::collections::{BTreeSet, VecDeque};

use net::{
    StrBytes,
    errors::{ErrorCode, NONE},
    messages::{DeleteGroupsRequest, DeleteGroupsResponse, delete_groups_response::DeletableGroupResult},
};

pub use resigned::Resigned;
pub use search::SEARCH_TURN_ENTRIES;
pub(crate) use search::{SearchSpot, SearchTurn, tombstone_bytes};

use super::{
    Coordinator,
    config::TOMBSTONE_BATCH_BYTES,
    env::{Deletion, Now, Then, Tombstones},
    group::{Group, State},
    records::GroupRecord,
};

/// The parts of a group to remove.
pub(super) struct Victim {
    pub(super) group: StrBytes,
    pub(super) offsets: Vec<(StrBytes, i32)>,
    pub(super) whole: bool,
}

impl<T> Coordinator<T> {
    /// Removes an offset. If the group then has none, the next search for expired offsets removes the group.
    pub(super) fn forget_offset(&mut self, id: &StrBytes, topic: StrBytes, partition: i32) {
        self.change_group(id, |group| group.set_offset(topic, partition, None));
    }

    /// Removes a group's members and generation. Offsets without a tombstone stay.
    pub(super) fn forget_group(&mut self, id: &StrBytes) {
        self.change_group(id, |group| {
            let mut rest = Group::new(group.id.clone(), None);
            rest.bytes += group.offsets_bytes();
            rest.reserve(group.reserved_bytes);
            rest.offsets = std::mem::take(&mut group.offsets);
            rest.uncommitted = std::mem::take(&mut group.uncommitted);
            rest.logged = !rest.offsets.is_empty();
            *group = rest;
        });
    }

    /// Marks the groups as dead, and removes them batch by batch.
    pub(super) fn delete(&mut self, now: Now, request: &DeleteGroupsRequest, token: T) {
        let mut response = DeleteGroupsResponse::default();
        let mut left = VecDeque::new();
        let mut seen = BTreeSet::new();
        for id in request.groups_names.iter().filter(|&id| seen.insert(id)) {
            let outcome = match self.groups.get(&id.0) {
                None => Err(ErrorCode::GroupIdNotFound),
                Some(group) => match group.state {
                    State::Dead => Err(ErrorCode::GroupIdNotFound),
                    State::Empty => Ok(group.id.clone()),
                    _ => Err(ErrorCode::NonEmptyGroup),
                },
            };
            let result = DeletableGroupResult::default().with_group_id(id.clone());
            response.results.push(result.with_error_code(net::errors::code(&outcome)));
            if let Ok(id) = outcome {
                self.mark_dead(now, &id);
                left.push_back(id);
            }
        }
        let key = self.appends.next;
        self.go_on_deleting(now, key, Deletion { token, response, left });
    }

    /// Writes the next batch of a deletion's tombstones. Answers the request if there are no more.
    fn go_on_deleting(&mut self, now: Now, key: u64, mut deletion: Deletion<T>) {
        let (mut victims, mut room) = (Vec::new(), TOMBSTONE_BATCH_BYTES);
        while let Some(id) = deletion.left.front() {
            let victim = self.groups[id].next_victim(&mut room);
            let is_whole = victim.whole;
            victims.push(victim);
            if !is_whole {
                break;
            }
            deletion.left.pop_front();
        }
        if victims.is_empty() {
            return self.reply(deletion.token, deletion.response);
        }
        self.appends.deletions.insert(key, deletion);
        self.write_tombstones(now, victims, Some(key));
    }

    /// One turn of the search for expired offsets and empty groups (KIP-211). Writes their tombstones, and returns
    /// whether groups are left to search. A group that does not fit a turn loses its offsets now, and is removed by the
    /// search that then finds it without any.
    pub(super) fn expire(&mut self, now: Now) -> bool {
        let first = self.expiring.take().unwrap_or_default();
        let (mut victims, mut turn) = (Vec::new(), SearchTurn::default());
        for (id, group) in self.groups.range(first.group.clone()..) {
            let from = first.within(id);
            if from.is_none() && !turn.has_room(1 + group.entries()) {
                self.expiring = Some(SearchSpot::new(id, None));
                break;
            }
            turn.look(1 + group.members.len());
            let expired = group.expired_offsets(&self.config, now.wall_ms, from, &mut turn);
            let whole = expired.all && from.is_none() && group.state == State::Empty && group.pending.is_empty();
            if whole || !expired.offsets.is_empty() {
                victims.push(Victim { group: group.id.clone(), offsets: expired.offsets, whole });
            }
            if expired.next.is_some() {
                self.expiring = Some(SearchSpot::new(id, expired.next));
                break;
            }
        }
        if !victims.is_empty() {
            let offsets: usize = victims.iter().map(|victim| victim.offsets.len()).sum();
            let groups = victims.iter().filter(|victim| victim.whole).count();
            tracing::info!(offsets, groups, "expired committed offsets, and groups without any");
            self.write_tombstones(now, victims, None);
        }
        self.expiring.is_some()
    }

    /// Nobody may join or commit until the group's tombstone is in the log.
    fn mark_dead(&mut self, now: Now, id: &StrBytes) {
        self.with_group(now, id, |group, env| {
            let pending: Vec<StrBytes> = group.pending.keys().cloned().collect();
            pending.iter().for_each(|member| group.remove_pending(member, env.timers));
            group.state = State::Dead;
        });
    }

    /// Appends tombstones in as many batches as needed; a deletion's victims fit one. Whole groups are Dead until their
    /// tombstones are in the log.
    pub(super) fn write_tombstones(&mut self, now: Now, victims: Vec<Victim>, deletion: Option<u64>) {
        let mut batches: Vec<(Vec<GroupRecord>, Tombstones)> = Vec::new();
        let mut room = 0usize;
        let mut push = |record: GroupRecord, bytes: usize| {
            if bytes > room {
                batches.push((vec![], Tombstones { deletion, ..Tombstones::default() }));
                room = TOMBSTONE_BATCH_BYTES;
            }
            room = room.saturating_sub(bytes);
            let (records, tombstones) = batches.last_mut().expect("there is one with room");
            match &record {
                GroupRecord::Offset { group, topic, partition, .. } => {
                    tombstones.offsets.push((group.clone(), topic.clone(), *partition));
                }
                GroupRecord::Group { group, .. } => tombstones.groups.push(group.clone()),
            }
            records.push(record);
        };
        for Victim { group: id, offsets, whole } in victims {
            for (topic, partition) in offsets {
                let bytes = tombstone_bytes(&id, &topic);
                push(GroupRecord::Offset { group: id.clone(), topic, partition, value: None }, bytes);
            }
            if whole {
                self.mark_dead(now, &id);
                let bytes = tombstone_bytes(&id, "");
                push(GroupRecord::Group { group: id, value: None }, bytes);
            }
        }
        assert!(deletion.is_none() || batches.len() == 1, "a deletion has one append in flight");
        let mut env = self.env(now);
        for (records, tombstones) in batches {
            env.append(&records, Then::Tombstones(tombstones));
        }
    }

    pub(super) fn tombstones_stored(&mut self, now: Now, tombstones: Tombstones, outcome: Result<(), ErrorCode>) {
        let Tombstones { offsets, groups, deletion: key } = tombstones;
        let deletion = key.map(|key| (key, self.appends.deletions.remove(&key).expect("the deletion is open")));
        match outcome {
            Ok(()) => {
                for (group, topic, partition) in offsets {
                    self.forget_offset(&group, topic, partition);
                }
                groups.iter().for_each(|group| self.forget_group(group));
                if let Some((key, deletion)) = deletion {
                    self.go_on_deleting(now, key, deletion);
                }
            }
            Err(error) => {
                // They may have been for offsets of a deleted topic.
                self.sweep.begin_later(now);
                groups.iter().for_each(|group| self.revive(group));
                if let Some((_, deletion)) = deletion {
                    self.give_up_deleting(deletion, &groups, error);
                }
            }
        }
    }

    /// The group's tombstone is not in the log.
    fn revive(&mut self, id: &StrBytes) {
        if let Some(group) = self.groups.get_mut(id).filter(|group| group.state == State::Dead) {
            group.state = State::Empty;
        }
    }

    /// Answers a deletion, of which these groups' tombstones and all later ones are not in the log. The groups stay,
    /// with the offsets that they have left.
    fn give_up_deleting(&mut self, deletion: Deletion<T>, failed: &[StrBytes], error: ErrorCode) {
        let Deletion { token, mut response, left } = deletion;
        left.iter().for_each(|group| self.revive(group));
        for result in &mut response.results {
            let id = &result.group_id.0;
            if result.error_code == NONE && (failed.contains(id) || left.contains(id)) {
                result.error_code = error.code();
            }
        }
        self.reply(token, response);
    }
}

impl<T> Group<T> {
    /// The next part of a dead group to remove: as many offsets as their tombstones have room for, and with the last of
    /// them the group. A commit in flight counts as stored: it is in the log before the tombstones, and must not
    /// outlive them.
    fn next_victim(&self, room: &mut usize) -> Victim {
        let mut takes = |topic: &str| {
            let bytes = tombstone_bytes(&self.id, topic);
            let fits = bytes <= *room;
            *room -= if fits { bytes } else { *room };
            fits
        };
        let stored = self.offsets_from(None).map(|(topic, partition, _)| (topic, partition));
        let in_flight = self.uncommitted.keys().map(|(topic, partition)| (topic, *partition));
        let mut all = stored.chain(in_flight).peekable();
        let mut offsets: Vec<(StrBytes, i32)> = Vec::new();
        while let Some((topic, partition)) = all.next_if(|(topic, _)| takes(topic)) {
            offsets.push((topic.clone(), partition));
        }
        let whole = all.peek().is_none() && takes("");
        offsets.sort_unstable();
        offsets.dedup();
        Victim { group: self.id.clone(), offsets, whole }
    }
}
