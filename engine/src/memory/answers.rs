//! Memory of answers, from the reading of their records until the client's side has taken them.
//! Lives on: the core that reads. An answer may leave from another core, so the sums are shared. They change once
//! when records are read and once when they have left, never for each record.
//!
//! Answers from memory and answers from the disk have separate accounts. So consumers that read old records, and do
//! not take them, do not starve those that are caught up.
//!
//! An answer without room waits in this core's line, up to a deadline. Memory may come back on any core, so the
//! first in line polls every few milliseconds.

use crate::metrics::CoreMetrics;
use bytes::Bytes;
use runtime::{
    clock,
    sync::{Either, line::Line, race},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use types::CoreId;

const LOOK_AGAIN: Duration = Duration::from_millis(3);

/// An answer larger than the share goes alone. It may have this many bytes at least: 64 MiB. What is larger is
/// rejected before it is built (`handlers::weight`).
pub const ALONE_BYTES_MAX: usize = 64 << 20;

/// The accounts of all cores.
pub struct Accounts(Vec<Account>);

/// One core's account.
pub struct Account {
    max: usize,
    held: AtomicUsize,
    waiting: AtomicUsize,
}

/// The account of one core, for that core.
pub struct Answers {
    accounts: Arc<Accounts>,
    core: CoreId,
    line: Line,
}

/// Memory of an answer, held until this is dropped, on any core.
pub struct Held {
    accounts: Arc<Accounts>,
    core: CoreId,
    bytes: usize,
}

/// The rest of the memory that an answer may take. The cores that work on the answer share it.
#[derive(Clone)]
pub struct Budget(Arc<AtomicUsize>);

impl Budget {
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Takes a part. `false`: not so much is left.
    pub fn take(&self, bytes: usize) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }
}

/// A buffer that holds memory while any part of it is referenced.
struct Holding {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Holding {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Accounts {
    pub fn new(cores: usize, max: usize) -> Arc<Self> {
        let account = |_| Account { max, held: AtomicUsize::new(0), waiting: AtomicUsize::new(0) };
        Arc::new(Self((0..cores).map(account).collect()))
    }
}

impl Answers {
    pub fn new(accounts: Arc<Accounts>, core: CoreId) -> Self {
        Self { accounts, core, line: Line::default() }
    }

    fn account(&self) -> &Account {
        &self.accounts.0[self.core.0]
    }

    pub fn max(&self) -> usize {
        self.account().max
    }

    /// The largest part of the share that one answer may have.
    pub fn answer_max(&self) -> usize {
        self.account().max / 4
    }

    /// Bytes that are held.
    pub fn held(&self) -> usize {
        self.account().held.load(Relaxed)
    }

    /// Answers that wait for room on this core.
    pub fn waiting(&self) -> usize {
        self.account().waiting.load(Relaxed)
    }

    /// Answers that wait for room on any core.
    pub fn waiting_anywhere(&self) -> usize {
        self.accounts.0.iter().map(|account| account.waiting.load(Relaxed)).sum()
    }

    /// Whether some core holds so much that answers may soon wait.
    pub fn is_half_full(&self) -> bool {
        self.accounts.0.iter().any(|account| account.held.load(Relaxed) > account.max / 2)
    }

    /// Holds `bytes` if there is room at once. An answer larger than the whole share has room if it is the only
    /// one.
    pub fn try_hold(&self, bytes: usize) -> Option<Held> {
        if self.line.is_empty() { self.take(bytes) } else { None }
    }

    fn take(&self, bytes: usize) -> Option<Held> {
        let account = self.account();
        let held = account.held.load(Relaxed);
        // Only this core adds, so no other takes the room in between.
        (held == 0 || held + bytes <= account.max).then(|| {
            account.held.fetch_add(bytes, Relaxed);
            Held { accounts: self.accounts.clone(), core: self.core, bytes }
        })
    }

    /// Holds `bytes` once there is room. `None`: there was none within `wait`.
    pub async fn hold(&self, metrics: &CoreMetrics, bytes: usize, wait: Duration) -> Option<Held> {
        if let Some(held) = self.try_hold(bytes) {
            return Some(held);
        }
        metrics.memory_answer_waits_total.add(1);
        let end = clock::now() + wait;
        let _counted = Waiting::count(self.account());
        let place = self.line.join();
        if let Either::Second(()) = race(place.first(), runtime::sleep(wait)).await {
            return None;
        }
        loop {
            match self.take(bytes) {
                Some(held) => return Some(held),
                None if clock::now() >= end => return None,
                None => runtime::sleep(LOOK_AGAIN).await,
            }
        }
    }
}

/// Counts one waiting answer while it lives.
struct Waiting<'a>(&'a Account);

impl<'a> Waiting<'a> {
    fn count(account: &'a Account) -> Self {
        account.waiting.fetch_add(1, Relaxed);
        Self(account)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Held {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back everything above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.accounts.0[self.core.0].held.fetch_sub(less, Relaxed);
        self.bytes -= less;
    }

    /// Holds the memory until no part of `bytes` is referenced.
    pub fn with(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Holding { bytes, _held: self })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.accounts.0[self.core.0].held.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::sync::zip;

    #[test]
    fn memory_is_held_until_the_last_part_of_the_answer_is_gone() {
        let accounts = Accounts::new(2, 100);
        let answers = Answers::new(accounts.clone(), CoreId(1));
        let mut held = answers.try_hold(60).unwrap();
        assert!(answers.try_hold(41).is_none());
        held.shrink_to(50);
        assert_eq!(held.bytes(), 50);
        let bytes = held.with(Bytes::from_static(b"some records"));
        let part = bytes.slice(5..7);
        drop(bytes);
        assert_eq!(answers.held(), 50);
        std::thread::spawn(move || drop(part)).join().unwrap();
        assert_eq!(answers.held(), 0);
        // An answer larger than the whole share goes alone.
        let large = answers.try_hold(1000).unwrap();
        assert!(answers.try_hold(1).is_none());
        drop(large);
        assert_eq!((answers.held(), Answers::new(accounts, CoreId(0)).held()), (0, 0));
    }

    #[test]
    fn a_budget_is_taken_once_whoever_takes_it() {
        let budget = Budget::new(100);
        let other = budget.clone();
        assert!(budget.take(60) && !other.take(41) && other.take(40) && !budget.take(1) && budget.take(0));
    }

    #[test]
    fn a_waiter_gets_returned_room_or_gives_up_at_its_deadline() {
        let test = || async {
            let metrics = CoreMetrics::default();
            let answers = Answers::new(Accounts::new(1, 100), CoreId(0));
            let first = answers.try_hold(100).unwrap();
            assert!(answers.hold(&metrics, 1, Duration::from_millis(10)).await.is_none());
            assert_eq!((answers.waiting(), answers.waiting_anywhere()), (0, 0));
            let waits = async {
                let held = answers.hold(&metrics, 70, Duration::from_secs(60)).await.unwrap();
                assert_eq!((held.bytes(), answers.held(), answers.waiting()), (70, 70, 0));
                assert_eq!(metrics.memory_answer_waits_total.get(), 2);
            };
            let gives = async {
                runtime::sleep(Duration::from_millis(5)).await;
                assert!(answers.waiting_anywhere() == 1 && answers.try_hold(0).is_none(), "nobody goes first");
                drop(first);
            };
            zip(waits, gives).await;
            assert_eq!((answers.held(), answers.line.len()), (0, 0));
        };
        runtime::spawn_core(runtime::any_allowed_cpu(), "test", test).unwrap().join().unwrap();
    }
}
