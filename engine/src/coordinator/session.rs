//! SyncGroup, Heartbeat, LeaveGroup and session timeouts.

use std::collections::HashMap;

use bytes::Bytes;
use net::{
    StrBytes,
    errors::{ErrorCode, code},
    messages::{
        HeartbeatRequest, HeartbeatResponse, LeaveGroupRequest, SyncGroupRequest, leave_group_request::MemberIdentity,
        leave_group_response::MemberResponse,
    },
};

use super::{
    api::shape_leave,
    env::{Env, Then, Waiting},
    group::{Group, State, size::assigned_bytes},
    incarnation::Known,
    protocols::own,
};

/// The first version in which SyncGroup names the protocol that the client expects (KIP-559).
const SYNC_NAMES_PROTOCOL_FROM: i16 = 5;

impl<T> Group<T> {
    pub(crate) fn sync(&mut self, env: &mut Env<'_, T>, version: i16, request: SyncGroupRequest, token: T) {
        let waiting = Waiting { token, version };
        if let Err(error) = self.validate_sync(&request, version) {
            return env.refuse_sync(waiting, error);
        }
        let id = &request.member_id;
        match self.state {
            State::PreparingRebalance => env.refuse_sync(waiting, ErrorCode::RebalanceInProgress),
            State::CompletingRebalance => {
                let member = self.members.get_mut(id).expect("it was validated");
                member.owes_sync = false;
                if let Some(superseded) = member.syncing.replace(waiting) {
                    env.refuse_sync(superseded, ErrorCode::RebalanceInProgress);
                }
                self.sync_timer_if_owed(env);
                // Stored once per generation: members must receive the assignment that is last in the log.
                if self.is_leader(id) && !self.assigning {
                    self.store_assignment(env, request);
                }
            }
            State::Stable => {
                let member = self.members.get_mut(id).expect("it was validated");
                (member.owes_sync, member.known) = (false, env.known);
                self.sync_timer_if_owed(env);
                let response = self.sync_response(id);
                env.reply_sync(waiting, response);
            }
            State::Empty | State::Dead => unreachable!("there are no members"),
        }
    }

