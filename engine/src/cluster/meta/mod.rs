//! The metadata plane on one broker. It takes a command from any core, over the leader, into every core's view.
//!
//! Lives on: core 0 ([`Meta`]: the metadata group and its [`Plane`]), the owner of each slice (its part of
//! [`crate::core::Core`]) and every core (its view).
//!
//! ```text
//!  any core ── submit ──► core 0: Plane ── leads? propose ─► ring ─► committed, in log order
//!                           │       └─ no: forward ─► leader
//!                           │  each request ──────────► owner of its slice: apply, deterministically
//!                           │  ◄──── outcome and delta ────┘
//!                           │  deltas, again in log order ──► every core's view ──► "shown up to i"
//!  any core ◄── outcomes ───┘  once every core shows the index
//! ```
//!
//! | module | is |
//! |---|---|
//! | `asks` | what any core asks of the plane: writes as they are, reads, the state of the quorum |
//! | `host` | what the metadata asks of the cores |
//! | `largest` | the largest batch that partitions take: a setting that only rises |
//! | `log` | the log as records, for the topic `__millrace_metadata` |
//! | `log_json` | entries of the log as JSON |
//! | `peers` | messages to and from other brokers |
//! | `reports` | reports of this broker's leaderships and watermarks to the cluster |
//! | `snapshots` | cut from all slices at one index; sent to brokers that lag behind the log |
//! | `start` | from what the store recovered to a broker that knows everything committed |
//! | `submit` | changes, for which the largest entry rises first |
//!
//! Invariants: the plane's outputs are performed in the order in which it gave them; a view applies every index once,
//! in order.

pub mod asks;
pub mod host;
pub mod largest;
mod log;
mod log_json;
mod peers;
mod reports;
mod snapshots;
mod start;
mod submit;

pub use asks::{
    CommandResult, SubmitError, Submitting, describe_quorum, describe_quorum_here, linearize, linearize_here, may_read,
    submit_here,
};
pub use largest::why_largest;
pub use log::{LogWatch, log_range, read_log, watch_log};
pub use reports::{Mark, leader_commands, watermarks_here};
pub use snapshots::snapshot;
use snapshots::snapshot_when_wanted;
pub use start::start;
pub use submit::{submit, submit_with};

use crate::partition::replica::{Replica, Replicated};
use consensus::{
    group::{Entry, Group, Message, ReadIndex, SnapshotMark, Succession},
    metadata::{Applied, AskedTooLate, Delta, Request, Slice},
    plane::{Plane, Quorum, SliceEntry, SliceOp, Token, Turn, WriteError, Written, node_of},
    wire::PeerMessage,
};
use host::Host;
use runtime::{
    clock,
    sync::{Notify, Promise},
};
use slab::Slab;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use types::{CoreId, META_GROUP, RaftIndex, core_of_slice};
use wal::store::{AppendError, LogPos};

/// One unit of the metadata group's timers.
const TICK: Duration = Duration::from_millis(100);
/// The other cores learn of a new read lease when it ends this much later than the one they know.
const LEASE_TOLD_EVERY: Duration = Duration::from_millis(500);

/// The requests of one entry for one core, each with its position in the entry.
pub type Parts = Vec<(usize, Request)>;

/// Work for one owner of slices, in order.
pub enum SliceWork {
    Speculate { generation: u64, index: RaftIndex, parts: Parts },
    Apply { generation: u64, index: RaftIndex, parts: Parts },
    Commit { index: RaftIndex },
    RollBack,
}

/// The results of one owner's part of an entry.
pub struct SliceResults {
    pub generation: u64,
    pub index: RaftIndex,
    pub results: Vec<(usize, Result<Applied, AskedTooLate>)>,
}

/// The slices of one core, on their way into a snapshot.
type SlicesPart = Promise<Vec<Slice>>;

pub struct Meta {
    replica: Replica,
    plane: RefCell<Plane>,
    /// The plane's outputs are being performed.
    acting: Cell<bool>,
    /// The last index that each core's view shows.
    shown: RefCell<Vec<RaftIndex>>,
    written: RefCell<BTreeMap<Token, Promise<Result<Written, WriteError>>>>,
    read: RefCell<BTreeMap<Token, Promise<Result<(), WriteError>>>>,
    described: RefCell<BTreeMap<Token, Promise<Result<Quorum, WriteError>>>>,
    /// Notified when something was published.
    published: Notify,
    /// Fetches that wait on the log as a topic.
    watchers: log::Watchers,
    parts: RefCell<Slab<SlicesPart>>,
    snapshots: snapshots::Snapshots,
    told_lease: Cell<Duration>,
    told_controller: Cell<Option<i32>>,
    /// The last entry of another broker that was dropped because this ring never takes it.
    too_large: Cell<u64>,
    /// Follower: bytes of the entry for which the ring lacked room when its leader sent it last. 0: none waits.
    awaited_bytes: Cell<usize>,
    failed: Cell<bool>,
}

