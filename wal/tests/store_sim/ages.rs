//! Segments whose timestamps do not give their age: retention uses their files' times, and the clock decides when
//! they end.

use crate::harness::{block_on, config, dirs, fresh_disk, options, pause, with_loops};
use bytes::Bytes;
use std::{cell::Cell, pin::Pin, rc::Rc};
use types::{GroupId, HardState, RaftIndex, Term};
use wal::{
    disk::sim::SimDisk,
    log::{AHEAD_MAX_MS, LogOptions},
    record::{Entry, Span},
    store::{AppState, FlushHost, Store, StoreConfig},
};

const GROUP: GroupId = GroupId(1);
const NOW: i64 = 1_700_000_000_000;
const WEEK: u64 = 7 * 24 * 3_600_000;
/// -1, microseconds, nanoseconds, and the largest value.
const ABSURD: [i64; 4] = [-1, NOW * 1_000, NOW * 1_000_000, i64::MAX];

struct Clock(Cell<i64>);

impl FlushHost for Clock {
    fn wall_ms(&self) -> i64 {
        self.0.get()
    }

    fn app_state(&self, _: GroupId) -> Option<AppState> {
        None
    }

    fn back_off(&self, _: u32) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async {})
    }

    fn flush_failed(&self, why: &str) {
        panic!("{why}");
    }
}

struct World {
    disk: SimDisk,
    store: Store<SimDisk>,
    clock: Rc<Clock>,
    appended: Cell<u64>,
}

fn sizes() -> StoreConfig {
    StoreConfig { carried_bytes: 0, ..config() }
}

fn world(options: LogOptions) -> World {
    let disk = fresh_disk(1);
    let (store, ..) = block_on(Store::open(disk.clone(), &dirs(), 1, sizes())).expect("opened");
    store.create_group(GROUP, options);
    World { disk, store, clock: Rc::new(Clock(Cell::new(NOW))), appended: Cell::new(0) }
}

impl World {
    fn at(&self, now_ms: i64) {
        self.disk.set_time(now_ms);
        self.clock.0.set(now_ms);
    }

    /// Appends a batch of 3,000 bytes for each timestamp.
    fn append(&self, timestamps: &[i64]) {
        with_loops(1, &self.store, self.clock.clone(), async {
            for timestamp in timestamps {
                let n = self.appended.replace(self.appended.get() + 1);
                let span = Span { base_offset: n, count: 1, max_timestamp: *timestamp };
                let payload = Some((span, Bytes::from(vec![n as u8; 3_000])));
                let entry =
                    Entry { index: RaftIndex::new(n + 1), term: Term(1), entry_type: 0, data: Bytes::new(), payload };
                let hard_state = HardState { term: Term(1), vote: 1, commit: RaftIndex::new(n) };
                let pos = self.store.append(GROUP, hard_state, &entry).expect("room").pos;
                while self.store.durable() < pos {
                    self.store.durable_past(self.store.durable()).await.expect("the ring works");
                }
            }
        });
    }

    fn flush(&self) {
        with_loops(1, &self.store, self.clock.clone(), async {
            self.store.flush_now().await.expect("flushed");
        });
    }

    fn retention(&self, now_ms: i64) -> Option<u64> {
        self.store.retention(GROUP, now_ms, Some(WEEK), None, self.appended.get())
    }

    /// Retention at a time, once the files' times are known.
    fn retention_by_files(&self, now_ms: i64) -> Option<u64> {
        block_on(self.store.learn_file_times(GROUP, now_ms)).expect("the disk knows");
        assert!(!self.store.needs_file_times(GROUP, now_ms));
        self.retention(now_ms)
    }
}

#[test]
fn segments_of_unknown_age_are_as_old_as_their_files() {
    for absurd in ABSURD {
        let mut world = world(options());
        world.at(NOW);
        world.append(&[absurd; 30]);
        world.flush();
        assert!(world.store.segment_files(GROUP).len() > 2);
        let (before, behind) = (NOW + WEEK as i64, NOW + WEEK as i64 + 1);
        assert_eq!(world.retention(behind), None, "{absurd}: nobody has asked the files");
        assert!(world.store.needs_file_times(GROUP, behind));
        assert_eq!(world.retention_by_files(before), None, "{absurd}");
        assert_eq!(world.retention(behind), Some(30), "{absurd}");
        // The same after a restart, when the times must be learned again.
        let World { disk, store, .. } = &world;
        let (disk, old) = (disk.clone(), store.clone());
        drop(old);
        world.store = block_on(Store::open(disk, &dirs(), 1, sizes())).expect("opened again").0;
        assert_eq!(world.retention_by_files(before), None, "{absurd}");
        assert_eq!(world.retention(behind), Some(30), "{absurd}");
    }
}

#[test]
fn one_absurd_timestamp_does_not_keep_what_follows() {
    for absurd in ABSURD {
        let world = world(options());
        world.at(NOW);
        world.append(&[absurd]);
        world.append(&[NOW; 29]);
        world.flush();
        assert_eq!(world.retention_by_files(NOW + WEEK as i64 + 1), Some(30), "{absurd}");
    }
}

#[test]
fn a_clock_that_is_a_little_ahead_still_tells_the_age() {
    let world = world(options());
    world.at(NOW);
    let ahead = NOW + AHEAD_MAX_MS;
    world.append(&[ahead]);
    world.flush();
    assert!(!world.store.needs_file_times(GROUP, NOW) && world.store.needs_file_times(GROUP, NOW - 1));
    assert_eq!(world.retention_by_files(ahead + WEEK as i64), None);
    assert_eq!(world.retention(ahead + WEEK as i64 + 1), Some(1));
}

#[test]
fn a_later_write_makes_a_segment_younger() {
    let world = world(LogOptions { segment_ms: None, ..options() });
    world.at(NOW);
    world.append(&[-1]);
    world.flush();
    let later = NOW + WEEK as i64;
    assert_eq!(world.retention_by_files(later), None);
    world.at(later);
    world.append(&[-1]);
    world.flush();
    assert_eq!(world.store.segment_files(GROUP).len(), 1);
    assert_eq!(world.retention_by_files(later + 1), None, "its file was written just now");
    assert_eq!(world.retention_by_files(later + WEEK as i64 + 1), Some(2));
}

#[test]
fn batches_of_unknown_age_are_flushed_so_that_they_get_one() {
    for absurd in [-1, i64::MAX] {
        let world = world(options());
        world.append(&[absurd]);
        assert_eq!(world.retention(NOW), None);
        with_loops(2, &world.store, world.clock.clone(), async {
            while world.store.log(GROUP).expect("the group").flushed_offset < 1 {
                pause().await;
            }
        });
    }
}

#[test]
fn segments_of_unknown_age_end_by_the_clock() {
    for absurd in ABSURD {
        let world = world(options());
        world.at(NOW);
        world.append(&[absurd]);
        world.flush();
        world.at(NOW + 4_000);
        world.append(&[absurd, NOW + 4_000]);
        world.flush();
        assert_eq!(world.store.segment_files(GROUP).len(), 1, "{absurd}");
        world.at(NOW + 5_001);
        world.append(&[absurd]);
        world.flush();
        assert_eq!(world.store.segment_files(GROUP).len(), 2, "{absurd}: segment.ms is 5 s");
    }
}
