//! Rebalances: from the first JoinGroup to the generation that all members have joined
//! (`GroupMetadataManager.prepareRebalance` to `completeClassicGroupJoin`).

use std::collections::HashMap;

use bytes::Bytes;
use net::{StrBytes, errors::ErrorCode, messages::SyncGroupResponse};

use super::{
    env::{Env, Then},
    group::{Group, Member, State},
    incarnation::Known,
    timers::Timer,
};

impl<T> Group<T> {
    pub(crate) fn rebalance_or_complete(&mut self, env: &mut Env<'_, T>) {
        match self.state {
            State::Empty | State::CompletingRebalance | State::Stable => self.prepare_rebalance(env),
            State::PreparingRebalance => self.complete_if_all_joined(env),
            State::Dead => {}
        }
    }

    /// Starts a rebalance: every member must join again.
    pub(crate) fn prepare_rebalance(&mut self, env: &mut Env<'_, T>) {
        if self.state == State::CompletingRebalance {
            self.withdraw_assignment(env, ErrorCode::RebalanceInProgress);
            self.assigning = false;
        }
        self.forget_owed_syncs(env);
        let initial = self.state == State::Empty;
        self.transition(State::PreparingRebalance, env.now);
        tracing::debug!(group = %self.id, generation = self.generation, initial, "preparing a rebalance");
        if initial {
            // The group is new or was empty: give more members time to join.
            self.new_member_added = false;
            let delay_ms = env.config.group_initial_rebalance_delay_ms as u64;
            let remaining_ms = self.rebalance_timeout_ms().saturating_sub(delay_ms);
            self.schedule_initial_join(env, delay_ms, remaining_ms);
        } else if self.all_joined() {
            self.complete_join(env);
        } else {
            self.schedule_join(env);
        }
    }

    fn schedule_initial_join(&mut self, env: &mut Env<'_, T>, delay_ms: u64, remaining_ms: u64) {
        let timer = Timer::InitialJoin { group: self.id.clone(), delay_ms, remaining_ms };
        env.timers.schedule(&mut self.join_timer, env.now.mono_ms + delay_ms, timer);
    }

    fn schedule_join(&mut self, env: &mut Env<'_, T>) {
        // At least 1 ms. With a rebalance timeout of 0 and an absent static member, the timer would otherwise fire
        // again at once, for ever.
        let at = env.after(self.rebalance_timeout_ms().max(1));
        env.timers.schedule(&mut self.join_timer, at, Timer::Join { group: self.id.clone() });
    }

    /// Completes the join phase once all members have joined. An initial rebalance always waits for its delay.
    pub(crate) fn complete_if_all_joined(&mut self, env: &mut Env<'_, T>) {
        if self.state == State::PreparingRebalance && self.previous_state != State::Empty && self.all_joined() {
            self.complete_join(env);
        }
    }

    pub(crate) fn initial_join_expired(&mut self, env: &mut Env<'_, T>, delay_ms: u64, remaining_ms: u64) {
        if self.new_member_added && remaining_ms != 0 {
            self.new_member_added = false;
            let next_delay_ms = remaining_ms.min(env.config.group_initial_rebalance_delay_ms as u64);
            self.schedule_initial_join(env, next_delay_ms, remaining_ms.saturating_sub(delay_ms));
        } else {
            self.complete_join(env);
        }
    }

    /// Ends the join phase: members that have joined form the next generation. Static members stay, even if they have
    /// not joined, until their session times out.
    pub(crate) fn complete_join(&mut self, env: &mut Env<'_, T>) {
        env.timers.cancel(&mut self.join_timer);
        let is_gone = |member: &Member<T>| member.joining.is_none() && member.instance_id.is_none();
        let gone: Vec<StrBytes> =
            self.members.iter().filter(|(_, member)| is_gone(member)).map(|(id, _)| id.clone()).collect();
        for id in &gone {
            env.log(&self.id, &format!("removed member {id}: it did not join again in time"));
            let member = self.remove(id, env.timers).expect("it is a member");
            self.dismiss(member, env);
        }
        if self.members.is_empty() {
            self.empty_out(env);
        } else if self.elect_leader() {
            self.begin_generation(env);
        } else {
            // All members are static and absent. One may return before its session times out.
            self.schedule_join(env);
        }
    }

    fn next_generation(&self) -> i32 {
        self.generation.checked_add(1).unwrap_or(1)
    }

