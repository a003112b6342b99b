//! Messages between the replicas of one partition.
//!
//! An append carries its batches beside it. The sender passes memory of its ring or cache to the connection without
//! a copy. The receiver checks the batches, copies them once into its own ring, and steps the entries only if all
//! batches are there and fit. Batches that are not in memory are read first, see `catch_up`.

use super::Partition;
use crate::{
    log_limit::Admitted,
    partition::{host::Host, ready, replica::Payload},
};
use bytes::Bytes;
use consensus::{
    group::{ENTRY_NORMAL, Message, MessageType, descriptor::EntryData},
    wire::{PeerMessage, Rest},
};
use net::{
    peer::Lane,
    records::batch::{self, HEADER_BYTES},
};
use runtime::clock;
use std::rc::Rc;
use types::{Position, RaftIndex, Term, planted};
use wal::record::Span;

/// Sending to the other replicas.
impl Partition {
    pub(super) fn send_all(&self, core: &Rc<impl Host>, messages: Vec<Message>) {
        for message in messages {
            match message.get_msg_type() {
                MessageType::MsgAppend => self.send_append(core, message),
                MessageType::MsgSnapshot => self.send_snapshot(core, message),
                _ => self.send(core, Lane::Control, message),
            }
        }
    }

    pub(super) fn send(&self, core: &Rc<impl Host>, lane: Lane, message: Message) {
        core.send_on(lane, message.to, PeerMessage::Raft { group: self.group(), message });
    }
}

pub(super) fn has_batch(entry: &consensus::group::RaftEntry) -> bool {
    consensus::group::descriptor::bytes_beside(&entry.data) > 0
}

/// Receiving from the other replicas.
impl Partition {
    /// Takes a message of another replica, with the batches of its entries.
    pub fn receive(self: &Rc<Self>, core: &Rc<impl Host>, message: Message, payloads: Vec<(usize, Bytes)>) {
        if self.state.borrow().failed {
            return;
        }
        self.wake_timers(core);
        match message.get_msg_type() {
            MessageType::MsgAppend if !message.entries.is_empty() => self.take_entries(core, message, payloads),
            MessageType::MsgSnapshot => self.take_snapshot(core, message),
            kind => {
                self.replica.step(core, message);
                if kind == MessageType::MsgAppendResponse {
                    self.answer_committed();
                    self.pacing.freed.notify();
                }
                core.ready_loop().wake(self.clone());
            }
        }
    }

    /// Takes a leader's entries, as many as the ring has room for, if every batch is there and intact. The leader
    /// resends dropped entries.
    fn take_entries(self: &Rc<Self>, core: &Rc<impl Host>, mut message: Message, mut payloads: Vec<(usize, Bytes)>) {
        // Together with the claim, so that the store makes room for both.
        let claimed = core.admission().claimed();
        let wanted = record_bytes(&message, &payloads).sum::<usize>() + claimed;
        let room = core.store().room(wanted).saturating_sub(claimed);
        let fitting = fitting(record_bytes(&message, &payloads), room);
        if fitting < message.entries.len() {
            core.metrics().replication_refused_total.add(1);
            message.entries.truncate(fitting);
            payloads.retain(|(place, _)| *place < fitting);
            tracing::debug!(partition = %self.name, fitting, "the ring has no room for all received batches");
        }
        match checked(&message, payloads).and_then(|payloads| self.follows(&message).map(|()| payloads)) {
            Ok(payloads) => {
                self.replica.step_with(core, message, payloads);
                ready::stage(core, &**self);
                self.replica.drop_payloads();
            }
            Err(why) => {
                core.metrics().replication_damaged_total.add(1);
                let from = message.from;
                if let Some(Admitted { left_out }) = core.partition_log().admit(clock::now(), self.group(), why) {
                    tracing::warn!(
                        partition = %self.name, from, why, left_out, "entries of another replica were dropped"
                    );
                }
            }
        }
    }

