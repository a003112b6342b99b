//! The metadata plane on one broker: a command's way from any core into every core's view.
//!
//! Lives on: core 0 ([`Meta`]: the metadata group and the sequencer), the owner of each slice (its part of [`crate::core::Core`])
//! and every core (its view).
//!
//! ```text
//!  any core ── submit ──► core 0: propose ─► ring ─► committed, in log order
//!                           │  each command ──────────► owner of its slice: apply, deterministically
//!                           │  ◄──── outcome and delta ────┘
//!                           │  deltas, again in log order ──► every core's view ──► "applied up to i"
//!  any core ◄── outcomes ───┘  once every core has applied the command's index
//! ```
//!
//! Invariants: a view applies every index once, in order; a submitter is answered only when every core's view shows its
//! commands, so a client sees its own write on any connection.

use crate::{
    core::{Core, CoreId, core_of_slice, restored},
    replica::{self, Replica, Replicated},
    rt,
    sync::{Answer, Either, Flag, Notify, Promise, promise, race},
};
use bytes::Bytes;
use consensus::{
    group::{Entry, Group, GroupConfig, Restored},
    metadata::{self, Applied, Command, Delta, Outcome, Rejection, SLICES, Slice},
};
use slab::Slab;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use wal::{
    log::LogOptions,
    record::GroupId,
    store::{AppState, SnapshotError},
};

/// The metadata group.
pub const META_GROUP: GroupId = GroupId(0);
/// The core that it lives on.
pub const META_CORE: CoreId = CoreId(0);

/// What became of one command.
pub type CommandResult = Result<Outcome, Rejection>;

/// Why a submission has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the metadata group has no leader here yet; try again")]
    NoLeader,
    #[error("the storage of core 0 has failed; restart the broker once its disk is well")]
    Storage,
}

/// One log entry on its way through the slices.
struct InFlight {
    index: u64,
    results: Vec<Option<Applied>>,
    missing: usize,
}

struct Sequencer {
    in_flight: VecDeque<InFlight>,
    /// The last index whose deltas went to every core.
    published: u64,
    /// The last index that each core's view shows.
    shown: Vec<u64>,
    /// Submitters, by the index of their entry.
    submitters: BTreeMap<u64, Promise<Result<Vec<CommandResult>, SubmitError>>>,
    /// Results that wait for every core to show them.
    finished: VecDeque<(u64, Vec<CommandResult>)>,
}

/// One entry's commands for one core, each with its place in the entry.
pub type Parts = Vec<(usize, Command)>;

/// A core's slices on their way into a snapshot.
type SlicesPart = Promise<Vec<Slice>>;

pub struct Meta {
    replica: Replica,
    sequencer: RefCell<Sequencer>,
    /// The next group id; ids are given out in log order and never again.
    next_group: Cell<u64>,
    /// Set once the first entry of our term is applied.
    established: Cell<bool>,
    /// Set once every core shows that entry, and so all that was committed before.
    complete: Flag,
    published: Notify,
    parts: RefCell<Slab<SlicesPart>>,
}

impl Meta {
    /// The metadata group; `slices` show everything up to `snapshot_index`.
    fn new(raft: Group, snapshot_index: u64, slices: &[Slice], cores: usize) -> Self {
        let group_high = slices.iter().map(Slice::group_high).max().unwrap_or(META_GROUP.0);
        Self {
            replica: Replica::new(META_GROUP, raft),
            sequencer: RefCell::new(Sequencer {
                in_flight: VecDeque::new(),
                published: snapshot_index,
                shown: vec![snapshot_index; cores],
                submitters: BTreeMap::new(),
                finished: VecDeque::new(),
            }),
            next_group: Cell::new(group_high + 1),
            established: Cell::new(false),
            complete: Flag::default(),
            published: Notify::default(),
            parts: RefCell::default(),
        }
    }

    /// Proposes commands as one entry, at once; group ids are filled in here, where the log's order is made.
    fn propose(
        self: &Rc<Self>,
        core: &Rc<Core>,
        mut commands: Vec<Command>,
    ) -> Result<Answer<Result<Vec<CommandResult>, SubmitError>>, SubmitError> {
        if !self.established.get() {
            return Err(SubmitError::NoLeader);
        }
        let mut next_group = self.next_group.get();
        for (count, first) in commands.iter_mut().filter_map(Command::new_groups) {
            *first = next_group;
            next_group += count as u64;
        }
        let position = self.replica.propose(metadata::encode(&commands), None).map_err(|_| SubmitError::NoLeader)?;
        self.next_group.set(next_group);
        let (promise, answer) = promise();
        self.sequencer.borrow_mut().submitters.insert(position.index, promise);
        core.metrics.metadata_quorum_writes_total.add(commands.len() as u64);
        replica::stage(core, &**self);
        Ok(answer)
    }

