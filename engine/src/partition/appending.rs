//! What becomes of a producer's batch: refused, known already, or proposed; and who waits for which entry.

use super::{Partition, State};
use crate::{
    core::Core,
    partition::{
        producers::{
            Verdict, WrittenBatch,
            gaps::{Gap, Patience},
        },
        replica::{self, Payload},
    },
    sync::{Answer, Promise, promise},
};
use bytes::Bytes;
use consensus::group::{
    ProposeError,
    descriptor::{Descriptor, EntryData},
};
use net::{
    errors::ErrorCode,
    records::batch::{self, Assigned, BatchHeader},
};
use std::{collections::VecDeque, rc::Rc, time::Duration};
use wal::record::Span;

/// Bytes of one partition that may wait for their commit; beyond it, appends are refused.
const TAIL_BYTES_MAX: usize = 64 << 20;

/// What a producer is told of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub base_offset: u64,
    /// In ms since the epoch, where the topic stamps its records itself.
    pub log_append_time: Option<i64>,
    pub log_start: u64,
}

/// An append's answer, given once its entry is as safe as was asked for.
pub type Committed = Answer<Result<Appended, ErrorCode>>;

/// When an append is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// The leader has it on disk.
    Leader,
    /// It is committed: a majority has it on disk, and `min.insync.replicas` do.
    All,
}

pub(super) struct Waiting {
    pub(super) index: u64,
    pub(super) appended: Appended,
    pub(super) promise: Promise<Result<Appended, ErrorCode>>,
}

/// What holds only if this replica still leads.
pub(super) struct Unsure {
    /// By which the group was asked.
    pub(super) token: u64,
    pub(super) what: IfLeading,
}

pub(super) enum IfLeading {
    /// An append is refused so.
    Refusal(ErrorCode, Promise<Result<Appended, ErrorCode>>),
    /// Somebody reads what follows from the log.
    Read(Promise<Result<(), ErrorCode>>),
}

impl IfLeading {
    pub(super) fn confirm(self) {
        match self {
            Self::Refusal(code, promise) => promise.keep(Err(code)),
            Self::Read(promise) => promise.keep(Ok(())),
        }
    }

    pub(super) fn deny(self, code: ErrorCode) {
        match self {
            Self::Refusal(_, promise) => promise.keep(Err(code)),
            Self::Read(promise) => promise.keep(Err(code)),
        }
    }
}

#[cfg(test)]
impl Partition {
    /// Requests that wait for an entry to be as safe as they asked, or for this replica to be sure that it leads.
    pub(crate) fn waiters(&self) -> usize {
        let state = self.state.borrow();
        state.waiting.len() + state.waiting_here.len() + state.unsure.len() + self.held.borrow().len()
    }
}

impl Partition {
    /// Appends one validated batch. Everything up to the proposal happens before this returns.
    pub fn append(
        self: &Rc<Self>,
        core: &Rc<Core>,
        batch: Bytes,
        info: &BatchHeader,
        now_ms: i64,
        acks: Acks,
    ) -> Result<Committed, ErrorCode> {
        if let Some(code) = self.refusal(core, batch.len(), acks) {
            if code != ErrorCode::MessageTooLarge {
                self.was_not_appended(core, info);
            }
            return self.refuse(code);
        }
        if info.is_idempotent()
            && let Some(answer) = self.answer_by_sequence(core, info, acks)
        {
            return answer;
        }
        let config = self.config();
        let mut state = self.state.borrow_mut();
        let count = info.record_count as u32;
        let log_start = self.log_start(core);
        let log_append_time_ms = config.stamps().then_some(now_ms);
        let base_offset = state.end;
        let assigned = Assigned {
            base_offset: base_offset as i64,
            partition_leader_epoch: self.leader_epoch(),
            log_append_time_ms,
        };
        let header = batch::assigned_header(&batch, assigned);
        let max_timestamp = log_append_time_ms.unwrap_or(info.max_timestamp);
        let crc = info.crc;
        let descriptor = Descriptor { base_offset, count, bytes: batch.len() as u32, crc, max_timestamp };
        let span = Span { base_offset, count, max_timestamp };
        let payload = Payload { span, header, bytes: batch };
        let position = match self.replica.propose(EntryData::Batch(descriptor).encode(), Some(payload)) {
            Ok(position) => position,
            // A leader that is handing over, or whose log is full for the moment: the next batch may meet one that is not.
            Err(error) => {
                drop(state);
                self.was_not_appended(core, info);
                return self.refuse(refusal(error));
            }
        };
        let (promise, answer) = promise();
        let appended = Appended { base_offset, log_append_time: log_append_time_ms, log_start };
        state.waiters(acks).push_back(Waiting { index: position.index, appended, promise });
        drop(state);
        self.stir(core);
        replica::stage(core, &**self);
        Ok(answer)
    }