    /// Whether the batches' offsets continue the local log and each other.
    fn follows(&self, message: &Message) -> Result<(), &'static str> {
        let before = RaftIndex::new(message.index);
        let (applied, term) = self.replica.with(|raft| (raft.applied(), raft.term_at(before)));
        if before > applied && term != Some(Term(message.log_term)) {
            // The group rejects it, and its leader searches for the point where the logs diverge.
            return Ok(());
        }
        let mut end = self.end_behind(before, applied);
        for entry in &message.entries {
            let index = RaftIndex::new(entry.index);
            if index <= applied {
                // It is here already and applied, so it stays.
                end = self.end_behind(index, applied);
                continue;
            }
            match EntryData::decode(&entry.data) {
                Ok(EntryData::Batch(batch)) if entry.entry_type as u8 == ENTRY_NORMAL => {
                    if end.is_some_and(|end| end != batch.base_offset) {
                        return Err("a batch's offsets do not follow those before it");
                    }
                    end = batch.base_offset.checked_add(batch.count.into());
                }
                Ok(EntryData::LogStart { offset }) if end.is_some_and(|end| offset > end) => {
                    return Err("an entry moves the log's start beyond its end");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The offset after an entry's last record, if it is known.
    fn end_behind(&self, index: RaftIndex, applied: RaftIndex) -> Option<u64> {
        let state = self.state.borrow();
        if index == applied {
            return Some(state.high_watermark);
        }
        let at = state.tail.binary_search_by_key(&index, |entry| entry.index).ok()?;
        Some(state.tail[at].end)
    }

    /// The leader says that the group is at rest. If this replica has everything, its timers stop.
    pub fn rest(&self, core: &Rc<impl Host>, rest: Rest) {
        if self.replica.with(|raft| raft.rests_at(rest.at)) {
            core.stop_timers(self.group());
        }
    }

    /// Something happened, so the group's timers must run.
    pub(super) fn wake_timers(&self, core: &Rc<impl Host>) {
        if self.is_shared() {
            core.wake_timers(self.group());
        }
    }
}

/// Bytes of each entry's record in the ring, at most.
fn record_bytes<'a>(message: &'a Message, payloads: &'a [(usize, Bytes)]) -> impl Iterator<Item = usize> {
    const BESIDES: usize = 128;
    let mut payloads = payloads.iter().peekable();
    message.entries.iter().enumerate().map(move |(place, entry)| {
        let batch = payloads.next_if(|(of, _)| *of == place).map_or(0, |(_, bytes)| bytes.len());
        BESIDES + entry.data.len() + batch
    })
}

/// The number of leading records that fit into `room` bytes.
fn fitting(records: impl Iterator<Item = usize>, mut room: usize) -> usize {
    let goes = |bytes: &usize| room.checked_sub(*bytes).map(|left| room = left).is_some();
    records.take_while(goes).count()
}

/// Checks each batch against its entry, and returns the payloads to stage with the entries.
fn checked(message: &Message, payloads: Vec<(usize, Bytes)>) -> Result<Vec<(Position, Payload)>, &'static str> {
    let mut payloads = payloads.into_iter().peekable();
    let mut staged = Vec::new();
    for (place, entry) in message.entries.iter().enumerate() {
        let batch = payloads.next_if(|(of, _)| *of == place).map(|(_, bytes)| bytes);
        let is_normal = entry.entry_type as u8 == ENTRY_NORMAL;
        let data = if is_normal { EntryData::decode(&entry.data).ok() } else { Some(EntryData::Nothing) };
        let descriptor = match (data.ok_or("an entry can't be read; it was written by a newer version")?, &batch) {
            (EntryData::Batch(descriptor), Some(_)) => descriptor,
            (EntryData::Batch(_), None) if planted!(AppendWithoutPayload) => continue,
            (EntryData::Batch(_), None) => return Err("a batch is missing"),
            (_, None) => continue,
            (_, Some(_)) => return Err("a batch came with an entry that needs none"),
        };
        let bytes = batch.expect("it was just seen");
        let header = batch::verify(&bytes).map_err(|_| "a batch is damaged")?;
        let is_it = header.base_offset as u64 == descriptor.base_offset
            && header.record_count as u32 == descriptor.count
            && bytes.len() == descriptor.bytes as usize
            && header.byte_count == bytes.len()
            && header.last_offset_delta >= 0;
        if !is_it {
            return Err("a batch does not match its entry");
        }
        let span = Span {
            base_offset: descriptor.base_offset,
            count: descriptor.count,
            max_timestamp: descriptor.max_timestamp,
        };
        let header = *bytes.first_chunk::<HEADER_BYTES>().expect("a whole batch has its header");
        staged.push((
            Position { index: RaftIndex::new(entry.index), term: Term(entry.term) },
            Payload { span, header, bytes },
        ));
    }
    if payloads.next().is_some() {
        return Err("a batch belongs to no entry");
    }
    Ok(staged)
}
