//! Writes of this broker's own clients, until they are answered. They are proposed here or forwarded to the leader,
//! with retries. Retries keep their sequence numbers, so no write is applied twice.

use super::{Accepted, Acks, Ask, Plane, PlaneMessage, Refused, Token, leading::written, node_of, pause, weight};
use crate::{
    group::Group,
    metadata::{Command, Origin, Rejection, Request, RequestResult},
};
use std::time::Duration;
use types::{RaftIndex, Term, planted};

/// A client's write.
#[derive(Clone, Debug)]
pub struct Submission {
    pub commands: Vec<Command>,
    pub acks: Acks,
    pub until: Until,
    /// The write fails if it has no answer by then.
    pub deadline: Duration,
}

/// How long the client of a write waits if this broker leads and acknowledges the write on the fast path. Every
/// other write waits until it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Until it is acknowledged.
    Acked,
    /// Until it is acknowledged and every core's view shows it.
    Shown,
}

/// The answer to a write.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub term: Term,
    pub index: RaftIndex,
    /// The result of each command, in order.
    pub results: Vec<RequestResult>,
}

/// The `retry_at` of a write that is among the writes to try.
const QUEUED: Duration = Duration::MAX;

/// Why a write has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("the metadata group has no leader that this broker can reach; nothing was done")]
    NoLeader,
    #[error("no answer came in time; the write may still be applied")]
    TimedOut,
}

pub(super) struct Write {
    requests: Vec<Request>,
    /// The most bytes of the requests in an entry.
    bytes: usize,
    asked: Acks,
    until: Until,
    deadline: Duration,
    attempt: u32,
    /// Some broker may have it in its log.
    sent: bool,
    /// It was in a leader's log, and may have been truncated. From now on it waits for its commit.
    pub(super) retried: bool,
    state: State,
}

enum State {
    /// Waits for a leader or for its turn; is among the writes to try from `retry_at` on.
    Waiting { retry_at: Duration },
    /// In this leader's log.
    Proposed,
    /// Forwarded to the leader; retried at `retry_at`.
    Forwarded { retry_at: Duration },
    /// The leader has answered for this place in the log, which is not shown here yet.
    Settling { term: Term, index: RaftIndex, results: Vec<RequestResult>, retry_at: Duration },
}

impl Write {
    /// Whether the answer is final, without a place in the log that the views must show.
    ///
    /// - The cluster has rejected this broker's registration. The broker is then no member of the group, and its views
    ///   never show the entry. The leader answered after the entry was committed.
    /// - It unregisters a broker, and the leader or the slice rejected that. No view has to show anything.
    /// - The write is larger than brokers can store, so no entry has it.
    fn is_turned_away(&self, results: &[RequestResult]) -> bool {
        let registers = |request: &Request| {
            matches!(request.command, Command::RegisterBroker { .. } | Command::UnregisterBroker { .. })
        };
        let is_too_large = |result: &RequestResult| matches!(result, Ok(Err(Rejection::LargestEntry { .. })));
        let is_rejected = |result: &RequestResult| matches!(result, Ok(Err(_)));
        (self.requests.iter().all(registers) && results.iter().all(is_rejected)) || results.iter().all(is_too_large)
    }
}

impl Plane {
    /// Accepts a write. Its answer comes in a later [`super::Turn`].
    pub fn submit(&mut self, submission: Submission) -> Token {
        let Submission { commands, acks, until, deadline } = submission;
        assert!(!commands.is_empty(), "a write has at least one command");
        let token = self.token();
        let bytes = commands.iter().map(weight).sum();
        let asked = if commands.iter().any(Command::is_quorum_only) { Acks::Quorum } else { acks };
        let requests = commands.into_iter().map(|command| {
            let sequence = self.next_sequence;
            self.next_sequence += 1;
            let (node, incarnation) = (self.config.node, self.config.incarnation);
            // The lowest open sequence is filled in when the write is sent.
            Request { origin: Some(Origin { node, incarnation, sequence, lowest_open: 0 }), command, no_room: None }
        });
        let requests = requests.collect();
        let state = State::Waiting { retry_at: QUEUED };
        let (attempt, sent, retried) = (0, false, false);
        self.writes.insert(token, Write { requests, bytes, asked, until, deadline, attempt, sent, retried, state });
        self.to_try.push_back(token);
        token
    }

    /// All requests below this sequence number have their answers.
    fn lowest_open(&self) -> u64 {
        let first = self.writes.values().next().and_then(|write| write.requests.first()?.origin);
        first.map_or(self.next_sequence, |origin| origin.sequence)
    }

