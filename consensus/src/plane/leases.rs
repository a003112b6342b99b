//! Leases of the leader and of all brokers.
//!
//! - The *leader lease* lets the leader acknowledge writes and answer reads alone. It starts when the leader sends a
//!   question that a quorum then answers.
//! - The *read lease* lets a broker answer reads from its own views, which are at most as stale as the lease is long.
//!   It starts when the broker sends a probe. The leader answers it while it holds its lease, or after asking its
//!   quorum. The lease counts once the views show everything that was committed by then.
//!
//! A broker without a read lease asks the leader up to which index its reads must wait.

use super::{Ask, Plane, PlaneMessage, Quorum, Refused, Token, WriteError, node_of, pause};
use crate::group::{Group, ReadIndex};
use std::{collections::VecDeque, time::Duration};
use types::{RaftIndex, planted};

/// How often a leader renews its lease.
const RENEW_EVERY: Duration = Duration::from_millis(100);
/// The most pending questions to the quorum. When it is full, the oldest is dropped, since it would renew nothing.
const QUESTIONS_MAX: usize = 16;
/// The most renewals of the read lease that wait for their index to be shown. When it is full, the oldest is
/// dropped, since it is worth the least.
const RENEWALS_MAX: usize = 64;

#[derive(Default)]
pub(super) struct LeaderLease {
    until: Option<Duration>,
    /// Pending questions to the quorum: their tokens, and when they were sent.
    sent: VecDeque<(Token, Duration)>,
    renew_at: Duration,
    /// Reads, and when they arrived. Each waits for the answer to a question that was sent after it arrived.
    /// `ask_wanted`: that question has yet to be sent.
    waiting: Vec<(Reader, Duration)>,
    ask_wanted: bool,
}

#[derive(Clone, Copy)]
enum Reader {
    Here(Token),
    There(i32, Ask),
    /// A broker that renews its read lease: its node, its incarnation, and when it asked by its own clock.
    Probe(i32, u64, Duration),
}

impl LeaderLease {
    /// Ends the lease. The questions asked so far no longer renew it.
    pub(super) fn give_up(&mut self) {
        self.until = None;
        self.sent.clear();
    }
}

#[derive(Default)]
pub(super) struct ReadLease {
    until: Option<Duration>,
    /// Pending renewals, ascending: the index that must be shown, and when the renewal was asked for.
    renewals: VecDeque<(RaftIndex, Duration)>,
    probe_at: Duration,
}

impl ReadLease {
    pub(super) fn shown(&mut self, shown: RaftIndex, lease: Duration) {
        while let Some((_, sent_at)) = self.renewals.pop_front_if(|(commit, _)| *commit <= shown) {
            self.until = self.until.max(Some(sent_at + lease));
        }
    }

    pub(super) fn probe_now(&mut self, now: Duration) {
        self.probe_at = now;
    }

    fn renew(&mut self, commit: RaftIndex, sent_at: Duration) {
        if self.renewals.len() == RENEWALS_MAX {
            self.renewals.pop_front();
        }
        let before = self.renewals.back().map_or(RaftIndex::ZERO, |(commit, _)| *commit);
        self.renewals.push_back((commit.max(before), sent_at));
    }
}

/// A question of this broker that only the leader can answer.
pub(super) struct Question {
    kind: Kind,
    deadline: Duration,
    attempt: u32,
    retry_at: Duration,
}

enum Kind {
    Read,
    /// The leader has answered: the read waits until this index is shown.
    ReadFrom(RaftIndex),
    Describe,
}

impl Question {
    pub(super) fn ask_now(&mut self, now: Duration) {
        self.attempt = 0;
        self.retry_at = now;
    }
}

impl Plane {
    /// Whether this broker leads, and no other broker can have been elected since.
    pub fn holds_lease(&self, group: &Group, now: Duration) -> bool {
        let Some(lead) = &self.lead else { return false };
        let leads = group.is_leader() && group.term() == lead.term && lead.established && !lead.handed_over;
        leads && lead.lease.until.is_some_and(|until| now < until)
    }

