//! One replica of one Raft group on its core, and what the ready loop (`partition::ready`) knows of all of them.
//! Lives on: the owning core. Talks to: `consensus` (the group) and `wal` (the store).
//!
//! Invariant: a payload is staged with the entry it belongs to, or not at all.

use crate::host::disk::Store;
use bytes::Bytes;
use consensus::group::{Entry, Group, Message, ProposeError, ReadIndex, Ready, SnapshotMark};
use net::records::batch::HEADER_BYTES;
use runtime::sync::Notify;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Instant,
};
use types::{GroupId, HardState, Position, RaftIndex, planted};
use wal::{
    record::{self, Span},
    store::{AppendError, LogPos},
};

/// A batch that travels beside its entry: `header` is written in place of the first bytes of `bytes`.
pub struct Payload {
    pub span: Span,
    pub header: [u8; HEADER_BYTES],
    pub bytes: Bytes,
}

/// A Raft group and the payloads of entries it has not handed out yet.
pub struct Replica {
    pub(super) id: GroupId,
    raft: RefCell<Group>,
    pub(super) payloads: RefCell<VecDeque<(Position, Payload)>>,
    /// In the loop's queue already.
    pub(super) queued: Cell<bool>,
    /// Its group is gone from the store, though the loop's queue may still hold it.
    pub(super) closed: Cell<bool>,
    /// It was already told that the group has stopped.
    pub(super) told_stop: Cell<bool>,
    /// The hard state last handed to the ring: another vote or term must be written even without entries.
    staged: Cell<HardState>,
}

impl Replica {
    pub fn new(id: GroupId, raft: Group) -> Self {
        let staged = Cell::new(raft.hard_state());
        Self {
            id,
            raft: RefCell::new(raft),
            payloads: RefCell::default(),
            queued: Cell::new(false),
            closed: Cell::new(false),
            told_stop: Cell::new(false),
            staged,
        }
    }

