//! The environment of a group's rules: time, timers, randomness and outputs.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use fastrand::Rng;
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{DeleteGroupsResponse, JoinGroupResponse, OffsetCommitResponse, SyncGroupResponse},
    records::{build::BatchBuilder, compression::Codec},
};

use super::{
    api::{GroupResponse, join_error, shape_join, sync_error},
    config::Config,
    incarnation::Known,
    protocols::MemberSettings,
    records::{CommittedOffset, GroupRecord},
    timers::Timers,
};
use crate::log_limit::{Admitted, LogLimit};

/// Two clocks, so that a change of the wall clock ends no session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic ms, from any origin. Timers use it.
    pub mono_ms: u64,
    /// Ms since the epoch. Records bear it.
    pub wall_ms: i64,
}

impl Now {
    pub(crate) fn mono(self) -> Duration {
        Duration::from_millis(self.mono_ms)
    }
}

/// Bytes that the coordinator may still grow by. Whoever calls it counts the memory of all coordinators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// For members, offsets and assignments of groups that exist.
    pub bytes: usize,
    /// The part of `bytes` that new groups may take. The rest is for those that exist: their members come back, and
    /// their offsets grow.
    pub new_groups: usize,
}

/// Identifies an append until [`super::Coordinator::appended`] reports its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppendId(pub u64);

/// An action for the engine to perform.
#[derive(Debug, PartialEq)]
pub enum Output<T> {
    /// Answer the request that came with this token.
    Reply { token: T, response: GroupResponse },
    /// Append this batch to the coordinator's partition. Call [`super::Coordinator::appended`] once it is committed
    /// or has failed. The partition assigns the base offset. Batches must be in the log in the order of these
    /// outputs.
    Append { id: AppendId, batch: Bytes },
    /// A request of this group was refused, or a part of it, since it needs so many bytes and there is less [`Room`].
    /// Count it, and tell the operator. Its answer is another output.
    NoRoom { group: StrBytes, bytes: usize },
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    pub(crate) token: T,
    pub(crate) version: i16,
}

/// One partition's offset in a commit.
#[derive(Clone, Debug)]
pub(crate) struct OffsetChange {
    pub(crate) topic: StrBytes,
    pub(crate) partition: i32,
    pub(crate) value: CommittedOffset,
}

/// The action that follows once an append is committed or has failed.
#[derive(Debug)]
pub(crate) enum Then<T> {
    Offsets {
        group: StrBytes,
        changes: Vec<OffsetChange>,
        /// Bytes that count until then, see [`super::group::Group::reserve`].
        reserved: usize,
        token: T,
        response: OffsetCommitResponse,
    },
    Assignment {
        group: StrBytes,
        generation: i32,
        /// The topics that existed when the leader assigned.
        known: Known,
        assignments: HashMap<StrBytes, Bytes>,
        reserved: usize,
    },
    StaticMember {
        group: StrBytes,
        instance_id: StrBytes,
        member_id: StrBytes,
        old_id: StrBytes,
        old: MemberSettings,
        reserved: usize,
    },
    /// The last member is gone. If it left by LeaveGroup, its answer waits here.
    Emptied {
        group: StrBytes,
        reply: Option<(Waiting<T>, GroupResponse)>,
    },
    Tombstones(Tombstones),
}

impl<T> Then<T> {
    /// The group that holds memory for this append, and how much.
    pub(crate) fn reserved(&self) -> Option<(&StrBytes, usize)> {
        match self {
            Then::Offsets { group, reserved, .. }
            | Then::Assignment { group, reserved, .. }
            | Then::StaticMember { group, reserved, .. } => Some((group, *reserved)),
            Then::Emptied { .. } | Then::Tombstones(_) => None,
        }
    }
}

/// Tombstones for offsets and groups, as many as fit in one batch.
#[derive(Debug, Default)]
pub(crate) struct Tombstones {
    pub(crate) offsets: Vec<(StrBytes, StrBytes, i32)>,
    pub(crate) groups: Vec<StrBytes>,
    /// The DeleteGroups request that caused them, if one did.
    pub(crate) deletion: Option<u64>,
}

