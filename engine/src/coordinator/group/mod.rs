//! One group: members, generation, committed offsets. The rules are in `join`, `rebalance`, `session` and `offsets`.
//!
//! ```text
//!            first join             all joined, or time over          leader's assignment is in the log
//!   Empty ──────────────► PreparingRebalance ───────────► CompletingRebalance ───────────► Stable
//!     ▲                     │    ▲    ▲                          │                            │
//!     └──── nobody joined ──┘    │    └── member comes or goes ──┘                            │
//!     │                          └─────────────── member comes or goes ───────────────────────┘
//!     └─► Dead: its tombstone is being appended to the log
//! ```

pub(super) mod size;

use std::collections::BTreeMap;

use bytes::Bytes;
use net::{StrBytes, errors::ErrorCode, messages::JoinGroupRequest};

use super::{
    config::{MEMBER_BYTES_MAX, STRING_BYTES_MAX},
    env::{Env, Now, Waiting},
    incarnation::Known,
    protocols::{self, MemberSettings, Supported, own},
    records::{CommittedOffset, GroupMetadata, GroupRecord, MemberMetadata},
    timers::{Slot, Timer, Timers},
};
use size::{group_bytes, pending_bytes};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Empty,
    PreparingRebalance,
    CompletingRebalance,
    Stable,
    Dead,
}

impl State {
    pub(crate) const ALL: [State; 5] =
        [State::Empty, State::PreparingRebalance, State::CompletingRebalance, State::Stable, State::Dead];

    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::PreparingRebalance => "PreparingRebalance",
            State::CompletingRebalance => "CompletingRebalance",
            State::Stable => "Stable",
            State::Dead => "Dead",
        }
    }

    fn may_follow(self, before: State) -> bool {
        use State::*;
        match self {
            Empty => matches!(before, PreparingRebalance | Dead),
            PreparingRebalance => matches!(before, Stable | CompletingRebalance | Empty),
            CompletingRebalance => before == PreparingRebalance,
            Stable => before == CompletingRebalance,
            Dead => before == Empty,
        }
    }
}

/// Rejects a join whose strings would not fit a record, or that would take more memory than one member may.
pub(crate) fn check_join_size(request: &JoinGroupRequest, client_id: &str) -> Result<(), ErrorCode> {
    /// Bytes of the generated part of a member id: a dash and a UUID.
    const GENERATED_BYTES: usize = 37;
    let instance = request.group_instance_id.as_deref().unwrap_or_default();
    let strings = [&*request.member_id, instance, &*request.protocol_type, client_id];
    let protocols = || request.protocols.iter();
    let longest = strings.iter().map(|s| s.len()).chain(protocols().map(|p| p.name.len())).max().unwrap_or(0);
    let total =
        strings.iter().map(|s| s.len()).chain(protocols().map(|p| p.name.len() + p.metadata.len())).sum::<usize>();
    if longest > STRING_BYTES_MAX - GENERATED_BYTES || total > MEMBER_BYTES_MAX {
        return Err(ErrorCode::InvalidRequest);
    }
    Ok(())
}

#[derive(Debug)]
pub(crate) struct Member<T> {
    pub(crate) instance_id: Option<StrBytes>,
    pub(crate) client_id: StrBytes,
    pub(crate) client_host: StrBytes,
    pub(crate) settings: MemberSettings,
    pub(crate) assignment: Bytes,
    /// The topics that the member knows from its assignment.
    pub(crate) known: Known,
    /// Its JoinGroup, while it waits for the other members.
    pub(crate) joining: Option<Waiting<T>>,
    /// Its SyncGroup, while it waits for the leader's.
    pub(crate) syncing: Option<Waiting<T>>,
    /// It has not yet received its member id, so it cannot send heartbeats.
    pub(crate) is_new: bool,
    /// It has not yet sent SyncGroup in this generation.
    pub(crate) owes_sync: bool,
    pub(crate) session: Slot,
}