    /// Refuses an append. While a hand-over is under way, the answer waits for its end: a client that is refused at once asks for a leader that
    /// nobody knows yet, and waits longer before each retry.
    fn refuse(&self, code: ErrorCode) -> Result<Committed, ErrorCode> {
        if code != ErrorCode::NotLeaderOrFollower || self.handing_over_until.get().is_none() {
            return Err(code);
        }
        let (promise, answer) = promise();
        self.held.borrow_mut().push(promise);
        Ok(answer)
    }

    /// A batch was refused, or gave up while it waited for room, and its producer sends it again. What the producer has sent
    /// behind it may not begin in its place meanwhile.
    pub fn was_not_appended(&self, core: &Core, info: &BatchHeader) {
        if info.is_idempotent() {
            let gap = Gap { epoch: info.producer_epoch, expected: info.base_sequence };
            self.state.borrow_mut().gaps.refused(info.producer_id, gap, gap_patience(core));
        }
    }

    /// Why a batch of this size is not taken now, whoever sent it.
    fn refusal(&self, core: &Core, bytes: usize, acks: Acks) -> Option<ErrorCode> {
        if !self.leads() {
            return Some(self.why_not_led_here(core));
        }
        let config = self.config.borrow();
        if acks == Acks::All && self.in_sync.borrow().len() < config.min_insync_replicas {
            return Some(ErrorCode::NotEnoughReplicas);
        }
        if bytes > config.max_message_bytes.min(core.largest_entry()) {
            return Some(ErrorCode::MessageTooLarge);
        }
        let waiting = self.state.borrow().tail_bytes;
        (waiting > 0 && waiting + bytes > TAIL_BYTES_MAX).then_some(ErrorCode::NotEnoughReplicas)
    }

    /// What an idempotent producer is told whose batch is not to be appended: it is there already, or not the next one. `None`: it is.
    fn answer_by_sequence(
        self: &Rc<Self>,
        core: &Rc<Core>,
        info: &BatchHeader,
        acks: Acks,
    ) -> Option<Result<Committed, ErrorCode>> {
        let (producer, epoch, sequence) = (info.producer_id, info.producer_epoch, info.base_sequence);
        let mut state = self.state.borrow_mut();
        let verdict = state.producers.check(producer, epoch, sequence, info.record_count);
        let gap = match verdict {
            // Nearly always.
            Verdict::New if state.gaps.is_empty() => return None,
            Verdict::New if state.producers.knows(producer) => None,
            #[cfg(test)]
            Verdict::New if crate::sim::planted(crate::sim::Bug::BegunBehindRefused) => None,
            Verdict::New => state.gaps.before(producer, epoch, sequence, gap_patience(core)),
            Verdict::Duplicate(original) => {
                let stable = self.replica.with(|raft| raft.stable());
                let stamped = self.config.borrow().stamps();
                return Some(Ok(state.answer_duplicate(&original, stamped, self.log_start(core), acks, stable)));
            }
            refused => refused.gap(epoch).filter(|gap| state.gaps.may_close(producer, *gap, gap_patience(core))),
        };
        if gap.is_none() && verdict == Verdict::New {
            state.gaps.taken(producer);
            return None;
        }
        tracing::debug!(partition = %self.name, producer, sequence, ?verdict, ?gap, "a batch was refused");
        if gap.is_some() {
            core.metrics.produce_gaps_total.add(1);
            return Some(Err(ErrorCode::NotLeaderOrFollower));
        }
        let code = verdict.refusal().expect("all others are answered above");
        drop(state);
        Some(Ok(self.refuse_if_leading(core, code)))
    }

