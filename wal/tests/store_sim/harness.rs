//! An executor in a seeded order, a data directory, and small sizes, so that much happens in few steps.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Waker},
};
use types::GroupId;
use wal::{
    disk::sim::SimDisk,
    log::LogOptions,
    ring::RingConfig,
    store::{FlushHost, Store, StoreConfig, StoreDirs},
};

pub const DATA: &str = "/data";
pub const META: GroupId = GroupId(0);

pub type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Polls tasks in a random order until `done`; the disk may stop for good at any operation.
pub fn drive(rng: &mut fastrand::Rng, mut tasks: Vec<Task>, done: impl Fn() -> bool) {
    let mut context = Context::from_waker(Waker::noop());
    let mut polls = 0u32;
    while !done() && !tasks.is_empty() {
        let at = rng.usize(..tasks.len());
        if tasks[at].as_mut().poll(&mut context).is_ready() {
            drop(tasks.swap_remove(at));
        }
        polls += 1;
        assert!(polls < 2_000_000, "nothing gets done");
    }
}

/// Drives one future alone.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..2_000_000 {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("nothing gets done");
}

/// Like [`block_on`], with the store's loops running beside it.
pub fn with_loops<T>(seed: u64, store: &Store<SimDisk>, host: Rc<dyn FlushHost>, work: impl Future<Output = T>) -> T {
    let value = RefCell::new(None);
    let finished = Cell::new(false);
    let mut rng = fastrand::Rng::with_seed(seed);
    let tasks: Vec<Task> = vec![
        Box::pin(async {
            let _ = store.run_journal().await;
        }),
        Box::pin(async {
            let _ = store.run_flusher(host).await;
        }),
        Box::pin(async {
            *value.borrow_mut() = Some(work.await);
            finished.set(true);
        }),
    ];
    drive(&mut rng, tasks, || finished.get());
    value.into_inner().expect("it finished")
}

pub fn config() -> StoreConfig {
    StoreConfig {
        ring_bytes: 512 << 10,
        entry_bytes: 0,
        ring: Some(RingConfig { ring_id: Some(7), ..RingConfig::of_bytes(512 << 10) }),
        flush_trigger_bytes: 96 << 10,
        cache_bytes: 64 << 10,
        memory_bytes: 256 << 10,
        read_ahead_bytes: 64 << 10,
        index_bytes: 4 << 10,
        open_files_max: 3,
        flush_write_bytes: 8 << 10,
        flush_in_flight: 3,
        flush_turn_entries: 5,
        checkpoint_turn_groups: 1,
        snapshot_group: Some(META),
        kept_bytes: 1 << 10,
        carried_bytes: 12 << 10,
    }
}

pub fn options() -> LogOptions {
    LogOptions { segment_bytes: 24 << 10, segment_ms: Some(5_000), index_interval_bytes: 4 << 10 }
}

pub fn dirs() -> StoreDirs {
    StoreDirs::new(DATA, 1, 0)
}

/// A disk with the data directory, made durable.
pub fn fresh_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    block_on(async {
        use wal::disk::Disk;
        disk.create_dir(DATA.as_ref()).await.expect("a directory");
        disk.sync_dir("/".as_ref()).await.expect("synced");
    });
    disk
}

/// Yields once to the other tasks.
pub async fn pause() {
    let mut once = false;
    std::future::poll_fn(|_| match std::mem::replace(&mut once, true) {
        true => std::task::Poll::Ready(()),
        false => std::task::Poll::Pending,
    })
    .await
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs code that is expected to fail. A panic counts as an error and prints nothing.
pub fn quietly(run: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    QUIET.set(false);
    done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
    })
}

/// Drives a future until it completes or the disk stops.
pub fn until_stop<T>(disk: &SimDisk, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..2_000_000 {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        if disk.stopped() {
            return None;
        }
    }
    panic!("nothing gets done");
}
