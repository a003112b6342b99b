//! Producers' batches: rejected, recognised as duplicates, or proposed. Also holds the requests that wait for an
//! entry.

use super::{Partition, State};
use crate::partition::{
    errors::PartitionError,
    host::Host,
    producers::{
        Verdict, WrittenBatch,
        gaps::{Gap, Patience},
    },
    ready,
    replica::Payload,
};
use bytes::Bytes;
use consensus::group::descriptor::{Descriptor, EntryData};
use net::records::batch::{self, Assigned, BatchHeader};
use runtime::sync::{Answer, Promise, promise};
use std::{collections::VecDeque, rc::Rc, time::Duration};
use types::{RaftIndex, planted};
use wal::record::Span;

/// Unapplied bytes that one partition may hold. Beyond it, appends are rejected, and clients retry.
const TAIL_BYTES_MAX: usize = 64 << 20;

/// The answer to an appended batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub base_offset: u64,
    /// In ms since the epoch, if the topic stamps its records itself.
    pub log_append_time: Option<i64>,
    pub log_start: u64,
}

/// An append's answer, given once its entry is as durable as the request asked for.
pub type Committed = Answer<Result<Appended, PartitionError>>;

/// When an append is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// The leader has it on disk.
    Leader,
    /// It is committed: a majority has it on disk, and `min.insync.replicas` do.
    All,
}

pub(super) struct Waiting {
    pub(super) index: RaftIndex,
    pub(super) appended: Appended,
    pub(super) promise: Promise<Result<Appended, PartitionError>>,
}

/// An answer that holds only if this replica still leads.
pub(super) struct Unsure {
    /// The token of its read-index request to the group.
    pub(super) token: u64,
    pub(super) what: IfLeading,
}

pub(super) enum IfLeading {
    /// Rejects an append with this error.
    Refusal(PartitionError, Promise<Result<Appended, PartitionError>>),
    /// A read of state that is derived from the log.
    Read(Promise<Result<(), PartitionError>>),
}

impl IfLeading {
    pub(super) fn confirm(self) {
        match self {
            Self::Refusal(error, promise) => promise.keep(Err(error)),
            Self::Read(promise) => promise.keep(Ok(())),
        }
    }

    pub(super) fn deny(self, error: PartitionError) {
        match self {
            Self::Refusal(_, promise) => promise.keep(Err(error)),
            Self::Read(promise) => promise.keep(Err(error)),
        }
    }
}

impl Partition {
    /// Requests that wait for an entry to become durable, or for this replica to confirm that it leads.
    pub fn waiters(&self) -> usize {
        let state = self.state.borrow();
        state.waiting.len() + state.waiting_here.len() + state.unsure.len() + self.held.borrow().len()
    }

    /// Bytes of entries above the last applied.
    pub fn unapplied_bytes(&self) -> usize {
        self.state.borrow().tail_bytes
    }
}

impl Partition {
    /// Appends one validated batch. Everything up to the proposal happens before this returns.
    pub fn append(
        self: &Rc<Self>,
        core: &Rc<impl Host>,
        batch: Bytes,
        info: &BatchHeader,
        now_ms: i64,
        acks: Acks,
    ) -> Result<Committed, PartitionError> {
        if let Some(error) = self.refusal(core, batch.len(), acks) {
            if error != PartitionError::TooLarge {
                self.was_not_appended(core, info);
            }
            return self.refuse(error);
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
            partition_leader_epoch: self.leader_epoch().get(),
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
            // The leader is handing over, or its log is full for the moment. The client retries, perhaps at a new
            // leader.
            Err(error) => {
                drop(state);
                self.was_not_appended(core, info);
                return self.refuse(error.into());
            }
        };
        self.count_ahead(core, position.index, descriptor.bytes as usize);
        let (promise, answer) = promise();
        let appended = Appended { base_offset, log_append_time: log_append_time_ms, log_start };
        state.waiters(acks).push_back(Waiting { index: position.index, appended, promise });
        drop(state);
        self.wake_timers(core);
        ready::stage(core, &**self);
        core.admission().staged(core.store().staged(), descriptor.bytes as usize);
        Ok(answer)
    }

    /// Rejects an append. During a handover the answer waits for its end. A client that is rejected at once finds no
    /// leader yet, and backs off longer before each retry.
    fn refuse(&self, error: PartitionError) -> Result<Committed, PartitionError> {
        let is_passing = matches!(error, PartitionError::NotLeader | PartitionError::NoProposals);
        if !is_passing || self.handing_over_until.get().is_none() {
            return Err(error);
        }
        let (promise, answer) = promise();
        self.held.borrow_mut().push(promise);
        Ok(answer)
    }

    /// Notes that a batch was rejected, or timed out while it waited for room. Its producer will retry it. Until
    /// then, later batches of the producer must not begin in its place.
    pub fn was_not_appended(&self, core: &Rc<impl Host>, info: &BatchHeader) {
        if info.is_idempotent() {
            let gap = Gap { epoch: info.producer_epoch, expected: info.base_sequence };
            self.state.borrow_mut().gaps.refused(info.producer_id, gap, gap_patience(core));
        }
    }