/// A DeleteGroups request whose tombstones are being appended, one batch at a time.
#[derive(Debug)]
pub(crate) struct Deletion<T> {
    pub(crate) token: T,
    pub(crate) response: DeleteGroupsResponse,
    /// The groups that no tombstone has been written for yet. The first one's offsets may have some already.
    pub(crate) left: VecDeque<StrBytes>,
}

/// The appends in flight.
#[derive(Debug)]
pub(crate) struct Appends<T> {
    pub(crate) open: BTreeMap<AppendId, Then<T>>,
    pub(crate) deletions: BTreeMap<u64, Deletion<T>>,
    pub(crate) next: u64,
}

impl<T> Default for Appends<T> {
    fn default() -> Appends<T> {
        Appends { open: BTreeMap::new(), deletions: BTreeMap::new(), next: 1 }
    }
}

pub(crate) struct Env<'a, T> {
    pub(crate) now: Now,
    pub(crate) config: &'a Config,
    /// Bytes that the group may grow by in this call. 0 if no request is handled.
    pub(crate) room_bytes: usize,
    /// The topics that exist now.
    pub(crate) known: Known,
    /// Limits the lines about groups.
    pub(crate) log: &'a LogLimit,
    pub(crate) rng: &'a mut Rng,
    pub(crate) timers: &'a mut Timers,
    pub(crate) appends: &'a mut Appends<T>,
    pub(crate) out: &'a mut Vec<Output<T>>,
}

impl<T> Env<'_, T> {
    pub(crate) fn reply(&mut self, token: T, response: impl Into<GroupResponse>) {
        self.out.push(Output::Reply { token, response: response.into() });
    }

    pub(crate) fn reply_join(&mut self, waiting: Waiting<T>, response: JoinGroupResponse) {
        self.reply(waiting.token, shape_join(waiting.version, response));
    }

    pub(crate) fn refuse_join(&mut self, waiting: Waiting<T>, member_id: StrBytes, error: ErrorCode) {
        self.reply(waiting.token, join_error(waiting.version, member_id, error));
    }

    pub(crate) fn reply_sync(&mut self, waiting: Waiting<T>, mut response: SyncGroupResponse) {
        if waiting.version < 5 {
            (response.protocol_type, response.protocol_name) = (None, None);
        }
        self.reply(waiting.token, response);
    }

    pub(crate) fn refuse_sync(&mut self, waiting: Waiting<T>, error: ErrorCode) {
        self.reply(waiting.token, sync_error(error));
    }

    /// Reports that a request needs more memory than there is. The caller answers it.
    pub(crate) fn no_room(&mut self, group: &StrBytes, bytes: usize) {
        self.out.push(Output::NoRoom { group: group.clone(), bytes });
    }

    /// Appends records to the log, in one batch.
    pub(crate) fn append(&mut self, records: &[GroupRecord], then: Then<T>) {
        let mut batch = BatchBuilder::new(Codec::None);
        for record in records {
            let (key, value) = record.encode();
            batch.push(self.now.wall_ms, Some(&key), value.as_deref());
        }
        let id = AppendId(self.appends.next);
        self.appends.next += 1;
        self.appends.open.insert(id, then);
        self.out.push(Output::Append { id, batch: batch.finish() });
    }

    /// Logs an event of a group, unless there are too many such lines. Clients can cause one with each request.
    pub(crate) fn log(&self, group: &StrBytes, event: &str) {
        match self.log.admit(self.now.mono(), group, event) {
            Some(Admitted { left_out }) => tracing::info!(%group, left_out, "{event}"),
            None => tracing::debug!(%group, "{event}"),
        }
    }

    pub(crate) fn after(&self, ms: u64) -> u64 {
        self.now.mono_ms + ms
    }
}