    fn empty_out(&mut self, env: &mut Env<'_, T>) {
        self.generation = self.next_generation();
        self.protocol = None;
        self.leader = None;
        self.transition(State::Empty, env.now);
        env.log(&self.id, &format!("the group is empty in generation {}", self.generation));
        self.logged = true;
        let record = self.record(|_, _| Bytes::new());
        env.append(&[record], Then::Emptied { group: self.id.clone(), reply: None });
    }

    /// Makes sure that the leader has joined, by choosing another if needed; `false` if no member has joined.
    fn elect_leader(&mut self) -> bool {
        let joined = |id: &StrBytes| self.members.get(id).is_some_and(|member| member.joining.is_some());
        if self.leader.as_ref().is_some_and(joined) {
            return true;
        }
        let first = self.members.iter().find(|(_, member)| member.joining.is_some()).map(|(id, _)| id.clone());
        let found = first.is_some();
        if found {
            self.leader = first;
        }
        found
    }

    fn begin_generation(&mut self, env: &mut Env<'_, T>) {
        self.generation = self.next_generation();
        self.protocol = Some(self.select_protocol().expect("each member was admitted for a protocol that all know"));
        self.transition(State::CompletingRebalance, env.now);
        let (generation, members) = (self.generation, self.members.len());
        env.log(&self.id, &format!("all members have joined generation {generation}: {members}"));
        let ids: Vec<StrBytes> = self.members.keys().cloned().collect();
        for id in &ids {
            let response = self.join_response(id);
            let member = self.members.get_mut(id).expect("it is a member");
            member.is_new = false;
            member.owes_sync = true;
            if let Some(joining) = member.joining.take() {
                env.reply_join(joining, response);
            }
            self.keep_alive(id, env);
        }
        let at = env.after(self.rebalance_timeout_ms());
        env.timers.schedule(&mut self.sync_timer, at, Timer::Sync { group: self.id.clone() });
    }

    pub(crate) fn forget_owed_syncs(&mut self, env: &mut Env<'_, T>) {
        for member in self.members.values_mut() {
            member.owes_sync = false;
        }
        env.timers.cancel(&mut self.sync_timer);
    }

    pub(crate) fn sync_expired(&mut self, env: &mut Env<'_, T>) {
        env.timers.cancel(&mut self.sync_timer);
        let owing: Vec<StrBytes> =
            self.members.iter().filter(|(_, member)| member.owes_sync).map(|(id, _)| id.clone()).collect();
        for id in &owing {
            env.log(&self.id, &format!("removed member {id}: it did not ask for its assignment"));
            let member = self.remove(id, env.timers).expect("it is a member");
            self.dismiss(member, env);
        }
        if !owing.is_empty() {
            self.prepare_rebalance(env);
        }
    }

    /// The leader's assignment is in the log.
    pub(crate) fn assign(&mut self, env: &mut Env<'_, T>, known: Known, mut assignments: HashMap<StrBytes, Bytes>) {
        self.transition(State::Stable, env.now);
        self.assigning = false;
        for (id, member) in &mut self.members {
            let assignment = assignments.remove(id).unwrap_or_default();
            self.bytes = self.bytes - member.assignment.len() + assignment.len();
            member.assignment = assignment;
        }
        let ids: Vec<StrBytes> = self.members.keys().cloned().collect();
        for id in &ids {
            let response = self.sync_response(id);
            let member = self.members.get_mut(id).expect("it is a member");
            if let Some(syncing) = member.syncing.take() {
                member.known = known;
                env.reply_sync(syncing, response);
                self.keep_alive(id, env);
            }
        }
    }

    pub(crate) fn sync_response(&self, id: &StrBytes) -> SyncGroupResponse {
        SyncGroupResponse::default()
            .with_protocol_type(self.protocol_type.clone())
            .with_protocol_name(self.protocol.clone())
            .with_assignment(self.members[id].assignment.clone())
    }

    /// Members that wait for this generation's assignment get this error instead.
    pub(crate) fn withdraw_assignment(&mut self, env: &mut Env<'_, T>, error: ErrorCode) {
        let ids: Vec<StrBytes> = self.members.keys().cloned().collect();
        for id in &ids {
            let member = self.members.get_mut(id).expect("it is a member");
            self.bytes -= std::mem::take(&mut member.assignment).len();
            if let Some(syncing) = member.syncing.take() {
                env.refuse_sync(syncing, error);
                self.keep_alive(id, env);
            }
        }
    }
}