    pub fn id(&self) -> GroupId {
        self.id
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// The group is removed: from now on there is nothing to stage or apply.
    pub fn close(&self) {
        self.closed.set(true);
    }

    /// Runs `look` on the group, between two steps.
    pub fn with<R>(&self, look: impl FnOnce(&mut Group) -> R) -> R {
        look(&mut self.raft.borrow_mut())
    }

    /// Appends an entry to this leader's log. The payload, if any, is staged together with it.
    pub fn propose(&self, data: Bytes, payload: Option<Payload>) -> Result<Position, ProposeError> {
        let position = self.raft.borrow_mut().propose(data)?;
        if let Some(payload) = payload {
            self.payloads.borrow_mut().push_back((position, payload));
        }
        Ok(position)
    }

    /// Drops the payloads of stepped entries that the group did not accept.
    pub fn drop_payloads(&self) {
        self.payloads.borrow_mut().clear();
    }

    /// The payload of an entry, if it has one. Drops payloads of earlier entries, which were replaced or not
    /// accepted.
    fn payload_of(&self, entry: Position) -> Option<Payload> {
        let mut payloads = self.payloads.borrow_mut();
        while payloads.front().is_some_and(|(at, _)| at.index <= entry.index && *at != entry) {
            payloads.pop_front();
        }
        payloads.pop_front_if(|(at, _)| *at == entry).map(|(_, payload)| payload)
    }

    /// Stages what a Ready wants persisted. Returns the position that must be durable for that, or `None` if
    /// nothing was staged.
    pub(super) fn persist<H>(
        &self,
        store: &Store,
        group: &dyn Replicated<H>,
        ready: &mut Ready,
    ) -> Result<Option<LogPos>, AppendError> {
        let mut position = None;
        if let Some(first) =
            ready.entries.first().filter(|first| store.log(self.id).is_some_and(|log| first.index <= log.last_index))
        {
            // A new leader's entries replace entries that were never committed.
            let from = first.index.back(u64::from(planted!(TruncatedTooFar)));
            let state = self.with(|raft| raft.hard_state_with(from.prev()));
            store.truncate(self.id, state, from, group.truncated(from))?;
        }
        for entry in ready.entries.drain(..) {
            let state = self.with(|raft| raft.hard_state_with(entry.index));
            let payload = self.payload_of(Position { index: entry.index, term: entry.term });
            group.staged(&entry, payload.as_ref());
            let head = payload.as_ref().map_or(&[][..], |payload| &payload.header);
            let entry = record::Entry {
                index: entry.index,
                term: entry.term,
                entry_type: entry.entry_type,
                data: entry.data,
                payload: payload.as_ref().map(|payload| (payload.span, payload.bytes.clone())),
            };
            position = Some(store.append_with_head(self.id, state, &entry, head)?.pos);
        }
        let state = self.with(|raft| raft.hard_state());
        let before = self.staged.replace(state);
        if position.is_none() && (before.term, before.vote) != (state.term, state.vote) {
            position = Some(store.append_hard_state(self.id, state)?.pos);
        }
        Ok(position)
    }
}

/// A Ready whose entries are on their way to the disk.
pub(super) struct Persisting {
    pub(super) position: LogPos,
    pub(super) group: GroupId,
    pub(super) number: u64,
    pub(super) since: Instant,
    /// Messages that promise its durability.
    pub(super) messages: Vec<Message>,
}

/// The owner of a replica: a partition, or the cluster's metadata.
pub trait Replicated<H> {
    fn replica(&self) -> &Replica;
    /// The loop is about to ask the group what is ready: the last moment to propose.
    fn before_ready(&self, _core: &Rc<H>) {}
    /// Replaces the whole state by a staged snapshot. Returns the position that must be durable for that.
    fn restore(&self, core: &Rc<H>, mark: &SnapshotMark) -> Result<LogPos, AppendError>;
    /// Uncommitted entries from `index` on are truncated. Returns the offset at which the log now ends.
    fn truncated(&self, _index: RaftIndex) -> u64 {
        0
    }
    /// The next entry of the log, proposed here or received from a leader, is about to be staged.
    fn staged(&self, _entry: &Entry, _payload: Option<&Payload>) {}
    /// Applies committed entries, in order, synchronously.
    fn apply(&self, core: &Rc<H>, entries: Vec<Entry>);
    /// Answers to [`Group::read_index`].
    fn still_leads(&self, _core: &Rc<H>, _reads: &[ReadIndex]) {}
    /// More of the group's log is durable here.
    fn persisted(&self, _core: &Rc<H>) {}
    /// The group has had its turn: act on a change of leader.
    fn settled(&self, _core: &Rc<H>) {}
    /// Sends messages to the group's other replicas. They may leave now.
    fn send(&self, core: &Rc<H>, messages: Vec<Message>);
    /// The core's ring is lost, or the group has stopped: nothing that waits here will ever be durable or applied.
    fn storage_failed(&self);
}

/// The ready loop's own state: one per core.
pub struct ReadyLoop<H> {
    pub(super) queued: RefCell<VecDeque<Rc<dyn Replicated<H>>>>,
    pub(super) persisting: RefCell<VecDeque<Persisting>>,
    pub(super) work: Notify,
}

impl<H> Default for ReadyLoop<H> {
    fn default() -> Self {
        Self { queued: RefCell::default(), persisting: RefCell::default(), work: Notify::default() }
    }
}

impl<H> ReadyLoop<H> {
    /// Has the loop look at this group in its next turn.
    pub fn wake(&self, group: Rc<dyn Replicated<H>>) {
        if !group.replica().queued.replace(true) {
            self.queued.borrow_mut().push_back(group);
            self.work.notify();
        }
    }

    /// Whether there is nothing to do until the ring is durable beyond `durable`, or until a group is woken.
    pub(super) fn is_idle(&self, durable: LogPos) -> bool {
        let is_durable = |next: &Persisting| next.position <= durable;
        self.queued.borrow().is_empty() && !self.persisting.borrow().front().is_some_and(is_durable)
    }
}
