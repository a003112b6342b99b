//! The metadata state of a node: the plane, the slices, a view.

use super::{META, Machine, Node, Replica};
use crate::{
    group::{Entry, Group, Message, SnapshotMark},
    metadata::{self, Applied, AskedTooLate, Delta, Request, Slice, View, slice_of_topic},
    plane::{Plane, PlaneConfig, SliceEntry, SliceOp, Submission, Token},
    sim::{
        Bug,
        disk::Checkpoint,
        model::{self, SettingsReply, TopicReply},
        oracle::{Seen, Violation},
    },
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use types::{Position, RaftIndex, Term};

pub(in crate::sim) struct Meta {
    pub(in crate::sim) plane: Plane,
    pub(in crate::sim) slices: Vec<Slice>,
    pub(in crate::sim) view: View,
    /// Committed entries that are not published yet.
    pub(in crate::sim) unpublished: VecDeque<Entry>,
    /// The results of entries that are not published yet, by index.
    pub(in crate::sim) results: BTreeMap<RaftIndex, String>,
    /// Results in flight from the cores that own the slices, with their arrival times.
    pub(in crate::sim) coming: VecDeque<(Duration, Coming)>,
    /// The newest checkpoint, for nodes that lag behind the log.
    pub(in crate::sim) newest: Option<Checkpoint>,
}

pub(in crate::sim) struct Coming {
    pub(in crate::sim) generation: u64,
    pub(in crate::sim) index: RaftIndex,
    pub(in crate::sim) results: Results,
}

pub(in crate::sim) type Results = Vec<(usize, Result<Applied, AskedTooLate>)>;

impl Meta {
    pub(in crate::sim) fn start(checkpoint: &Checkpoint, config: &PlaneConfig, contacts: &[i32]) -> Self {
        let (index, slices) = if checkpoint.state.is_empty() {
            (RaftIndex::ZERO, Slice::all())
        } else {
            metadata::restore(&checkpoint.state).expect("a checkpoint is whole")
        };
        assert_eq!(index, checkpoint.index);
        let image: Vec<Delta> = slices.iter().flat_map(Slice::image).collect();
        let group_high = slices.iter().map(Slice::group_high).max().unwrap_or(0);
        let mut plane = Plane::new(config.clone(), index, group_high);
        plane.begin_from(&image);
        plane.set_contacts(contacts.iter().copied());
        Self {
            plane,
            view: View::new(index, &image),
            slices,
            unpublished: VecDeque::new(),
            results: BTreeMap::new(),
            coming: VecDeque::new(),
            newest: (index > RaftIndex::ZERO).then(|| checkpoint.clone()),
        }
    }

    /// Performs one operation on the slices. Its results, one line per request, must be the same on every node.
    pub(in crate::sim) fn work(&mut self, op: SliceOp, bug: Option<Bug>) -> Option<Coming> {
        match op {
            SliceOp::Speculate(entry) => {
                Some(self.work_on(entry, bug, |slice, index, request| slice.speculate(index, request)))
            }
            SliceOp::Apply(entry) => Some(self.work_on(entry, bug, |slice, _, request| slice.apply_request(request))),
            SliceOp::Commit { index } => {
                self.slices.iter_mut().for_each(|slice| slice.commit(index));
                None
            }
            SliceOp::RollBack => {
                self.slices.iter_mut().for_each(Slice::roll_back);
                let committed = self.unpublished.back().map_or(self.view.index(), |last| last.index);
                self.results.split_off(&committed.next());
                None
            }
        }
    }

    fn work_on(
        &mut self,
        entry: SliceEntry,
        bug: Option<Bug>,
        apply: impl Fn(&mut Slice, RaftIndex, &Request) -> Result<Applied, AskedTooLate>,
    ) -> Coming {
        let SliceEntry { generation, index, requests } = entry;
        let mut lines = String::new();
        let mut results = Vec::new();
        for (at, request) in requests.into_iter().enumerate() {
            let slice = &mut self.slices[usize::from(request.command.slice().0)];
            let request = match bug {
                // Without its origin, the slice cannot detect a retry.
                Some(Bug::RetryAppliedTwice) => Request::from(request.command),
                _ => request,
            };
            let applied = apply(slice, index, &request);
            slice.check();
            lines += &match &applied {
                Ok(applied) => format!("{:?}\n", applied.outcome),
                Err(late) => format!("{late:?}\n"),
            };
            results.push((at, applied));
        }
        self.results.insert(index, lines);
        Coming { generation, index, results }
    }

    /// Installs a snapshot.
    pub(in crate::sim) fn install(&mut self, snapshot: &Checkpoint) {
        let (index, slices) = metadata::restore(&snapshot.state).expect("a snapshot is whole");
        let image: Vec<Delta> = slices.iter().flat_map(Slice::image).collect();
        let group_high = slices.iter().map(Slice::group_high).max().unwrap_or(0);
        self.plane.restored(index, group_high, &image);
        self.slices = slices;
        self.view = View::new(index, &image);
        self.unpublished.clear();
        self.results.clear();
        self.coming.clear();
    }
}

impl Node {
    /// Keeps the received state as the newest checkpoint before the group steps the message. The next Ready
    /// journals it.
    pub(in crate::sim) fn take_snapshot(&mut self, message: Message, state: Bytes) {
        let now = self.clock.now();
        let (group, meta) = self.meta_parts();
        let metadata = message.get_snapshot().get_metadata();
        let index = RaftIndex::new(metadata.index);
        let conf_state = crate::group::conf_state_bytes(metadata.get_conf_state());
        if message.to != group.peer() || index <= group.commit() {
            return;
        }
        meta.newest = Some(Checkpoint { index, conf_state, state });
        group.step_snapshot(message);
        meta.plane.observe(group, now);
    }

    /// Submits a write to the plane.
    pub fn submit(&mut self, submission: Submission) -> Token {
        let (_, meta) = self.meta_parts();
        let token = meta.plane.submit(submission);
        self.turn();
        token
    }

    /// Asks the plane for a linearizable read.
    pub fn ask_to_read(&mut self, within: Duration) -> Token {
        let now = self.clock.now();
        let (group, meta) = self.meta_parts();
        let token = meta.plane.read(group, now, now + within);
        self.turn();
        token
    }

    /// This node's clock.
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Whether the node may answer reads from its view now.
    pub fn has_read_lease(&self) -> bool {
        self.meta().plane.read_lease().is_some_and(|until| self.clock.now() < until)
    }

    /// Whether this node leads the metadata group and holds the leader's lease.
    pub fn holds_lease(&self) -> bool {
        self.meta().plane.holds_lease(self.group(META), self.clock.now())
    }

    /// The view that readers see.
    pub fn view(&self) -> &View {
        &self.meta().view
    }

    /// The answer of this node to a client that reads a topic.
    pub(in crate::sim) fn read_topic(&self, name: &str) -> TopicReply {
        if self.bug == Some(Bug::OverlayShown) {
            let slice = &self.meta().slices[usize::from(slice_of_topic(name).0)];
            let image: Vec<Delta> = slice.image().collect();
            return model::read(&View::new(self.shows(), &image), name);
        }
        model::read(self.view(), name)
    }

    /// The answer of this node to a client that reads the cluster's settings.
    pub(in crate::sim) fn read_settings(&self) -> SettingsReply {
        model::read_settings(self.view())
    }

    /// The last index that the view shows.
    pub fn shows(&self) -> RaftIndex {
        self.meta().view.index()
    }

    /// Hands over the lead of the metadata group, as a broker does before it stops.
    pub fn hand_over(&mut self) -> bool {
        let (group, meta) = self.meta_parts();
        let is_asked = meta.plane.hand_over(group, |_| true);
        self.turn();
        is_asked
    }

    /// Takes a snapshot of the metadata at the applied index. The log drops the entries that it covers, except
    /// those that members still lack.
    pub fn snapshot(&mut self) {
        let (group, meta) = self.meta_parts();
        let index = group.applied();
        if meta.newest.as_ref().is_some_and(|newest| newest.index >= index) {
            return;
        }
        // A slice whose results are still in flight has already applied the entries.
        let mut slices: Vec<Slice> = meta.slices.iter().map(Slice::committed).collect();
        let state = metadata::join(index, &mut slices);
        let newest = Checkpoint { index, conf_state: group.conf_state(), state: state.clone() };
        let Some(mark) = mark(group, &newest) else { return };
        group.set_snapshot(mark);
        let forget = group.compact(index);
        meta.newest = Some(newest.clone());
        self.seen.push(Seen::State { group: META, index, state });
        self.disk.checkpoint(META, newest, forget);
    }

    pub(in crate::sim) fn meta(&self) -> &Meta {
        match &self.replicas[&META].machine {
            Machine::Meta(meta) => meta,
            Machine::Partition { .. } => unreachable!("the metadata group is no partition"),
        }
    }

    pub(in crate::sim) fn meta_parts(&mut self) -> (&mut Group, &mut Meta) {
        match self.replicas.get_mut(&META) {
            Some(Replica { group, machine: Machine::Meta(meta), .. }) => (group, meta),
            _ => unreachable!("the metadata group is there from the start"),
        }
    }

    /// The applied index and the metadata there. Fails if the node's view disagrees with its slices.
    pub fn metadata(&self) -> Result<(RaftIndex, Bytes), Violation> {
        let meta = self.meta();
        let applied = self.group(META).applied();
        let mut slices: Vec<Slice> = meta.slices.iter().map(Slice::committed).collect();
        let mut topics: Vec<_> = slices.iter().flat_map(Slice::topics).collect();
        topics.sort_unstable_by_key(|topic| &topic.name);
        if meta.view.index() != applied || !meta.view.topics().eq(topics) {
            return Err(Violation(format!("the view of node {} does not match its slices", self.id)));
        }
        Ok((applied, metadata::join(applied, &mut slices)))
    }
}

/// The position of a checkpoint. `None` if the log no longer knows its term.
pub(in crate::sim) fn mark(group: &Group, checkpoint: &Checkpoint) -> Option<SnapshotMark> {
    let at = Position { index: checkpoint.index, term: Term((group.term_at(checkpoint.index)?).0) };
    Some(SnapshotMark { at, conf_state: checkpoint.conf_state.clone() })
}
