//! The memory that groups take, updated with every change.
//!
//! Ids, protocol types, member settings, assignments and offsets are counted, and what is being stored: the offsets and
//! assignments of appends in flight. The test `memory` compares the count with the allocator's.

use std::collections::BTreeMap;

use net::{StrBytes, messages::OffsetCommitRequest};

use super::{Group, Member};
use crate::coordinator::{
    Coordinator,
    api::{Context, GroupRequest},
    config::TOMBSTONE_BATCH_BYTES,
    protocols::MemberSettings,
    records::CommittedOffset,
};

/// Approximate bytes of structures and allocations for each thing, besides its strings. A map of one entry takes a node
/// of eleven.
const GROUP_BYTES: usize = 2048;
const MEMBER_BYTES: usize = 1024;
const PENDING_BYTES: usize = 320;
const PROTOCOL_BYTES: usize = 128;
const TOPIC_BYTES: usize = 1280;
const OFFSET_BYTES: usize = 256;
/// Bytes of an offset and of an assignment that are being stored, each with what will answer the client.
const CHANGE_BYTES: usize = 384;
const ASSIGNED_BYTES: usize = 128;
/// Approximate bytes of a record in the log besides its strings, with its share of the batch header.
const RECORD_BYTES: usize = 128;

pub(in crate::coordinator) fn pending_bytes(id: &str) -> usize {
    PENDING_BYTES + 2 * id.len()
}

/// Approximate bytes of a new member that has no id yet.
pub(in crate::coordinator) fn new_member_bytes(
    context: &Context,
    instance: Option<&str>,
    says: &MemberSettings,
) -> usize {
    const GENERATED_BYTES: usize = 3 * 37;
    let prefix = instance.map_or(context.client_id.len(), |instance| 2 * instance.len());
    MEMBER_BYTES + GENERATED_BYTES + 3 * prefix + context.client_id.len() + context.client_host.len() + says.bytes()
}

/// Bytes of a topic with offsets, besides these.
pub(in crate::coordinator) fn topic_bytes(topic: &str) -> usize {
    TOPIC_BYTES + topic.len()
}

pub(in crate::coordinator) fn offset_bytes(value: &CommittedOffset) -> usize {
    OFFSET_BYTES + value.metadata.len()
}

/// Bytes of an offset that is being stored. As a new one it then takes less.
pub(in crate::coordinator) fn change_bytes(value: &CommittedOffset) -> usize {
    const { assert!(CHANGE_BYTES >= OFFSET_BYTES) };
    CHANGE_BYTES + value.metadata.len()
}

/// Bytes of a member's assignment that is being stored.
pub(in crate::coordinator) fn assigned_bytes(member: &str, assignment: &[u8]) -> usize {
    ASSIGNED_BYTES + member.len() + assignment.len()
}

impl MemberSettings {
    pub(in crate::coordinator) fn bytes(&self) -> usize {
        self.protocols.iter().map(|(name, metadata)| PROTOCOL_BYTES + name.len() + metadata.len()).sum()
    }
}

impl<T> Member<T> {
    pub(in crate::coordinator) fn bytes(&self, id: &StrBytes) -> usize {
        let instance = self.instance_id.as_ref().map_or(0, |instance| instance.len());
        let strings = 3 * id.len() + 2 * instance + self.client_id.len() + self.client_host.len();
        MEMBER_BYTES + strings + self.settings.bytes() + self.assignment.len()
    }
}

pub(in crate::coordinator) fn group_bytes(id: &str) -> usize {
    GROUP_BYTES + 2 * id.len()
}

impl<T> Group<T> {
    /// Counts all bytes from scratch. [`Group::bytes`] is the same number, kept up to date. For checks: a group may
    /// have several 100,000 offsets.
    pub(in crate::coordinator) fn count_bytes(&self) -> usize {
        let of_topic = |(topic, offsets): (&StrBytes, &BTreeMap<i32, CommittedOffset>)| {
            topic_bytes(topic) + offsets.values().map(offset_bytes).sum::<usize>()
        };
        self.count_bytes_without_offsets() + self.offsets.iter().map(of_topic).sum::<usize>()
    }

    /// Counts all bytes but those of offsets.
    pub(in crate::coordinator) fn count_bytes_without_offsets(&self) -> usize {
        let members: usize = self.members.iter().map(|(id, member)| member.bytes(id)).sum();
        let pending: usize = self.pending.keys().map(|id| pending_bytes(id)).sum();
        let protocol_type = self.protocol_type.as_ref().map_or(0, |name| name.len());
        group_bytes(&self.id) + protocol_type + members + pending + self.reserved_bytes
    }

    /// The bytes of all offsets, without a look at each of them.
    pub(in crate::coordinator) fn offsets_bytes(&self) -> usize {
        self.bytes - self.count_bytes_without_offsets()
    }

    /// Approximate bytes of the group's record in the log.
    pub(in crate::coordinator) fn record_bytes(&self) -> usize {
        let member = |id: &StrBytes, member: &Member<T>| {
            let instance = member.instance_id.as_ref().map_or(0, |instance| instance.len());
            let metadata = member.settings.protocols.iter().map(|(_, metadata)| metadata.len()).max().unwrap_or(0);
            let strings = id.len() + instance + member.client_id.len() + member.client_host.len();
            RECORD_BYTES + strings + metadata + member.assignment.len()
        };
        RECORD_BYTES + 2 * self.id.len() + self.members.iter().map(|(id, one)| member(id, one)).sum::<usize>()
    }
}

fn commit_bytes(request: &OffsetCommitRequest) -> usize {
    let partitions = request.topics.iter().flat_map(|topic| topic.partitions.iter().map(move |p| (topic, p)));
    let record = partitions.map(|(topic, partition)| {
        let metadata = partition.committed_metadata.as_ref().map_or(0, |metadata| metadata.len());
        RECORD_BYTES + request.group_id.len() + topic.name.len() + metadata
    });
    record.sum()
}

impl<T> Coordinator<T> {
    /// Approximate bytes of the largest batch that the coordinator appends for a request. `None` if the request
    /// appends nothing. Appends caused by time are not included.
    pub fn append_bytes(&self, request: &GroupRequest) -> Option<usize> {
        let group = |id: &StrBytes| self.groups.get(id).map_or(0, Group::record_bytes);
        match request {
            GroupRequest::OffsetCommit(commit) => {
                let refused = |group: &Group<T>| group.validate_commit(commit).is_err();
                (!self.groups.get(&commit.group_id.0).is_some_and(refused)).then(|| commit_bytes(commit))
            }
            GroupRequest::SyncGroup(sync) if !sync.assignments.is_empty() => {
                let assigned: usize = sync.assignments.iter().map(|member| member.assignment.len()).sum();
                Some(group(&sync.group_id) + assigned)
            }
            // A returning static member is stored under its new id.
            GroupRequest::JoinGroup(join) if join.group_instance_id.is_some() => {
                let settings: usize = join.protocols.iter().map(|protocol| protocol.metadata.len()).sum();
                Some(group(&join.group_id) + settings)
            }
            GroupRequest::LeaveGroup(leave) => Some(RECORD_BYTES + 2 * leave.group_id.len()),
            GroupRequest::DeleteGroups(delete) => {
                let any = delete.groups_names.iter().any(|id| self.groups.contains_key(&id.0));
                any.then_some(TOMBSTONE_BATCH_BYTES)
            }
            _ => None,
        }
    }
}
