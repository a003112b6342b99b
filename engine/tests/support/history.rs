//! Compares the answers that producers got with the contents of a partition's log: the checker of the crash test. Pure.
//!
//! Rules, for one partition that was not trimmed:
//! - an acknowledged record is in the log, at the acknowledged offset, byte for byte;
//! - no record is in the log twice, even if its producer got no answer;
//! - the records of one producer are in the order in which it sent them;
//! - offsets have no gaps, and every record is one that a producer sent;
//! - a record that a consumer saw at an offset, before or after any crash, is there in the end.

use std::collections::BTreeMap;
use std::fmt;

/// The identity of a record: the producer's number, and the record's number in that producer's order of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    pub producer: u32,
    pub sequence: u64,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.producer, self.sequence)
    }
}

impl Id {
    /// The bytes of the record: its identity, then a filler of 0 to 2 KB that follows from the identity.
    pub fn payload(self) -> Vec<u8> {
        let mut state = (u64::from(self.producer) << 40 | self.sequence).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut step = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let filler = if step() % 8 == 0 { step() % 2048 } else { step() % 128 };
        let mut bytes = format!("{self}:").into_bytes();
        bytes.extend((0..filler).map(|_| step() as u8));
        bytes
    }

    /// The identity of the record with these bytes, if they are exactly those of [`Id::payload`].
    pub fn of_payload(bytes: &[u8]) -> Option<Id> {
        let mut words = bytes.splitn(3, |b| *b == b':');
        let mut number = || std::str::from_utf8(words.next()?).ok()?.parse::<u64>().ok();
        let id = Id { producer: u32::try_from(number()?).ok()?, sequence: number()? };
        (id.payload() == bytes).then_some(id)
    }
}

/// A contradiction between the log and the promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// Acknowledged at this offset, but not in the log.
    Lost {
        id: Id,
        offset: i64,
    },
    /// Acknowledged at one offset, but found at another.
    Moved {
        id: Id,
        acked: i64,
        found: i64,
    },
    Duplicated {
        id: Id,
        first: i64,
        again: i64,
    },
    /// Behind a record that its producer sent later.
    Reordered {
        id: Id,
        offset: i64,
        after: Id,
    },
    /// The offset does not follow the previous one.
    Gap {
        before: Option<i64>,
        offset: i64,
    },
    /// Bytes that no producer sent.
    Foreign {
        offset: i64,
    },
    /// A consumer saw this record at this offset. Now there is another record, or none.
    Unseen {
        id: Id,
        offset: i64,
        now: Option<Id>,
    },
}

/// The promises for one partition.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The acknowledged records, with their offsets if those are known.
    acked: BTreeMap<Id, Option<i64>>,
    seen: BTreeMap<i64, Id>,
    early: Vec<Violation>,
}

impl History {
    /// The broker acknowledged the record at this offset. The offset is negative if librdkafka lost the record's own
    /// answer and only concludes from a later one that the record was accepted.
    pub fn acked(&mut self, id: Id, offset: i64) {
        let known = Some(offset).filter(|offset| *offset >= 0);
        if let Some(first) = self.acked.insert(id, known) {
            self.early.push(Violation::Duplicated { id, first: first.unwrap_or(-1), again: offset });
        }
    }

    /// A consumer read these bytes at this offset while the test ran.
    pub fn seen(&mut self, offset: i64, payload: &[u8]) {
        let Some(id) = Id::of_payload(payload) else { return self.early.push(Violation::Foreign { offset }) };
        match self.seen.insert(offset, id) {
            Some(before) if before != id => {
                self.early.push(Violation::Unseen { id: before, offset, now: Some(id) });
            }
            _ => {}
        }
    }

    pub fn acked_count(&self) -> usize {
        self.acked.len()
    }

    pub fn seen_count(&self) -> usize {
        self.seen.len()
    }

    /// Checks the whole log, read from offset 0 to its end.
    pub fn check(&self, log: &[(i64, Vec<u8>)]) -> Vec<Violation> {
        let mut violations = self.early.clone();
        let mut found: BTreeMap<Id, i64> = BTreeMap::new();
        let mut at: BTreeMap<i64, Id> = BTreeMap::new();
        let mut newest: BTreeMap<u32, u64> = BTreeMap::new();
        let mut before = None;
        for (offset, payload) in log {
            let offset = *offset;
            if offset != before.map_or(0, |before| before + 1) {
                violations.push(Violation::Gap { before, offset });
            }
            before = Some(offset);
            let Some(id) = Id::of_payload(payload) else {
                violations.push(Violation::Foreign { offset });
                continue;
            };
            at.insert(offset, id);
            if let Some(first) = found.get(&id) {
                violations.push(Violation::Duplicated { id, first: *first, again: offset });
                continue;
            }
            found.insert(id, offset);
            let newest = newest.entry(id.producer).or_insert(id.sequence);
            if id.sequence < *newest {
                let after = Id { sequence: *newest, ..id };
                violations.push(Violation::Reordered { id, offset, after });
            }
            *newest = id.sequence.max(*newest);
        }
        for (&id, &acked) in &self.acked {
            match found.get(&id) {
                None => violations.push(Violation::Lost { id, offset: acked.unwrap_or(-1) }),
                Some(&found) => {
                    let moved = acked.filter(|acked| *acked != found);
                    violations.extend(moved.map(|acked| Violation::Moved { id, acked, found }));
                }
            }
        }
        for (&offset, &id) in &self.seen {
            let now = at.get(&offset).copied();
            if now != Some(id) {
                violations.push(Violation::Unseen { id, offset, now });
            }
        }
        violations
    }
}
