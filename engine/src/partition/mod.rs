//! One partition's replica: its offsets, its idempotent producers, and the requests that wait for it.
//! Lives on: the owning core only. Talks to: `consensus` through its [`Replica`], `wal` through the core's store,
//! and the rest of the core and other brokers through its [`Host`].
//!
//! An append is one synchronous step: admission, idempotence check, base offset and proposal. Nothing runs between
//! them, so offsets and log order can't differ. A follower takes the same entries with their batches from its
//! leader, and keeps the same state.
//!
//! | module | contents |
//! |---|---|
//! | `appending` | producers' batches: rejected, recognised as duplicates, or proposed |
//! | `host` | what a partition asks of its core |
//! | `pacing` | how far a leader runs ahead of its replicas |
//! | `reads` | consumers' reads |
//! | `peering` | messages from and to the group's other replicas |
//! | `catch_up` | sends a lagging replica the entries that it lacks |
//! | `errors` | why a partition rejects a request |
//! | `recovery` | the producers of a recovered partition |
//! | `snapshots` | for a replica that lacks entries which the log no longer holds |
//! | `health` | the metrics of partitions without a leader, or with a replica that is not in sync |
//! | `leading` | a leader's timed work: in-sync replicas, rest, members, handover |
//!
//! Invariants: start <= high watermark <= end; a high watermark never goes back; the state is derived from the log
//! alone.

pub mod admission;
mod appending;
mod catch_up;
mod errors;
mod health;
pub mod host;
mod leading;
mod pacing;
mod peering;
pub mod producers;
mod reads;
pub mod ready;
mod recovery;
pub mod replica;
pub mod retention;
mod snapshots;
#[cfg(test)]
pub(crate) mod tests;

pub use appending::{Acks, Appended, Committed};
pub use errors::PartitionError;
pub use reads::{ColdFetch, FetchRead};
pub use recovery::{RecoverError, restored};

use appending::{Unsure, Waiting};
use catch_up::CatchUp;
use health::Health;
use pacing::Pacing;
use snapshots::Coming;

use crate::{
    config::topic::TopicConfig,
    partition::{
        host::Host,
        producers::{Producers, gaps::Gaps, share::Cut},
        replica::{Payload, Replica, Replicated},
    },
};
use ahash::AHashMap;
use consensus::group::{
    ENTRY_NORMAL, Entry, EntryError, Group, Message, ReadIndex, SnapshotMark,
    descriptor::{self, EntryData},
};
use net::records::batch::BatchHeader;
use runtime::sync::{Marks, Promise};
use slab::Slab;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use types::{GroupId, LeaderEpoch, RaftIndex, Term, planted};
use wal::store::{AppState, AppendError, LogPos, RecoveredGroup};

#[derive(Default)]
struct State {
    producers: Producers,
    gaps: Gaps,
    /// The next record's offset.
    end: u64,
    high_watermark: u64,
    /// Entries above the last applied, in log order.
    tail: VecDeque<Tail>,
    /// Bytes of the batches in `tail`.
    tail_bytes: usize,
    /// Appends that wait for their commit, in log order.
    waiting: VecDeque<Waiting>,
    /// Appends that wait for this leader's disk, in log order.
    waiting_here: VecDeque<Waiting>,
    /// Answers that hold only if this replica still leads, in the order of their tokens.
    unsure: VecDeque<Unsure>,
    /// The last token given out.
    asked: u64,
    /// The leader epochs of the retained log, ascending, each with its first offset.
    epochs: Vec<(LeaderEpoch, u64)>,
    failed: bool,
}

/// An entry that is not applied.
struct Tail {
    index: RaftIndex,
    /// The offset after its last record.
    end: u64,
    bytes: usize,
}

/// A topic's name and a partition number.
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

/// The leader of a partition of this broker, as the local replica knows it.
#[derive(Clone, Debug)]
pub struct Led {
    pub group: GroupId,
    pub name: TopicPartition,
    /// `None`: no leader any more, as far as this replica knows.
    pub node: Option<i32>,
    pub epoch: LeaderEpoch,
    /// If this broker leads the partition: the nodes in sync.
    pub in_sync: Vec<i32>,
}

