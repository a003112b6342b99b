//! One partition's replica: offsets, producers and who waits for what.
//! Lives on: the owning core only. Talks to: `consensus` through its [`Replica`], `wal` through the core's store.
//!
//! An append is one synchronous step: admission, idempotence, base offset and proposal, with nothing between them, so offsets
//! and log order can't differ.
//!
//! Invariants: start <= high watermark <= end; a high watermark never goes back; the end moves only if the proposal was taken.

use crate::{
    config_topic::TopicConfig,
    core::{Core, Led},
    producers::{Producers, Verdict, WrittenBatch},
    replica::{self, Payload, Replica, Replicated},
    sync::{Answer, Notify, Promise, promise},
};
use bytes::Bytes;
use consensus::{
    descriptor::{Descriptor, EntryData},
    group::{Entry, Group, Message, ProposeError, SnapshotMark},
};
use net::{
    batch::{self, Assigned, BatchHeader},
    errors::ErrorCode,
};
use slab::Slab;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
};
use wal::{
    log_read::{self, Read, ReadError},
    record::{GroupId, Span},
    store::{AppState, AppendError, LogPos, RecoveredGroup},
};

/// What a producer is told of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub base_offset: u64,
    /// In ms since the epoch, where the topic stamps its records itself.
    pub log_append_time: Option<i64>,
    pub log_start: u64,
}

/// An append's answer, given once its entry is committed.
pub type Committed = Answer<Result<Appended, ErrorCode>>;

struct Waiting {
    index: u64,
    appended: Appended,
    promise: Promise<Result<Appended, ErrorCode>>,
}

#[derive(Default)]
struct State {
    producers: Producers,
    /// The next record's offset.
    end: u64,
    high_watermark: u64,
    /// Appends that are not committed yet, in log order.
    waiting: VecDeque<Waiting>,
    /// The leader epochs of the retained log, ascending, each with its first offset.
    epochs: Vec<(i32, u64)>,
    failed: bool,
}

/// Room for an entry's own data beside its batch.
const ENTRY_DATA_BYTES: usize = 64;

/// Which partition of which topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

pub struct Partition {
    pub name: TopicPartition,
    replica: Replica,
    config: RefCell<Rc<TopicConfig>>,
    state: RefCell<State>,
    /// Fetches to wake when the high watermark moves.
    watchers: RefCell<Slab<Rc<Notify>>>,
    /// Set once the first entry of our term is applied: only then do we know all that was acked before.
    established: Cell<bool>,
}

impl Partition {
    /// A partition without a log.
    pub fn new(name: TopicPartition, id: GroupId, raft: Group, config: Rc<TopicConfig>) -> Self {
        Self::with_state(name, id, raft, config, State::default())
    }

    /// A partition as the store found it.
    pub fn recovered(
        name: TopicPartition,
        raft: Group,
        config: Rc<TopicConfig>,
        recovered: &RecoveredGroup,
    ) -> Result<Self, RecoverError> {
        // What is applied is committed, so all below the first batch that is not may be served.
        let mut unapplied = recovered.tail.iter().filter(|entry| entry.index > recovered.app.index);
        let high_watermark = unapplied
            .find_map(|entry| entry.payload.as_ref())
            .map_or(recovered.next_offset, |(span, _)| span.base_offset);
        let state = State {
            producers: recover_producers(recovered)?,
            end: recovered.next_offset,
            high_watermark,
            epochs: recovered.terms.iter().map(|run| (run.term as i32, run.base_offset)).collect(),
            ..State::default()
        };
        Ok(Self::with_state(name, recovered.id, raft, config, state))
    }

    fn with_state(name: TopicPartition, id: GroupId, raft: Group, config: Rc<TopicConfig>, state: State) -> Self {
        Self {
            name,
            replica: Replica::new(id, raft),
            config: RefCell::new(config),
            state: RefCell::new(state),
            watchers: RefCell::default(),
            established: Cell::new(false),
        }
    }

