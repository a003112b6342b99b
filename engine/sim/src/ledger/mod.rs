//! The answers that clients got, the records that they saw, and the invariants that must hold.
//!
//! | client | invariant |
//! |---|---|
//! | acks=all | an acknowledged record is in the log, once, at its offset, unless the log's start has passed it |
//! | any | a record is in the log at most once |
//! | any | one producer's records are in the log in the order in which it sent them, without a gap |
//! | consumer | a record that was read at an offset is the one that everybody reads there, for ever |
//! | any | while a leader serves, its high watermark is not below that of any leader before it |

pub mod commits;

use commits::GroupHistory;
use std::collections::{BTreeMap, BTreeSet, btree_map};
use types::{GroupId, LeaderEpoch};

/// A violated invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Violation(pub(super) String);

pub(super) fn expect(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(what())) }
}

/// A record as its producer made it: the producer's number, and the record's number within that producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Value {
    pub(super) producer: u32,
    pub(super) number: u32,
}

impl Value {
    pub(super) fn bytes(self, size: usize) -> Vec<u8> {
        let mut bytes = vec![b'.'; size.max(8)];
        bytes[..4].copy_from_slice(&self.producer.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self { producer: number(0)?, number: number(4)? })
    }
}

/// The history of one partition.
#[derive(Default)]
pub(super) struct History {
    acked: BTreeMap<u64, Value>,
    seen: BTreeMap<u64, Value>,
    /// By leader epoch, the highest high watermark that its leader has shown.
    watermarks: BTreeMap<LeaderEpoch, u64>,
    /// By leader epoch, the node that led.
    leaders: BTreeMap<LeaderEpoch, i32>,
    /// By leader epoch, where a past epoch ended.
    ends: BTreeMap<LeaderEpoch, u64>,
}

#[derive(Default)]
pub(super) struct Ledger {
    histories: BTreeMap<GroupId, History>,
    members: BTreeMap<String, GroupHistory>,
}

impl Ledger {
    pub(super) fn of(&mut self, group: GroupId) -> &mut History {
        self.histories.entry(group).or_default()
    }

    /// The history of a consumer group.
    pub(super) fn of_members(&mut self, group: &str) -> &mut GroupHistory {
        self.members.entry(group.to_owned()).or_default()
    }

    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.histories.keys().copied().collect()
    }

    pub(super) fn acked(&self) -> usize {
        self.histories.values().map(|history| history.acked.len()).sum()
    }

    pub(super) fn seen(&self) -> usize {
        self.histories.values().map(|history| history.seen.len()).sum()
    }
}

impl History {
    /// A producer got an acknowledgement with acks=all for a record.
    pub(super) fn acked(&mut self, offset: u64, value: Value) -> Result<(), Violation> {
        let other = self.acked.insert(offset, value).filter(|other| *other != value);
        expect(other.is_none(), || format!("{value:?} and {other:?} were both acknowledged at offset {offset}"))?;
        let seen = self.seen.get(&offset).filter(|seen| **seen != value);
        expect(seen.is_none(), || format!("{value:?} was acknowledged at offset {offset}, where {seen:?} was read"))
    }

    /// A consumer has read a record.
    pub(super) fn seen(&mut self, offset: u64, value: Value) -> Result<(), Violation> {
        let first = *self.seen.entry(offset).or_insert(value);
        expect(first == value, || format!("{first:?}, then {value:?} was read at offset {offset}"))?;
        let acked = self.acked.get(&offset).filter(|acked| **acked != value);
        expect(acked.is_none(), || format!("{value:?} was read at offset {offset}, where {acked:?} was acknowledged"))
    }

    /// A replica leads and serves.
    pub(super) fn leads(&mut self, node: i32, epoch: LeaderEpoch, watermark: u64) -> Result<(), Violation> {
        let first = *self.leaders.entry(epoch).or_insert(node);
        expect(first == node, || format!("brokers {first} and {node} both lead in epoch {epoch}"))?;
        let before = self.watermarks.range(..=epoch).map(|(_, watermark)| *watermark).max().unwrap_or(0);
        expect(watermark >= before, || {
            format!("broker {node} leads in epoch {epoch} with the high watermark {watermark}; it was {before} before")
        })?;
        self.watermarks.insert(epoch, watermark);
        Ok(())
    }

    /// A leader reports where an earlier epoch ended.
    pub(super) fn ended(&mut self, epoch: LeaderEpoch, end: u64) -> Result<(), Violation> {
        match self.ends.entry(epoch) {
            btree_map::Entry::Vacant(place) => {
                place.insert(end);
                Ok(())
            }
            btree_map::Entry::Occupied(first) => {
                let first = *first.get();
                expect(first == end, || format!("epoch {epoch} ends at {first}, and at {end}"))
            }
        }
    }

    /// Number of epochs that had a leader.
    pub(super) fn epochs(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// Checks the whole log at the end.
    pub(super) fn is_all(&self, start: u64, records: &[(u64, Value)]) -> Result<(), Violation> {
        for (place, (offset, _)) in records.iter().enumerate() {
            let expected = start + place as u64;
            expect(*offset == expected, || format!("offset {offset} is in the place of {expected}"))?;
        }
        let log: BTreeMap<u64, Value> = records.iter().copied().collect();
        for (known, how) in [(&self.acked, "acknowledged"), (&self.seen, "read")] {
            for (offset, value) in known.range(start..) {
                let found = log.get(offset);
                expect(found == Some(value), || {
                    format!(
                        "{value:?} was {how} at offset {offset}, and {found:?} is there (the log begins at {start})"
                    )
                })?;
            }
        }
        let mut once = BTreeSet::new();
        let mut last: BTreeMap<u32, u32> = BTreeMap::new();
        for (offset, value) in records {
            expect(once.insert(*value), || format!("{value:?} is in the log twice, once at {offset}"))?;
            let before = last.insert(value.producer, value.number).filter(|before| before + 1 != value.number);
            expect(before.is_none(), || {
                format!("{value:?} at offset {offset} comes right behind {before:?} of its producer")
            })?;
        }
        Ok(())
    }
}
