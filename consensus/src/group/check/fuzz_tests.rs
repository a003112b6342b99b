//! Messages with wrong fields, generated from a seed and sent through the wire encoding. Whatever a peer sends, the
//! process survives and the group's invariants hold. `FUZZ_SEEDS=10000 cargo test -p consensus fields` runs more
//! seeds. A failing seed is printed.

use crate::group::check::*;
use crate::{
    group::{EntryError, Group, GroupConfig, KINDS, Restored},
    wire::{self, PeerMessage},
};
use bytes::Bytes;
use raft_proto::eraftpb::EntryType;
use std::panic;
use types::{GroupId, RaftIndex, Term};

const SEEDS: u64 = 300;
const MESSAGES: usize = 300;

fn holds(data: &[u8]) -> Result<(), EntryError> {
    crate::plane::check_entry(data)
}

struct Fuzz {
    rng: fastrand::Rng,
    group: Group,
    refused: usize,
    taken: usize,
}

impl Fuzz {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let group = Self::group(&mut rng);
        Self { rng, group, refused: 0, taken: 0 }
    }

    fn group(rng: &mut fastrand::Rng) -> Group {
        let config = GroupConfig {
            voters: if rng.bool() { vec![1, 2, 3] } else { vec![1] },
            holds,
            has_leases: rng.bool(),
            kept_entries_max: 5,
            ..GroupConfig::single(GroupId(7), 1)
        };
        let mut group = Group::new(config, Restored::default()).unwrap();
        group.campaign();
        group
    }

    /// Numbers near the group's own state, and numbers that break arithmetic.
    fn number(&mut self) -> u64 {
        let group = &self.group;
        let indices = [group.last_index(), group.commit(), group.applied(), group.stable()].map(RaftIndex::get);
        let near = [&indices[..], &[group.term().0, 0]].concat();
        match self.rng.u8(..8) {
            0 => [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 60, (1 << 60) + 1, TERM_MAX, TERM_MAX + 1][self.rng.usize(..7)],
            1 => self.rng.u64(..50),
            _ => near[self.rng.usize(..near.len())].saturating_add(self.rng.u64(..4)).saturating_sub(self.rng.u64(..3)),
        }
    }

    fn peer(&mut self) -> u64 {
        [2, 2, 2, 3, 3, 4, 1, 0][self.rng.usize(..8)]
    }

    fn members(&mut self) -> ConfState {
        let mut list = |most: usize| -> Vec<u64> { (0..self.rng.usize(..most)).map(|_| self.rng.u64(..6)).collect() };
        let mut members = ConfState::from((list(4), list(3)));
        if self.rng.bool() {
            members = ConfState::from((vec![1, 2, 3], vec![]));
        }
        if self.rng.u8(..6) == 0 {
            members.set_voters_outgoing((0..self.rng.usize(..3)).map(|_| self.rng.u64(..6)).collect());
            members.set_learners_next((0..self.rng.usize(..2)).map(|_| self.rng.u64(..6)).collect());
            members.set_auto_leave(self.rng.bool());
        }
        members
    }

    fn data(&mut self, kind: u8) -> Bytes {
        use crate::group::Member::{Learner, Removed, Voter};
        if kind == 2 && self.rng.u8(..4) > 0 {
            use protobuf::Message as _;
            let peer = self.rng.u64(..6);
            let change = [Voter(peer), Learner(peer), Removed(peer)][self.rng.usize(..3)];
            let changes = if self.rng.bool() { vec![change] } else { vec![change, Voter(self.rng.u64(..6))] };
            return members::conf_change(&changes).write_to_bytes().unwrap().into();
        }
        match self.rng.u8(..4) {
            0 => (0..self.rng.usize(..20)).map(|_| self.rng.u8(..)).collect::<Vec<_>>().into(),
            1 => {
                let level = self.rng.u16(..);
                let command = crate::metadata::Command::SetFeatureLevel { name: "x".to_owned(), level };
                crate::metadata::encode(&[command])
            }
            _ => Bytes::new(),
        }
    }

    fn message(&mut self) -> Message {
        let kind = KINDS[self.rng.usize(..KINDS.len())];
        let is_near = self.rng.u8(..4) > 0;
        let term = if is_near { self.group.term() + self.rng.u64(..2) } else { Term(self.number()) };
        let mut message = Message { to: 1, from: self.peer(), term: term.0, ..Message::default() };
        message.set_msg_type(kind);
        message.index = self.number();
        message.log_term = match self.rng.u8(..4) {
            0 => self.number(),
            _ => self.group.term_at(RaftIndex::new(message.index)).unwrap_or(Term(0)).0,
        };
        message.commit = self.number();
        message.commit_term = if self.rng.bool() {
            self.number()
        } else {
            self.group.term_at(RaftIndex::new(message.commit)).unwrap_or(Term(0)).0
        };
        message.reject = self.rng.bool();
        message.reject_hint = self.number();
        if self.rng.u8(..16) == 0 {
            message.priority = self.rng.i64(..);
            message.request_snapshot = self.number();
        }
        message.context = match self.rng.u8(..6) {
            0 => Bytes::from_static(b"CampaignTransfer"),
            1 => Bytes::from_static(b"12345678"),
            2 => Bytes::from(vec![1; self.rng.usize(..12)]),
            _ => Bytes::new(),
        };
        if kind == MessageType::MsgAppend || self.rng.u8(..16) == 0 {
            let mut entries = Vec::new();
            for at in 0..self.rng.u64(..4) {
                let strays = self.rng.u8(..16) == 0;
                let index = if strays { self.number() } else { message.index.wrapping_add(at + 1) };
                let term = if self.rng.u8(..16) == 0 { self.number() } else { message.term };
                let kind = [0, 0, 0, 2, 1][self.rng.usize(..5)];
                let mut entry = eraftpb::Entry { index, term, data: self.data(kind), ..eraftpb::Entry::default() };
                entry.set_entry_type(
                    [EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2]
                        [usize::from(kind)],
                );
                entries.push(entry);
            }
            message.set_entries(entries.into());
        }
        if kind == MessageType::MsgSnapshot {
            let (index, term, members) = (self.number(), self.number(), self.members());
            let metadata = message.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (index, term);
            metadata.set_conf_state(members);
        }
        message
    }

    /// One action of the group's own broker between messages.
    fn live(&mut self) {
        match self.rng.u8(..6) {
            0 => (0..self.rng.usize(..20)).for_each(|_| self.group.tick()),
            1 => self.group.campaign(),
            2 => {
                let data = self.data(0);
                // It does not matter whether the group leads or has room.
                let _ = self.group.propose(data);
            }
            3 if self.group.epoch().is_some() => self.group.read_index(self.rng.u64(..)),
            4 => drop(self.group.compact(self.group.applied())),
            _ => {}
        }
        while let Some(ready) = self.group.ready() {
            for entry in ready.committed.iter().filter(|entry| entry.entry_type == ENTRY_NORMAL) {
                // This replica's own proposals may be anything here.
                assert!(entry.data.len() < 200);
            }
            self.group.on_persisted(ready.number);
            if let Some(last) = ready.committed.last() {
                self.group.applied_to(last.index);
            }
        }
        self.group.check();
        if self.group.unreadable().is_some() {
            self.group = Self::group(&mut self.rng);
        }
    }

    fn run(&mut self) {
        for _ in 0..MESSAGES {
            let message = self.message();
            let bytes = wire::encode(&[PeerMessage::Raft { group: GroupId(7), message }]);
            let Ok(messages) = wire::decode(&bytes) else { continue };
            for message in messages {
                let PeerMessage::Raft { message, .. } = message else { panic!("it was a Raft message") };
                let (commit, applied) = (self.group.commit(), self.group.applied());
                if message.get_msg_type() == MessageType::MsgSnapshot {
                    self.group.step_snapshot(message);
                } else {
                    self.group.step(message);
                }
                match self.group.take_unfit() {
                    Some(unfit) => {
                        assert!(!unfit.to_string().is_empty());
                        self.refused += 1;
                    }
                    None => self.taken += 1,
                }
                assert!(self.group.commit() >= commit && self.group.applied() >= applied, "nothing goes back");
            }
            self.live();
        }
    }
}

#[test]
fn wrong_fields_never_end_the_process() {
    let one = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let count = std::env::var("FUZZ_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let (mut refused, mut taken) = (0, 0);
    for seed in one.map_or(0..count, |seed| seed..seed + 1) {
        let mut fuzz = Fuzz::new(seed);
        if let Err(why) = panic::catch_unwind(panic::AssertUnwindSafe(|| fuzz.run())) {
            eprintln!("replay with: FUZZ_SEED={seed} cargo test -p consensus fields");
            panic::resume_unwind(why);
        }
        refused += fuzz.refused;
        taken += fuzz.taken;
    }
    // Unless both kinds occur, this test proves nothing.
    assert!(refused > 1000 && taken > 1000 || one.is_some(), "{refused} refused, {taken} taken");
}
