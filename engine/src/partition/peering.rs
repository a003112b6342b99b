//! Messages between the replicas of one partition.
//!
//! An append carries its batches beside it: as the ring's own memory, or the cache's, to the peer; there they are checked, copied once
//! into that ring, and stepped only if all are there and there is room. What memory has not is read from segments first, one piece at a
//! time, and travels on the lane for bulk, so that it delays nobody else.

use super::Partition;
#[cfg(test)]
use crate::sim::{self, Bug};
use crate::{
    core::Core,
    replica::{self, Payload},
    rt,
};
use bytes::Bytes;
use consensus::{
    descriptor::EntryData,
    group::{ENTRY_NORMAL, Entry, Message, MessageType, Position, Wanted},
    wire::{PeerMessage, Rest},
};
use net::{
    batch::{self, HEADER_BYTES},
    peer::Lane,
};
use std::rc::Rc;
use wal::{
    record::{self, Span},
    store::{Admission, Entries},
};

/// Data and batches of one piece of what a laggard lacks, and of one message to it.
const PIECE_BYTES: usize = 1 << 20;

/// Ticks after which what was sent to a laggard counts as lost.
const WAITED_MAX: u32 = 5;

/// Towards the others.
impl Partition {
    pub(super) fn send_all(&self, core: &Rc<Core>, messages: Vec<Message>) {
        for message in messages {
            match message.get_msg_type() {
                MessageType::MsgAppend => self.send_append(core, message),
                MessageType::MsgSnapshot => self.send_snapshot(core, message),
                _ => self.send(core, Lane::Control, message),
            }
        }
    }

    fn send(&self, core: &Rc<Core>, lane: Lane, message: Message) {
        core.peers().send_on(lane, message.to, PeerMessage::Raft { group: self.group().0, message });
    }

    fn send_append(&self, core: &Rc<Core>, message: Message) {
        let mut payloads = Vec::new();
        let mut is_cold = false;
        for (place, entry) in message.entries.iter().enumerate().filter(|(_, entry)| has_batch(entry)) {
            let in_memory = core.store.payload(self.group(), entry.index);
            let payload = in_memory.or_else(|| {
                is_cold = true;
                let fetched = self.fetched.borrow();
                fetched.iter().find(|(index, _)| *index == entry.index).map(|(_, bytes)| bytes.clone())
            });
            match payload {
                Some(payload) => payloads.push((place, payload)),
                #[cfg(test)]
                None if sim::planted(Bug::AppendWithoutPayload) => {}
                None => return self.send_cold(core, message),
            }
        }
        let lane = if is_cold { Lane::Bulk } else { Lane::Data };
        if payloads.is_empty() {
            return self.send(core, lane, message);
        }
        let to = message.to;
        core.metrics.replication_sent_bytes_total.add(payloads.iter().map(|(_, bytes)| bytes.len() as u64).sum());
        core.peers().send_on(lane, to, PeerMessage::Append { group: self.group().0, message, payloads });
    }

    /// Sends entries that the group has in memory while the store has let go of their batches. One such message at a time; others are
    /// lost, and made again.
    fn send_cold(&self, core: &Rc<Core>, message: Message) {
        let Some(partition) = core.partition(self.group()).filter(|_| !self.fetching.replace(true)) else { return };
        let core = core.clone();
        rt::spawn(async move {
            core.peers().bulk_room().await;
            let first = message.entries[0].index;
            let below = first + message.entries.len() as u64;
            if let Some(entries) = partition.read_entries(&core, first, below).await {
                partition.send_fetched(&core, message, entries);
            }
            partition.fetching.set(false);
        });
    }

    /// Sends as much of a message as there are batches for.
    fn send_fetched(&self, core: &Rc<Core>, mut message: Message, entries: Vec<record::Entry>) {
        let same = |(small, whole): &(&consensus::group::RaftEntry, &record::Entry)| {
            (small.index, small.term) == (whole.index, whole.term)
        };
        let there = message.entries.iter().zip(&entries).take_while(same).count();
        message.entries.truncate(there);
        let batches = entries.into_iter().take(there).enumerate();
        let payloads = batches.filter_map(|(place, entry)| Some((place, entry.payload?.1))).collect();
        core.peers().send_on(Lane::Bulk, message.to, PeerMessage::Append { group: self.group().0, message, payloads });
    }