impl Meta {
    fn new(raft: Group, plane: Plane, applied: RaftIndex, cores: usize) -> Self {
        Self {
            replica: Replica::new(META_GROUP, raft),
            plane: RefCell::new(plane),
            acting: Cell::new(false),
            shown: RefCell::new(vec![applied; cores]),
            written: RefCell::default(),
            read: RefCell::default(),
            described: RefCell::default(),
            published: Notify::default(),
            watchers: log::Watchers::default(),
            parts: RefCell::default(),
            snapshots: snapshots::Snapshots::default(),
            told_lease: Cell::new(Duration::ZERO),
            told_controller: Cell::new(None),
            too_large: Cell::new(0),
            awaited_bytes: Cell::new(0),
            failed: Cell::new(false),
        }
    }

    /// Applies an event to the plane, performs the plane's outputs, and schedules the group's turn.
    fn happens<R>(
        self: &Rc<Self>,
        core: &Rc<impl Host>,
        what: impl FnOnce(&mut Plane, &mut Group, Duration) -> R,
    ) -> R {
        let result = self.replica.with(|raft| what(&mut self.plane.borrow_mut(), raft, clock::now()));
        self.act(core);
        core.ready_loop().wake(self.clone());
        result
    }

    /// As [`Meta::happens`], from within the group's turn.
    fn happens_in_turn(&self, core: &Rc<impl Host>, what: impl FnOnce(&mut Plane, &mut Group, Duration)) {
        self.replica.with(|raft| what(&mut self.plane.borrow_mut(), raft, clock::now()));
        self.act(core);
    }

    /// Reads the plane and its group.
    pub fn with<R>(&self, look: impl FnOnce(&Plane, &Group) -> R) -> R {
        self.replica.with(|raft| look(&self.plane.borrow(), raft))
    }

    /// Performs the plane's outputs. Outputs that this causes at once are queued behind, and performed in the same
    /// loop.
    fn act(&self, core: &Rc<impl Host>) {
        if self.acting.replace(true) {
            return;
        }
        loop {
            let turn = self.plane.borrow_mut().take();
            if turn.is_empty() {
                break;
            }
            self.carry_out(core, turn);
        }
        self.acting.set(false);
        self.tell(core);
        self.count(core);
    }

    fn carry_out(&self, core: &Rc<impl Host>, turn: Turn) {
        self.do_slices(core, turn.slices);
        self.publish(core, turn.publish);
        for (node, message) in turn.sends {
            core.peers().send_to_node(node, PeerMessage::Plane(message));
        }
        for (token, result) in turn.written {
            if let Some(promise) = self.written.borrow_mut().remove(&token) {
                promise.keep(result);
            }
        }
        for (token, result) in turn.reads {
            if let Some(promise) = self.read.borrow_mut().remove(&token) {
                promise.keep(result);
            }
        }
        for (token, result) in turn.described {
            if let Some(promise) = self.described.borrow_mut().remove(&token) {
                promise.keep(result);
            }
        }
    }

    /// Gives every owner of slices its part of the work, in order.
    fn do_slices(&self, core: &Rc<impl Host>, ops: Vec<SliceOp>) {
        let cores = core.cores();
        let mut by_owner: Vec<Vec<SliceWork>> = (0..cores).map(|_| Vec::new()).collect();
        for op in ops {
            match op {
                SliceOp::Speculate(entry) => {
                    let (generation, index) = (entry.generation, entry.index);
                    for (owner, parts) in by_owners(entry, cores) {
                        by_owner[owner].push(SliceWork::Speculate { generation, index, parts });
                    }
                }
                SliceOp::Apply(entry) => {
                    let (generation, index) = (entry.generation, entry.index);
                    for (owner, parts) in by_owners(entry, cores) {
                        by_owner[owner].push(SliceWork::Apply { generation, index, parts });
                    }
                }
                SliceOp::Commit { index } => {
                    by_owner.iter_mut().for_each(|work| work.push(SliceWork::Commit { index }))
                }
                SliceOp::RollBack => by_owner.iter_mut().for_each(|work| work.push(SliceWork::RollBack)),
            }
        }
        for (owner, work) in by_owner.into_iter().enumerate().filter(|(_, work)| !work.is_empty()) {
            core.tell_work(CoreId(owner), work);
        }
    }

    /// Takes results from an owner of slices.
    pub fn slices_did(self: &Rc<Self>, core: &Rc<impl Host>, results: Vec<SliceResults>) {
        self.happens(core, |plane, raft, now| {
            for SliceResults { generation, index, results } in results {
                plane.slices_did(raft, now, generation, index, results);
            }
        });
    }

