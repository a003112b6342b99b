//! The group coordinator of one `__consumer_offsets` partition: Kafka's classic group protocol and committed offsets.
//! Lives on: the core that owns the partition. Pure: no I/O, no clock, no locks; randomness comes from a seed.
//!
//! Rules and errors are those of Kafka 4's `GroupMetadataManager` and `OffsetMetadataManager` for classic groups. The
//! log is the only durable state. State that is not in the log (waiting requests, issued member ids) is lost on
//! restart, and clients recover from that.
//!
//! The engine runs one instance per partition that it leads, and drives it like this:
//! 1. Call [`Coordinator::new`] with a fresh seed before the partition is served. Call [`Coordinator::replay`] for
//!    each committed batch, from the log's start to the high watermark, and log what it returns. Then call
//!    [`Coordinator::loaded`]. Until then a heartbeat succeeds, and every other request is answered
//!    COORDINATOR_LOAD_IN_PROGRESS. The [`Topics`] passed to every call must be at least as new as any that an
//!    earlier coordinator saw. A topic that is missing from them counts as deleted.
//! 2. [`GroupRequest::route`] says which partition a request belongs to, or how to split it; [`GroupResponse::merge`]
//!    joins the answers. If this broker does not lead the partition, answer the part with [`GroupRequest::refuse`]
//!    and NOT_COORDINATOR. The caller must take out commits for partitions that do not exist and answer them with
//!    UNKNOWN_TOPIC_OR_PARTITION; the coordinator checks only that the topic exists.
//! 3. Call [`Coordinator::step`] for each request, with a token for its reply and the memory that is left ([`Room`]).
//!    Perform the outputs in order. `Reply` answers a token, possibly that of an earlier request. `Append` proposes the
//!    batch to the partition like a produced batch, at once and in this order. Requests that only read go to
//!    [`Coordinator::read`] instead, part by part. After every call, count [`Coordinator::bytes`] anew.
//! 4. Call [`Coordinator::appended`] when an append is committed or has failed. Successes must be reported in the
//!    order of the appends. An append that cannot be proposed is reported the same way, with its error.
//! 5. Call [`Coordinator::tick`] when [`Coordinator::next_deadline`] has passed. Ask for the deadline again after
//!    every call. Call [`Coordinator::topic_deleted`] when the view has applied a deletion.
//! 6. Call [`Coordinator::resign`] when this core stops leading the partition, or when its log has failed, and then
//!    [`Resigned::turn`] until nothing is left. All waiting requests are answered NOT_COORDINATOR.
//!
//! Every token is answered exactly once.
//!
//! Invariants ([`Coordinator::check`]): an offset is served only once it is in the log; a group's state and
//! generation follow the diagram in `group`; everything that waits has a timer or an append that ends the wait.

mod api;
mod config;
mod env;
mod forget;
mod group;
pub mod host;
mod incarnation;
mod join;
mod offsets;
mod pieces;
mod protocols;
mod reads;
mod rebalance;
pub mod receipts;
mod records;
mod session;
#[cfg(test)]
mod tests;
mod timers;
mod topics;

use std::{collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use fastrand::Rng;
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{HeartbeatResponse, JoinGroupRequest, LeaveGroupRequest, OffsetCommitRequest},
    records::record::{ReadError, Records},
};

pub use self::{
    api::{Context, GroupRequest, GroupResponse, Route, by_partition, partition_of},
    config::{Config, MEMBER_BYTES_MAX, PENDING_MEMBERS_MAX},
    env::{AppendId, Now, Output, Room},
    forget::{Resigned, SEARCH_TURN_ENTRIES},
    incarnation::{Incarnation, Topics},
    pieces::{Piece, Pieces},
    reads::{Cursor, Part, Wanted, shorten_filter},
    records::{CommittedOffset, GroupMetadata, GroupRecord, MemberMetadata, RecordError},
};
use self::{
    api::{append_error, offset_commit_error, shape_leave},
    config::STRING_BYTES_MAX,
    env::{Appends, Env, Then, Tombstones},
    forget::SearchSpot,
    group::{Group, check_join_size, size::group_bytes},
    incarnation::Known,
    protocols::own,
    timers::{Slot, Timer, Timers},
    topics::Sweep,
};
use crate::log_limit::{Admitted, LogLimit};