    /// The next write to try, and the most bytes of it. Drops those that no longer wait for that, and rejects those
    /// that are too large.
    pub(super) fn next_to_try(&mut self, group: &Group) -> Option<(Token, usize)> {
        loop {
            let token = *self.to_try.front()?;
            if let Some(Write { state: State::Waiting { .. }, bytes, .. }) = self.writes.get(&token) {
                let Err(rejection) = self.check_size(*bytes) else { return Some((token, *bytes)) };
                self.reject(group, token, &rejection);
            }
            self.to_try.pop_front();
        }
    }

    /// Answers an open write that no entry may have.
    pub(super) fn reject(&mut self, group: &Group, token: Token, rejection: &Rejection) {
        let rejected = self.rejected(group, self.requests(token).len(), rejection);
        self.writes.remove(&token);
        self.out.written.push((token, Ok(written(rejected))));
    }

    /// The requests of an open write.
    pub(super) fn requests(&self, token: Token) -> &[Request] {
        &self.writes[&token].requests
    }

    /// Returns a write's requests as they are sent now, the acknowledgement it asked for, and whether it was in a
    /// log before.
    pub(super) fn sent(&mut self, token: Token) -> (Vec<Request>, Acks, bool) {
        let lowest_open = self.lowest_open();
        let write = self.writes.get_mut(&token).expect("a write that is tried is open");
        for origin in write.requests.iter_mut().filter_map(|request| request.origin.as_mut()) {
            origin.lowest_open = lowest_open;
        }
        write.sent = true;
        (write.requests.clone(), write.asked, write.retried)
    }

    pub(super) fn is_proposed(&mut self, token: Token) {
        self.writes.get_mut(&token).expect("a write that is proposed is open").state = State::Proposed;
    }

    /// Forwards every waiting write to the leader, or to a broker that may know the leader.
    pub(super) fn forward_all(&mut self, group: &Group, now: Duration) {
        while let Some((token, _)) = self.next_to_try(group) {
            self.to_try.pop_front();
            let attempt = self.writes[&token].attempt;
            let Some(to) = self.someone_to_ask(attempt) else {
                self.try_later(token, now);
                continue;
            };
            let (requests, asked, retried) = self.sent(token);
            // After a truncation the write waits for its commit, under whichever leader.
            let acks = if retried { Acks::Quorum } else { asked };
            self.stats.forwarded_writes += 1;
            let ask = self.ask(token);
            self.send(to, PlaneMessage::Forward { ask, acks, requests });
            let write = self.writes.get_mut(&token).expect("it was just sent");
            write.state = State::Forwarded { retry_at: now + pause(write.attempt) };
            write.attempt += 1;
        }
    }

    /// The leader as far as this broker knows. Without one, each attempt asks another broker.
    pub(super) fn someone_to_ask(&mut self, attempt: u32) -> Option<i32> {
        let own = self.config.node;
        if let Some(leader) = self.known_leader.map(node_of).or(self.hinted_leader).filter(|node| *node != own) {
            // The named leader may be gone: every third attempt asks another broker.
            if attempt % 3 < 2 || self.contacts.is_empty() {
                return Some(leader);
            }
        }
        self.next_contact = (self.next_contact + 1) % self.contacts.len().max(1);
        self.contacts.get(self.next_contact).copied()
    }

    fn try_later(&mut self, token: Token, now: Duration) {
        let write = self.writes.get_mut(&token).expect("it is open");
        write.state = State::Waiting { retry_at: now + pause(write.attempt) };
        write.attempt += 1;
    }

    /// Defers a write that the log had no room for.
    pub(super) fn put_off(&mut self, token: Token, now: Duration) {
        self.try_later(token, now);
    }

    /// Retries a write whose entry may have been truncated. From now on it waits for its commit.
    pub(super) fn try_again(&mut self, token: Token) {
        let Some(write) = self.writes.get_mut(&token) else { return };
        write.retried = true;
        write.state = State::Waiting { retry_at: QUEUED };
        self.to_try.push_back(token);
    }

    /// Retries everything that waits for a leader, because there is one now.
    pub(super) fn try_all(&mut self, now: Duration) {
        self.to_try.clear();
        for (token, write) in &mut self.writes {
            if matches!(write.state, State::Waiting { .. } | State::Forwarded { .. }) {
                write.attempt = 0;
                write.state = State::Waiting { retry_at: QUEUED };
                self.to_try.push_back(*token);
            }
        }
        for question in self.questions.values_mut() {
            question.ask_now(now);
        }
        self.read_lease.probe_now(now);
    }

