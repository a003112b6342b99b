//! One partition's replica: offsets, producers and who waits for what.
//! Lives on: the owning core only. Talks to: `consensus` through its [`Replica`], `wal` through the core's store.
//!
//! An append is one synchronous step: admission, idempotence, base offset and proposal, with nothing between them, so offsets
//! and log order can't differ.
//!
//! Invariants: start <= high watermark <= end; a high watermark never goes back; the end moves only if the proposal was taken.

use crate::{
    config_topic::TopicConfig,
    core::Core,
    producers::{Producers, Verdict},
    replica::{Payload, Replica, Replicated},
    sync::{Answer, Notify, Promise, promise},
};
use bytes::Bytes;
use consensus::{
    descriptor::{Control, Descriptor, EntryData},
    group::{Entry, Group, ProposeError},
};
use net::{
    batch::{BatchInfo, TimestampType},
    errors::ErrorCode,
};
use slab::Slab;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
};
use wal::record::{GroupId, Span};

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

struct State {
    producers: Producers,
    /// The next record's offset.
    end: u64,
    high_watermark: u64,
    waiting: VecDeque<Waiting>,
    /// Batches not yet committed, in log order: a duplicate of one of them waits with it.
    failed: bool,
}

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
    pub changed: Notify,
}

impl Partition {
    pub fn new(name: TopicPartition, id: GroupId, raft: Group, config: Rc<TopicConfig>, end: u64, producers: Producers) -> Self {
        Self {
            name,
            replica: Replica::new(id, raft),
            config: RefCell::new(config),
            state: RefCell::new(State { producers, end, high_watermark: 0, waiting: VecDeque::new(), failed: false }),
            watchers: RefCell::default(),
            established: Cell::new(false),
            changed: Notify::default(),
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

    pub fn leader_epoch(&self) -> i32 {
        self.replica.with(|raft| raft.epoch()) as i32
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
    pub fn append(self: &Rc<Self>, core: &Rc<Core>, batch: Bytes, info: &BatchInfo, now_ms: i64) -> Result<Committed, ErrorCode> {
        if !self.leads() {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        let config = self.config();
        if batch.len() > config.max_message_bytes {
            return Err(ErrorCode::MessageTooLarge);
        }
        let mut state = self.state.borrow_mut();
        if info.producer_id >= 0 {
            match state.producers.check(info.producer_id, info.producer_epoch, info.base_sequence, info.count) {
                Verdict::New => {}
                Verdict::Duplicate(original) => return Ok(state.answer_duplicate(original, config.stamps())),
                refused => return Err(refused.into()),
            }
        }
        let stamped = config.stamps().then_some(now_ms);
        let base_offset = state.end;
        let bytes = net::batch::place(&batch, base_offset, self.leader_epoch(), stamped);
        let max_timestamp = stamped.unwrap_or(info.max_timestamp);
        let descriptor = Descriptor { base_offset, count: info.count, bytes: bytes.len() as u32, crc: info.crc, max_timestamp };
        let span = Span { base_offset, count: info.count, max_timestamp };
        let position = self
            .replica
            .propose(EntryData::Batch(descriptor).encode(), Some(Payload { span, bytes }))
            .map_err(refusal)?;
        state.end = base_offset + u64::from(info.count);
        if info.producer_id >= 0 {
            state.producers.append(position.index, info, base_offset, max_timestamp);
        }
        let (promise, answer) = promise();
        let appended = Appended { base_offset, log_append_time: stamped, log_start: core.store.log_start(self.group()) };
        state.waiting.push_back(Waiting { index: position.index, appended, promise });
        drop(state);
        core.ready_loop.wake(self.clone());
        Ok(answer)
    }

    /// Moves the log's start, by an entry like any other, so that every replica does the same.
    pub fn trim(self: &Rc<Self>, core: &Rc<Core>, offset: u64) -> Result<(), ErrorCode> {
        assert!(offset <= self.high_watermark(), "only committed records are trimmed");
        self.replica.propose(EntryData::LogStart { offset }.encode(), None).map_err(refusal)?;
        core.ready_loop.wake(self.clone());
        Ok(())
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