    /// Sends complete entries, in log order, to every core's view.
    fn publish(&self, core: &Rc<impl Host>, deltas: Vec<(RaftIndex, Vec<Delta>)>) {
        let Some((last, _)) = deltas.last() else { return };
        let last = *last;
        let deltas: Arc<[_]> = deltas.into();
        for to in (1..core.cores()).map(CoreId) {
            core.tell_show(to, deltas.clone(), last);
        }
        core.show(&deltas);
        self.follow_brokers(core, &deltas);
        self.note_shown(core, core.id(), last);
        self.published.notify();
        self.watchers.wake();
    }

    /// The copy of a core's slices for a snapshot has come.
    pub fn slices_cut(&self, token: usize, slices: Vec<Slice>) {
        self.parts.borrow_mut().remove(token).keep(slices);
    }

    /// A core's view shows everything up to `index`.
    pub fn is_shown(self: &Rc<Self>, core: &Rc<impl Host>, by: CoreId, index: RaftIndex) {
        self.note_shown(core, by, index);
        core.ready_loop().wake(self.clone());
    }

    fn note_shown(&self, core: &Rc<impl Host>, by: CoreId, index: RaftIndex) {
        let mut shown = self.shown.borrow_mut();
        assert!(shown[by.0] <= index, "a view never goes back");
        shown[by.0] = index;
        let everywhere = *shown.iter().min().expect("there is a core 0");
        drop(shown);
        core.metrics().metadata_shown_index.set(everywhere.get());
        self.happens_in_turn(core, |plane, raft, _| plane.shown(raft, everywhere));
    }

    /// A snapshot has replaced the views. Each core reports the index once it has installed the snapshot.
    fn restore_shown(&self, core: &Rc<impl Host>, index: RaftIndex, image: &Arc<[Delta]>) {
        self.follow_brokers(core, &[(index, image.to_vec())]);
        for by in (0..core.cores()).map(CoreId) {
            core.tell_report_shown(by, index);
        }
        self.published.notify();
    }

    /// Updates every core's lease and leader, if they have changed enough.
    fn tell(&self, core: &Rc<impl Host>) {
        let (lease, leader) = self.with(|plane, _| (plane.read_lease(), plane.leader()));
        // Clients are not sent to a leader that cannot be reached, even before there is another.
        let controller = leader.filter(|node| *node == core.node() || core.peers().is_there(*node));
        let lease = lease.unwrap_or_default();
        let is_news = lease >= self.told_lease.get() + LEASE_TOLD_EVERY || controller != self.told_controller.get();
        if is_news {
            self.told_lease.set(lease);
            self.told_controller.set(controller);
            for to in (0..core.cores()).map(CoreId) {
                core.tell_lease(to, lease, controller);
            }
        }
    }

    /// Waits until `count` entries have been published after `index`.
    async fn entries_since(&self, index: RaftIndex, count: u64) {
        while self.plane.borrow().published() < index.plus(count) {
            self.published.next().await;
        }
    }
}

/// The requests of an entry, by the core that owns their slice.
fn by_owners(entry: SliceEntry, cores: usize) -> impl Iterator<Item = (usize, Parts)> {
    let mut parts: Vec<Parts> = (0..cores).map(|_| Vec::new()).collect();
    for (at, request) in entry.requests.into_iter().enumerate() {
        parts[core_of_slice(request.command.slice(), cores).0].push((at, request));
    }
    parts.into_iter().enumerate().filter(|(_, parts)| !parts.is_empty())
}

impl Meta {
    /// The storage of this core has failed: nothing that waits here will ever be durable.
    pub fn fail(&self) {
        self.failed.set(true);
        self.watchers.wake();
        // Without their promises, all waiting calls end, in the order in which they came.
        self.written.borrow_mut().clear();
        self.read.borrow_mut().clear();
        self.described.borrow_mut().clear();
    }
}

impl<H: Host> Replicated<H> for Meta {
    fn replica(&self) -> &Replica {
        &self.replica
    }

    fn before_ready(&self, core: &Rc<H>) {
        // A proposed entry can no longer be rejected, so the plane proposes nothing for which the ring lacks room.
        let mut claimed = 0;
        let has_room = |bytes| {
            let takes = core.store().takes_to_reserve(&[bytes]) == 1;
            claimed = if takes { 0 } else { bytes };
            takes
        };
        self.happens_in_turn(core, |plane, raft, now| plane.propose(raft, now, has_room));
        if self.replica.with(|raft| raft.is_leader()) {
            self.awaited_bytes.set(0);
        }
        core.store().claim(claimed.max(self.awaited_bytes.get()));
    }

    fn restore(&self, core: &Rc<H>, mark: &SnapshotMark) -> Result<LogPos, AppendError> {
        self.install_snapshot(core, mark)
    }

