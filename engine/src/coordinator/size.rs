//! How much memory groups take, counted as they change: the sum of one coordinator is bounded by `state_bytes_max`.
//!
//! Counted are ids, what members say of themselves, and offsets. Assignments are not: a group's are no larger than the record
//! that holds them.

use net::StrBytes;

use super::{
    api::Context,
    group::{Group, Member, MemberSettings},
    records::CommittedOffset,
};

/// What structures and allocations take about each thing, besides its strings.
const GROUP_BYTES: usize = 1024;
const MEMBER_BYTES: usize = 1024;
const PENDING_BYTES: usize = 256;
const PROTOCOL_BYTES: usize = 128;
const OFFSET_BYTES: usize = 192;

pub(super) fn pending_bytes(id: &str) -> usize {
    PENDING_BYTES + 2 * id.len()
}

/// About what a member takes that is still to get its id.
pub(super) fn new_member_bytes(context: &Context, instance: Option<&str>, says: &MemberSettings) -> usize {
    const GENERATED_BYTES: usize = 3 * 37;
    let prefix = instance.map_or(context.client_id.len(), |instance| 2 * instance.len());
    MEMBER_BYTES + GENERATED_BYTES + 3 * prefix + context.client_id.len() + context.client_host.len() + says.bytes()
}

pub(super) fn offset_bytes(topic: &str, value: &CommittedOffset) -> usize {
    OFFSET_BYTES + topic.len() + value.metadata.len()
}

impl MemberSettings {
    pub(super) fn bytes(&self) -> usize {
        self.protocols.iter().map(|(name, metadata)| PROTOCOL_BYTES + name.len() + metadata.len()).sum()
    }
}

impl<T> Member<T> {
    pub(super) fn bytes(&self, id: &StrBytes) -> usize {
        let instance = self.instance_id.as_ref().map_or(0, |instance| instance.len());
        let strings = 3 * id.len() + 2 * instance + self.client_id.len() + self.client_host.len();
        MEMBER_BYTES + strings + self.settings.bytes()
    }
}

pub(super) fn group_bytes(id: &str) -> usize {
    GROUP_BYTES + 2 * id.len()
}

impl<T> Group<T> {
    /// The count from nothing; [`Group::bytes`] is the same, kept up to date.
    pub(super) fn count_bytes(&self) -> usize {
        let members: usize = self.members.iter().map(|(id, member)| member.bytes(id)).sum();
        let pending: usize = self.pending.keys().map(|id| pending_bytes(id)).sum();
        let offsets =
            self.offsets.iter().flat_map(|(topic, offsets)| offsets.values().map(move |o| offset_bytes(topic, o)));
        group_bytes(&self.id) + members + pending + offsets.sum::<usize>()
    }
}