    /// Takes one entry's results from the owner of a slice.
    pub fn applied(&self, core: &Rc<Core>, index: u64, results: Vec<(usize, Applied)>) {
        let mut sequencer = self.sequencer.borrow_mut();
        let first = sequencer.in_flight.front().expect("results belong to an entry in flight").index;
        let entry = &mut sequencer.in_flight[(index - first) as usize];
        for (at, result) in results {
            assert!(entry.results[at].replace(result).is_none(), "a command is applied once");
            entry.missing -= 1;
        }
        drop(sequencer);
        self.publish(core);
    }

    /// Sends what is complete, in log order, to every core's view.
    fn publish(&self, core: &Rc<Core>) {
        let mut sequencer = self.sequencer.borrow_mut();
        let mut deltas: Vec<(u64, Vec<Delta>)> = Vec::new();
        while let Some(entry) = sequencer.in_flight.pop_front_if(|entry| entry.missing == 0) {
            let mut changes = Vec::new();
            let mut outcomes = Vec::with_capacity(entry.results.len());
            for applied in entry.results.into_iter().flatten() {
                changes.extend(applied.delta);
                outcomes.push(applied.outcome);
            }
            sequencer.published = entry.index;
            sequencer.finished.push_back((entry.index, outcomes));
            deltas.push((entry.index, changes));
        }
        let published = sequencer.published;
        drop(sequencer);
        if deltas.is_empty() {
            return;
        }
        let deltas: Arc<[_]> = deltas.into();
        for to in (1..core.cores()).map(CoreId) {
            let deltas = deltas.clone();
            core.post(to, move |there| {
                there.show(&deltas);
                let shown_by = there.id();
                there.post(META_CORE, move |here| here.meta().shown(shown_by, published));
            });
        }
        core.show(&deltas);
        self.shown(core.id(), published);
        self.published.notify();
    }

    /// A core's view has applied everything up to `index`.
    fn shown(&self, by: CoreId, index: u64) {
        let mut sequencer = self.sequencer.borrow_mut();
        assert!(sequencer.shown[by.0] <= index, "a view never goes back");
        sequencer.shown[by.0] = index;
        let everywhere = *sequencer.shown.iter().min().expect("there is a core 0");
        while let Some((index, outcomes)) = sequencer.finished.pop_front_if(|(index, _)| *index <= everywhere) {
            if let Some(submitter) = sequencer.submitters.remove(&index) {
                submitter.keep(Ok(outcomes));
            }
            if self.established.get() && index >= self.first_of_term() {
                self.complete.set();
            }
        }
    }

    /// The first index of the present term.
    fn first_of_term(&self) -> u64 {
        self.replica.with(|raft| raft.terms().last().map_or(u64::MAX, |run| run.first_index))
    }

    /// Waits until `count` entries have been published since `index`.
    async fn entries_since(&self, index: u64, count: u64) {
        while self.sequencer.borrow().published < index + count {
            self.published.next().await;
        }
    }
}

impl Replicated for Meta {
    fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Committed entries go to the slices in log order; what comes back is published in log order.
    fn apply(&self, core: &Rc<Core>, entries: Vec<Entry>) {
        let mut by_owner: Vec<Vec<(u64, Parts)>> = (0..core.cores()).map(|_| Vec::new()).collect();
        let mut sequencer = self.sequencer.borrow_mut();
        for entry in entries {
            let index = entry.index;
            // An entry without commands is a leader's first, or a change of the group itself.
            let mut commands = if entry.is_command() { decode_committed(index, &entry.data) } else { Vec::new() };
            for (count, first) in commands.iter_mut().filter_map(Command::new_groups) {
                self.next_group.set(self.next_group.get().max(*first + count as u64));
            }
            if commands.is_empty() && self.replica.with(|raft| raft.is_leader() && raft.term() == entry.term) {
                self.established.set(true);
            }
            let missing = commands.len();
            sequencer.in_flight.push_back(InFlight { index, results: (0..missing).map(|_| None).collect(), missing });
            let mut parts: Vec<Parts> = (0..core.cores()).map(|_| Vec::new()).collect();
            for (at, command) in commands.into_iter().enumerate() {
                parts[core_of_slice(command.slice(), core.cores()).0].push((at, command));
            }
            for (owner, parts) in parts.into_iter().enumerate().filter(|(_, parts)| !parts.is_empty()) {
                by_owner[owner].push((index, parts));
            }
            self.replica.with(|raft| raft.applied_to(index));
        }
        drop(sequencer);
        for (owner, entries) in by_owner.into_iter().enumerate().filter(|(_, entries)| !entries.is_empty()) {
            core.post(CoreId(owner), move |there| {
                for (index, parts) in entries {
                    there.apply_to_slices(index, parts);
                }
            });
        }
        self.publish(core);
    }

    fn storage_failed(&self) {
        self.established.set(false);
        for (_, submitter) in std::mem::take(&mut self.sequencer.borrow_mut().submitters) {
            submitter.keep(Err(SubmitError::Storage));
        }
    }
}

/// Damage below the ring's and the group's own checks can't be served around: the slices would differ from the log.
fn decode_committed(index: u64, data: &Bytes) -> Vec<Command> {
    metadata::decode(data).unwrap_or_else(|error| panic!("the committed metadata entry {index} can't be read: {error}"))
}