    async fn read_entries(&self, core: &Core, from: u64, below: u64) -> Option<Vec<record::Entry>> {
        match core.store.entries(self.group(), from, below, PIECE_BYTES) {
            Entries::Memory(entries) => Some(entries),
            Entries::Cold(read) => match read.await {
                Ok(entries) => Some(entries),
                Err(error) => {
                    tracing::warn!(partition = %self.name, %error, "cannot read what another replica lacks; trying again");
                    None
                }
            },
            Entries::Gone => {
                // Retention was faster: whoever lacks them begins anew where the log does now.
                if let Some(log) = core.store.log(self.group()) {
                    self.replica.with(|raft| raft.forget(log.first_index - 1));
                }
                None
            }
        }
    }

    /// Reads what a peer lacks and memory has not, if there is such, one piece after the other.
    pub(super) fn fetch_what_lacks(&self, core: &Rc<Core>) {
        if self.fetching.get() {
            return;
        }
        if let Some(newer) = self.replica.with(|raft| raft.lacking()) {
            *self.wanted.borrow_mut() = Some(newer);
        }
        let Some(wanted) = self.wanted.borrow_mut().take_if(|wanted| self.is_awaited(wanted.from)) else { return };
        let Some(partition) = core.partition(self.group()) else { return };
        self.fetching.set(true);
        let core = core.clone();
        rt::spawn(async move {
            core.peers().bulk_room().await;
            partition.fetch(&core, wanted).await;
            partition.fetching.set(false);
            core.ready_loop.wake(partition);
        });
    }

    /// Whether some peer has all that comes before this, or all but the last piece: what is sent further ahead would only be thrown away
    /// by one that is slow.
    fn is_awaited(&self, from: u64) -> bool {
        let (before_last, _) = self.pieces.get();
        let matched = self.replica.with(|raft| raft.progress());
        // What was sent before may be lost: then the peer says so when it gets what follows.
        self.waited.get() >= WAITED_MAX
            || matched
                .iter()
                .any(|peer| peer.matched < from && (peer.matched + 1 == from || peer.matched >= before_last))
    }

    async fn fetch(self: &Rc<Self>, core: &Rc<Core>, wanted: Wanted) {
        let Some(entries) = self.read_entries(core, wanted.from, wanted.below).await else { return };
        let (mut small, mut batches) = (Vec::with_capacity(entries.len()), Vec::new());
        for record::Entry { index, term, entry_type, data, payload } in entries {
            batches.extend(payload.map(|(_, bytes)| (index, bytes)));
            small.push(Entry { index, term, entry_type, data });
        }
        self.waited.set(0);
        let (_, last) = self.pieces.get();
        self.pieces.set((last, small.last().map_or(last, |entry| entry.index)));
        core.metrics.replication_fetched_bytes_total.add(batches.iter().map(|(_, bytes)| bytes.len() as u64).sum());
        *self.fetched.borrow_mut() = batches;
        self.replica.with(|raft| raft.fetched(wanted, small));
        replica::stage(core, &**self);
        self.fetched.borrow_mut().clear();
    }
}

fn has_batch(entry: &consensus::group::RaftEntry) -> bool {
    consensus::descriptor::bytes_beside(&entry.data) > 0
}

/// From the others.
impl Partition {
    /// A message of another replica, with the batches of its entries.
    pub fn receive(self: &Rc<Self>, core: &Rc<Core>, message: Message, payloads: Vec<(usize, Bytes)>) {
        if self.state.borrow().failed {
            return;
        }
        self.stir(core);
        match message.get_msg_type() {
            MessageType::MsgAppend if !message.entries.is_empty() => self.take_entries(core, message, payloads),
            MessageType::MsgSnapshot => self.take_snapshot(core, message),
            kind => {
                self.replica.with(|raft| raft.step(message));
                if kind == MessageType::MsgAppendResponse {
                    self.answer_committed();
                }
                core.ready_loop.wake(self.clone());
            }
        }
    }