/// Most bytes that one replayed batch may decompress to: 64 MiB. The coordinator writes its own batches uncompressed.
const REPLAY_BATCH_BYTES_MAX: usize = 64 << 20;

/// A log record that could not be used and was skipped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("the batch can't be read: {0}")]
    Batch(#[from] ReadError),
    #[error("the batch is part of a transaction")]
    Transactional,
    #[error("record at offset {offset}: {error}")]
    Record { offset: i64, error: RecordError },
}

/// The groups of one `__consumer_offsets` partition. `T` is the token with which the engine answers a request.
#[derive(Debug)]
pub struct Coordinator<T> {
    config: Config,
    log: Rc<LogLimit>,
    rng: Rng,
    loading: bool,
    groups: BTreeMap<StrBytes, Group<T>>,
    /// Bytes of memory that all groups take together.
    bytes: usize,
    /// Nothing, except while a request is handled.
    room: Room,
    timers: Timers,
    expiry: Slot,
    /// Where the search for expired offsets continues; `None`: it starts with the first group.
    expiring: Option<SearchSpot>,
    sweep: Sweep,
    /// The topics that existed at the latest call.
    known: Known,
    appends: Appends<T>,
    out: Vec<Output<T>>,
}

impl<T> Coordinator<T> {
    /// Requests that wait for members or for the log, and all other appends whose outcome is open.
    pub fn unanswered(&self) -> usize {
        let members = self.groups.values().flat_map(|group| group.members.values());
        let waits = |member: &group::Member<T>| member.joining.is_some() || member.syncing.is_some();
        members.filter(|member| waits(member)).count() + self.appends.open.len() + self.appends.deletions.len()
    }
}

impl<T> Coordinator<T> {
    /// A coordinator that has yet to replay its log. The seed must differ from one start to the next, because member
    /// ids are drawn from it.
    pub fn new(config: Config, seed: u64) -> Coordinator<T> {
        config.assert_possible();
        Coordinator {
            config,
            log: Rc::default(),
            rng: Rng::with_seed(seed),
            loading: true,
            groups: BTreeMap::new(),
            bytes: 0,
            room: Room::default(),
            timers: Timers::default(),
            expiry: None,
            expiring: None,
            sweep: Sweep::default(),
            known: Known::default(),
            appends: Appends::default(),
            out: Vec::new(),
        }
    }

    /// Shares the limit on log lines with the core's other coordinators.
    pub fn log_with(self, log: Rc<LogLimit>) -> Coordinator<T> {
        Coordinator { log, ..self }
    }

    /// Number of groups.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Bytes of memory that all groups take together, and what is being stored of them. A load takes as much as the
    /// log has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When [`Coordinator::tick`] is due, in monotonic ms.
    pub fn next_deadline(&self) -> Option<u64> {
        [self.timers.next_deadline(), self.sweep.due()].into_iter().flatten().min()
    }

    /// Applies one batch of the log. Returns the records that could not be used; the caller logs them with the
    /// partition's name.
    pub fn replay(&mut self, topics: &dyn Topics, batch: &Bytes) -> Vec<Unusable> {
        assert!(self.loading, "the log is replayed before anything is served");
        let records = match Records::open(batch, REPLAY_BATCH_BYTES_MAX) {
            Ok(records) => records,
            Err(error) => return vec![error.into()],
        };
        if records.header().is_control() {
            return vec![];
        }
        // Offsets of a transaction count only once its marker is read. This coordinator writes no transactions.
        if records.header().is_transactional() {
            return vec![Unusable::Transactional];
        }
        let mut unusable = Vec::new();
        for record in records.iter() {
            match record {
                Ok(record) => match GroupRecord::decode(record.key, record.value) {
                    Ok(read) => self.apply(topics, read),
                    Err(error) => unusable.push(Unusable::Record { offset: record.offset, error }),
                },
                Err(error) => unusable.push(ReadError::from(error).into()),
            }
        }
        unusable
    }

