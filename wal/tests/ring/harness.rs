//! Shared by the ring's tests: a small ring, records made from a seed, a journal with its writer running.

use bytes::Bytes;
use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
};
use types::{GroupId, HardState, Position, RaftIndex, Term};
use wal::{
    buf::BLOCK,
    disk::{Disk, sim::SimDisk},
    record::{Entry, Span},
    ring::{
        RingConfig,
        journal::{Journal, RecoveredRing, RingBody, RingRecord, segment_file},
    },
    sim_exec::{SimExec, block_on},
    store::{AppendError, LogMark, LogPos, OpenError},
};

pub const DIR: &str = "/core";
pub const EPOCH: u64 = 3;
pub const SEGMENT: u64 = 8 * BLOCK as u64;

pub fn config() -> RingConfig {
    RingConfig {
        segment_bytes: SEGMENT,
        segments: 4,
        write_bytes_max: 2 * BLOCK,
        reserve_bytes: 2 * BLOCK as u64,
        ring_id: Some(0x0123_4567_89ab_cdef),
    }
}

pub fn dir() -> &'static Path {
    Path::new(DIR)
}

pub fn file(slot: u32) -> PathBuf {
    dir().join(segment_file(slot))
}

/// A disk with the ring's directory, made durable.
pub fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    block_on(seed, async {
        disk.create_dir(dir()).await.expect("a directory");
        disk.sync_dir(Path::new("/")).await.expect("synced");
    });
    disk
}

pub fn open(disk: &SimDisk) -> Result<(Journal<SimDisk>, RecoveredRing), OpenError> {
    block_on(1, Journal::open(disk.clone(), dir(), EPOCH, config())).expect("the disk answers")
}

/// Opens a ring whose segments below `released` were released.
pub fn opened_from(disk: &SimDisk, released: LogPos) -> (Journal<SimDisk>, RecoveredRing) {
    let opened = block_on(1, Journal::open_from(disk.clone(), dir(), EPOCH, config(), released));
    opened.expect("the disk answers").unwrap_or_else(|error| panic!("the ring opens: {error}"))
}

pub fn opened(disk: &SimDisk) -> (Journal<SimDisk>, RecoveredRing) {
    open(disk).unwrap_or_else(|error| panic!("the ring opens: {error}"))
}

/// The error with which the ring does not open.
pub fn refused(disk: &SimDisk) -> OpenError {
    match open(disk) {
        Ok(_) => panic!("the ring must not open"),
        Err(error) => error,
    }
}

/// Group, hard state and body of a record.
pub type Said = (GroupId, HardState, RingBody);

pub fn said(record: &RingRecord) -> Said {
    (record.group, record.hard_state, record.body.clone())
}

pub fn entry(index: u64, payload: impl Into<Bytes>) -> Said {
    let span = Span { base_offset: 10 * index, count: 10, max_timestamp: 1_700_000_000_000 };
    let entry = Entry {
        index: RaftIndex::new(index),
        term: Term(2),
        entry_type: 0,
        data: Bytes::from(format!("descriptor {index}")),
        payload: Some((span, payload.into())),
    };
    (
        GroupId(7),
        HardState { term: Term(2), vote: 1, commit: RaftIndex::new(index.saturating_sub(1)) },
        RingBody::Entry(entry),
    )
}

