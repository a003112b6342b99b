//! The answers of clients, kept by key. At the end of a run, [`linear`](super::linear) decides whether they can all
//! be true.
//!
//! Each level promises the following, which decides the times of a call. `asked` is when the client asked, and
//! `answered` is when it got the answer.
//!
//! - A write at `quorum`, or one at `leader` that was answered by its commit. It took effect once between `asked`
//!   and `answered`, with the results in the answer. Every linearizable read that begins later shows it, on any
//!   broker.
//! - A write without an answer, or whose answer is forgotten: it took effect once after `asked`, or never. A write
//!   that was rejected without having been sent took no effect.
//! - A write at `leader` that was acknowledged alone, before its commit. All writes that begin after `answered`
//!   come after it, because they are checked against the overlay. Reads show it once it is committed, at the latest
//!   when the healed cluster agrees. It may be lost only together with its leader. Only for these writes, the check
//!   asks the log what no client can know. That is whether the entry was committed when the answer came, and
//!   whether it is there in the end. If it is lost, a newer leader must have been seen
//!   (`Cluster::check_fast_writes`), and the call counts as unanswered. Producer ids are never given out in this
//!   way.
//! - A linearizable read: it shows the key as it was at some moment between `asked` and `answered`. It never shows
//!   uncommitted changes.
//! - A leased read: it shows the key as it was at some moment in the [`STALE_MAX`] before `answered`. Reads of one
//!   broker never go back, not even after a restart. They show every write that this broker answered, except those
//!   that it acknowledged alone.
//! - A read of every key at the end, when all voters agree: it shows everything that must have happened.
//!
//! The promises about leased reads hold for each key alone. A broker may show two keys as of two moments.

use super::{
    linear::{Call, Model, NEVER, Verdict, check},
    model::{
        Asked, ProducerIds, Settings, SettingsOp, SettingsReply, Topic, TopicOp, TopicReply, asked, producer_ids_reply,
        settings_reply, topic_reply,
    },
    oracle::{History, Violation},
};
use crate::{
    metadata::{Command, RequestResult},
    plane::Written,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use types::{RaftIndex, Term};

/// The length of a read lease, plus the most that clocks may drift apart in that time.
pub(super) const STALE_MAX: Duration = Duration::from_millis(5_300);

/// How a client got its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// By the commit, once this broker showed it.
    Committed,
    /// By a leader alone, for this place in its log.
    Alone { index: RaftIndex, term: Term },
}

/// The calls on one key.
struct Calls<M: Model> {
    calls: Vec<Call<M>>,
    /// Writes that a leader acknowledged alone: place in `calls`, then the index and term of the entry.
    alone: Vec<(usize, RaftIndex, Term)>,
    /// By broker, the calls that its next leased read comes after: its last leased read, and its other answers
    /// since.
    shown_by: BTreeMap<usize, Vec<usize>>,
}

impl<M: Model> Default for Calls<M> {
    fn default() -> Self {
        Self { calls: Vec::new(), alone: Vec::new(), shown_by: BTreeMap::new() }
    }
}

#[derive(Default)]
pub(super) struct Promises {
    topics: BTreeMap<Arc<str>, Calls<Topic>>,
    producer_ids: Calls<ProducerIds>,
    settings: Calls<Settings>,
}

/// The result of checking the histories of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) calls: u64,
    pub(super) keys: u64,
    /// Keys whose search gave up.
    pub(super) given_up: u64,
    /// Calls that were acknowledged alone and are not in the log.
    pub(super) lost: u64,
}

impl Promises {
    /// Records that a broker has answered a write.
    pub(super) fn written(
        &mut self,
        at: usize,
        begun: Duration,
        now: Duration,
        commands: &[Command],
        answer: &Written,
        told: Told,
    ) {
        for (command, result) in commands.iter().zip(&answer.results) {
            self.write(begun, command, Some((at, now, result, told)));
        }
    }

    /// Records that the outcome of a write will never be known.
    pub(super) fn unanswered(&mut self, begun: Duration, commands: &[Command]) {
        commands.iter().for_each(|command| self.write(begun, command, None));
    }

    fn write(&mut self, begun: Duration, command: &Command, answer: Option<(usize, Duration, &RequestResult, Told)>) {
        match asked(command) {
            Some(Asked::Topic(name, op)) => {
                let reply = answer.and_then(|(at, now, result, told)| Some((at, now, topic_reply(result)?, told)));
                self.topics.entry(name).or_default().write(begun, op, reply);
            }
            Some(Asked::ProducerIds(count)) => {
                let reply =
                    answer.and_then(|(at, now, result, told)| Some((at, now, producer_ids_reply(result)?, told)));
                self.producer_ids.write(begun, count, reply);
            }
            Some(Asked::Settings(op)) => {
                let reply = answer.and_then(|(at, now, result, told)| Some((at, now, settings_reply(result)?, told)));
                self.settings.write(begun, op, reply);
            }
            None => {}
        }
    }