    fn validate_sync(&self, request: &SyncGroupRequest, version: i16) -> Result<(), ErrorCode> {
        if self.state == State::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        self.validate_member(&request.member_id, request.group_instance_id.as_ref())?;
        if request.generation_id != self.generation {
            return Err(ErrorCode::IllegalGeneration);
        }
        let (protocol_type, protocol) = (&request.protocol_type, &request.protocol_name);
        let unnamed = protocol_type.is_none() || protocol.is_none();
        let other =
            |theirs: &Option<StrBytes>, ours: &Option<StrBytes>| theirs.is_some() && ours.is_some() && theirs != ours;
        if (version >= SYNC_NAMES_PROTOCOL_FROM && unnamed)
            || other(protocol_type, &self.protocol_type)
            || other(protocol, &self.protocol)
        {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        Ok(())
    }

    fn sync_timer_if_owed(&mut self, env: &mut Env<'_, T>) {
        if !self.members.values().any(|member| member.owes_sync) {
            env.timers.cancel(&mut self.sync_timer);
        }
    }

    /// Appends the assignment; it counts once it is in the log. Entries for non-members are dropped. A member without
    /// an entry gets an empty assignment. If there is no memory for it, the members get the error and join again.
    fn store_assignment(&mut self, env: &mut Env<'_, T>, request: SyncGroupRequest) {
        let of_members = || request.assignments.iter().filter(|one| self.members.contains_key(&one.member_id));
        let new: usize = of_members().map(|one| one.assignment.len()).sum();
        // It takes the place of the one before.
        let grows_by = new.saturating_sub(self.members.values().map(|member| member.assignment.len()).sum());
        if grows_by > env.room_bytes {
            env.no_room(&self.id, grows_by);
            self.withdraw_assignment(env, ErrorCode::CoordinatorNotAvailable);
            return self.rebalance_or_complete(env);
        }
        let assignments: HashMap<StrBytes, Bytes> =
            of_members().map(|a| (own(&a.member_id), Bytes::copy_from_slice(&a.assignment))).collect();
        let reserved = assignments.iter().map(|(id, assignment)| assigned_bytes(id, assignment)).sum();
        self.reserve(reserved);
        // The record has the assignment already, so that a restart restores the state that clients will see.
        let record = self.record(|id, _| assignments.get(id).cloned().unwrap_or_default());
        (self.logged, self.assigning) = (true, true);
        let then = Then::Assignment {
            group: self.id.clone(),
            generation: self.generation,
            known: env.known,
            assignments,
            reserved,
        };
        env.append(&[record], then);
    }

    pub(crate) fn assignment_stored(
        &mut self,
        env: &mut Env<'_, T>,
        generation: i32,
        known: Known,
        assignments: HashMap<StrBytes, Bytes>,
        outcome: Result<(), ErrorCode>,
    ) {
        // If a rebalance has begun meanwhile, the assignment is obsolete.
        if self.state != State::CompletingRebalance || self.generation != generation {
            return;
        }
        match outcome {
            Ok(()) => self.assign(env, known, assignments),
            Err(error) => {
                self.withdraw_assignment(env, error);
                self.rebalance_or_complete(env);
            }
        }
    }

    pub(crate) fn heartbeat(&mut self, env: &mut Env<'_, T>, request: &HeartbeatRequest) -> HeartbeatResponse {
        let outcome = self.validate_heartbeat(request).and_then(|()| {
            self.keep_alive(&request.member_id, env);
            match self.state {
                State::PreparingRebalance => Err(ErrorCode::RebalanceInProgress),
                _ => Ok(()),
            }
        });
        HeartbeatResponse::default().with_error_code(code(&outcome))
    }

    fn validate_heartbeat(&self, request: &HeartbeatRequest) -> Result<(), ErrorCode> {
        if self.state == State::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        self.validate_member(&request.member_id, request.group_instance_id.as_ref())?;
        if request.generation_id != self.generation { Err(ErrorCode::IllegalGeneration) } else { Ok(()) }
    }

    /// A member, or an issued member id, was silent for its session timeout.
    pub(crate) fn session_expired(&mut self, env: &mut Env<'_, T>, id: &StrBytes) {
        if self.pending.contains_key(id) {
            self.remove(id, env.timers);
            return self.complete_if_all_joined(env);
        }
        let Some(member) = self.members.get_mut(id) else { return };
        env.timers.cancel(&mut member.session);
        // A member that waits for an answer need not send heartbeats; its session restarts with the answer. Only a
        // new member's first JoinGroup can time out.
        if !member.is_new && (member.joining.is_some() || member.syncing.is_some()) {
            return;
        }
        env.log(&self.id, &format!("removed member {id}: its session timed out"));
        let member = self.remove(id, env.timers).expect("it is a member");
        self.dismiss(member, env);
        self.rebalance_or_complete(env);
    }

    pub(crate) fn leave(&mut self, env: &mut Env<'_, T>, version: i16, request: &LeaveGroupRequest, token: T) {
        if self.state == State::Dead {
            let response = net::messages::LeaveGroupResponse::default();
            return env.reply(token, response.with_error_code(ErrorCode::CoordinatorNotAvailable.code()));
        }
        let identities = leaving(version, request);
        let mut left = false;
        let responses = identities.iter().map(|identity| {
            let outcome = self.remove_leaving(env, identity);
            left |= outcome.is_ok();
            left_response(identity, &outcome)
        });
        let response = shape_leave(version, responses.collect());
        let appends_before = env.appends.next;
        if left && self.state != State::Empty {
            self.rebalance_or_complete(env);
        }
        // If the group is empty now, the client is answered once that is in the log.
        match env.appends.open.last_entry().filter(|last| last.key().0 >= appends_before).map(|last| last.into_mut()) {
            Some(Then::Emptied { reply, .. }) => *reply = Some((Waiting { token, version }, response.into())),
            _ => env.reply(token, response),
        }
    }

    fn remove_leaving(&mut self, env: &mut Env<'_, T>, identity: &MemberIdentity) -> Result<(), ErrorCode> {
        let instance = identity.group_instance_id.as_ref();
        let id = if identity.member_id.is_empty() {
            // An administrator names only the instance.
            instance.and_then(|instance| self.static_members.get(instance)).ok_or(ErrorCode::UnknownMemberId)?.clone()
        } else if self.pending.contains_key(&identity.member_id) {
            identity.member_id.clone()
        } else {
            self.validate_member(&identity.member_id, instance)?;
            identity.member_id.clone()
        };
        if let Some(member) = self.remove(&id, env.timers) {
            env.log(&self.id, &format!("member {id} left"));
            self.dismiss(member, env);
        }
        Ok(())
    }
}

/// Before version 3, the request names one member outside the list.
pub(crate) fn leaving(version: i16, request: &LeaveGroupRequest) -> Vec<MemberIdentity> {
    if version >= 3 {
        return request.members.clone();
    }
    vec![MemberIdentity::default().with_member_id(request.member_id.clone())]
}

pub(crate) fn left_response(identity: &MemberIdentity, outcome: &Result<(), ErrorCode>) -> MemberResponse {
    MemberResponse::default()
        .with_member_id(identity.member_id.clone())
        .with_group_instance_id(identity.group_instance_id.clone())
        .with_error_code(code(outcome))
}
