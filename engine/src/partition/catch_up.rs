//! Reads the entries that a lagging replica lacks from the log, a piece at a time. They go out on the bulk lane, so
//! that they delay no other traffic.
//!
//! Reads have two causes:
//! - The group still has the entries in memory, so raft-rs makes the messages, but the store may have dropped their
//!   batches. The messages wait in a queue until the batches are read. Later appends to the same peer queue behind
//!   them, since a replica rejects entries that arrive too early.
//! - The group has dropped the entries: they are [wanted](Wanted). They are read and given to raft-rs, which makes
//!   the message.
//!
//! Each read waits for its turn on this core, see [`Pace`](crate::pace::Pace), unless a commit waits for it.

use super::{Partition, peering::has_batch};
use crate::{
    log_limit::Admitted,
    pace::Turn,
    partition::{host::Host, ready},
};
use bytes::Bytes;
use consensus::{
    group::{Entry, Message, PeerProgress, RaftEntry, Wanted},
    wire::PeerMessage,
};
use net::peer::Lane;
use runtime::clock;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};
use types::{RaftIndex, Term, planted};
use wal::{record, store::Entries};

/// Most bytes of data and batches in one piece that is read, and in one message to a lagging replica.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// Ticks after which what was sent to a lagging replica counts as lost.
const WAITED_MAX: u32 = 5;

/// Entries to send to the lagging replicas of one partition.
#[derive(Default)]
pub(super) struct CatchUp {
    /// Messages that lack batches, and later messages that must not overtake them.
    queue: RefCell<VecDeque<Message>>,
    /// A task is sending the queue.
    queue_moves: Cell<bool>,
    /// Entries to read once the peer has what was sent before.
    wanted: RefCell<Option<Wanted>>,
    /// A task is reading them.
    fetching: Cell<bool>,
    /// The last indexes of the last two pieces read, the earlier piece first.
    pieces: Cell<(RaftIndex, RaftIndex)>,
    /// Ticks since the last piece was read.
    waited: Cell<u32>,
    /// Batches of wanted entries, by index, while they are being sent.
    fetched: RefCell<Vec<(RaftIndex, Bytes)>>,
}

impl CatchUp {
    pub(super) fn tick(&self) {
        self.waited.set(self.waited.get().saturating_add(1));
    }

    fn is_queued_for(&self, peer: u64) -> bool {
        self.queue.borrow().iter().any(|message| message.to == peer)
    }

    fn push(&self, message: Message) {
        let mut queue = self.queue.borrow_mut();
        let last = queue.iter().rev().find(|queued| queued.to == message.to);
        // A message that does not continue the last one replaces this peer's queued messages: something was lost, and
        // Raft starts over.
        if last.is_some_and(|last| message.index != last.index + last.entries.len() as u64) {
            queue.retain(|queued| queued.to != message.to);
        }
        queue.push_back(message);
    }
}

impl Partition {
    /// Sends entries with their batches at once if these are in memory, otherwise after reading them.
    pub(super) fn send_append(&self, core: &Rc<impl Host>, message: Message) {
        if !self.catch_up.is_queued_for(message.to)
            && let Some((payloads, is_fetched)) = self.payloads_at_hand(core, &message)
        {
            let lane = if is_fetched { Lane::Bulk } else { Lane::Data };
            return self.send_with(core, lane, message, payloads);
        }
        self.catch_up.push(message);
        if self.catch_up.queue_moves.get() {
            return;
        }
        let Some(partition) = core.partition(self.group()) else { return };
        self.catch_up.queue_moves.set(true);
        let core = core.clone();
        runtime::spawn(async move {
            partition.send_queued(&core).await;
            partition.catch_up.queue_moves.set(false);
        });
    }