    /// Takes entries that a leader sent, as many as the ring has room for, if every batch is there and whole. What is dropped comes
    /// again.
    fn take_entries(self: &Rc<Self>, core: &Rc<Core>, mut message: Message, mut payloads: Vec<(usize, Bytes)>) {
        let fitting = fitting(&message, &payloads, core.store.room());
        if fitting < message.entries.len() {
            core.metrics.replication_refused_total.add(1);
            message.entries.truncate(fitting);
            payloads.retain(|(place, _)| *place < fitting);
            // Whoever waits for room has the segments written.
            let waits = core.store.admit(PIECE_BYTES.min(core.store.entry_bytes_max())) == Admission::Wait;
            tracing::debug!(partition = %self.name, fitting, waits, "the ring has no room for all that came");
        }
        match checked(&message, payloads) {
            Ok(payloads) => {
                self.replica.step_with(message, payloads);
                replica::stage(core, &**self);
                self.replica.drop_payloads();
            }
            Err(why) => {
                core.metrics.replication_damaged_total.add(1);
                tracing::warn!(partition = %self.name, from = message.from, why, "entries of another replica were dropped");
            }
        }
    }

    /// The group is at rest, its leader says: no timers are needed, if this replica has everything.
    pub fn rest(&self, core: &Rc<Core>, rest: Rest) {
        if self.replica.with(|raft| raft.rests_at(rest.at)) {
            core.groups.rests(self.group());
        }
    }

    /// Something happens: the group's timers run.
    pub(super) fn stir(&self, core: &Rc<Core>) {
        if self.is_shared() {
            core.groups.stirs(self.group());
        }
    }
}

/// How many of a message's entries go into so much room.
fn fitting(message: &Message, payloads: &[(usize, Bytes)], room: usize) -> usize {
    const RECORD: usize = 128;
    let mut payloads = payloads.iter().peekable();
    let mut left = room;
    let goes = |(place, entry): &(usize, &consensus::group::RaftEntry)| {
        let batch = payloads.next_if(|(of, _)| of == place).map_or(0, |(_, bytes)| bytes.len());
        let bytes = RECORD + entry.data.len() + batch;
        let goes = bytes <= left;
        left = left.saturating_sub(bytes);
        goes
    };
    let mut goes = goes;
    message.entries.iter().enumerate().take_while(|entry| goes(entry)).count()
}

/// The entries' batches as what is staged with them.
fn checked(message: &Message, payloads: Vec<(usize, Bytes)>) -> Result<Vec<(Position, Payload)>, &'static str> {
    let mut payloads = payloads.into_iter().peekable();
    let mut staged = Vec::new();
    for (place, entry) in message.entries.iter().enumerate() {
        let batch = payloads.next_if(|(of, _)| *of == place).map(|(_, bytes)| bytes);
        let is_normal = entry.entry_type as u8 == ENTRY_NORMAL;
        let data = if is_normal { EntryData::decode(&entry.data).ok() } else { Some(EntryData::Nothing) };
        let descriptor = match (data.ok_or("an entry can't be read; it was written by a newer version")?, &batch) {
            (EntryData::Batch(descriptor), Some(_)) => descriptor,
            #[cfg(test)]
            (EntryData::Batch(_), None) if sim::planted(Bug::AppendWithoutPayload) => continue,
            (EntryData::Batch(_), None) => return Err("a batch is missing"),
            (_, None) => continue,
            (_, Some(_)) => return Err("there is a batch beside an entry that has none"),
        };
        let bytes = batch.expect("it was just seen");
        let header = batch::verify(&bytes).map_err(|_| "a batch is damaged")?;
        let is_it = header.base_offset as u64 == descriptor.base_offset
            && header.record_count as u32 == descriptor.count
            && bytes.len() == descriptor.bytes as usize
            && header.byte_count == bytes.len();
        if !is_it {
            return Err("a batch is not the one that its entry describes");
        }
        let span = Span {
            base_offset: descriptor.base_offset,
            count: descriptor.count,
            max_timestamp: descriptor.max_timestamp,
        };
        let header = *bytes.first_chunk::<HEADER_BYTES>().expect("a whole batch has its header");
        staged.push((Position { index: entry.index, term: entry.term }, Payload { span, header, bytes }));
    }
    if payloads.next().is_some() {
        return Err("there are batches of no entry");
    }
    Ok(staged)
}