    pub fn group(&self) -> GroupId {
        self.replica.id()
    }

    pub fn config(&self) -> Rc<TopicConfig> {
        self.config.borrow().clone()
    }

    pub fn set_config(&self, config: Rc<TopicConfig>) {
        *self.config.borrow_mut() = config;
    }

    /// Whether this replica leads and knows all that was committed before it did.
    pub fn leads(&self) -> bool {
        self.established.get() && !self.state.borrow().failed && self.replica.with(|raft| raft.is_leader())
    }

    /// The term in which this leader committed its first entry; it has not lost its leadership since.
    pub fn leader_epoch(&self) -> i32 {
        self.replica.with(|raft| raft.term()) as i32
    }

    /// The epoch of the record at `offset`.
    pub fn epoch_of(&self, offset: u64) -> i32 {
        let state = self.state.borrow();
        let after = state.epochs.partition_point(|(_, first)| *first <= offset);
        state.epochs[..after].last().map_or(-1, |(epoch, _)| *epoch)
    }

    /// Where the log of the largest epoch at or below `epoch` ends (KIP-101); `None` if there is no such epoch.
    pub fn end_of_epoch(&self, epoch: i32) -> Option<(i32, u64)> {
        let state = self.state.borrow();
        let after = state.epochs.partition_point(|(known, _)| *known <= epoch);
        if epoch > self.leader_epoch() || after == 0 {
            return None;
        }
        let end = state.epochs.get(after).map_or(state.high_watermark, |(_, first)| *first);
        Some((state.epochs[after - 1].0, end))
    }

    pub fn log_start(&self, core: &Core) -> u64 {
        core.store.log(self.group()).map_or(0, |log| log.start_offset)
    }

    pub fn high_watermark(&self) -> u64 {
        self.state.borrow().high_watermark
    }

    /// The next offset to be assigned.
    pub fn end(&self) -> u64 {
        self.state.borrow().end
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
    ) -> Result<Committed, ErrorCode> {
        if !self.leads() {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        let config = self.config();
        if batch.len() > config.max_message_bytes.min(core.store.entry_bytes_max() - ENTRY_DATA_BYTES) {
            return Err(ErrorCode::MessageTooLarge);
        }
        let mut state = self.state.borrow_mut();
        let count = info.record_count as u32;
        let log_start = self.log_start(core);
        if info.is_idempotent() {
            match state.producers.check(info.producer_id, info.producer_epoch, info.base_sequence, info.record_count) {
                Verdict::New => {}
                Verdict::Duplicate(original) => {
                    return Ok(state.answer_duplicate(&original, config.stamps(), log_start));
                }
                refused => return Err(refused.refusal().expect("all but these two are refusals")),
            }
        }
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
        let position = self.replica.propose(EntryData::Batch(descriptor).encode(), Some(payload)).map_err(refusal)?;
        state.end = base_offset + u64::from(count);
        if info.is_idempotent() {
            state.producers.append(position.index, info, base_offset, max_timestamp);
        }
        let (promise, answer) = promise();
        let appended = Appended { base_offset, log_append_time: log_append_time_ms, log_start };
        state.waiting.push_back(Waiting { index: position.index, appended, promise });
        drop(state);
        replica::stage(core, &**self);
        Ok(answer)
    }

    /// Moves the log's start, by an entry like any other, so that every replica does the same.
    pub fn trim(self: &Rc<Self>, core: &Rc<Core>, offset: u64) -> Result<(), ErrorCode> {
        assert!(offset <= self.high_watermark(), "only committed records are trimmed");
        self.replica.propose(EntryData::LogStart { offset }.encode(), None).map_err(refusal)?;
        replica::stage(core, &**self);
        Ok(())
    }

    /// Forgets idempotent producers that wrote nothing for so long.
    pub fn expire_producers(&self, now_ms: i64, expiration_ms: i64) {
        let forgotten = self.state.borrow_mut().producers.expire(now_ms, expiration_ms);
        if forgotten > 0 {
            tracing::debug!(partition = %self.name, forgotten, "forgot idempotent producers (producer.id.expiration.ms)");
        }
    }

    /// Wakes `fetch` whenever the high watermark moves, until the watch is dropped.
    pub fn watch(self: &Rc<Self>, fetch: Rc<Notify>) -> Watch {
        let key = self.watchers.borrow_mut().insert(fetch);
        Watch { partition: self.clone(), key }
    }
}

/// A fetch's interest in one partition.
pub struct Watch {
    partition: Rc<Partition>,
    key: usize,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.partition.watchers.borrow_mut().remove(self.key);
    }
}