    /// The time, by this broker's clock, until which reads may be answered from the state that every view shows.
    /// That state is at most as stale as the read lease is long.
    pub fn read_lease(&self) -> Option<Duration> {
        self.read_lease.until
    }

    /// Starts a read that sees everything acknowledged before now. The answer comes in a later [`super::Turn`].
    pub fn read(&mut self, group: &mut Group, now: Duration, deadline: Duration) -> Token {
        self.question(group, now, deadline, Kind::Read)
    }

    /// Asks for the state of the quorum.
    pub fn describe(&mut self, group: &mut Group, now: Duration, deadline: Duration) -> Token {
        self.question(group, now, deadline, Kind::Describe)
    }

    fn question(&mut self, group: &mut Group, now: Duration, deadline: Duration, kind: Kind) -> Token {
        let token = self.token();
        if matches!(kind, Kind::Read) && planted!(ReadUnasked) {
            self.out.reads.push((token, Ok(())));
            return token;
        }
        self.questions.insert(token, Question { kind, deadline, attempt: 0, retry_at: now });
        self.ask_leader(group, now, token);
        token
    }

    /// Asks the leader, which may be this broker.
    fn ask_leader(&mut self, group: &mut Group, now: Duration, token: Token) {
        let question = self.questions.get_mut(&token).expect("an open question");
        let attempt = question.attempt;
        question.retry_at = now + pause(attempt);
        question.attempt += 1;
        let describes = matches!(question.kind, Kind::Describe);
        let established = self.is_established();
        if established && describes {
            let quorum = self.quorum(group, now);
            self.questions.remove(&token);
            self.out.described.push((token, Ok(quorum)));
        } else if established {
            self.index_for(group, now, Reader::Here(token));
        } else if let Some(to) = self.someone_to_ask(attempt) {
            let ask = self.ask(token);
            let message = if describes { PlaneMessage::Describe { ask } } else { PlaneMessage::ReadIndex { ask } };
            self.send(to, message);
        }
    }

    /// On the leader: finds the index that a read must wait for. That is possible at once if the lease holds; else
    /// the quorum is asked first.
    fn index_for(&mut self, group: &Group, now: Duration, reader: Reader) {
        if self.holds_lease(group, now) {
            return self.index_is(group, reader, group.commit());
        }
        let lead = self.lead.as_mut().expect("only a leader is asked");
        lead.lease.waiting.push((reader, now));
        // One question serves all reads of this turn.
        lead.lease.ask_wanted = true;
    }

    /// Lets a read of this broker wait until this index is shown.
    fn read_from(&mut self, token: Token, index: RaftIndex) {
        let index = if planted!(ReadBeforeShown) { RaftIndex::ZERO } else { index };
        if let Some(question) = self.questions.get_mut(&token) {
            question.kind = Kind::ReadFrom(index);
            self.settle_reads();
        }
    }

    /// Asks the quorum if a new read waits for that.
    pub(super) fn ask_if_wanted(&mut self, group: &mut Group, now: Duration) {
        if self.lead.as_mut().is_some_and(|lead| std::mem::take(&mut lead.lease.ask_wanted)) {
            self.ask_quorum(group, now);
        }
    }

    fn index_is(&mut self, group: &Group, reader: Reader, index: RaftIndex) {
        match reader {
            Reader::Probe(from, incarnation, sent_at) => {
                self.stats.heartbeats_sent += 1;
                let heartbeat = PlaneMessage::Heartbeat { incarnation, sent_at, term: group.term(), commit: index };
                self.send(from, heartbeat);
            }
            Reader::There(from, ask) => self.send(from, PlaneMessage::ReadIndexed { ask, answer: Ok(index) }),
            Reader::Here(token) => self.read_from(token, index),
        }
    }

    /// Asks the quorum whether this broker still leads.
    fn ask_quorum(&mut self, group: &mut Group, now: Duration) {
        if group.epoch().is_none() {
            return;
        }
        let token = self.token();
        let lead = self.lead.as_mut().expect("only a leader asks its quorum");
        if lead.lease.sent.len() == QUESTIONS_MAX {
            lead.lease.sent.pop_front();
        }
        lead.lease.sent.push_back((token, now));
        lead.lease.renew_at = now + RENEW_EVERY;
        group.read_index(token);
    }