#[derive(Debug)]
pub(crate) struct Group<T> {
    pub(crate) id: StrBytes,
    pub(crate) state: State,
    pub(crate) previous_state: State,
    /// When the present state began, in ms since the epoch.
    pub(crate) state_timestamp: Option<i64>,
    pub(crate) generation: i32,
    /// `None`: the group never had a member and only stores offsets.
    pub(crate) protocol_type: Option<StrBytes>,
    pub(crate) protocol: Option<StrBytes>,
    pub(crate) leader: Option<StrBytes>,
    /// Boxed, since a map has room for eleven, and many groups have one member.
    pub(crate) members: BTreeMap<StrBytes, Box<Member<T>>>,
    /// The protocols of all members.
    supported: Supported,
    /// Instance id to member id (KIP-345).
    pub(crate) static_members: BTreeMap<StrBytes, StrBytes>,
    /// Issued member ids whose clients have not yet joined with them (KIP-394).
    pub(crate) pending: BTreeMap<StrBytes, Slot>,
    /// A member joined during the initial rebalance delay.
    pub(crate) new_member_added: bool,
    pub(crate) join_timer: Slot,
    pub(crate) sync_timer: Slot,
    pub(crate) offsets: BTreeMap<StrBytes, BTreeMap<i32, CommittedOffset>>,
    /// Number of commits in flight, by topic and partition.
    pub(crate) uncommitted: BTreeMap<(StrBytes, i32), usize>,
    /// This generation's assignment is being appended to the log.
    pub(crate) assigning: bool,
    /// The log has records of the group, so removing the group takes a tombstone.
    pub(crate) logged: bool,
    /// Bytes of memory that the group takes: see `size`.
    pub(crate) bytes: usize,
    /// The part of `bytes` that appends in flight hold.
    pub(crate) reserved_bytes: usize,
}

impl<T> Group<T> {
    pub(crate) fn new(id: StrBytes, now_ms: Option<i64>) -> Group<T> {
        Group {
            bytes: group_bytes(&id),
            id,
            state: State::Empty,
            previous_state: State::Empty,
            state_timestamp: now_ms,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            supported: Supported::default(),
            static_members: BTreeMap::new(),
            pending: BTreeMap::new(),
            new_member_added: false,
            join_timer: None,
            sync_timer: None,
            offsets: BTreeMap::new(),
            uncommitted: BTreeMap::new(),
            assigning: false,
            logged: false,
            reserved_bytes: 0,
        }
    }

    /// Replaces the group with its state in the log, except for its offsets. Used in replay, when no request waits.
    /// `newest`: [`Topics::newest`](super::Topics::newest).
    pub(crate) fn replace_by(&mut self, value: GroupMetadata, newest: u64) {
        let (offsets_bytes, offsets) = (self.offsets_bytes(), std::mem::take(&mut self.offsets));
        *self = Group::new(self.id.clone(), Some(value.state_timestamp).filter(|&at| at != -1));
        self.offsets = offsets;
        self.logged = true;
        let known = Known::from_log(newest, self.state_timestamp);
        self.generation = value.generation;
        self.protocol_type = Some(value.protocol_type).filter(|name| !name.is_empty());
        let protocol = value.protocol.clone().unwrap_or_default();
        self.protocol = value.protocol;
        self.leader = value.leader;
        if !value.members.is_empty() {
            (self.state, self.previous_state) = (State::Stable, State::CompletingRebalance);
        }
        for member in value.members {
            if let Some(instance) = &member.instance_id {
                self.static_members.insert(instance.clone(), member.member_id.clone());
            }
            self.leader.get_or_insert_with(|| member.member_id.clone());
            let loaded = Member {
                instance_id: member.instance_id,
                client_id: member.client_id,
                client_host: member.client_host,
                settings: MemberSettings {
                    rebalance_timeout_ms: member.rebalance_timeout_ms as u64,
                    session_timeout_ms: member.session_timeout_ms as u64,
                    protocols: vec![(protocol.clone(), member.subscription)],
                },
                assignment: member.assignment,
                known,
                joining: None,
                syncing: None,
                is_new: false,
                owes_sync: false,
                session: None,
            };
            self.supported.add(&loaded.settings.protocols);
            self.members.insert(member.member_id, Box::new(loaded));
        }
        self.bytes = self.count_bytes_without_offsets() + offsets_bytes;
    }