fn refusal(error: ProposeError) -> ErrorCode {
    match error {
        ProposeError::NotLeader => ErrorCode::NotLeaderOrFollower,
        _ => ErrorCode::KafkaStorageError,
    }
}

impl State {
    /// Answers a duplicate as its original, when that is committed.
    fn answer_duplicate(&mut self, original: &WrittenBatch, stamped: bool, log_start: u64) -> Committed {
        let (promise, answer) = promise();
        let appended = Appended {
            base_offset: original.base_offset,
            log_append_time: stamped.then_some(original.timestamp),
            log_start,
        };
        if original.last_offset < self.high_watermark {
            promise.keep(Ok(appended));
        } else {
            let behind = self.waiting.partition_point(|waiting| waiting.index <= original.index);
            self.waiting.insert(behind, Waiting { index: original.index, appended, promise });
        }
        answer
    }
}

/// What a fetch gets from a partition.
pub enum FetchRead {
    /// From memory, without copying.
    Hot(Vec<Bytes>),
    /// From segments.
    Cold(std::pin::Pin<Box<dyn Future<Output = Result<Vec<Bytes>, ErrorCode>>>>),
    Refused(ErrorCode),
}

impl Partition {
    /// KIP-320: a client that knows an older leader is fenced, one that knows a newer one is told to wait.
    pub fn check_epoch(&self, client: i32) -> Result<(), ErrorCode> {
        if !self.leads() {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        match client.cmp(&self.leader_epoch()) {
            _ if client < 0 => Ok(()),
            std::cmp::Ordering::Less => Err(ErrorCode::FencedLeaderEpoch),
            std::cmp::Ordering::Greater => Err(ErrorCode::UnknownLeaderEpoch),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    /// Whole batches from the one that holds `offset`, below `below`.
    pub fn read(&self, core: &Core, offset: u64, below: u64, bytes_max: usize, at_least_one: bool) -> FetchRead {
        let bytes = |batches: Vec<log_read::Batch>| batches.into_iter().map(|batch| batch.bytes).collect();
        match core.store.read(self.group(), offset, below, bytes_max, at_least_one) {
            Read::Memory(batches) => FetchRead::Hot(bytes(batches)),
            Read::Cold(read) => {
                let name = self.name.clone();
                FetchRead::Cold(Box::pin(async move {
                    read.await.map(bytes).map_err(|error| {
                        if matches!(error, ReadError::Changed) {
                            return ErrorCode::NotLeaderOrFollower;
                        }
                        tracing::error!(partition = %name, offset, %error, "cannot read a segment");
                        ErrorCode::KafkaStorageError
                    })
                }))
            }
            Read::OffsetOutOfRange { .. } => FetchRead::Refused(ErrorCode::OffsetOutOfRange),
            Read::UnknownGroup => FetchRead::Refused(ErrorCode::NotLeaderOrFollower),
        }
    }

    /// The group's state as of what is applied, for the checkpoint.
    pub fn app_state(&self) -> AppState {
        let (index, blob) = self.state.borrow().producers.snapshot_at_commit();
        let applied = self.replica.with(|raft| raft.applied());
        assert!(index <= applied, "producer state comes from applied entries");
        AppState { index: applied, blob, conf_state: self.replica.with(|raft| raft.conf_state()) }
    }

    /// Answers all who wait: the partition is gone from this core.
    pub fn close(&self) {
        self.replica.close();
        self.established.set(false);
        self.state.borrow_mut().waiting.clear();
        self.wake_fetches();
    }

    fn wake_fetches(&self) {
        for (_, fetch) in self.watchers.borrow().iter() {
            fetch.notify();
        }
    }
}

impl Replicated for Partition {
    fn replica(&self) -> &Replica {
        &self.replica
    }

    fn restore(&self, _core: &Rc<Core>, mark: &SnapshotMark) -> Result<LogPos, AppendError> {
        unreachable!("a partition's only replica gets no snapshot, not even {mark:?}")
    }

    fn send(&self, _core: &Rc<Core>, messages: Vec<Message>) {
        assert!(messages.is_empty(), "a partition's only replica has nobody to talk to");
    }

    fn apply(&self, core: &Rc<Core>, entries: Vec<Entry>) {
        let last = entries.last().expect("something was committed").index;
        let mut state = self.state.borrow_mut();
        for entry in &entries {
            match EntryData::decode(&entry.data).expect("a committed entry was written by this format") {
                EntryData::Nothing => {
                    let epoch = entry.term as i32;
                    if state.epochs.last().is_none_or(|(last, _)| *last < epoch) {
                        let first = state.high_watermark;
                        state.epochs.push((epoch, first));
                    }
                    if self.replica.with(|raft| raft.is_leader() && raft.term() == entry.term) {
                        self.established.set(true);
                        core.announce_leader(Led { group: self.group(), name: self.name.clone(), epoch });
                    }
                }
                EntryData::Batch(batch) => {
                    let end = batch.base_offset + u64::from(batch.count);
                    assert!(
                        end > state.high_watermark && end <= state.end,
                        "the high watermark moves up, within the log"
                    );
                    state.high_watermark = end;
                    core.metrics.produce_batches_total.add(1);
                    core.metrics.produce_records_total.add(u64::from(batch.count));
                    core.metrics.produce_bytes_total.add(u64::from(batch.bytes));
                }
                EntryData::LogStart { offset } => core.store.set_log_start(self.group(), offset),
            }
        }
        state.producers.commit_to(last);
        while let Some(done) = state.waiting.pop_front_if(|waiting| waiting.index <= last) {
            done.promise.keep(Ok(done.appended));
        }
        drop(state);
        self.replica.with(|raft| {
            raft.applied_to(last);
            // What is applied and durable is in the store; Raft needs only its terms from here on.
            raft.compact(last);
        });
        self.wake_fetches();
    }

    fn storage_failed(&self) {
        let mut state = self.state.borrow_mut();
        state.failed = true;
        for waiting in state.waiting.drain(..) {
            waiting.promise.keep(Err(ErrorCode::KafkaStorageError));
        }
        drop(state);
        self.wake_fetches();
    }
}

/// Why a partition can't be brought back.
#[derive(Debug, thiserror::Error)]
#[error("group {group}: {why}")]
pub struct RecoverError {
    group: u64,
    why: String,
}

/// Producers as they were at the last checkpoint, brought up to the log's end by the headers of the batches since.
fn recover_producers(recovered: &RecoveredGroup) -> Result<Producers, RecoverError> {
    let failed = |why: String| RecoverError { group: recovered.id.0, why };
    let mut producers = match &recovered.app.blob {
        blob if blob.is_empty() => Producers::default(),
        blob => Producers::restore(blob).map_err(|error| failed(error.to_string()))?,
    };
    for entry in recovered.tail.iter().filter(|entry| entry.index > recovered.app.index) {
        if let Some((span, payload)) = &entry.payload {
            let info = BatchHeader::read(payload).map_err(|error| failed(error.to_string()))?;
            if info.is_idempotent() {
                producers.append(entry.index, &info, span.base_offset, span.max_timestamp);
            }
        }
    }
    Ok(producers)
}
