//! JoinGroup: which clients may join, and under which member id (`GroupMetadataManager.classicGroupJoin*`; KIP-345,
//! KIP-394).

use bytes::Bytes;
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{JoinGroupRequest, JoinGroupResponse, join_group_response::JoinGroupResponseMember},
};

use super::{
    api::Context,
    config::PENDING_MEMBERS_MAX,
    env::{Env, Then, Waiting},
    group::{
        Group, Member, State,
        size::{new_member_bytes, pending_bytes},
    },
    incarnation::Known,
    protocols::{MemberSettings, own},
    timers::Timer,
};

/// The first version whose clients join again with the member id that they were given (KIP-394).
const KNOWN_MEMBER_ID_FROM: i16 = 4;
/// The first version that can tell a returning static leader to skip the assignment (KIP-814).
const SKIP_ASSIGNMENT_FROM: i16 = 9;

impl<T> Group<T> {
    pub(crate) fn join(&mut self, env: &mut Env<'_, T>, context: &Context, request: &JoinGroupRequest, token: T) {
        let waiting = Waiting { token, version: context.version };
        let refused_id = request.member_id.clone();
        if !self.has_room_for(&request.member_id, env.config.group_max_size) {
            // The client may be a member that rejoined too late. Members that rejoined before it keep their places.
            if let Some(member) = self.remove(&request.member_id, env.timers) {
                self.dismiss(member, env);
                self.complete_if_all_joined(env);
            }
            return env.refuse_join(waiting, StrBytes::new(), ErrorCode::GroupMaxSizeReached);
        }
        if self.state == State::Dead {
            return env.refuse_join(waiting, refused_id, ErrorCode::CoordinatorNotAvailable);
        }
        let names: Vec<&StrBytes> = request.protocols.iter().map(|protocol| &protocol.name).collect();
        if !self.supports(&request.protocol_type, &names) {
            return env.refuse_join(waiting, refused_id, ErrorCode::InconsistentGroupProtocol);
        }
        let says = MemberSettings::from_request(request, context.version);
        // A static member may come back without its id.
        let known_as = match &request.group_instance_id {
            Some(instance) if request.member_id.is_empty() => self.static_members.get(instance),
            _ => Some(&request.member_id),
        };
        let grows_by = match known_as.and_then(|id| self.members.get(id)) {
            Some(member) => says.bytes().saturating_sub(member.settings.bytes()),
            None => {
                request.protocol_type.len() + new_member_bytes(context, request.group_instance_id.as_deref(), &says)
            }
        };
        if grows_by > env.room_bytes {
            env.no_room(&self.id, grows_by);
            return env.refuse_join(waiting, refused_id, ErrorCode::CoordinatorNotAvailable);
        }
        if request.member_id.is_empty() {
            self.join_as_new(env, context, request, waiting);
        } else {
            self.join_again(env, context, request, waiting);
        }
    }

    /// During a rebalance, members that rejoin first get the places.
    fn has_room_for(&self, member: &StrBytes, max: usize) -> bool {
        let known = self.members.get(member);
        match self.state {
            State::Empty | State::Dead => true,
            State::PreparingRebalance => known.is_some_and(|member| member.joining.is_some()) || self.joining() < max,
            State::CompletingRebalance | State::Stable => known.is_some() || self.members.len() < max,
        }
    }

    fn join_as_new(
        &mut self,
        env: &mut Env<'_, T>,
        context: &Context,
        request: &JoinGroupRequest,
        waiting: Waiting<T>,
    ) {
        let prefix: &str = request.group_instance_id.as_ref().unwrap_or(&context.client_id);
        let uuid = uuid::Builder::from_random_bytes(env.rng.u128(..).to_be_bytes()).into_uuid();
        let member_id = StrBytes::from_string(format!("{prefix}-{uuid}"));
        match &request.group_instance_id {
            Some(instance) if self.static_members.contains_key(instance) => {
                self.replace_static(env, request, instance, member_id, waiting);
            }
            None if context.version >= KNOWN_MEMBER_ID_FROM => {
                self.add_pending(env, member_id.clone(), request.session_timeout_ms.max(0) as u64);
                env.refuse_join(waiting, member_id, ErrorCode::MemberIdRequired);
            }
            _ => self.add_and_rebalance(env, context, request, member_id, waiting),
        }
    }