/// Submits commands from any core; returns once every core's view shows them. They are one entry: all or none are in the log.
pub async fn submit(core: &Rc<Core>, commands: Vec<Command>) -> Result<Vec<CommandResult>, SubmitError> {
    let call = core.call(META_CORE, move |there| {
        // Proposed at once, in the order of arrival.
        let proposed = there.meta().propose(&there, commands);
        async move { proposed?.await.unwrap_or(Err(SubmitError::NoLeader)) }
    });
    call.result().await
}

/// On core 0, before anybody is served: hands the slices of the newest snapshot to their owners and the image of all topics to
/// every core, then lets the group elect itself. Returns once its log is applied everywhere.
pub async fn start(core: &Rc<Core>) -> Result<(), String> {
    let (restored, slices, snapshot_index) = match core.take_recovered(META_GROUP) {
        Some(recovered) if !recovered.app.blob.is_empty() => {
            let (index, slices) = metadata::restore(&recovered.app.blob).map_err(|error| error.to_string())?;
            assert_eq!(index, recovered.app.index, "a snapshot knows its index");
            (restored(&recovered), slices, index)
        }
        Some(recovered) => (restored(&recovered), Slice::all(), 0),
        None => {
            core.store.create_group(META_GROUP, LogOptions::default());
            (Restored::default(), Slice::all(), 0)
        }
    };
    let image: Arc<[Delta]> = slices.iter().flat_map(Slice::image).collect();
    let identity = GroupConfig::single(META_GROUP.0, core.node() as u64);
    let raft = Group::new(identity, restored).map_err(|error| error.to_string())?;
    let meta = Rc::new(Meta::new(raft, snapshot_index, &slices, core.cores()));
    core.hold_meta(meta.clone());
    let mut by_owner: Vec<Vec<Slice>> = (0..core.cores()).map(|_| Vec::new()).collect();
    for slice in slices {
        by_owner[core_of_slice(slice.id(), core.cores()).0].push(slice);
    }
    for (owner, slices) in by_owner.into_iter().enumerate() {
        let image = image.clone();
        core.post(CoreId(owner), move |there| there.install(snapshot_index, slices, &image));
    }
    meta.replica.with(Group::campaign);
    core.ready_loop.wake(meta.clone());
    meta.complete.wait().await;
    for to in (0..core.cores()).map(CoreId) {
        core.post(to, |there| {
            there.set_controller(Some(there.node()));
            there.lifecycle.metadata_complete.set();
        });
    }
    Ok(())
}

/// Entries after which a snapshot is taken even if the ring has room, so that a restart has little to replay.
const SNAPSHOT_ENTRIES: u64 = 10_000;

/// Pause after a snapshot that could not be written, on a full disk for instance. The log holds all that it would.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(5);

/// On core 0: writes a snapshot whenever the ring asks for one or enough entries have come.
pub async fn snapshot_when_wanted(core: Rc<Core>) {
    let meta = core.meta().clone();
    let mut covered = meta.sequencer.borrow().published;
    loop {
        if let Either::First(Err(_poisoned)) =
            race(core.store.snapshot_wanted(), meta.entries_since(covered, SNAPSHOT_ENTRIES)).await
        {
            return;
        }
        match snapshot(&core).await {
            Ok(index) => covered = index,
            Err(error) if core.store.poisoned().is_some() => return core.storage_failed(&error.to_string()),
            Err(error) => {
                tracing::warn!(%error, "cannot write a metadata snapshot; trying again in {} s", SNAPSHOT_RETRY.as_secs());
                rt::sleep(SNAPSHOT_RETRY).await;
            }
        }
    }
}

/// Cuts every slice at one index and makes the snapshot durable; returns the index.
pub async fn snapshot(core: &Rc<Core>) -> Result<u64, SnapshotError> {
    let meta = core.meta();
    // Everything applied so far is on its way to the slices, in their queues; the request for a part goes behind it.
    let (index, term, conf_state) = meta.replica.with(|raft| {
        let index = raft.applied();
        (index, raft.term_at(index).expect("an applied entry's term is known"), raft.conf_state())
    });
    let parts: Vec<_> = (0..core.cores())
        .map(|owner| {
            let (part, answer) = promise();
            let token = meta.parts.borrow_mut().insert(part);
            core.post(CoreId(owner), move |there| {
                let slices = there.cut_slices();
                there.post(META_CORE, move |here| here.meta().parts.borrow_mut().remove(token).keep(slices));
            });
            answer
        })
        .collect();
    let mut slices = Vec::with_capacity(SLICES);
    for part in crate::sync::all(parts).await {
        slices.extend(part.expect("a part that was asked for comes"));
    }
    let blob = metadata::join(index, &mut slices);
    core.store.write_snapshot(META_GROUP, term, AppState { index, blob, conf_state }).await?;
    meta.replica.with(|raft| raft.compact(index));
    tracing::debug!(index, "metadata snapshot written");
    Ok(index)
}