    fn apply(&mut self, topics: &dyn Topics, record: GroupRecord) {
        match record {
            GroupRecord::Offset { group, topic, partition, value: Some(mut value) } => {
                value.bind(topics.find(&topic));
                self.insert_group(&group, None);
                self.change_group(&group, |group| {
                    group.logged = true;
                    group.set_offset(topic, partition, Some(value));
                });
            }
            GroupRecord::Offset { group, topic, partition, value: None } => {
                self.forget_offset(&group, topic, partition)
            }
            GroupRecord::Group { group, value: Some(value) } => {
                self.insert_group(&group, None);
                self.change_group(&group, |group| group.replace_by(value, topics.newest()));
            }
            GroupRecord::Group { group, value: None } => self.forget_group(&group),
        }
    }

    /// Replay has reached the end of the log. Every member gets a full session timeout to show up.
    pub fn loaded(&mut self, now: Now) -> Vec<Output<T>> {
        assert!(std::mem::take(&mut self.loading), "a coordinator is loaded once");
        let ids: Vec<StrBytes> = self.groups.keys().cloned().collect();
        for id in &ids {
            self.with_group(now, id, |group, env| {
                let members: Vec<StrBytes> = group.members.keys().cloned().collect();
                for member in &members {
                    group.keep_alive(member, env);
                }
                if members.len() > env.config.group_max_size {
                    tracing::info!(group = %group.id, members = members.len(), "the group exceeds group.max.size");
                    group.prepare_rebalance(env);
                }
            });
        }
        let at = now.mono_ms + self.config.offsets_retention_check_interval_ms as u64;
        self.timers.schedule(&mut self.expiry, at, Timer::Expiry);
        self.sweep.begin(now);
        self.finish(now)
    }

    /// Handles a request that may change something; [`Coordinator::read`] answers the others. Its answer bears the
    /// token and comes now or from a later call. If the groups would grow beyond the room, joins and assignments are
    /// answered COORDINATOR_NOT_AVAILABLE, and offsets INVALID_COMMIT_OFFSET_SIZE.
    pub fn step(
        &mut self,
        now: Now,
        topics: &dyn Topics,
        room: Room,
        context: &Context,
        request: GroupRequest,
        token: T,
    ) -> Vec<Output<T>> {
        self.known = Known::up_to(topics.newest());
        if self.loading {
            let response = match &request {
                // While loading, nothing says that the member was removed. Kafka also answers without an error.
                GroupRequest::Heartbeat(_) => HeartbeatResponse::default().into(),
                _ => request.refuse(context.version, ErrorCode::CoordinatorLoadInProgress),
            };
            self.out.push(Output::Reply { token, response });
            return std::mem::take(&mut self.out);
        }
        if let Err(error) = check_group_id(&request) {
            let response = request.refuse(context.version, error);
            self.out.push(Output::Reply { token, response });
            return std::mem::take(&mut self.out);
        }
        self.room = room;
        let version = context.version;
        match request {
            GroupRequest::JoinGroup(request) => self.join(now, context, request, token),
            GroupRequest::LeaveGroup(request) => self.leave(now, version, request, token),
            GroupRequest::OffsetCommit(request) => self.commit(now, topics, version, request, token),
            GroupRequest::DeleteGroups(request) => self.delete(now, &request, token),
            GroupRequest::SyncGroup(sync) => match self.groups.contains_key(&sync.group_id.0) {
                true => {
                    let id = sync.group_id.0.clone();
                    self.with_group(now, &id, |group, env| group.sync(env, version, sync, token));
                }
                false => self.reply(token, GroupRequest::from(sync).refuse(version, ErrorCode::UnknownMemberId)),
            },
            GroupRequest::Heartbeat(heartbeat) => {
                let unknown = || HeartbeatResponse::default().with_error_code(ErrorCode::UnknownMemberId.code());
                let response = self.with_group(now, &heartbeat.group_id, |group, env| group.heartbeat(env, &heartbeat));
                self.reply(token, response.unwrap_or_else(unknown));
            }
            GroupRequest::OffsetFetch(_) | GroupRequest::DescribeGroups(_) | GroupRequest::ListGroups(_) => {
                unreachable!("a request that only reads takes no step")
            }
        }
        self.finish(now)
    }