/// A random record, with up to `bytes_max` of payload.
pub fn any(rng: &mut fastrand::Rng, bytes_max: usize) -> Said {
    let group = GroupId(rng.u64(..4));
    let hard_state = HardState { term: Term(rng.u64(..9)), vote: rng.u64(..9), commit: RaftIndex::new(rng.u64(..)) };
    let body = match rng.u32(..9) {
        0 => RingBody::HardState,
        1 => RingBody::Truncate { from_index: RaftIndex::new(rng.u64(..)), from_offset: rng.u64(..) },
        2 => RingBody::Removed,
        7 => RingBody::Restart { index: RaftIndex::new(rng.u64(..)), term: Term(rng.u64(..)) },
        8 => {
            let mut bytes = || -> Bytes { (0..rng.usize(..50)).map(|_| rng.u8(..)).collect() };
            let (conf_state, blob) = (bytes(), bytes());
            RingBody::RestartAt {
                index: RaftIndex::new(rng.u64(..)),
                term: Term(rng.u64(..)),
                offset: rng.u64(..),
                conf_state,
                blob,
            }
        }
        kind => {
            let bytes = |len: usize, rng: &mut fastrand::Rng| -> Bytes { (0..len).map(|_| rng.u8(..)).collect() };
            let data_len = rng.usize(..40);
            let len = if rng.u32(..10) == 0 { rng.usize(..=bytes_max) } else { rng.usize(..=bytes_max.min(900)) };
            let span = Span { base_offset: rng.u64(..), count: rng.u32(..), max_timestamp: rng.i64(..) };
            let data = bytes(data_len, rng);
            let payload = (kind != 3).then(|| (span, bytes(len, rng)));
            RingBody::Entry(Entry {
                index: RaftIndex::new(rng.u64(..)),
                term: Term(rng.u64(..)),
                entry_type: rng.u8(..),
                data,
                payload,
            })
        }
    };
    let hard_state = if body == RingBody::Removed { HardState::default() } else { hard_state };
    (group, hard_state, body)
}

/// Stages a record, and checks that the ring's memory holds its payload.
pub fn stage(journal: &Journal<SimDisk>, (group, hard_state, body): &Said) -> Result<LogPos, AppendError> {
    let (group, hard_state) = (*group, *hard_state);
    journal.check();
    let before = journal.staged();
    let end = match body {
        RingBody::Entry(entry) => {
            let staged = journal.append(group, hard_state, entry)?;
            assert_eq!(
                staged.payload.map(|payload| payload.bytes),
                entry.payload.as_ref().map(|(_, payload)| payload.clone())
            );
            staged.pos
        }
        RingBody::HardState => journal.append_hard_state(group, hard_state)?.pos,
        RingBody::Truncate { from_index, from_offset } => {
            journal.truncate(group, hard_state, *from_index, *from_offset)?.pos
        }
        RingBody::Removed => journal.remove_group(group)?,
        RingBody::Restart { index, term } => {
            journal.restart(group, hard_state, Position { index: *index, term: *term })?.pos
        }
        RingBody::RestartAt { index, term, offset, conf_state, blob } => {
            let at = LogMark { index: *index, term: *term, offset: *offset };
            journal.restart_at(group, hard_state, at, conf_state, blob)?.pos
        }
    };
    journal.check();
    assert!(end > before && journal.staged() == end && end > journal.durable());
    Ok(end)
}

/// Stages each batch of records and waits until it is durable, one write per batch. The disk may stop or fail
/// meanwhile.
pub fn write(seed: u64, journal: &Journal<SimDisk>, batches: &[Vec<Said>]) {
    let mut exec = SimExec::new(seed);
    let ended = exec.spawn_with_result(journal.run());
    exec.run();
    for batch in batches {
        for record in batch {
            if stage(journal, record).is_err() {
                return;
            }
        }
        exec.run();
    }
    drop(exec);
    drop(ended);
}

/// Closes the ring cleanly.
pub fn close(journal: &Journal<SimDisk>) {
    let mut exec = SimExec::new(0);
    let ended = exec.spawn_with_result(journal.run());
    exec.block_on(journal.close_clean()).expect("the disk answers").expect("it closes");
    exec.run();
    assert_eq!(*ended.borrow(), Some(Ok(())));
}

/// Calls `test` for each seed. A failure prints how to replay it. `RING_SEED` runs one seed, `RING_SEEDS` sets how
/// many.
pub fn seeds(name: &str, count: u64, test: impl Fn(u64) -> Result<(), String>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = match number("RING_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RING_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        let replay = format!("replay with RING_SEED={seed} cargo test -p wal --test ring {name}");
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(seed)));
        match done {
            Ok(Ok(())) => {}
            Ok(Err(wrong)) => panic!("{wrong}; {replay}"),
            Err(panic) => {
                eprintln!("{replay}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}

pub type Shared<T> = Rc<RefCell<T>>;