    /// The group's record, with these assignments.
    pub(crate) fn record(&self, assignment: impl Fn(&StrBytes, &Member<T>) -> Bytes) -> GroupRecord {
        let protocol = self.protocol.clone().unwrap_or_default();
        let members = self.members.iter().map(|(id, member)| MemberMetadata {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            rebalance_timeout_ms: member.settings.rebalance_timeout_ms as i32,
            session_timeout_ms: member.settings.session_timeout_ms as i32,
            subscription: member.settings.metadata(&protocol),
            assignment: assignment(id, member),
        });
        let value = GroupMetadata {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            state_timestamp: self.state_timestamp.unwrap_or(-1),
            members: members.collect(),
        };
        GroupRecord::Group { group: self.id.clone(), value: Some(value) }
    }

    pub(crate) fn transition(&mut self, to: State, now: Now) {
        assert!(to.may_follow(self.state), "group {} goes from {:?} to {to:?}", self.id, self.state);
        (self.previous_state, self.state) = (self.state, to);
        self.state_timestamp = Some(now.wall_ms);
    }

    pub(crate) fn is_leader(&self, member: &StrBytes) -> bool {
        self.leader.as_ref() == Some(member)
    }

    /// The group holds no state and has nothing in flight, so it can be removed without a record.
    pub(crate) fn is_vacant(&self) -> bool {
        self.state == State::Empty
            && !self.logged
            && self.reserved_bytes == 0
            && self.members.is_empty()
            && self.pending.is_empty()
            && self.offsets.is_empty()
            && self.uncommitted.is_empty()
    }

    /// Whether this member exists, and is the current member of the instance that it names (KIP-345).
    pub(crate) fn validate_member(&self, member: &StrBytes, instance: Option<&StrBytes>) -> Result<(), ErrorCode> {
        if let Some(instance) = instance {
            match self.static_members.get(instance) {
                None => return Err(ErrorCode::UnknownMemberId),
                Some(current) if current != member => return Err(ErrorCode::FencedInstanceId),
                Some(_) => {}
            }
        }
        if self.members.contains_key(member) { Ok(()) } else { Err(ErrorCode::UnknownMemberId) }
    }

    /// Whether a client with these protocols may join. An empty group accepts any protocol. Otherwise the client must
    /// have one that all members support.
    pub(crate) fn supports(&self, protocol_type: &str, protocols: &[&StrBytes]) -> bool {
        if self.state == State::Empty {
            return !protocol_type.is_empty() && !protocols.is_empty();
        }
        let all_support = |name: &&StrBytes| self.supported.count(name) == self.members.len();
        self.protocol_type.as_deref() == Some(protocol_type) && protocols.iter().any(all_support)
    }

    /// The protocol for the next generation.
    pub(crate) fn select_protocol(&self) -> Option<StrBytes> {
        protocols::select(&self.supported, self.members.values().map(|member| &member.settings.protocols))
    }

    pub(crate) fn rebalance_timeout_ms(&self) -> u64 {
        self.members.values().map(|member| member.settings.rebalance_timeout_ms).max().unwrap_or(0)
    }

    pub(crate) fn joining(&self) -> usize {
        self.members.values().filter(|member| member.joining.is_some()).count()
    }

    pub(crate) fn all_joined(&self) -> bool {
        self.pending.is_empty() && self.members.values().all(|member| member.joining.is_some())
    }

    /// Adds a member, which may have been pending.
    pub(crate) fn add(&mut self, id: StrBytes, member: Member<T>, protocol_type: &StrBytes, timers: &mut Timers) {
        self.remove_pending(&id, timers);
        self.bytes += member.bytes(&id);
        if let Some(instance) = &member.instance_id {
            let before = self.static_members.insert(instance.clone(), id.clone());
            assert!(before.is_none(), "a known instance replaces its member");
        }
        if self.members.is_empty() {
            let before = self.protocol_type.replace(own(protocol_type));
            self.bytes = self.bytes + protocol_type.len() - before.map_or(0, |before| before.len());
        }
        self.leader.get_or_insert_with(|| id.clone());
        self.supported.add(&member.settings.protocols);
        assert!(self.members.insert(id, Box::new(member)).is_none(), "member ids are given out once");
    }