    /// Refuses a batch for what this replica knows of its producer, once it is sure that it still leads: who was stopped, or cut off, may
    /// have missed what the producer has written elsewhere, and producers give up on such an answer.
    fn refuse_if_leading(self: &Rc<Self>, core: &Rc<Core>, code: ErrorCode) -> Committed {
        let (promise, answer) = promise();
        self.make_sure(core, IfLeading::Refusal(code, promise));
        answer
    }

    /// Told once a quorum has said, after this was called, that this replica still leads: then it has all that was committed before.
    pub async fn still_leading(self: &Rc<Self>, core: &Rc<Core>) -> Result<(), ErrorCode> {
        if !self.leads() {
            return Err(self.why_not_led_here(core));
        }
        let (promise, answer) = promise();
        self.make_sure(core, IfLeading::Read(promise));
        answer.await.unwrap_or(Err(ErrorCode::NotLeaderOrFollower))
    }

    fn make_sure(self: &Rc<Self>, core: &Rc<Core>, what: IfLeading) {
        let mut state = self.state.borrow_mut();
        state.asked += 1;
        let token = state.asked;
        state.unsure.push_back(Unsure { token, what });
        drop(state);
        self.replica.with(|raft| raft.read_index(token));
        self.stir(core);
        replica::stage(core, &**self);
    }
}

/// What closes a gap may wait in a socket while this process is stopped.
fn gap_patience(core: &Core) -> Patience {
    let now = core.groups.ran_for();
    #[cfg(test)]
    if crate::sim::planted(crate::sim::Bug::GapsGivenNoTime) {
        return Patience { now, timeout: Duration::ZERO };
    }
    Patience { now, timeout: Duration::from_millis(core.config.producer_gap_timeout_ms) }
}

/// A leader that is handing over is as good as none.
pub(super) fn refusal(error: ProposeError) -> ErrorCode {
    match error {
        ProposeError::NotLeader | ProposeError::Full => ErrorCode::NotLeaderOrFollower,
    }
}

impl State {
    fn waiters(&mut self, acks: Acks) -> &mut VecDeque<Waiting> {
        match acks {
            Acks::Leader => &mut self.waiting_here,
            Acks::All => &mut self.waiting,
        }
    }

    /// Answers a duplicate as its original, when that is as safe as is asked for now.
    fn answer_duplicate(
        &mut self,
        original: &WrittenBatch,
        stamped: bool,
        log_start: u64,
        acks: Acks,
        stable: u64,
    ) -> Committed {
        let (promise, answer) = promise();
        let appended = Appended {
            base_offset: original.base_offset,
            log_append_time: stamped.then_some(original.timestamp),
            log_start,
        };
        let is_here = acks == Acks::Leader && original.index <= stable;
        if original.last_offset < self.high_watermark || is_here {
            promise.keep(Ok(appended));
        } else {
            let waiters = self.waiters(acks);
            // A client that gives up and sends again, over and over, leaves one waiter here at most.
            waiters.retain(|waiting| waiting.index != original.index || !waiting.promise.is_abandoned());
            let behind = waiters.partition_point(|waiting| waiting.index <= original.index);
            waiters.insert(behind, Waiting { index: original.index, appended, promise });
        }
        answer
    }

    /// Appends that wait, whatever for.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = Promise<Result<Appended, ErrorCode>>> {
        self.waiting.drain(..).chain(self.waiting_here.drain(..)).map(|waiting| waiting.promise)
    }

    /// Answers all who wait with a refusal.
    pub(super) fn refuse_all(&mut self, code: ErrorCode) {
        for waiting in self.waiting.drain(..).chain(self.waiting_here.drain(..)) {
            waiting.promise.keep(Err(code));
        }
        for unsure in self.unsure.drain(..) {
            unsure.what.deny(code);
        }
    }
}
