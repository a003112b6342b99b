//! Routes messages of other brokers to the cores that own their groups.

use super::{Core, messages::Notice};
use crate::cluster::peers::{Answering, Begun, Host};
use bytes::Bytes;
use consensus::{
    group::Message,
    wire::{PeerMessage, ToolRequest},
};
use std::rc::Rc;
use types::{CoreId, GroupId, META_CORE, META_GROUP};

/// Handles what arrives on this core's peer connections.
pub struct GroupHost(pub Rc<Core>);

impl Host for GroupHost {
    fn receive(&self, from: i32, messages: Vec<PeerMessage>) {
        receive(&self.0, from, messages);
    }

    fn answer(&self, request: ToolRequest) -> Answering {
        (self.0.entries.answer_tool)(self.0.clone(), request)
    }

    fn hand_on(&self, core: usize, connection: Begun) {
        self.0.tell(CoreId(core), Notice::PeerConnection { connection: Box::new(connection) });
    }
}

impl Core {
    /// Serves another broker's connection, which another core has accepted.
    pub fn take_over_peer(self: &Rc<Self>, connection: Begun) {
        self.peers().take_over(connection, Rc::new(GroupHost(self.clone())));
    }

    /// Takes messages of another broker, see [`receive`].
    pub fn receive_peer_messages(self: &Rc<Self>, from: i32, messages: Vec<PeerMessage>) {
        receive(self, from, messages);
    }
}

/// Passes each message to its core. Most messages are for the core on which they arrive, because brokers with the
/// same number of cores talk core to core.
fn receive(core: &Rc<Core>, from: i32, messages: Vec<PeerMessage>) {
    let mut elsewhere: Vec<Vec<PeerMessage>> = Vec::new();
    let mut of_meta = Vec::new();
    let is_here = |group: GroupId| group != META_GROUP && core.owner(group) == core.id();
    for message in messages {
        let to = match message {
            PeerMessage::Raft { group, message } if is_here(group) => {
                step(core, group, message, Vec::new());
                continue;
            }
            PeerMessage::Append { group, message, payloads } if is_here(group) => {
                step(core, group, message, payloads);
                continue;
            }
            PeerMessage::Rest(rest) if is_here(rest.group) => {
                if let Some(partition) = core.partition(rest.group) {
                    partition.rest(core, rest);
                }
                continue;
            }
            PeerMessage::Elect { group } if is_here(group) => {
                if let Some(partition) = core.partition(group) {
                    partition.prefer(core);
                }
                continue;
            }
            PeerMessage::Beat(beat) => {
                core.groups.note(core, from, beat);
                if usize::from(beat.cores) != core.cores() {
                    for other in (0..core.cores()).map(CoreId).filter(|other| *other != core.id()) {
                        core.tell(other, Notice::Beat { from, beat });
                    }
                }
                continue;
            }
            PeerMessage::Raft { group, .. } | PeerMessage::Append { group, .. } | PeerMessage::Elect { group }
                if group != META_GROUP =>
            {
                core.owner(group)
            }
            PeerMessage::Rest(rest) => core.owner(rest.group),
            _ => META_CORE,
        };
        if to == core.id() {
            of_meta.push(message);
        } else {
            elsewhere.resize_with(core.cores(), Vec::new);
            elsewhere[to.0].push(message);
        }
    }
    if !of_meta.is_empty() {
        core.meta().receive(core, from, of_meta);
    }
    for (to, messages) in elsewhere.into_iter().enumerate().filter(|(_, messages)| !messages.is_empty()) {
        core.tell(CoreId(to), Notice::PeerMessages { from, messages });
    }
}

fn step(core: &Rc<Core>, group: GroupId, message: Message, payloads: Vec<(usize, Bytes)>) {
    match core.partition(group) {
        Some(partition) => partition.receive(core, message, payloads),
        None if core.store.was_removed(group) => {}
        // The view of this core does not have the group's topic yet.
        None => core.groups.keep_early(group, message, payloads),
    }
}
