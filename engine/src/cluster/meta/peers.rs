//! Messages to and from other brokers: of the metadata group, of the planes, and pieces of snapshots.
//! Lives on: core 0.

use super::{Meta, host::Host};
use crate::partition::ready;
use consensus::{
    group::{Message, MessageType},
    metadata::Delta,
    wire::PeerMessage,
};
use runtime::clock;
use std::rc::Rc;
use types::{META_GROUP, RaftIndex};

impl Meta {
    /// Sends the group's messages. A snapshot message is sent together with the snapshot's data.
    pub(super) fn send_raft(&self, core: &Rc<impl Host>, messages: Vec<Message>) {
        for message in messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.send_snapshot(core, message);
            } else {
                core.peers().send(message.to, PeerMessage::Raft { group: META_GROUP, message });
            }
        }
    }

    /// Handles the messages in one frame from another broker.
    pub fn receive(self: &Rc<Self>, core: &Rc<impl Host>, from: i32, messages: Vec<PeerMessage>) {
        if self.failed.get() {
            return;
        }
        for message in messages {
            match message {
                PeerMessage::Raft { group, mut message } if group == META_GROUP => {
                    if message.get_msg_type() == MessageType::MsgSnapshot {
                        if self.replica.is_fit(core, &message) {
                            self.take_snapshot(core, message);
                        }
                    } else {
                        self.drop_without_room(core, &mut message);
                        let has_entries = !message.entries.is_empty();
                        self.replica.step(core, message);
                        if has_entries {
                            // So that the next message sees how much room is left.
                            ready::stage(core, &**self);
                        }
                    }
                }
                PeerMessage::Plane(message) => {
                    self.replica.with(|raft| self.plane.borrow_mut().receive(raft, clock::now(), from, message));
                }
                PeerMessage::SnapshotChunk(chunk) => self.take_chunk(from, chunk),
                other => tracing::debug!(from, ?other, "dropped a message that is not for the metadata group"),
            }
        }
        self.happens(core, |plane, raft, now| plane.observe(raft, now));
    }

    /// Drops the entries for which the ring has no room. The rest of the message may make room: it can commit entries
    /// that are here already, so that a snapshot can cover them. The leader sends the dropped entries again.
    fn drop_without_room(&self, core: &Rc<impl Host>, message: &mut Message) {
        if message.entries.is_empty() {
            return;
        }
        let sizes: Vec<usize> = message.entries.iter().map(|entry| entry.data.len()).collect();
        let takes = core.store().takes_to_reserve(&sizes);
        let largest = core.store().entry_bytes_max();
        // Until the leader sends the first dropped entry again, its room is kept.
        self.awaited_bytes.set(sizes.get(takes).copied().filter(|bytes| *bytes <= largest).unwrap_or(0));
        if let Some(entry) = message.entries.get(takes) {
            let (index, bytes) = (entry.index, entry.data.len());
            if bytes > largest && self.too_large.replace(index) != index {
                tracing::error!(
                    index,
                    bytes,
                    largest,
                    "the ring is too small for this entry of the metadata; this broker lags until a snapshot covers it; raise \
                     wal.ring.bytes, or start with fewer cores"
                );
            }
        }
        message.entries.truncate(takes);
    }

    /// Updates the brokers that the plane may ask, if published deltas change the brokers.
    pub(super) fn follow_brokers(&self, core: &Rc<impl Host>, deltas: &[(RaftIndex, Vec<Delta>)]) {
        let mut deltas = deltas.iter().flat_map(|(_, deltas)| deltas);
        if deltas.any(|delta| matches!(delta, Delta::Broker(_) | Delta::BrokerGone(_))) {
            self.follow_contacts(core);
        }
    }

    pub(super) fn follow_contacts(&self, core: &Rc<impl Host>) {
        self.plane.borrow_mut().set_contacts(core.peers().nodes());
    }
}