    /// Handles the leader's answer to a forwarded write, or another broker's answer that it does not lead.
    pub(super) fn forwarded(
        &mut self,
        group: &Group,
        now: Duration,
        from: i32,
        ask: Ask,
        answer: Result<Accepted, Refused>,
    ) {
        let token = ask.number;
        let known = self.known_leader.map(node_of).or(self.hinted_leader);
        let Some(write) = self.writes.get_mut(&token).filter(|_| ask.incarnation == self.config.incarnation) else {
            return;
        };
        if !matches!(write.state, State::Forwarded { .. }) {
            return;
        }
        match answer {
            Ok(Accepted { results, .. }) if results.len() != write.requests.len() => {
                if self.may_tell(now) {
                    tracing::warn!(from, "dropped an answer to a forwarded write with {} results", results.len());
                }
            }
            Ok(Accepted { term, index, results }) => {
                if planted!(WrittenBeforeShown) && write.asked == Acks::Quorum {
                    self.writes.remove(&token);
                    return self.out.written.push((token, Ok(Written { term, index, results })));
                }
                if write.is_turned_away(&results) {
                    self.writes.remove(&token);
                    return self.out.written.push((token, Ok(Written { term, index, results })));
                }
                let retry_at = now + pause(write.attempt);
                write.state = State::Settling { term, index, results, retry_at };
                self.settling.insert((index, token));
                self.settle_writes(group);
            }
            Err(Refused::NotLeader { leader: Some(leader) }) if Some(node_of(leader)) != known => {
                write.state = State::Waiting { retry_at: QUEUED };
                self.hinted_leader = Some(node_of(leader));
                self.to_try.push_back(token);
            }
            Err(Refused::NotLeader { .. } | Refused::Busy) => {
                if known == Some(from) {
                    self.hinted_leader = None;
                }
                self.try_later(token, now);
            }
        }
    }

    /// A write that this broker proposed is committed and published.
    pub(super) fn proposed_is_published(&mut self, token: Token, written: Written) {
        let Some(write) = self.writes.get_mut(&token) else { return };
        let Written { term, index, results } = written;
        write.state = State::Settling { term, index, results, retry_at: Duration::MAX };
        self.settling.insert((index, token));
    }

    /// The fast path acknowledges a write. It is answered now, unless the client waits until it is shown.
    pub(super) fn proposed_is_acked(&mut self, token: Token, written: Written) {
        if self.writes.get(&token).is_some_and(|write| write.until == Until::Acked) {
            self.writes.remove(&token);
            self.out.written.push((token, Ok(written)));
        }
    }

    /// Answers writes whose place in the log is shown, if the log still has their term there. Else they are
    /// retried.
    pub(super) fn settle_writes(&mut self, group: &Group) {
        while let Some((index, token)) = self.settling.first().copied().filter(|(index, _)| *index <= self.shown) {
            self.settling.pop_first();
            let Some(write) = self.writes.get_mut(&token) else { continue };
            let State::Settling { term, index: at, .. } = write.state else { continue };
            if at != index {
                continue;
            }
            if group.term_at(index) != Some(term) {
                self.truncated(token);
                continue;
            }
            let write = self.writes.remove(&token).expect("it was just looked at");
            let State::Settling { results, .. } = write.state else { unreachable!("it was just looked at") };
            self.out.written.push((token, Ok(Written { term, index, results })));
        }
    }

    /// Retries a write that the leader had answered: its entry has been truncated, or this broker can't tell.
    fn truncated(&mut self, token: Token) {
        let write = self.writes.get(&token).expect("it is open");
        if write.asked == Acks::Leader && !write.retried {
            self.stats.fallbacks += write.requests.len() as u64;
        }
        self.try_again(token);
    }

    pub(super) fn tick_writes(&mut self, group: &Group, now: Duration) {
        let mut late = Vec::new();
        let mut again = Vec::new();
        for (token, write) in &mut self.writes {
            if write.deadline <= now {
                late.push(*token);
                continue;
            }
            match write.state {
                State::Waiting { retry_at } | State::Forwarded { retry_at } if retry_at <= now => {
                    write.state = State::Waiting { retry_at: QUEUED };
                    self.to_try.push_back(*token);
                }
                // Its leader is deposed, and the log may never grow up to its place.
                State::Settling { term, retry_at, .. } if retry_at <= now && group.term() > term => again.push(*token),
                _ => {}
            }
        }
        again.into_iter().for_each(|token| self.truncated(token));
        for token in late {
            let write = self.writes.remove(&token).expect("it was just there");
            let error = if write.sent { WriteError::TimedOut } else { WriteError::NoLeader };
            self.out.written.push((token, Err(error)));
        }
    }
}