pub struct Partition {
    pub name: TopicPartition,
    replica: Replica,
    config: RefCell<Rc<TopicConfig>>,
    state: RefCell<State>,
    pacing: Pacing,
    /// Fetches to wake when the high watermark moves.
    watchers: RefCell<Slab<(Rc<Marks>, usize)>>,
    /// The first entry of our term is applied: we know every record that was acknowledged before.
    established: Cell<bool>,
    /// The nodes that hold a replica, the preferred leader first.
    replicas: RefCell<Vec<i32>>,
    /// The term in which this replica was seen to lead.
    led_term: Cell<Option<Term>>,
    /// The leader (node and epoch) that was last announced to the other cores.
    told: Cell<Option<(i32, LeaderEpoch)>>,
    /// On a leader: the nodes in sync. They have all committed entries, or had them within the allowed lag.
    in_sync: RefCell<Vec<i32>>,
    /// On a leader: until when each peer counts as in sync even if it lags.
    excused_until: RefCell<AHashMap<u64, Duration>>,
    /// The log's last index at the last tick, and the number of ticks since it changed.
    ticked: Cell<(RaftIndex, u32)>,
    /// The latest end of a handover that began here. Until then, appends that meet it are held.
    handing_over_until: Cell<Option<Duration>>,
    /// Appends that met the handover. They are rejected when the next leader is known.
    held: RefCell<Vec<Promise<Result<Appended, PartitionError>>>>,
    /// Set after the leader was lost: ticks until this replica stands for election.
    stands_in: Cell<Option<u32>>,
    /// A snapshot that is being stepped.
    coming: RefCell<Option<Coming>>,
    /// Entries to send to lagging replicas.
    catch_up: CatchUp,
    /// The number of idempotent producers that the core's share counts for this partition.
    producers_counted: Cell<usize>,
    /// This partition's part in the core's metrics.
    health: Cell<Health>,
}

impl Partition {
    /// A partition without a log.
    pub fn new(name: TopicPartition, id: GroupId, raft: Group, config: Rc<TopicConfig>, replicas: Vec<i32>) -> Self {
        Self::with_state(name, id, raft, config, replicas, State::default())
    }

    /// A partition as the store recovered it.
    pub fn recovered(
        name: TopicPartition,
        raft: Group,
        config: Rc<TopicConfig>,
        replicas: Vec<i32>,
        recovered: &RecoveredGroup,
    ) -> Result<Self, RecoverError> {
        // Applied entries are committed, so all records below the first unapplied batch may be served.
        let mut unapplied = recovered.tail.iter().filter(|entry| entry.index > recovered.app.index);
        let high_watermark = unapplied
            .find_map(|entry| entry.payload.as_ref())
            .map_or(recovered.next_offset, |(span, _)| span.base_offset);
        let mut end = high_watermark;
        let tail = recovered.tail.iter().filter(|entry| entry.index > recovered.app.index).map(|entry| {
            let payload = entry.payload.as_ref();
            end = payload.map_or(end, |(span, _)| span.base_offset + u64::from(span.count));
            Tail { index: entry.index, end, bytes: payload.map_or(0, |(_, bytes)| bytes.len()) }
        });
        let tail: VecDeque<Tail> = tail.collect();
        let state = State {
            producers: recovery::producers(recovered)?,
            end: recovered.next_offset,
            high_watermark,
            // A term that begins above the applied index is added when its first entry is applied.
            epochs: (recovered.terms.iter().filter(|run| run.first_index <= recovered.app.index))
                .map(|run| (run.term.leader_epoch(), run.base_offset))
                .collect(),
            tail_bytes: tail.iter().map(|entry| entry.bytes).sum(),
            tail,
            ..State::default()
        };
        Ok(Self::with_state(name, recovered.id, raft, config, replicas, state))
    }