    /// A request waits for room in the log before [`Coordinator::step`] handles it. A member that commits stays alive
    /// meanwhile: its heartbeats may wait behind the commit.
    pub fn request_waits(&mut self, now: Now, request: &GroupRequest) -> Vec<Output<T>> {
        if let GroupRequest::OffsetCommit(commit) = request {
            self.with_group(now, &commit.group_id, |group, env| {
                if group.validate_commit(commit).is_ok() {
                    group.keep_committer_alive(commit, env);
                }
            });
        }
        self.finish(now)
    }

    /// Runs the timers that are due, and one turn of the sweep.
    pub fn tick(&mut self, now: Now, topics: &dyn Topics) -> Vec<Output<T>> {
        self.sweep_turn(now, topics);
        self.finish(now)
    }

    /// An append is committed or has failed.
    pub fn appended(&mut self, now: Now, id: AppendId, outcome: Result<(), ErrorCode>) -> Vec<Output<T>> {
        let overtaken = self.appends.open.first_key_value().is_some_and(|(&first, _)| first < id);
        assert!(outcome.is_err() || !overtaken, "appends are committed in order");
        let then = self.appends.open.remove(&id).expect("each append is answered once");
        self.follow_up(now, then, outcome.map_err(append_error));
        self.finish(now)
    }

    fn follow_up(&mut self, now: Now, then: Then<T>, outcome: Result<(), ErrorCode>) {
        if let Some((id, bytes)) = then.reserved() {
            self.change_group(&id.clone(), |group| group.release(bytes));
        }
        match then {
            Then::Offsets { group: id, changes, token, mut response, .. } => {
                self.change_group(&id, |group| group.commit_stored(changes, outcome.is_ok()));
                if let Err(error) = outcome {
                    offsets::fail_commit(&mut response, error);
                }
                self.reply(token, response);
            }
            Then::Assignment { group, generation, known, assignments, .. } => {
                self.with_group(now, &group, |group, env| {
                    group.assignment_stored(env, generation, known, assignments, outcome)
                });
            }
            Then::StaticMember { group, instance_id, member_id, old_id, old, .. } => {
                self.with_group(now, &group, |group, env| match outcome {
                    Ok(()) => group.static_member_stored(env, &member_id, &old_id),
                    Err(error) => {
                        group.static_member_not_stored(env, (&instance_id, &member_id, &old_id), old, error);
                    }
                });
            }
            Then::Emptied { group, reply } => {
                if let Err(error) = outcome {
                    // The log still has the members. A restart loads them, and their sessions then time out.
                    let what = "could not store that the group is empty";
                    if let Some(Admitted { left_out }) = self.log.admit(now.mono(), &group, what) {
                        tracing::warn!(%group, %error, left_out, "{what}");
                    }
                }
                if let Some((waiting, response)) = reply {
                    let refused = |error: ErrorCode| {
                        GroupRequest::from(LeaveGroupRequest::default()).refuse(waiting.version, error)
                    };
                    self.reply(waiting.token, outcome.map_or_else(refused, |()| response));
                }
            }
            Then::Tombstones(tombstones) => self.tombstones_stored(now, tombstones, outcome),
        }
    }

    fn reply(&mut self, token: T, response: impl Into<GroupResponse>) {
        self.out.push(Output::Reply { token, response: response.into() });
    }

