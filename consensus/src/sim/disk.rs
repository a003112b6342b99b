//! The journal of a node holds the records of all its groups in one order. It syncs once at a time, and decides
//! what a crash leaves.
//!
//! It stands for the ring as a whole. The `wal` crate proves that the ring keeps this promise on a real disk.

use super::SimClock;
use crate::group::{Entry, Restored};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use types::{GroupId, HardState, Position, RaftIndex, Term, TermRun};

/// One record of the journal.
#[derive(Clone, Debug)]
pub struct Record {
    pub group: GroupId,
    pub hard_state: HardState,
    pub entry: Option<Entry>,
    /// The log restarts after this snapshot, which was staged.
    pub restart: Option<(Position, Checkpoint)>,
}

/// The state that a state machine wrote down.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// The state is as of this index.
    pub index: RaftIndex,
    pub conf_state: Bytes,
    pub state: Bytes,
}

/// The durable state of one group.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub hard_state: HardState,
    pub before: Option<Position>,
    pub entries: Vec<Entry>,
    pub checkpoint: Checkpoint,
}

impl Image {
    fn take(&mut self, record: Record) {
        self.hard_state = record.hard_state;
        if let Some((at, checkpoint)) = record.restart {
            self.entries.clear();
            self.before = Some(at);
            self.checkpoint = checkpoint;
        }
        if let Some(entry) = record.entry {
            self.entries.retain(|older| older.index < entry.index);
            self.entries.push(entry);
        }
    }

    pub fn restored(&self) -> Restored {
        let mut terms: Vec<TermRun> = Vec::new();
        for entry in &self.entries {
            if terms.last().is_none_or(|run| run.term != entry.term) {
                terms.push(TermRun { first_index: entry.index, term: entry.term, base_offset: 0 });
            }
        }
        Restored {
            hard_state: self.hard_state,
            conf_state: self.checkpoint.conf_state.clone(),
            terms,
            before: self.before,
            gone: None,
            entries: self.entries.clone(),
            applied: self.checkpoint.index,
        }
    }
}

pub struct SimDisk {
    clock: SimClock,
    rng: fastrand::Rng,
    /// The longest time that a sync takes.
    pub sync_max: Duration,
    /// The disk is full or broken: no further sync starts until a restart.
    pub stuck: bool,
    images: BTreeMap<GroupId, Image>,
    staged: VecDeque<Record>,
    /// Counts of all records ever appended (`end`) and of the durable ones among them (`durable`).
    end: u64,
    durable: u64,
    /// The `end` at which the running sync began, and the virtual time at which it finishes.
    sync: Option<(u64, Duration)>,
}

impl SimDisk {
    /// Creates an empty disk. Syncs take virtual time, whatever the node's clock shows.
    pub fn new(clock: SimClock, seed: u64, sync_max: Duration) -> Self {
        Self {
            clock,
            rng: fastrand::Rng::with_seed(seed),
            sync_max,
            stuck: false,
            images: BTreeMap::new(),
            staged: VecDeque::new(),
            end: 0,
            durable: 0,
            sync: None,
        }
    }

    /// Appends a record. Returns the position: once `durable` reaches it, the record is durable.
    pub fn append(&mut self, record: Record) -> u64 {
        self.staged.push_back(record);
        self.end += 1;
        self.end
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Starts a sync of the staged records, unless one is running.
    pub fn sync(&mut self) {
        if self.sync.is_none() && !self.staged.is_empty() && !self.stuck {
            let takes = Duration::from_micros(self.rng.u64(50..=self.sync_max.as_micros() as u64));
            self.sync = Some((self.end, self.clock.time() + takes));
        }
    }

    /// The virtual time at which the running sync finishes.
    pub fn next_at(&self) -> Option<Duration> {
        self.sync.map(|(_, at)| at)
    }

    /// Finishes the running sync.
    pub fn synced(&mut self) {
        let (end, _) = self.sync.take().expect("a sync was running");
        self.keep((end - self.durable) as usize);
    }

    /// Loses the records that are not synced, except for a random number of the oldest, which happened to reach the
    /// disk.
    pub fn crash(&mut self) {
        let kept = self.rng.usize(..=self.staged.len());
        self.keep(kept);
        self.staged.clear();
        self.end = self.durable;
        self.sync = None;
        self.stuck = false;
    }

    fn keep(&mut self, records: usize) {
        for record in self.staged.drain(..records) {
            self.images.entry(record.group).or_default().take(record);
            self.durable += 1;
        }
    }

    /// Crashes, and loses the durable records too.
    pub fn empty(&mut self) {
        self.crash();
        self.images.clear();
    }

    /// The durable state of a group.
    pub fn image(&self, group: GroupId) -> Image {
        self.images.get(&group).cloned().unwrap_or_default()
    }

    /// The last index up to which a group's durable log has the terms that `term_of` gives.
    pub fn agrees_up_to(&self, group: GroupId, term_of: impl Fn(RaftIndex) -> Option<Term>) -> RaftIndex {
        let Some(image) = self.images.get(&group) else { return RaftIndex::ZERO };
        let agreeing = image.entries.iter().take_while(|entry| term_of(entry.index) == Some(entry.term)).last();
        agreeing.map_or(image.before.map_or(RaftIndex::ZERO, |before| before.index), |entry| entry.index)
    }

    /// Writes a checkpoint and drops the entries up to `forget`.
    pub fn checkpoint(&mut self, group: GroupId, checkpoint: Checkpoint, forget: RaftIndex) {
        assert!(forget <= checkpoint.index, "only what the checkpoint covers is forgotten");
        let image = self.images.entry(group).or_default();
        if checkpoint.index < image.checkpoint.index {
            return;
        }
        image.checkpoint = checkpoint;
        if let Some(last) = image.entries.iter().rfind(|entry| entry.index <= forget) {
            image.before = Some(Position { index: last.index, term: last.term });
            image.entries.retain(|entry| entry.index > forget);
        }
    }
}