    /// Checks everything but the sequence number: leadership, in-sync replicas, size and room. Returns the error,
    /// if any.
    fn refusal(&self, core: &Rc<impl Host>, bytes: usize, acks: Acks) -> Option<PartitionError> {
        if !self.leads() {
            return Some(self.why_not_led_here(core));
        }
        let config = self.config.borrow();
        if acks == Acks::All && self.in_sync.borrow().len() < config.min_insync_replicas {
            return Some(PartitionError::TooFewInSync);
        }
        if bytes > config.max_message_bytes.min(core.largest_entry()) {
            return Some(PartitionError::TooLarge);
        }
        let waiting = self.state.borrow().tail_bytes;
        (waiting > 0 && waiting + bytes > TAIL_BYTES_MAX).then_some(PartitionError::TooMuchUncommitted)
    }

    /// Checks the batch's sequence number. Returns `None` if the batch may be appended, else the answer to send.
    fn answer_by_sequence(
        self: &Rc<Self>,
        core: &Rc<impl Host>,
        info: &BatchHeader,
        acks: Acks,
    ) -> Option<Result<Committed, PartitionError>> {
        let (producer, epoch, sequence) = (info.producer_id, info.producer_epoch, info.base_sequence);
        let mut state = self.state.borrow_mut();
        let verdict = state.producers.check(producer, epoch, sequence, info.record_count);
        let gap = match verdict {
            // The usual case.
            Verdict::New if state.gaps.is_empty() => return None,
            Verdict::New if state.producers.knows(producer) => None,
            Verdict::New if planted!(BegunBehindRefused) => None,
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
            core.metrics().produce_gaps_total.add(1);
            return Some(Err(PartitionError::Gap));
        }
        let error = verdict.refusal().expect("all others are answered above");
        drop(state);
        Some(Ok(self.refuse_if_leading(core, error)))
    }

    /// Rejects a batch because of its producer's state, once this replica has confirmed that it still leads. A
    /// broker that was paused or cut off may have missed what the producer wrote elsewhere, and producers give up
    /// on such an error.
    fn refuse_if_leading(self: &Rc<Self>, core: &Rc<impl Host>, error: PartitionError) -> Committed {
        let (promise, answer) = promise();
        self.make_sure(core, IfLeading::Refusal(error, promise));
        answer
    }

    /// Returns once a quorum has confirmed, after this call, that this replica still leads. It then has everything
    /// committed before the call.
    pub async fn still_leading(self: &Rc<Self>, core: &Rc<impl Host>) -> Result<(), PartitionError> {
        if !self.leads() {
            return Err(self.why_not_led_here(core));
        }
        let (promise, answer) = promise();
        self.make_sure(core, IfLeading::Read(promise));
        answer.await.unwrap_or(Err(PartitionError::NotLeader))
    }

    fn make_sure(self: &Rc<Self>, core: &Rc<impl Host>, what: IfLeading) {
        let mut state = self.state.borrow_mut();
        state.asked += 1;
        let token = state.asked;
        state.unsure.push_back(Unsure { token, what });
        drop(state);
        self.replica.with(|raft| raft.read_index(token));
        self.wake_timers(core);
        ready::stage(core, &**self);
    }
}

/// Time to wait for the batch that closes a gap. Only time in which this process ran counts: while it is paused,
/// the batch may be waiting in a socket.
fn gap_patience(core: &Rc<impl Host>) -> Patience {
    let now = core.ran_for();
    if planted!(GapsGivenNoTime) {
        return Patience { now, timeout: Duration::ZERO };
    }
    Patience { now, timeout: Duration::from_millis(core.config().producer_gap_timeout_ms) }
}

impl State {
    fn waiters(&mut self, acks: Acks) -> &mut VecDeque<Waiting> {
        match acks {
            Acks::Leader => &mut self.waiting_here,
            Acks::All => &mut self.waiting,
        }
    }

    /// Answers a duplicate like its original batch, once the original is as durable as this request asks for.
    fn answer_duplicate(
        &mut self,
        original: &WrittenBatch,
        stamped: bool,
        log_start: u64,
        acks: Acks,
        stable: RaftIndex,
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
            // A client that times out and retries again and again leaves at most one waiter here.
            waiters.retain(|waiting| waiting.index != original.index || !waiting.promise.is_abandoned());
            let behind = waiters.partition_point(|waiting| waiting.index <= original.index);
            waiters.insert(behind, Waiting { index: original.index, appended, promise });
        }
        answer
    }

    /// Takes all appends that wait for their entry to become durable.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = Promise<Result<Appended, PartitionError>>> {
        self.waiting.drain(..).chain(self.waiting_here.drain(..)).map(|waiting| waiting.promise)
    }

    /// Fails all waiting requests with `error`.
    pub(super) fn refuse_all(&mut self, error: PartitionError) {
        for waiting in self.waiting.drain(..).chain(self.waiting_here.drain(..)) {
            waiting.promise.keep(Err(error));
        }
        for unsure in self.unsure.drain(..) {
            unsure.what.deny(error);
        }
    }
}