    fn env(&mut self, now: Now) -> Env<'_, T> {
        Env {
            now,
            config: &self.config,
            room_bytes: self.room.bytes,
            known: self.known,
            log: &self.log,
            rng: &mut self.rng,
            timers: &mut self.timers,
            appends: &mut self.appends,
            out: &mut self.out,
        }
    }

    /// Runs a rule on a group, if it exists, and removes the group if nothing is left of it.
    fn with_group<R>(
        &mut self,
        now: Now,
        id: &StrBytes,
        rule: impl FnOnce(&mut Group<T>, &mut Env<'_, T>) -> R,
    ) -> Option<R> {
        let group = self.groups.get_mut(id)?;
        let mut env = Env {
            now,
            config: &self.config,
            room_bytes: self.room.bytes,
            known: self.known,
            log: &self.log,
            rng: &mut self.rng,
            timers: &mut self.timers,
            appends: &mut self.appends,
            out: &mut self.out,
        };
        let before = group.bytes;
        let result = rule(group, &mut env);
        self.settle(id, before);
        Some(result)
    }

    /// Applies a change from the log to a group, if it exists.
    fn change_group(&mut self, id: &StrBytes, change: impl FnOnce(&mut Group<T>)) {
        if let Some(group) = self.groups.get_mut(id) {
            let before = group.bytes;
            change(group);
            self.settle(id, before);
        }
    }

    /// Updates the byte count after a group has changed, and removes the group if nothing is left of it.
    fn settle(&mut self, id: &StrBytes, bytes_before: usize) {
        let group = &self.groups[id];
        self.bytes = self.bytes - bytes_before + group.bytes;
        if group.is_vacant() {
            self.bytes -= group.bytes;
            self.groups.remove(id);
        }
    }

    fn insert_group(&mut self, id: &StrBytes, now_ms: Option<i64>) {
        if !self.groups.contains_key(id) {
            let group = Group::new(own(id), now_ms);
            self.bytes += group.bytes;
            self.groups.insert(group.id.clone(), group);
        }
    }

    /// Adds the group if there is room for another.
    fn create_group(&mut self, now: Now, id: &StrBytes) -> Result<(), ErrorCode> {
        if self.groups.contains_key(id) {
            return Ok(());
        }
        if self.groups.len() >= self.config.groups_max {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        let bytes = group_bytes(id);
        let Some(left) = self.room.new_groups.checked_sub(bytes) else {
            self.out.push(Output::NoRoom { group: id.clone(), bytes });
            return Err(ErrorCode::CoordinatorNotAvailable);
        };
        self.room = Room { bytes: left, new_groups: left };
        self.insert_group(id, Some(now.wall_ms));
        Ok(())
    }

    fn join(&mut self, now: Now, context: &Context, request: JoinGroupRequest, token: T) {
        let id = request.group_id.0.clone();
        let session = self.config.group_min_session_timeout_ms..=self.config.group_max_session_timeout_ms;
        let checked = if !session.contains(&request.session_timeout_ms) {
            Err(ErrorCode::InvalidSessionTimeout)
        } else if let Err(error) = check_join_size(&request, &context.client_id) {
            Err(error)
        } else if request.member_id.is_empty() {
            self.create_group(now, &id)
        } else if self.groups.contains_key(&id) {
            Ok(())
        } else {
            Err(ErrorCode::UnknownMemberId)
        };
        match checked {
            Ok(()) => {
                self.with_group(now, &id, |group, env| group.join(env, context, &request, token));
            }
            Err(error) => self.reply(token, GroupRequest::from(request).refuse(context.version, error)),
        }
    }

    fn leave(&mut self, now: Now, version: i16, request: LeaveGroupRequest, token: T) {
        let id = request.group_id.0.clone();
        if self.groups.contains_key(&id) {
            self.with_group(now, &id, |group, env| group.leave(env, version, &request, token));
            return;
        }
        let unknown = Err(ErrorCode::UnknownMemberId);
        let members = session::leaving(version, &request);
        let members = members.iter().map(|identity| session::left_response(identity, &unknown)).collect();
        self.reply(token, shape_leave(version, members));
    }

    fn commit(&mut self, now: Now, topics: &dyn Topics, version: i16, request: OffsetCommitRequest, token: T) {
        /// The first version that can answer GROUP_ID_NOT_FOUND (KIP-848).
        const GROUP_NOT_FOUND_FROM: i16 = 9;
        let id = request.group_id.0.clone();
        let allowed = match self.groups.get(&id) {
            Some(group) => group.validate_commit(&request),
            None if request.generation_id_or_member_epoch < 0 => self.create_group(now, &id),
            None if version >= GROUP_NOT_FOUND_FROM => Err(ErrorCode::GroupIdNotFound),
            None => Err(ErrorCode::IllegalGeneration),
        };
        match allowed {
            Ok(()) => {
                self.with_group(now, &id, |group, env| group.commit(env, topics, &request, token));
            }
            Err(error) => self.reply(token, offset_commit_error(&request, error)),
        }
    }

    /// Runs the timers that are due, and returns all outputs so far.
    fn finish(&mut self, now: Now) -> Vec<Output<T>> {
        self.room = Room::default();
        while let Some(timer) = self.timers.pop_due(now.mono_ms) {
            match timer {
                Timer::Session { group, member } => {
                    self.with_group(now, &group, |group, env| group.session_expired(env, &member));
                }
                Timer::InitialJoin { group, delay_ms, remaining_ms } => {
                    self.with_group(now, &group, |group, env| group.initial_join_expired(env, delay_ms, remaining_ms));
                }
                Timer::Join { group } => {
                    self.with_group(now, &group, |group, env| group.complete_join(env));
                }
                Timer::Sync { group } => {
                    self.with_group(now, &group, |group, env| group.sync_expired(env));
                }
                Timer::Expiry => {
                    let more = self.expire(now);
                    let pause = if more { 1 } else { self.config.offsets_retention_check_interval_ms as u64 };
                    self.timers.schedule(&mut self.expiry, now.mono_ms + pause, Timer::Expiry);
                }
            }
        }
        std::mem::take(&mut self.out)
    }

    /// Asserts the module's invariants, for tests and simulation.
    pub fn check(&self) {
        let mut timers = usize::from(self.timers.is_set(&self.expiry));
        for (id, group) in &self.groups {
            assert_eq!(*id, group.id);
            if self.loading {
                continue;
            }
            group.check(&self.timers);
            let slots = [&group.join_timer, &group.sync_timer].into_iter();
            let slots = slots.chain(group.pending.values()).chain(group.members.values().map(|member| &member.session));
            timers += slots.filter(|slot| self.timers.is_set(slot)).count();
            assert!(!group.is_vacant(), "{id} is kept although vacant");
        }
        assert_eq!(self.bytes, self.groups.values().map(|group| group.bytes).sum::<usize>());
        let mut reserved: BTreeMap<&StrBytes, usize> = BTreeMap::new();
        for (id, bytes) in self.appends.open.values().filter_map(Then::reserved).filter(|(_, bytes)| *bytes > 0) {
            *reserved.entry(id).or_default() += bytes;
        }
        for (id, group) in &self.groups {
            assert_eq!(group.reserved_bytes, reserved.remove(id).unwrap_or(0), "{id}: bytes of appends in flight");
        }
        assert!(reserved.is_empty(), "a group stays while an append holds memory for it");
        assert_eq!(timers, self.timers.len(), "every timer belongs to a group");
        assert!(self.out.is_empty(), "outputs are handed out");
        let open = self.appends.open.values();
        let deletions =
            open.filter(|then| matches!(then, Then::Tombstones(Tombstones { deletion: Some(_), .. }))).count();
        assert_eq!(deletions, self.appends.deletions.len(), "each deletion waits for one append");
    }
}

/// Only offsets may be stored under an empty group id, as in Kafka.
fn check_group_id(request: &GroupRequest) -> Result<(), ErrorCode> {
    let (id, may_be_empty) = match request {
        GroupRequest::JoinGroup(request) => (&request.group_id, false),
        GroupRequest::SyncGroup(request) => (&request.group_id, false),
        GroupRequest::Heartbeat(request) => (&request.group_id, false),
        GroupRequest::LeaveGroup(request) => (&request.group_id, false),
        GroupRequest::OffsetCommit(request) => (&request.group_id, true),
        _ => return Ok(()),
    };
    if id.len() > STRING_BYTES_MAX || (id.is_empty() && !may_be_empty) {
        return Err(ErrorCode::InvalidGroupId);
    }
    Ok(())
}