    /// The batches of a message's entries, and whether some come from a read for this purpose. `None` if one is not
    /// in memory.
    fn payloads_at_hand(&self, core: &Rc<impl Host>, message: &Message) -> Option<(Vec<(usize, Bytes)>, bool)> {
        let fetched = self.catch_up.fetched.borrow();
        let (mut payloads, mut is_fetched) = (Vec::new(), false);
        for (place, entry) in message.entries.iter().enumerate().filter(|(_, entry)| has_batch(entry)) {
            let index = RaftIndex::new(entry.index);
            let payload = core.store().payload(self.group(), index).or_else(|| {
                is_fetched = true;
                fetched.iter().find(|(of, _)| *of == index).map(|(_, bytes)| bytes.clone())
            });
            match payload {
                Some(payload) => payloads.push((place, payload)),
                None if planted!(AppendWithoutPayload) => {}
                None => return None,
            }
        }
        Some((payloads, is_fetched))
    }

    fn send_with(&self, core: &Rc<impl Host>, lane: Lane, message: Message, payloads: Vec<(usize, Bytes)>) {
        if payloads.is_empty() {
            return self.send(core, lane, message);
        }
        core.metrics().replication_sent_bytes_total.add(payloads.iter().map(|(_, bytes)| bytes.len() as u64).sum());
        let to = message.to;
        core.send_on(lane, to, PeerMessage::Append { group: self.group(), message, payloads });
    }

    /// Waits until a read for these peers may begin. `None`: it needs no turn, since a commit waits for one of them.
    /// Bound of the reads without a turn: two for each partition, as for those with one.
    async fn turn(&self, core: &Rc<impl Host>, is_for: impl Fn(&PeerProgress) -> bool) -> Option<Turn> {
        if self.commit_waits_for(core, is_for) { None } else { Some(core.pace().turn().await) }
    }

    /// Whether a commit needs one of these peers: too few of the voters that are there have more of the log.
    fn commit_waits_for(&self, core: &Rc<impl Host>, is_one: impl Fn(&PeerProgress) -> bool) -> bool {
        if self.state.borrow().tail.is_empty() {
            return false;
        }
        let (progress, me) = self.replica.with(|raft| (raft.progress(), raft.peer()));
        let majority = progress.iter().filter(|peer| peer.voter).count() / 2 + 1;
        let is_there = |peer: &PeerProgress| peer.peer == me || self.is_there(core, peer.peer);
        let there: Vec<_> = progress.iter().filter(|peer| peer.voter && is_there(peer)).collect();
        let is_needed =
            |peer: &PeerProgress| there.iter().filter(|other| other.matched > peer.matched).count() < majority;
        there.iter().any(|peer| is_one(peer) && is_needed(peer))
    }

    /// Sends the queue's messages one after the other.
    async fn send_queued(&self, core: &Rc<impl Host>) {
        while !self.catch_up.queue.borrow().is_empty() {
            core.bulk_room().await;
            let Some(to) = self.catch_up.queue.borrow().front().map(|message| message.to) else { return };
            let _turn = self.turn(core, |peer| peer.peer == to).await;
            let Some(message) = self.catch_up.queue.borrow_mut().pop_front() else { return };
            if !self.replica.with(|raft| raft.is_leader() && raft.term() == Term(message.term)) {
                return self.catch_up.queue.borrow_mut().clear();
            }
            if let Some((payloads, _)) = self.payloads_at_hand(core, &message) {
                self.send_with(core, Lane::Bulk, message, payloads);
            } else {
                let first = RaftIndex::new(message.entries[0].index);
                let below = first.at_place(message.entries.len());
                let Some(entries) = self.read_entries(core, first, below).await else { continue };
                core.pace().moved(bytes_of(&entries));
                self.send_read(core, message, entries);
            }
        }
    }

    /// Sends the part of a message for which batches were read.
    fn send_read(&self, core: &Rc<impl Host>, mut message: Message, entries: Vec<record::Entry>) {
        let same = |(small, whole): &(&RaftEntry, &record::Entry)| {
            (small.index, small.term) == (whole.index.get(), whole.term.0)
        };
        let there = message.entries.iter().zip(&entries).take_while(same).count();
        message.entries.truncate(there);
        let batches = entries.into_iter().take(there).enumerate();
        let payloads = batches.filter_map(|(place, entry)| Some((place, entry.payload?.1))).collect();
        self.send_with(core, Lane::Bulk, message, payloads);
    }