    fn add_pending(&mut self, env: &mut Env<'_, T>, member_id: StrBytes, session_timeout_ms: u64) {
        if self.pending.len() >= PENDING_MEMBERS_MAX {
            let oldest = self.pending.iter().min_by_key(|(_, session)| session.map(|(_, number)| number));
            let oldest = oldest.expect("a full list has an oldest member").0.clone();
            self.remove(&oldest, env.timers);
        }
        let mut session = None;
        let timer = Timer::Session { group: self.id.clone(), member: member_id.clone() };
        env.timers.schedule(&mut session, env.after(session_timeout_ms), timer);
        self.bytes += pending_bytes(&member_id);
        self.pending.insert(member_id, session);
    }

    fn add_and_rebalance(
        &mut self,
        env: &mut Env<'_, T>,
        context: &Context,
        request: &JoinGroupRequest,
        member_id: StrBytes,
        waiting: Waiting<T>,
    ) {
        // An initial rebalance in progress may be extended.
        if self.state == State::PreparingRebalance && self.previous_state == State::Empty {
            self.new_member_added = true;
        }
        let mut member = Member {
            instance_id: request.group_instance_id.as_deref().map(own),
            client_id: own(&context.client_id),
            client_host: own(&context.client_host),
            settings: MemberSettings::from_request(request, context.version),
            assignment: Bytes::new(),
            known: Known::default(),
            joining: Some(waiting),
            syncing: None,
            is_new: true,
            owes_sync: false,
            session: None,
        };
        // The member does not know its id yet and cannot send heartbeats. Its JoinGroup itself times out, so that
        // members whose clients are gone do not pile up in a long rebalance.
        let at = env.after(env.config.group_new_member_join_timeout_ms as u64);
        let timer = Timer::Session { group: self.id.clone(), member: member_id.clone() };
        env.timers.schedule(&mut member.session, at, timer);
        self.add(member_id, member, &request.protocol_type, env.timers);
        self.rebalance_or_complete(env);
    }

    fn join_again(&mut self, env: &mut Env<'_, T>, context: &Context, request: &JoinGroupRequest, waiting: Waiting<T>) {
        let id = &request.member_id;
        if self.pending.contains_key(id) && request.group_instance_id.is_none() {
            return self.add_and_rebalance(env, context, request, own(id), waiting);
        }
        if let Err(error) = self.validate_member(id, request.group_instance_id.as_ref()) {
            return env.refuse_join(waiting, id.clone(), error);
        }
        let same = self.members[id].settings.matches(request);
        let answer_at_once = match self.state {
            State::PreparingRebalance => false,
            // The client may have missed the answer. The generation stays valid.
            State::CompletingRebalance => same,
            // A leader that rejoins wants to assign again: it may know of changes that the members' metadata does not
            // show.
            State::Stable => same && !self.is_leader(id),
            State::Empty | State::Dead => unreachable!("there are no members"),
        };
        if answer_at_once {
            let response = self.join_response(id);
            env.reply_join(waiting, response);
        } else {
            let settings = MemberSettings::from_request(request, context.version);
            self.update(env, &id.clone(), settings, Some(waiting));
            self.rebalance_or_complete(env);
        }
    }

    /// The JoinGroup answer for this member. Only the leader's answer lists the members.
    pub(crate) fn join_response(&self, id: &StrBytes) -> JoinGroupResponse {
        let protocol = self.protocol.clone().unwrap_or_default();
        let members = self.members.iter().filter(|_| self.is_leader(id)).map(|(member_id, member)| {
            JoinGroupResponseMember::default()
                .with_member_id(member_id.clone())
                .with_group_instance_id(member.instance_id.clone())
                .with_metadata(member.settings.metadata(&protocol))
        });
        JoinGroupResponse::default()
            .with_generation_id(self.generation)
            .with_protocol_type(self.protocol_type.clone())
            .with_protocol_name(self.protocol.clone())
            .with_leader(self.leader.clone().unwrap_or_default())
            .with_member_id(id.clone())
            .with_members(members.collect())
    }

    /// Sets a member's settings and its waiting JoinGroup. An earlier JoinGroup that still waits is answered
    /// REBALANCE_IN_PROGRESS, so that it does not hold up later answers on its connection.
    fn update(&mut self, env: &mut Env<'_, T>, id: &StrBytes, settings: MemberSettings, joining: Option<Waiting<T>>) {
        self.set_settings(id, settings);
        let member = self.members.get_mut(id).expect("the member is known");
        if let Some(superseded) = std::mem::replace(&mut member.joining, joining) {
            env.refuse_join(superseded, id.clone(), ErrorCode::RebalanceInProgress);
        }
    }