    /// Handles a quorum's confirmation that this broker led after the question was sent.
    pub(super) fn confirmed(&mut self, group: &Group, now: Duration, read: ReadIndex) {
        let leader_lease = self.config.leader_lease;
        let Some(lead) = self.lead.as_mut().filter(|lead| group.is_leader() && lead.term == group.term()) else {
            return;
        };
        let Some(at) = lead.lease.sent.iter().position(|(token, _)| *token == read.token) else { return };
        let (_, sent_at) = lead.lease.sent[at];
        let sent_at = if planted!(LeaseFromReceipt) { now } else { sent_at };
        lead.lease.sent.drain(..=at);
        if !lead.handed_over {
            lead.lease.until = lead.lease.until.max(Some(sent_at + leader_lease));
        }
        // The confirmation also renews the leader's own read lease.
        self.read_lease.renew(read.index, sent_at);
        self.read_lease.shown(self.shown, self.config.read_lease);
        let lead = self.lead.as_mut().expect("it was just there");
        let waiting = std::mem::take(&mut lead.lease.waiting);
        let (ready, still): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(_, asked_at)| *asked_at <= sent_at);
        lead.lease.waiting = still;
        ready.into_iter().for_each(|(reader, _)| self.index_is(group, reader, read.index));
        debug_assert!(sent_at <= now, "a question is answered after it was asked");
    }

    /// Handles the question of a broker without a read lease for the index of a read.
    pub(super) fn asked_for_index(&mut self, group: &mut Group, now: Duration, from: i32, ask: Ask) {
        if self.is_established() {
            return self.index_for(group, now, Reader::There(from, ask));
        }
        let answer = Err(Refused::NotLeader { leader: other_leader(group) });
        self.send(from, PlaneMessage::ReadIndexed { ask, answer });
    }

    pub(super) fn asked_to_describe(&mut self, group: &Group, now: Duration, from: i32, ask: Ask) {
        let answer = if self.is_established() {
            Ok(self.quorum(group, now))
        } else {
            Err(Refused::NotLeader { leader: other_leader(group) })
        };
        self.send(from, PlaneMessage::Described { ask, answer });
    }

    pub(super) fn indexed(&mut self, now: Duration, from: i32, ask: Ask, answer: Result<RaftIndex, Refused>) {
        if !self.is_open(ask) {
            return;
        }
        match answer {
            Ok(index) => self.read_from(ask.number, index),
            Err(refused) => self.question_refused(now, from, ask.number, refused),
        }
    }

    pub(super) fn described(&mut self, now: Duration, from: i32, ask: Ask, answer: Result<Quorum, Refused>) {
        if !self.is_open(ask) {
            return;
        }
        match answer {
            Ok(quorum) => {
                self.questions.remove(&ask.number);
                self.out.described.push((ask.number, Ok(quorum)));
            }
            Err(refused) => self.question_refused(now, from, ask.number, refused),
        }
    }

    fn is_open(&self, ask: Ask) -> bool {
        ask.incarnation == self.config.incarnation
            && self.questions.get(&ask.number).is_some_and(|question| !matches!(question.kind, Kind::ReadFrom(_)))
    }

    /// Handles a refusal. If it names another leader, that one is asked at the next tick. Otherwise the question is
    /// retried after its pause.
    fn question_refused(&mut self, now: Duration, from: i32, token: Token, refused: Refused) {
        let known = self.known_leader.map(node_of).or(self.hinted_leader);
        match refused {
            Refused::NotLeader { leader: Some(leader) } if Some(node_of(leader)) != known => {
                self.hinted_leader = Some(node_of(leader));
                if let Some(question) = self.questions.get_mut(&token) {
                    question.retry_at = now;
                }
            }
            _ if known == Some(from) => self.hinted_leader = None,
            _ => {}
        }
    }

    /// Answers reads whose index is shown.
    pub(super) fn settle_reads(&mut self) {
        let shown = self.shown;
        let ready = self
            .questions
            .extract_if(.., |_, question| matches!(question.kind, Kind::ReadFrom(index) if index <= shown));
        self.out.reads.extend(ready.map(|(token, _)| (token, Ok(()))));
    }

    /// Refuses the waiting reads of a former leader, so that their brokers ask another.
    pub(super) fn refuse_reads(&mut self, lease: LeaderLease, leader: Option<u64>, now: Duration) {
        for (reader, _) in lease.waiting {
            match reader {
                Reader::Here(token) => {
                    if let Some(question) = self.questions.get_mut(&token) {
                        question.ask_now(now);
                    }
                }
                Reader::There(from, ask) => {
                    self.send(from, PlaneMessage::ReadIndexed { ask, answer: Err(Refused::NotLeader { leader }) });
                }
                // The broker probes again by itself.
                Reader::Probe(..) => {}
            }
        }
    }

    pub(super) fn tick_questions(&mut self, group: &mut Group, now: Duration) {
        let late: Vec<Token> =
            self.questions.iter().filter(|(_, q)| q.deadline <= now).map(|(token, _)| *token).collect();
        for token in late {
            let question = self.questions.remove(&token).expect("it was just there");
            match question.kind {
                Kind::Describe => self.out.described.push((token, Err(WriteError::TimedOut))),
                Kind::Read | Kind::ReadFrom(_) => self.out.reads.push((token, Err(WriteError::TimedOut))),
            }
        }
        let due = |question: &Question| !matches!(question.kind, Kind::ReadFrom(_)) && question.retry_at <= now;
        let again: Vec<Token> = self.questions.iter().filter(|(_, q)| due(q)).map(|(token, _)| *token).collect();
        again.into_iter().for_each(|token| self.ask_leader(group, now, token));
    }

    /// Renews the leases that are due: the leader asks its quorum, other brokers probe the leader.
    pub(super) fn tick_leases(&mut self, group: &mut Group, now: Duration) {
        if let Some(lead) = &mut self.lead {
            for peer in group.progress().into_iter().filter(|peer| peer.matched == group.last_index()) {
                lead.heard.entry(node_of(peer.peer)).or_default().caught_up = Some(now);
            }
            if lead.established && lead.lease.renew_at <= now {
                self.ask_quorum(group, now);
            }
        } else if self.read_lease.probe_at <= now
            && let Some(leader) = self.known_leader.map(node_of).or(self.hinted_leader)
        {
            self.read_lease.probe_at = now + self.config.probe_every;
            let incarnation = self.config.incarnation;
            self.send(leader, PlaneMessage::Probe { incarnation, sent_at: now });
        }
    }

    /// Handles a probe, by which a broker renews its read lease. A leader without a lease first asks its quorum
    /// whether it still leads, since newer entries might be committed elsewhere.
    pub(super) fn probed(&mut self, group: &Group, now: Duration, from: i32, incarnation: u64, sent_at: Duration) {
        if let Some(lead) = &mut self.lead
            && self.cluster.is_present(from, incarnation)
        {
            let heard = lead.heard.entry(from).or_default();
            (heard.incarnation, heard.at) = (incarnation, Some(now));
        }
        if self.is_established() {
            self.index_for(group, now, Reader::Probe(from, incarnation, sent_at));
        }
    }

    pub(super) fn heartbeat(&mut self, now: Duration, incarnation: u64, sent_at: Duration, commit: RaftIndex) {
        if incarnation != self.config.incarnation || sent_at > now {
            return;
        }
        self.stats.heartbeats_received += 1;
        let commit = if planted!(LeaseBeforeShown) { RaftIndex::ZERO } else { commit };
        self.read_lease.renew(commit, sent_at);
        self.read_lease.shown(self.shown, self.config.read_lease);
    }
}

fn other_leader(group: &Group) -> Option<u64> {
    group.leader().filter(|leader| *leader != group.peer())
}
