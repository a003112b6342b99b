//! Removal: DeleteGroups, expired offsets, and groups that have nothing left (KIP-211, KIP-229).
//!
//! The coordinator first appends tombstones. Once they are in the log, it removes the state, just as replaying them
//! would.

use std::collections::{BTreeMap, BTreeSet};

use net::{
    StrBytes,
    errors::{ErrorCode, NONE},
    messages::{DeleteGroupsRequest, DeleteGroupsResponse, delete_groups_response::DeletableGroupResult},
};

use super::{
    Coordinator,
    config::TOMBSTONE_BATCH_BYTES,
    env::{Deletion, Now, Then, Tombstones},
    group::{Group, State},
    records::GroupRecord,
    topics::SWEEP_TURN_ENTRIES,
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
            rest.offsets = std::mem::take(&mut group.offsets);
            rest.uncommitted = std::mem::take(&mut group.uncommitted);
            rest.logged = !rest.offsets.is_empty();
            rest.bytes = rest.count_bytes();
            *group = rest;
        });
    }

    pub(super) fn delete(&mut self, now: Now, request: &DeleteGroupsRequest, token: T) {
        let mut response = DeleteGroupsResponse::default();
        let mut victims = Vec::new();
        let mut seen = BTreeSet::new();
        for id in request.groups_names.iter().filter(|&id| seen.insert(id)) {
            let outcome = match self.groups.get_mut(&id.0) {
                None => Err(ErrorCode::GroupIdNotFound),
                Some(group) => match group.state {
                    State::Dead => Err(ErrorCode::GroupIdNotFound),
                    State::Empty => Ok(group),
                    _ => Err(ErrorCode::NonEmptyGroup),
                },
            };
            let result = DeletableGroupResult::default().with_group_id(id.clone());
            response.results.push(result.with_error_code(net::errors::code(&outcome)));
            if let Ok(group) = outcome {
                let stored = group.offsets.iter().flat_map(|(t, offsets)| offsets.keys().map(move |&p| (t.clone(), p)));
                // A commit in flight is in the log before the tombstones, and must not outlive them.
                let mut offsets: Vec<_> = stored.chain(group.uncommitted.keys().cloned()).collect();
                offsets.sort_unstable();
                offsets.dedup();
                victims.push(Victim { group: group.id.clone(), offsets, whole: true });
            }
        }
        if victims.is_empty() {
            return self.reply(token, response);
        }
        let key = self.appends.next;
        let open = self.write_tombstones(now, victims, Some(key));
        self.appends.deletions.insert(key, Deletion { token, response, open });
    }

    /// One turn of the search for expired offsets and empty groups (KIP-211). Writes their tombstones, and returns
    /// whether groups are left to search.
    pub(super) fn expire(&mut self, now: Now) -> bool {
        let from = self.expiring.take().unwrap_or_default();
        let (mut victims, mut looked) = (Vec::new(), 0);
        for group in self.groups.range(from..).map(|(_, group)| group) {
            if looked >= SWEEP_TURN_ENTRIES {
                self.expiring = Some(group.id.clone());
                break;
            }
            looked += 1 + group.members.len() + group.offsets.values().map(BTreeMap::len).sum::<usize>();
            let (offsets, all) = group.expired_offsets(now.wall_ms, self.config.offsets_retention_ms);
            let whole = all && group.state == State::Empty && group.pending.is_empty();
            if whole || !offsets.is_empty() {
                victims.push(Victim { group: group.id.clone(), offsets, whole });
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

    /// Appends tombstones in as many batches as needed, and returns the number of batches. Whole groups are Dead
    /// until their tombstones are in the log.
    pub(super) fn write_tombstones(&mut self, now: Now, victims: Vec<Victim>, deletion: Option<u64>) -> usize {
        let mut batches: Vec<(Vec<GroupRecord>, Tombstones)> = Vec::new();
        let mut room = 0usize;
        let mut push = |record: GroupRecord| {
            // 64 bytes cover the record's own framing.
            let bytes = 64 + record.encode().0.len();
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
                push(GroupRecord::Offset { group: id.clone(), topic, partition, value: None });
            }
            if whole {
                self.with_group(now, &id, |group, env| {
                    let pending: Vec<StrBytes> = group.pending.keys().cloned().collect();
                    pending.iter().for_each(|member| group.remove_pending(member, env.timers));
                    group.state = State::Dead;
                });
                push(GroupRecord::Group { group: id, value: None });
            }
        }
        let count = batches.len();
        let mut env = self.env(now);
        for (records, tombstones) in batches {
            env.append(&records, Then::Tombstones(tombstones));
        }
        count
    }

    pub(super) fn tombstones_stored(&mut self, now: Now, tombstones: Tombstones, outcome: Result<(), ErrorCode>) {
        let Tombstones { offsets, groups, deletion } = tombstones;
        if let Err(error) = outcome {
            // They may have been for offsets of a deleted topic.
            self.sweep.begin_later(now);
            for id in &groups {
                if let Some(group) = self.groups.get_mut(id).filter(|group| group.state == State::Dead) {
                    group.state = State::Empty;
                }
            }
            let deletion = deletion.and_then(|key| self.appends.deletions.get_mut(&key));
            for result in deletion.into_iter().flat_map(|deletion| &mut deletion.response.results) {
                let concerned = groups.contains(&result.group_id.0)
                    || offsets.iter().any(|(group, _, _)| *group == result.group_id.0);
                if concerned && result.error_code == NONE {
                    result.error_code = error.code();
                }
            }
        } else {
            for (group, topic, partition) in offsets {
                self.forget_offset(&group, topic, partition);
            }
            for group in groups {
                self.forget_group(&group);
            }
        }
        let Some(key) = deletion else { return };
        let deletion = self.appends.deletions.get_mut(&key).expect("the deletion is open");
        deletion.open -= 1;
        if deletion.open == 0 {
            let Deletion { token, response, .. } = self.appends.deletions.remove(&key).expect("the deletion is open");
            self.reply(token, response);
        }
    }
}
