//! A model of the store: each group is a plain vector, with all staged records and all guarantees given.

use bytes::Bytes;
use std::{cell::RefCell, collections::BTreeMap, pin::Pin, rc::Rc};
use types::{GroupId, HardState, RaftIndex, Term};
use wal::{
    disk::sim::SimDisk,
    record::{Entry, Span},
    store::{AppState, FlushHost, LogPos, Store},
};

use crate::harness::META;

pub fn blob_of(group: GroupId, index: u64) -> Bytes {
    Bytes::from(format!("state of group {} at {index}", group.0).repeat(1 + (index % 3) as usize))
}

pub fn conf_of(group: GroupId, index: u64) -> Bytes {
    Bytes::from(format!("voters of {} at {index}", group.0))
}

pub fn app_of(group: GroupId, index: u64) -> AppState {
    if index == 0 {
        return AppState::default();
    }
    AppState { index: RaftIndex::new(index), blob: blob_of(group, index), conf_state: conf_of(group, index) }
}

/// The contents of an entry's batch, derived from its place and `salt`.
fn payload(group: GroupId, index: u64, salt: u64, len: usize) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(group.0 << 48 ^ index << 24 ^ salt);
    (0..len).map(|_| rng.u8(..)).collect::<Vec<_>>().into()
}

#[derive(Clone, Debug)]
pub enum Event {
    Append(Entry),
    HardState,
    Truncate(u64),
    Removed,
}

/// One group: all entries since its beginning, and what happened since the last recovery.
#[derive(Clone, Debug, Default)]
pub struct GroupModel {
    /// The entries as recovered (or created); then every event with its position in the ring.
    pub base: Vec<Entry>,
    pub base_hard_state: HardState,
    pub events: Vec<(LogPos, HardState, Event)>,
    pub entries: Vec<Entry>,
    pub hard_state: HardState,
    /// The applied index. Entries up to it are never truncated.
    pub commit: u64,
    pub log_start: u64,
    /// The values that a completed flush guarantees.
    pub floor_start: u64,
    pub floor_app: u64,
    pub removed: bool,
    /// The group was in a checkpoint or in the ring, so it cannot be gone without a removal.
    pub known: bool,
}

impl GroupModel {
    pub fn next_offset(&self) -> u64 {
        end_offset(&self.entries)
    }

    /// One past the last committed offset.
    pub fn high_watermark(&self) -> u64 {
        end_offset(&self.entries[..self.commit as usize])
    }

    /// Where the last record ends.
    pub fn last_pos(&self) -> Option<LogPos> {
        self.events.last().map(|(pos, ..)| *pos)
    }

    pub fn image(&self, events: usize) -> Option<Vec<Entry>> {
        let mut entries = self.base.clone();
        for (_, _, event) in &self.events[..events] {
            match event {
                Event::Append(entry) => entries.push(entry.clone()),
                Event::Truncate(from) => entries.truncate(*from as usize - 1),
                Event::HardState => {}
                Event::Removed => return None,
            }
        }
        Some(entries)
    }
}

pub fn end_offset(entries: &[Entry]) -> u64 {
    let spans = entries.iter().rev().find_map(|entry| entry.payload.as_ref());
    spans.map_or(0, |(span, _)| span.base_offset + u64::from(span.count))
}

#[derive(Default)]
pub struct Model {
    pub groups: BTreeMap<GroupId, GroupModel>,
    pub next_group: u64,
    pub clock: i64,
    /// The first error that was found.
    pub wrong: Option<String>,
    pub reads: [u64; 2],
    /// How many lives ended with batches that checkpoints carry.
    pub carried: u64,
}

pub type Shared = Rc<RefCell<Model>>;

pub struct Host(pub Shared);

impl FlushHost for Host {
    fn wall_ms(&self) -> i64 {
        self.0.borrow().clock
    }

    fn app_state(&self, group: GroupId) -> Option<AppState> {
        self.0.borrow().groups.get(&group).map(|model| app_of(group, model.commit))
    }

    fn back_off(&self, attempt: u32) -> Pin<Box<dyn Future<Output = ()>>> {
        assert!(attempt > 0);
        Box::pin(async {})
    }

    fn flush_failed(&self, why: &str) {
        assert!(!why.is_empty());
    }
}

impl Model {
    pub fn wrong(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// The next entry of a group: mostly with a batch, sometimes without.
    pub fn next_entry(&mut self, rng: &mut fastrand::Rng, group: GroupId) -> Entry {
        self.clock += rng.i64(0..400);
        let timestamp = self.clock;
        let model = self.groups.get_mut(&group).expect("a group");
        if rng.u32(..40) == 0 {
            model.hard_state.term += 1;
            model.hard_state.vote = 1;
        }
        model.hard_state.term = model.hard_state.term.max(Term(1));
        let index = model.entries.len() as u64 + 1;
        let term = model.hard_state.term;
        let data: Bytes = vec![index as u8; rng.usize(..40)].into();
        let payload = (group != META && rng.u32(..12) > 0).then(|| {
            let len = match rng.u32(..10) {
                0 => rng.usize(4_000..20_000),
                _ => rng.usize(1..2_000),
            };
            let span = Span { base_offset: model.next_offset(), count: rng.u32(1..5), max_timestamp: timestamp };
            (span, payload(group, index, term.0 << 32 ^ rng.u64(..1 << 20), len))
        });
        Entry { index: RaftIndex::new(index), term, entry_type: rng.u8(..3), data, payload }
    }

    pub fn appended(&mut self, group: GroupId, entry: Entry, pos: LogPos) {
        let model = self.groups.get_mut(&group).expect("a group");
        let hard_state = model.hard_state;
        model.entries.push(entry.clone());
        model.known = true;
        model.events.push((pos, hard_state, Event::Append(entry)));
    }

    pub fn live(&self) -> Vec<GroupId> {
        self.groups.iter().filter(|(_, model)| !model.removed).map(|(id, _)| *id).collect()
    }
}

/// Appends the next entry of `group` to the store and to the model.
pub fn append(store: &Store<SimDisk>, model: &Shared, rng: &mut fastrand::Rng, group: GroupId) -> Option<LogPos> {
    let entry = model.borrow_mut().next_entry(rng, group);
    let mut hard_state = model.borrow().groups[&group].hard_state;
    hard_state.commit = RaftIndex::new(model.borrow().groups[&group].commit);
    match store.append(group, hard_state, &entry) {
        Ok(staged) => {
            model.borrow_mut().appended(group, entry, staged.pos);
            Some(staged.pos)
        }
        Err(_) => None,
    }
}

impl GroupModel {
    pub fn base_known(&self) -> bool {
        self.known && !self.base.is_empty()
    }
}