    async fn read_entries(
        &self,
        core: &Rc<impl Host>,
        from: RaftIndex,
        below: RaftIndex,
    ) -> Option<Vec<record::Entry>> {
        let read = match core.store().entries(self.group(), from, below, PIECE_BYTES) {
            Entries::Memory(entries) => Ok(entries),
            Entries::Cold(read) => read.await,
            Entries::Gone => {
                // Retention was faster. A replica that lacks these entries starts again at the current start of the
                // log.
                if let Some(log) = core.store().log(self.group()) {
                    self.replica.with(|raft| raft.forget(log.first_index.prev()));
                }
                return None;
            }
        };
        match read {
            Ok(entries) => {
                core.metrics().replication_fetched_bytes_total.add(bytes_of(&entries));
                Some(entries)
            }
            Err(error) => {
                let line = error.to_string();
                if let Some(Admitted { left_out }) = core.partition_log().admit(clock::now(), self.group(), &line) {
                    tracing::warn!(
                        partition = %self.name, %error, left_out, "cannot read entries that a replica lacks; retrying"
                    );
                }
                None
            }
        }
    }

    /// Reads, a piece at a time, entries that a peer lacks and the group has dropped, if there are any.
    pub(super) fn fetch_what_lacks(&self, core: &Rc<impl Host>) {
        let catch_up = &self.catch_up;
        if catch_up.fetching.get() {
            return;
        }
        if let Some(newer) = self.replica.with(|raft| raft.lacking()) {
            *catch_up.wanted.borrow_mut() = Some(newer);
        }
        let Some(wanted) = catch_up.wanted.borrow_mut().take_if(|wanted| self.is_awaited(wanted.from)) else { return };
        let Some(partition) = core.partition(self.group()) else { return };
        catch_up.fetching.set(true);
        let core = core.clone();
        runtime::spawn(async move {
            partition.fetch(&core, wanted).await;
            partition.catch_up.fetching.set(false);
            core.ready_loop().wake(partition);
        });
    }

    /// Whether some peer has everything before this piece, or everything but the last piece. Sending further ahead
    /// is useless: a slow peer would throw it away.
    fn is_awaited(&self, from: RaftIndex) -> bool {
        let (before_last, _) = self.catch_up.pieces.get();
        let matched = self.replica.with(|raft| raft.progress());
        // Earlier pieces may be lost. The peer reports that when it gets a later one.
        self.catch_up.waited.get() >= WAITED_MAX
            || matched
                .iter()
                .any(|peer| peer.matched < from && (peer.matched.next() == from || peer.matched >= before_last))
    }

    async fn fetch(self: &Rc<Self>, core: &Rc<impl Host>, wanted: Wanted) {
        core.bulk_room().await;
        let _turn = self.turn(core, |peer| peer.matched < wanted.from).await;
        let Some(entries) = self.read_entries(core, wanted.from, wanted.below).await else { return };
        core.pace().moved(bytes_of(&entries));
        let (mut small, mut batches) = (Vec::with_capacity(entries.len()), Vec::new());
        for record::Entry { index, term, entry_type, data, payload } in entries {
            batches.extend(payload.map(|(_, bytes)| (index, bytes)));
            small.push(Entry { index, term, entry_type, data });
        }
        let catch_up = &self.catch_up;
        catch_up.waited.set(0);
        let (_, last) = catch_up.pieces.get();
        catch_up.pieces.set((last, small.last().map_or(last, |entry| entry.index)));
        *catch_up.fetched.borrow_mut() = batches;
        self.replica.with(|raft| raft.fetched(wanted, small));
        ready::stage(core, &**self);
        catch_up.fetched.borrow_mut().clear();
    }
}

/// Total bytes of the entries' batches.
fn bytes_of(entries: &[record::Entry]) -> u64 {
    entries.iter().filter_map(|entry| entry.payload.as_ref()).map(|(_, batch)| batch.len() as u64).sum()
}