    /// Records that a broker has answered a linearizable read, or a read at the end of the run.
    pub(super) fn read(&mut self, at: usize, begun: Duration, now: Duration, name: &Arc<str>, shows: TopicReply) {
        let topic = self.topics.entry(name.clone()).or_default();
        topic.answered(at, begun, now, TopicOp::Read, shows);
    }

    /// The same for the cluster's settings.
    pub(super) fn read_settings(&mut self, at: usize, begun: Duration, now: Duration, shows: SettingsReply) {
        self.settings.answered(at, begun, now, SettingsOp::Read, shows);
    }

    /// Records that a broker has answered a read under its lease.
    pub(super) fn read_leased(&mut self, at: usize, now: Duration, name: &Arc<str>, shows: TopicReply) {
        self.topics.entry(name.clone()).or_default().read_leased(at, now, TopicOp::Read, shows);
    }

    /// The same for the cluster's settings.
    pub(super) fn read_settings_leased(&mut self, at: usize, now: Duration, shows: SettingsReply) {
        self.settings.read_leased(at, now, SettingsOp::Read, shows);
    }

    /// All names of topics that a call concerned.
    pub(super) fn topics(&self) -> impl Iterator<Item = &Arc<str>> {
        self.topics.keys()
    }

    /// Checks whether all answers can be true. At `end` the healed cluster agreed, so what the log contains then
    /// stays.
    pub(super) fn check(&mut self, end: Duration, log: &History) -> Result<Checked, Violation> {
        let mut checked = Checked::default();
        for (name, calls) in &mut self.topics {
            checked.lost += calls.settle(end, log, |op| matches!(op, TopicOp::Read));
            calls.check(name, &mut checked)?;
        }
        checked.lost += self.producer_ids.settle(end, log, |_| false);
        self.producer_ids.check("producer ids", &mut checked)?;
        checked.lost += self.settings.settle(end, log, |op| matches!(op, SettingsOp::Read));
        self.settings.check("the cluster's settings", &mut checked)?;
        Ok(checked)
    }
}

impl<M: Model> Calls<M> {
    fn write(&mut self, begun: Duration, op: M::Op, answer: Option<(usize, Duration, M::Reply, Told)>) {
        match answer {
            None => self.calls.push(Call { op, from: begun, until: NEVER, reply: None, after: Vec::new() }),
            Some((at, now, reply, Told::Committed)) => self.answered(at, begun, now, op, reply),
            Some((_, now, reply, Told::Alone { index, term })) => {
                self.alone.push((self.calls.len(), index, term));
                self.calls.push(Call { op, from: begun, until: now, reply: Some(reply), after: Vec::new() });
            }
        }
    }

    fn read_leased(&mut self, at: usize, now: Duration, op: M::Op, shows: M::Reply) {
        let after = self.shown_by.remove(&at).unwrap_or_default();
        self.answered(at, now.saturating_sub(STALE_MAX), now, op, shows);
        self.calls.last_mut().expect("it was just put there").after = after;
    }

    fn answered(&mut self, at: usize, begun: Duration, now: Duration, op: M::Op, reply: M::Reply) {
        self.shown_by.entry(at).or_default().push(self.calls.len());
        self.calls.push(Call { op, from: begun, until: now, reply: Some(reply), after: Vec::new() });
    }

    /// Decides which writes that were acknowledged alone are lost, by looking in the log. Returns their number.
    fn settle(&mut self, end: Duration, log: &History, reads: impl Fn(&M::Op) -> bool) -> u64 {
        let mut lost = 0;
        for (place, index, term) in std::mem::take(&mut self.alone) {
            let told = self.calls[place].until;
            if log.term_of(index) != Some(term) {
                let call = &mut self.calls[place];
                (call.until, call.reply) = (NEVER, None);
                lost += 1;
                continue;
            }
            for later in self.calls.iter_mut().filter(|call| call.from > told && !reads(&call.op)) {
                later.after.push(place);
            }
            self.calls[place].until = end;
        }
        lost
    }

    fn check(&self, key: &str, checked: &mut Checked) -> Result<(), Violation> {
        checked.keys += 1;
        checked.calls += self.calls.len() as u64;
        match check(&self.calls) {
            Verdict::Linearizable => {}
            Verdict::GaveUp => checked.given_up += 1,
            Verdict::Impossible(why) => {
                return Err(Violation(format!("clients can't all be right about '{key}': {why}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