    fn with_state(
        name: TopicPartition,
        id: GroupId,
        raft: Group,
        config: Rc<TopicConfig>,
        replicas: Vec<i32>,
        state: State,
    ) -> Self {
        Self {
            name,
            replica: Replica::new(id, raft),
            config: RefCell::new(config),
            state: RefCell::new(state),
            watchers: RefCell::default(),
            established: Cell::new(false),
            replicas: RefCell::new(replicas),
            led_term: Cell::new(None),
            told: Cell::new(None),
            in_sync: RefCell::default(),
            excused_until: RefCell::default(),
            ticked: Cell::new((RaftIndex::ZERO, 0)),
            handing_over_until: Cell::new(None),
            held: RefCell::default(),
            stands_in: Cell::new(None),
            coming: RefCell::default(),
            pacing: Pacing::default(),
            catch_up: CatchUp::default(),
            producers_counted: Cell::new(0),
            health: Cell::default(),
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

    /// The nodes that hold a replica, the preferred leader first.
    pub fn replicas(&self) -> Vec<i32> {
        self.replicas.borrow().clone()
    }

    /// Whether other nodes hold a replica too.
    pub fn is_shared(&self) -> bool {
        self.replicas.borrow().len() > 1
    }

    /// Whether this replica needs no other to be elected. The group's own members count: if they are not those of the
    /// metadata, nobody may come that completes them.
    pub fn is_alone(&self) -> bool {
        !self.is_shared() && self.replica.with(|raft| raft.voters() == [raft.peer()])
    }

    /// Whether this replica leads and knows everything that was committed before it led.
    pub fn leads(&self) -> bool {
        self.established.get() && !self.state.borrow().failed && self.replica.with(|raft| raft.is_leader())
    }

    /// The error for a client that takes this replica for the leader. It sends the client to find the leader, or
    /// reports failed storage while no other node leads.
    pub fn why_not_led_here(&self, core: &Rc<impl Host>) -> PartitionError {
        let is_led_elsewhere = || core.leader_of(self.group()).is_some_and(|leader| leader != core.node());
        match self.state.borrow().failed && !is_led_elsewhere() {
            true => PartitionError::Storage,
            false => PartitionError::NotLeader,
        }
    }

    /// The current Raft term. While this replica [leads](Self::leads), it is the term in which it committed its
    /// first entry.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.replica.with(|raft| raft.term()).leader_epoch()
    }

    /// The epoch of the record at `offset`.
    pub fn epoch_of(&self, offset: u64) -> LeaderEpoch {
        let state = self.state.borrow();
        let after = state.epochs.partition_point(|(_, first)| *first <= offset);
        state.epochs[..after].last().map_or(LeaderEpoch::NONE, |(epoch, _)| *epoch)
    }

    /// The largest epoch at or below `epoch`, and the offset at which its records end (KIP-101). `None` if there is
    /// no such epoch.
    pub fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, u64)> {
        let state = self.state.borrow();
        let after = state.epochs.partition_point(|(known, _)| *known <= epoch);
        if epoch > self.leader_epoch() || after == 0 {
            return None;
        }
        let end = state.epochs.get(after).map_or(state.high_watermark, |(_, first)| *first);
        Some((state.epochs[after - 1].0, end))
    }

    pub fn log_start(&self, core: &Rc<impl Host>) -> u64 {
        core.store().log(self.group()).map_or(0, |log| log.start_offset)
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
    /// Moves the log's start to `offset`. This takes a log entry like any other, so every replica moves its start
    /// too.
    pub fn trim(self: &Rc<Self>, core: &Rc<impl Host>, offset: u64) -> Result<(), PartitionError> {
        assert!(offset <= self.high_watermark(), "only committed records are trimmed");
        self.replica.propose(EntryData::LogStart { offset }.encode(), None)?;
        self.wake_timers(core);
        ready::stage(core, &**self);
        Ok(())
    }

    /// Runs `look` on the idempotent producers.
    pub fn with_producers<R>(&self, look: impl FnOnce(&Producers) -> R) -> R {
        look(&self.state.borrow().producers)
    }

    /// Updates the core's count of remembered idempotent producers.
    pub fn count_producers(&self, core: &Rc<impl Host>) {
        let now = self.with_producers(Producers::remembered);
        core.producers_share().changed(self.producers_counted.replace(now), now);
    }

    /// Evicts idempotent producers because those of all partitions take too much memory. Returns the number
    /// evicted.
    pub fn forget_producers(&self, core: &Rc<impl Host>, cut: Cut) -> usize {
        let forgotten = self.state.borrow_mut().producers.forget(cut);
        self.forgot_producers(core, forgotten);
        forgotten
    }

    fn forgot_producers(&self, core: &Rc<impl Host>, forgotten: usize) {
        if forgotten > 0 {
            self.count_producers(core);
            // Otherwise the state that the store holds for its checkpoints would still name them.
            core.store().app_has_changed(self.group());
        }
    }

    /// Evicts idempotent producers that wrote nothing for `expiration_ms`.
    pub fn expire_producers(&self, core: &Rc<impl Host>, now_ms: i64, expiration_ms: i64) {
        let forgotten = self.state.borrow_mut().producers.expire(now_ms, expiration_ms);
        self.forgot_producers(core, forgotten);
        if forgotten > 0 {
            tracing::debug!(partition = %self.name, forgotten, "forgot idempotent producers (producer.id.expiration.ms)");
        }
    }

    /// Marks `at` in `fetch` whenever the high watermark or the leadership moves, until the watch is dropped.
    pub fn watch(self: &Rc<Self>, fetch: Rc<Marks>, at: usize) -> Watch {
        let key = self.watchers.borrow_mut().insert((fetch, at));
        Watch { partition: self.clone(), key }
    }
}

/// A fetch's registration for the changes of one partition.
pub struct Watch {
    partition: Rc<Partition>,
    key: usize,
}

impl Watch {
    pub fn partition(&self) -> &Rc<Partition> {
        &self.partition
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.partition.watchers.borrow_mut().remove(self.key);
    }
}

impl Partition {
    /// The group's state as of the applied index, for the checkpoint.
    pub fn app_state(&self) -> AppState {
        let (index, blob) = self.state.borrow().producers.snapshot_at_commit();
        let applied = self.replica.with(|raft| raft.applied());
        assert!(index <= applied, "producer state comes from applied entries");
        AppState { index: applied, blob, conf_state: self.replica.with(|raft| raft.conf_states()) }
    }