    /// Gives a static member a new id. Requests that wait under the old id are fenced.
    fn rename_static(&mut self, env: &mut Env<'_, T>, instance: &StrBytes, old_id: &StrBytes, new_id: &StrBytes) {
        let mut member = self.members.remove(old_id).expect("instances name members");
        self.bytes = self.bytes - member.bytes(old_id) + member.bytes(new_id);
        env.timers.cancel(&mut member.session);
        if let Some(joining) = member.joining.take() {
            env.refuse_join(joining, old_id.clone(), ErrorCode::FencedInstanceId);
        }
        if let Some(syncing) = member.syncing.take() {
            env.refuse_sync(syncing, ErrorCode::FencedInstanceId);
        }
        if self.is_leader(old_id) {
            self.leader = Some(new_id.clone());
        }
        self.static_members.insert(member.instance_id.clone().unwrap_or_else(|| instance.clone()), new_id.clone());
        self.members.insert(new_id.clone(), member);
        self.keep_alive(new_id, env);
    }

    /// A static member returned without its member id and takes its own place again
    /// (`updateStaticMemberThenRebalanceOrCompleteJoin`).
    fn replace_static(
        &mut self,
        env: &mut Env<'_, T>,
        request: &JoinGroupRequest,
        instance: &StrBytes,
        new_id: StrBytes,
        waiting: Waiting<T>,
    ) {
        let old_id = self.static_members[instance].clone();
        self.rename_static(env, instance, &old_id, &new_id);
        let old = self.members[&new_id].settings.clone();
        let settings = MemberSettings::from_request(request, waiting.version);
        self.update(env, &new_id, settings, Some(waiting));
        self.keep_alive(&new_id, env);
        match self.state {
            State::Stable if self.select_protocol() == self.protocol => {
                // Nothing changes for the other members. The new id is stored, and the assignment stays valid.
                let reserved = old.bytes();
                self.reserve(reserved);
                let then = Then::StaticMember {
                    group: self.id.clone(),
                    instance_id: own(instance),
                    member_id: new_id,
                    old_id,
                    old,
                    reserved,
                };
                env.append(&[self.record(|_, member| member.assignment.clone())], then);
            }
            State::Stable => self.rebalance_or_complete(env),
            // The leader may be assigning to the old id right now.
            State::CompletingRebalance => self.prepare_rebalance(env),
            State::PreparingRebalance => self.complete_if_all_joined(env),
            State::Empty | State::Dead => unreachable!("there are no members"),
        }
    }

    /// The new id of a static member is in the log, so the client may be answered.
    pub(crate) fn static_member_stored(&mut self, env: &mut Env<'_, T>, id: &StrBytes, old_id: &StrBytes) {
        // If a rebalance has begun meanwhile, it answers the client when it completes.
        if self.state != State::Stable {
            return;
        }
        let Some(waiting) = self.members.get_mut(id).and_then(|member| member.joining.take()) else { return };
        let mut response = self.join_response(id);
        if waiting.version >= SKIP_ASSIGNMENT_FROM {
            response.skip_assignment = self.is_leader(id);
        } else {
            // Older clients cannot skip the assignment. The answer names the old id as leader, so the client just
            // fetches its present assignment.
            response.members.clear();
            if self.is_leader(id) {
                response.leader = old_id.clone();
            }
        }
        env.reply_join(waiting, response);
        self.keep_alive(id, env);
    }

    /// The new id of a static member could not be stored. The old id and settings are restored.
    pub(crate) fn static_member_not_stored(
        &mut self,
        env: &mut Env<'_, T>,
        (instance, id, old_id): (&StrBytes, &StrBytes, &StrBytes),
        old: MemberSettings,
        error: ErrorCode,
    ) {
        if self.static_members.get(instance) != Some(id) {
            return;
        }
        self.set_settings(id, old);
        let member = self.members.get_mut(id).expect("instances name members");
        if let Some(joining) = member.joining.take() {
            env.refuse_join(joining, StrBytes::new(), error);
        }
        self.rename_static(env, instance, id, old_id);
    }

    /// Answers the waiting requests of a removed member with UNKNOWN_MEMBER_ID. The client may join again as a new
    /// member.
    pub(crate) fn dismiss(&mut self, member: Member<T>, env: &mut Env<'_, T>) {
        if let Some(joining) = member.joining {
            env.refuse_join(joining, StrBytes::new(), ErrorCode::UnknownMemberId);
        }
        if let Some(syncing) = member.syncing {
            env.refuse_sync(syncing, ErrorCode::UnknownMemberId);
        }
    }
}
