//! One replica of one Raft group on its core, and the ready loop that drives all of a core's replicas.
//! Lives on: the owning core. Talks to: `consensus` (the group) and `wal` (the store).
//!
//! The loop never waits: it takes what a group has ready, hands entries to the ring and goes on. The ring later
//! reports the position up to which it is durable. No borrow is held across an await.
//!
//! Invariants: completions reach a group in the order of its Readys; a payload is staged with the entry it belongs
//! to, or not at all; nothing is applied before it is committed; a message that promises durability leaves only
//! once that is true.

use super::host::Host;
use crate::host::disk::Store;
use bytes::Bytes;
use consensus::group::{Entry, Group, Message, ProposeError, ReadIndex, Ready, SnapshotMark};
use net::records::batch::HEADER_BYTES;
use runtime::planted;
use runtime::sync::Notify;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Instant,
};
use types::{GroupId, HardState, META_GROUP, Position, RaftIndex};
use wal::{
    record::{self, Span},
    store::{AppendError, LogPos},
};

/// Completions, and groups, that the ready loop handles in one turn. The others follow in the next one. A topic with
/// 10,000 partitions wakes as many groups at once.
const GROUPS_A_TURN: usize = 512;

/// A batch that travels beside its entry: `header` is written in place of the first bytes of `bytes`.
pub struct Payload {
    pub span: Span,
    pub header: [u8; HEADER_BYTES],
    pub bytes: Bytes,
}

/// A Raft group and the payloads of entries it has not handed out yet.
pub struct Replica {
    id: GroupId,
    raft: RefCell<Group>,
    payloads: RefCell<VecDeque<(Position, Payload)>>,
    /// In the loop's queue already.
    queued: Cell<bool>,
    /// Its group is gone from the store, though the loop's queue may still hold it.
    closed: Cell<bool>,
    /// It was already told that the group has stopped.
    told_stop: Cell<bool>,
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

    /// Steps the group with a peer's message. A message that no replica of the group can have sent is dropped,
    /// counted and logged.
    pub fn step(&self, core: &Rc<impl Host>, message: Message) {
        let from = message.from;
        let unfit = self.with(|raft| {
            raft.step(message);
            raft.take_unfit()
        });
        if let Some(unfit) = unfit {
            core.refused(self.id, from, &unfit);
        }
    }

    /// Whether a peer's message may be stepped. If not, it is counted and logged.
    pub fn is_fit(&self, core: &Rc<impl Host>, message: &Message) -> bool {
        let checked = self.with(|raft| raft.check_message(message));
        if let Err(unfit) = &checked {
            core.refused(self.id, message.from, unfit);
        }
        checked.is_ok()
    }