    /// Drops or wakes all waiting requests: the partition is gone from this core.
    pub fn close(&self, core: &Rc<impl Host>) {
        self.replica.close();
        core.producers_share().changed(self.producers_counted.take(), 0);
        self.established.set(false);
        self.stop_counting_health(core.metrics());
        let mut state = self.state.borrow_mut();
        state.waiting.clear();
        state.waiting_here.clear();
        state.unsure.clear();
        drop(state);
        self.handing_over_until.take();
        self.held.take();
        self.end_pacing(core);
        self.wake_fetches();
    }

    fn wake_fetches(&self) {
        for (_, (fetch, at)) in self.watchers.borrow().iter() {
            fetch.mark(*at);
        }
    }
}

impl<H: Host> Replicated<H> for Partition {
    fn replica(&self) -> &Replica {
        &self.replica
    }

    fn restore(&self, core: &Rc<H>, mark: &SnapshotMark) -> Result<LogPos, AppendError> {
        self.begin_anew(core, mark)
    }

    fn send(&self, core: &Rc<H>, messages: Vec<Message>) {
        self.send_all(core, messages);
    }

    fn truncated(&self, index: RaftIndex) -> u64 {
        let mut state = self.state.borrow_mut();
        let keep = state.tail.partition_point(|entry| entry.index < index);
        state.tail_bytes -= state.tail.drain(keep..).map(|entry| entry.bytes).sum::<usize>();
        state.end = state.tail.back().map_or(state.high_watermark, |last| last.end);
        if planted!(ProducersKeptOnTruncation) {
            return state.end;
        }
        state.producers.truncate_from(index);
        state.end
    }

    fn staged(&self, entry: &Entry, payload: Option<&Payload>) {
        let mut state = self.state.borrow_mut();
        if let Some(Payload { span, bytes, .. }) = payload {
            assert_eq!(span.base_offset, state.end, "offsets have no gaps");
            state.end = span.base_offset + u64::from(span.count);
            let header = BatchHeader::read(bytes).expect("the batch was validated on arrival");
            state.producers.append(entry.index, &header, span.base_offset, span.max_timestamp);
        }
        let bytes = payload.map_or(0, |payload| payload.bytes.len());
        let end = state.end;
        state.tail.push_back(Tail { index: entry.index, end, bytes });
        state.tail_bytes += bytes;
    }