    /// Removes a member, pending or not. The caller must answer the requests that wait in the returned member.
    pub(crate) fn remove(&mut self, id: &StrBytes, timers: &mut Timers) -> Option<Member<T>> {
        self.remove_pending(id, timers);
        let mut member = self.members.remove(id)?;
        self.supported.remove(&member.settings.protocols);
        self.bytes -= member.bytes(id);
        timers.cancel(&mut member.session);
        if let Some(instance) = &member.instance_id {
            self.static_members.remove(instance);
        }
        if self.is_leader(id) {
            self.leader = self.members.keys().next().cloned();
        }
        Some(*member)
    }

    pub(crate) fn remove_pending(&mut self, id: &StrBytes, timers: &mut Timers) {
        if let Some(mut session) = self.pending.remove(id) {
            timers.cancel(&mut session);
            self.bytes -= pending_bytes(id);
        }
    }

    /// Counts memory for an append in flight: what it will add to the group, or what a failure will bring back.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        (self.bytes, self.reserved_bytes) = (self.bytes + bytes, self.reserved_bytes + bytes);
    }

    /// The append has ended.
    pub(crate) fn release(&mut self, bytes: usize) {
        (self.bytes, self.reserved_bytes) = (self.bytes - bytes, self.reserved_bytes - bytes);
    }

    /// Replaces a member's settings.
    pub(crate) fn set_settings(&mut self, id: &StrBytes, settings: MemberSettings) {
        let member = self.members.get_mut(id).expect("the member is known");
        self.bytes = self.bytes - member.settings.bytes() + settings.bytes();
        self.supported.remove(&member.settings.protocols);
        self.supported.add(&settings.protocols);
        member.settings = settings;
    }

    /// Starts or restarts a member's session timeout.
    pub(crate) fn keep_alive(&mut self, id: &StrBytes, env: &mut Env<'_, T>) {
        // The id that the group knows: the one given may be a slice of a frame, and the timer would keep that.
        let Some(id) = self.members.get_key_value(id).map(|(id, _)| id.clone()) else { return };
        let member = self.members.get_mut(&id).expect("the member is known");
        let at = env.now.mono_ms + member.settings.session_timeout_ms;
        let timer = Timer::Session { group: self.id.clone(), member: id };
        env.timers.schedule(&mut member.session, at, timer);
    }

    /// Asserts the invariants that hold between steps.
    pub(crate) fn check(&self, timers: &Timers) {
        let id = &self.id;
        let has_members = !self.members.is_empty();
        match self.state {
            State::Empty | State::Dead => assert!(!has_members, "{id}: {:?} with members", self.state),
            State::PreparingRebalance => assert!(timers.is_set(&self.join_timer), "{id}: nothing ends the rebalance"),
            State::CompletingRebalance | State::Stable => {
                assert!(has_members && self.protocol.is_some(), "{id}: no members")
            }
        }
        assert_eq!(self.leader.is_some(), has_members, "{id}: leader {:?}", self.leader);
        assert!(self.leader.as_ref().is_none_or(|leader| self.members.contains_key(leader)), "{id}: foreign leader");
        let statics = self.members.iter().filter_map(|(id, member)| Some((member.instance_id.clone()?, id.clone())));
        assert_eq!(self.static_members, statics.collect(), "{id}: instances");
        let may_assign = !self.assigning || self.state == State::CompletingRebalance;
        assert!(may_assign, "{id}: an assignment of another generation counts for nothing");
        let owing = self.members.values().any(|member| member.owes_sync);
        assert!(!owing || timers.is_set(&self.sync_timer), "{id}: nothing ends the wait for SyncGroup");
        for (member_id, member) in &self.members {
            let waits = member.joining.is_some() || member.syncing.is_some();
            assert!(waits || timers.is_set(&member.session), "{id}: nothing ends the session of {member_id}");
            assert!(!self.pending.contains_key(member_id), "{id}: {member_id} is pending and a member");
            assert!(member.syncing.is_none() || self.state == State::CompletingRebalance, "{id}: {member_id} syncs");
        }
        assert!(self.pending.values().all(|session| timers.is_set(session)), "{id}: nothing ends a pending member");
        assert!(self.uncommitted.values().all(|&count| count > 0));
        assert!(self.offsets.values().all(|partitions| !partitions.is_empty()));
        assert_eq!(self.bytes, self.count_bytes(), "{id}: bytes");
        let supported = Supported::of(self.members.values().map(|member| &member.settings.protocols));
        assert_eq!(self.supported, supported, "{id}: protocols");
    }
}