    fn apply(&self, core: &Rc<H>, entries: Vec<Entry>) {
        self.happens_in_turn(core, |plane, raft, now| plane.committed(raft, now, &entries));
    }

    fn still_leads(&self, core: &Rc<H>, reads: &[ReadIndex]) {
        self.happens_in_turn(core, |plane, raft, now| plane.still_leads(raft, now, reads));
    }

    fn persisted(&self, core: &Rc<H>) {
        self.happens_in_turn(core, |plane, raft, now| plane.persisted(raft, now));
    }

    fn send(&self, core: &Rc<H>, messages: Vec<Message>) {
        self.send_raft(core, messages);
    }

    fn storage_failed(&self) {
        self.fail();
    }
}

/// On core 0: drives the timers of the group and the plane. Missed ticks are skipped.
pub async fn tick(core: Rc<impl Host>) {
    while !core.metadata_ended().is_set() {
        runtime::sleep(TICK).await;
        if core.meta().failed.get() {
            return;
        }
        core.meta().happens(&core, |plane, raft, now| plane.tick(raft, now));
        let voters = core.meta().with(|_, raft| raft.voters().len());
        core.metrics().metadata_voters.set(voters as u64);
        if core.meta().with(|_, raft| raft.snapshot_wanted()) {
            core.meta().snapshots.wanted.notify();
        }
        core.metrics().metadata_ticks_total.add(1);
        core.metrics().metadata_leased_ticks_total.add(u64::from(core.has_read_lease()));
    }
}

/// On core 0: tells every core at once when the connection to a broker is lost or established.
pub async fn follow_peers(core: Rc<impl Host>) {
    while !core.metadata_ended().is_set() {
        let seen = core.peers().comings.version();
        core.meta().tell(&core);
        let nodes: Arc<[i32]> = core.peers().away().into();
        for to in (0..core.cores()).map(CoreId) {
            core.tell_away(to, nodes.clone());
        }
        core.peers().comings.past(seen).await;
    }
}

/// How long a stopping broker waits for another to take over leadership.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);

/// On core 0: hands leadership over before the broker stops, if this broker leads and another one can.
pub async fn hand_over(core: &Rc<impl Host>) {
    let meta = core.meta();
    let term = meta.with(|_, raft| raft.term());
    if !meta.happens(core, |plane, raft, _| plane.hand_over(raft, |_| true)) {
        return;
    }
    let until = clock::now() + HAND_OVER_MAX;
    let is_under_way = |now: Succession| matches!(now, Succession::Leads | Succession::Open);
    while is_under_way(meta.with(|_, raft| raft.succession(term))) && clock::now() < until {
        runtime::sleep(Duration::from_millis(10)).await;
    }
    match meta.with(|_, raft| raft.succession(term)) {
        Succession::Passed(peer) => {
            tracing::info!(to = node_of(peer), "handed over leadership of the metadata group");
        }
        Succession::Open => {
            tracing::info!("gave up leadership of the metadata group; another broker stands for election");
        }
        Succession::SteppedDown => tracing::warn!(
            "lost leadership of the metadata group while handing it over, because no majority of its voters answered; \
             another broker takes it after an election"
        ),
        Succession::Leads => tracing::warn!(
            "gave up handing over leadership of the metadata group; another broker takes it after an election"
        ),
    }
}

/// On core 0: hands leadership over to a healthy broker, if this one leads and there is one. Does not wait for it.
pub fn give_away(core: &Rc<impl Host>) {
    let meta = core.meta();
    if meta.failed.get() || !meta.with(|_, raft| raft.is_leader() && !raft.is_handing_over()) {
        return;
    }
    let is_able = |peer: u64| core.can_lead(META_GROUP, node_of(peer));
    if meta.happens(core, |plane, raft, _| plane.hand_over(raft, is_able)) {
        tracing::info!("handing over leadership of the metadata group");
    }
}

impl Meta {
    /// Publishes the plane's counters as metrics.
    fn count(&self, core: &Rc<impl Host>) {
        let stats = self.plane.borrow().stats();
        let metrics = &core.metrics();
        let (established, term) = self.with(|plane, raft| (plane.is_established(), raft.term()));
        let leads = established && !self.failed.get();
        metrics.metadata_leads.set(u64::from(leads));
        metrics.metadata_term.set(term.0);
        metrics.metadata_wal_writes_total.set(stats.wal_writes);
        metrics.metadata_raft_fallback_total.set(stats.fallbacks);
        metrics.metadata_quorum_writes_total.set(stats.quorum_writes);
        metrics.metadata_forwarded_writes_total.set(stats.forwarded_writes);
        metrics.heartbeat_send_total.set(stats.heartbeats_sent);
        metrics.heartbeat_receive_total.set(stats.heartbeats_received);
    }
}