    fn apply(&self, core: &Rc<H>, mut entries: Vec<Entry>) {
        let unreadable = self.first_unreadable(&entries);
        if let Some((at, why)) = unreadable {
            let index = entries[at].index;
            entries.truncate(at);
            if !entries.is_empty() {
                self.apply(core, entries);
            }
            return self.replica.with(|raft| raft.stop(index, why));
        }
        let last = entries.last().expect("something was committed").index;
        let mut state = self.state.borrow_mut();
        let leads = self.replica.with(|raft| raft.is_leader());
        for entry in entries.iter().filter(|entry| entry.entry_type == ENTRY_NORMAL) {
            match EntryData::decode(&entry.data).expect("it was just read") {
                EntryData::Nothing => {
                    let epoch = entry.term.leader_epoch();
                    if state.epochs.last().is_none_or(|(last, _)| *last < epoch) {
                        let first = state.high_watermark;
                        state.epochs.push((epoch, first));
                    }
                    self.is_led(core, entry.term);
                }
                EntryData::Batch(batch) => {
                    state.high_watermark = batch.base_offset + u64::from(batch.count);
                    if leads {
                        core.metrics().produce_batches_total.add(1);
                        core.metrics().produce_records_total.add(u64::from(batch.count));
                        core.metrics().produce_bytes_total.add(u64::from(batch.bytes));
                    }
                }
                EntryData::LogStart { offset } => core.store().set_log_start(self.group(), offset),
            }
        }
        state.producers.commit_to(last);
        let producers = state.producers.remembered();
        core.producers_share().changed(self.producers_counted.replace(producers), producers);
        while let Some(applied) = state.tail.pop_front_if(|entry| entry.index <= last) {
            state.tail_bytes -= applied.bytes;
        }
        drop(state);
        self.replica.with(|raft| {
            raft.applied_to(last);
            // The store holds what is applied and durable. From here on Raft needs only the terms of these entries.
            raft.compact(last);
        });
        self.answer_committed();
        self.pacing.freed.notify();
        self.wake_fetches();
    }

    fn still_leads(&self, _core: &Rc<H>, reads: &[ReadIndex]) {
        let mut state = self.state.borrow_mut();
        // A quorum that answered one read has answered all earlier ones.
        let sure = reads.iter().map(|read| read.token).max().unwrap_or(0);
        while let Some(unsure) = state.unsure.pop_front_if(|unsure| unsure.token <= sure) {
            unsure.what.confirm();
        }
    }

    fn before_ready(&self, core: &Rc<H>) {
        // If a leader was deposed, other entries may take the place of its own. Requests that wait for its entries
        // must fail before that.
        self.follow_leader(core);
    }

    fn persisted(&self, core: &Rc<H>) {
        self.follow_leader(core);
        let stable = self.replica.with(|raft| raft.stable());
        let mut state = self.state.borrow_mut();
        while let Some(done) = state.waiting_here.pop_front_if(|waiting| waiting.index <= stable) {
            done.promise.keep(Ok(done.appended));
        }
    }

    fn settled(&self, core: &Rc<H>) {
        self.follow_leader(core);
        self.cut_snapshot_if_wanted(core);
        self.fetch_what_lacks(core);
    }

    fn storage_failed(&self) {
        self.fail();
    }
}

impl Partition {
    /// The storage of this core has failed: nothing that waits here will ever be durable.
    pub fn fail(&self) {
        let mut state = self.state.borrow_mut();
        state.failed = true;
        state.refuse_all(PartitionError::Storage);
        drop(state);
        self.end_hand_over();
        self.pacing.freed.notify();
        self.wake_fetches();
    }

    /// The first of these committed entries that can't be applied: its position in the slice, and the reason.
    fn first_unreadable(&self, entries: &[Entry]) -> Option<(usize, EntryError)> {
        let state = self.state.borrow();
        let mut end = state.high_watermark;
        for (at, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.entry_type == ENTRY_NORMAL) {
            let why = match descriptor::check_entry(&entry.data).map(|()| EntryData::decode(&entry.data)) {
                Err(why) => why,
                Ok(Ok(EntryData::Batch(batch))) => {
                    let behind = batch.base_offset + u64::from(batch.count);
                    if behind > end && behind <= state.end {
                        end = behind;
                        continue;
                    }
                    EntryError::Batch { end: behind, committed: end, log_end: state.end }
                }
                Ok(Ok(EntryData::LogStart { offset })) if offset > end => {
                    EntryError::LogStartUncommitted { to: offset, committed: end }
                }
                Ok(_) => continue,
            };
            return Some((at, why));
        }
        None
    }
}
