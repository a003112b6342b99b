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
    core::{Core, CoreId},
    replica::{Replica, Replicated},
    sync::{Promise, promise},
};
use bytes::Bytes;
use consensus::{
    group::{Entry, Group},
    metadata::{Applied, Command, Delta, Outcome, Rejection, SLICES, Slice, SliceId},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::Arc,
};
use wal::record::GroupId;

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

pub struct Meta {
    replica: Replica,
    sequencer: RefCell<Sequencer>,
    established: Cell<bool>,
}

impl Meta {
    /// The metadata group as the store recovered it; `snapshot_index` is what the slices already show.
    pub fn new(raft: Group, snapshot_index: u64, cores: usize) -> Self {
        Self {
            replica: Replica::new(META_GROUP, raft),
            sequencer: RefCell::new(Sequencer {
                in_flight: VecDeque::new(),
                published: snapshot_index,
                shown: vec![snapshot_index; cores],
                submitters: BTreeMap::new(),
                finished: VecDeque::new(),
            }),
            established: Cell::new(false),
        }
    }

    /// Proposes commands as one entry. `complete` turns them into log form right before the proposal, so that choices such as
    /// ids are made in log order.
    fn propose(
        self: &Rc<Self>,
        core: &Rc<Core>,
        commands: Vec<Command>,
    ) -> Result<crate::sync::Answer<Result<Vec<CommandResult>, SubmitError>>, SubmitError> {
        if !self.established.get() {
            return Err(SubmitError::NoLeader);
        }
        let data = consensus::metadata::encode(&commands);
        let position = self.replica.propose(data, None).map_err(|_| SubmitError::NoLeader)?;
        let (promise, answer) = promise();
        self.sequencer.borrow_mut().submitters.insert(position.index, promise);
        core.metrics.metadata_quorum_writes_total.add(commands.len() as u64);
        core.ready_loop.wake(self.clone());
        Ok(answer)
    }

    /// Takes one entry's results from the owner of a slice.
    fn applied(&self, core: &Rc<Core>, index: u64, results: Vec<(usize, Applied)>) {
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
        }
    }
}