    /// Steps a leader's entries, with all their payloads. The entries that the group accepts are in its next Ready,
    /// which the caller must take at once.
    pub fn step_with(&self, core: &Rc<impl Host>, message: Message, payloads: Vec<(Position, Payload)>) {
        let mut held = self.payloads.borrow_mut();
        assert!(held.is_empty(), "group {}: a follower stages entries when it takes them", self.id.0);
        held.extend(payloads);
        drop(held);
        self.step(core, message);
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
    fn persist<H>(
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
struct Persisting {
    position: LogPos,
    group: GroupId,
    number: u64,
    since: Instant,
    /// Messages that promise its durability.
    messages: Vec<Message>,
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
    queued: RefCell<VecDeque<Rc<dyn Replicated<H>>>>,
    persisting: RefCell<VecDeque<Persisting>>,
    work: Notify,
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
    fn is_idle(&self, durable: LogPos) -> bool {
        let is_durable = |next: &Persisting| next.position <= durable;
        self.queued.borrow().is_empty() && !self.persisting.borrow().front().is_some_and(is_durable)
    }
}

/// Runs the ready loop of this core until its ring fails or the core stops.
pub async fn run(core: Rc<impl Host>) {
    let follow = core.clone();
    runtime::spawn(async move { follow_durable(follow).await });
    loop {
        let seen = core.ready_loop().work.version();
        let (started, cpu) = (Instant::now(), runtime::clock::thread_cpu());
        if let Err(error) = turn(&core) {
            core.storage_failed(&error.to_string());
            return;
        }
        core.metrics().raft_ready_loop_latency_seconds.record(started.elapsed());
        core.metrics().raft_ready_loop_cpu_seconds.record(runtime::clock::thread_cpu() - cpu);
        if core.ready_loop().is_idle(core.store().durable()) {
            core.ready_loop().work.past(seen).await;
        } else {
            // Other tasks run first if this one's time is up. Otherwise the next turn's entries join the same
            // write.
            runtime::yield_if_needed().await;
        }
    }
}

/// Wakes the loop whenever more of the ring has become durable.
async fn follow_durable(core: Rc<impl Host>) {
    let mut durable = core.store().durable();
    loop {
        match core.store().durable_past(durable).await {
            Ok(position) => durable = position,
            Err(poisoned) => return core.storage_failed(&poisoned.to_string()),
        }
        core.ready_loop().work.notify();
    }
}

/// One turn: takes completions, stages entries and applies committed entries, for the groups queued at its start, as
/// many as a turn takes.
fn turn(core: &Rc<impl Host>) -> Result<(), AppendError> {
    let ready_loop = core.ready_loop();
    let durable = core.store().durable();
    let mut oldest: Option<Instant> = None;
    for _ in 0..GROUPS_A_TURN {
        let done = ready_loop.persisting.borrow_mut().pop_front_if(|next| next.position <= durable);
        let Some(done) = done else { break };
        oldest.get_or_insert(done.since);
        if done.group == META_GROUP {
            core.metrics().metadata_wal_write_latency_seconds.record(done.since.elapsed());
        }
        // A group that was removed meanwhile needs no completions.
        if let Some(group) = core.group(done.group) {
            group.replica().with(|raft| raft.on_persisted(done.number));
            group.send(core, done.messages);
            group.persisted(core);
            ready_loop.wake(group);
        }
    }
    if let Some(oldest) = oldest {
        core.metrics().wal_write_latency_seconds.record(oldest.elapsed());
    }
    // Groups that these wake wait for the next turn, after other tasks of this core.
    let waiting = ready_loop.queued.borrow().len();
    for _ in 0..waiting.min(GROUPS_A_TURN) {
        let Some(group) = ready_loop.queued.borrow_mut().pop_front() else { break };
        group.replica().queued.set(false);
        if group.replica().id != META_GROUP {
            settle(core, &*group)?;
        } else if step(core, &*group)? {
            // One Ready a turn, so that a burst of metadata delays no partition.
            ready_loop.wake(group);
        }
    }
    core.tell_leaders();
    Ok(())
}

/// Stages, sends and applies everything that the group has ready.
fn settle<H: Host>(core: &Rc<H>, group: &dyn Replicated<H>) -> Result<(), AppendError> {
    while step(core, group)? {}
    Ok(())
}

/// Does this for the group's next Ready. Returns `false` if there was none.
fn step<H: Host>(core: &Rc<H>, group: &dyn Replicated<H>) -> Result<bool, AppendError> {
    let replica = group.replica();
    if replica.closed.get() {
        return Ok(false);
    }
    group.before_ready(core);
    let Some(mut ready) = replica.with(Group::ready) else {
        if let Some(unreadable) = replica.with(|raft| raft.unreadable().cloned())
            && !replica.told_stop.replace(true)
        {
            core.group_stopped(group, &unreadable);
        }
        group.settled(core);
        return Ok(false);
    };
    let restored = ready.snapshot.as_ref().map(|mark| group.restore(core, mark)).transpose()?;
    let position = replica.persist(&core.store(), group, &mut ready)?.or(restored);
    group.send(core, ready.messages);
    // A Ready without a write of its own counts as durable with the last write staged before it, never earlier.
    let mut persisting = core.ready_loop().persisting.borrow_mut();
    match position.or_else(|| persisting.back().map(|last| last.position)) {
        Some(position) => {
            let (group, number, since) = (replica.id, ready.number, Instant::now());
            let messages = ready.persisted_messages;
            persisting.push_back(Persisting { position, group, number, since, messages });
            drop(persisting);
        }
        None => {
            drop(persisting);
            replica.with(|raft| raft.on_persisted(ready.number));
            group.send(core, ready.persisted_messages);
            group.persisted(core);
        }
    }
    if !ready.committed.is_empty() {
        group.apply(core, ready.committed);
    }
    if !ready.reads.is_empty() {
        group.still_leads(core, &ready.reads);
    }
    Ok(true)
}

/// Stages what was just proposed, so that the next caller sees how much room the ring has left.
pub fn stage<H: Host>(core: &Rc<H>, group: &dyn Replicated<H>) {
    if let Err(error) = settle(core, group) {
        core.storage_failed(&error.to_string());
    }
}
