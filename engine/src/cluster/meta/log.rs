//! The metadata's log as records, which the topic `__millrace_metadata` shows (see `handlers::metadata_log`).
//! Lives on: core 0 of the broker that leads the metadata.
//!
//! The record at offset n renders the entry at index n + 1. It is visible once the entry is published to the views.
//! The log begins after the newest snapshot, and so does the topic; each broker has its own newest snapshot.
//!
//! Invariants: only committed entries are visible; every entry has one record, so offsets have no gaps.

use super::{Meta, host::Host, log_json};
use bytes::Bytes;
use net::{
    errors::ErrorCode,
    records::{batch::Assigned, build::BatchBuilder},
};
use runtime::sync::Marks;
use slab::Slab;
use std::{cell::RefCell, rc::Rc};
use types::{META_GROUP, RaftIndex};
use wal::{record::Entry, store::Entries};

/// Most bytes of entries rendered by one fetch, unless the first entry is larger. It keeps the core free for other
/// work.
const ENTRY_BYTES_MAX: usize = 64 << 10;
/// Kafka's value for a record without a timestamp.
const NO_TIMESTAMP: i64 = -1;

/// Fetches that wait for more of the log.
#[derive(Default)]
pub(super) struct Watchers(RefCell<Slab<(Rc<Marks>, usize)>>);

impl Watchers {
    pub(super) fn wake(&self) {
        self.0.borrow().iter().for_each(|(_, (fetch, at))| fetch.mark(*at));
    }
}

/// A fetch's registration for news of the log.
pub struct LogWatch {
    meta: Rc<Meta>,
    key: usize,
}

impl Drop for LogWatch {
    fn drop(&mut self) {
        self.meta.watchers.0.borrow_mut().remove(self.key);
    }
}

/// Marks `at` in `fetch` whenever more of the log becomes visible, until the watch is dropped.
pub fn watch_log(core: &Rc<impl Host>, fetch: Rc<Marks>, at: usize) -> LogWatch {
    let meta = core.meta().clone();
    let key = meta.watchers.0.borrow_mut().insert((fetch, at));
    LogWatch { meta, key }
}

/// The first visible offset, and the end offset.
pub fn log_range(core: &Rc<impl Host>) -> Result<(u64, u64), ErrorCode> {
    let meta = core.meta();
    if meta.failed.get() {
        return Err(ErrorCode::KafkaStorageError);
    }
    let (leads, published) = meta.with(|plane, _| (plane.is_established(), plane.published()));
    let log = core.store().log(META_GROUP).filter(|_| leads).ok_or(ErrorCode::NotLeaderOrFollower)?;
    Ok((log.first_index.prev().min(published).get(), published.get()))
}

/// Batches of one record each, starting at `offset`, which must be in the range. Returns as many as fit into
/// `bytes_max`, but at least one if `at_least_one`.
pub fn read_log(
    core: &Rc<impl Host>,
    offset: u64,
    bytes_max: usize,
    at_least_one: bool,
) -> Result<Vec<Bytes>, ErrorCode> {
    let (_, end) = log_range(core)?;
    // A snapshot may have replaced the entries meanwhile.
    let Entries::Memory(entries) =
        core.store().entries(META_GROUP, index_of(offset), index_of(end), bytes_max.min(ENTRY_BYTES_MAX))
    else {
        return Err(ErrorCode::OffsetOutOfRange);
    };
    let mut left = bytes_max;
    let mut batches = Vec::with_capacity(entries.len());
    for entry in &entries {
        let batch = batch(entry);
        if batch.len() > left && !(at_least_one && batches.is_empty()) {
            break;
        }
        left = left.saturating_sub(batch.len());
        batches.push(batch);
    }
    Ok(batches)
}

/// The index of the entry that the record at `offset` shows.
fn index_of(offset: u64) -> RaftIndex {
    RaftIndex::new(offset).next()
}

fn batch(entry: &Entry) -> Bytes {
    let mut builder = BatchBuilder::default();
    builder.push(NO_TIMESTAMP, None, Some(log_json::render(entry).to_string().as_bytes()));
    builder.finish_at(Assigned {
        base_offset: entry.index.prev().get() as i64,
        // The records contain the terms. A term as epoch would make clients ask for the epoch's end offset.
        partition_leader_epoch: -1,
        log_append_time_ms: None,
    })
}
