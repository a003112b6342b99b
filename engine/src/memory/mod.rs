//! The memory that clients make a core hold, each kind within a share of `memory.budget.bytes`.
//! Lives on: every core, one [`Memory`] each. The cores share the sums of answers.
//!
//! | module | contents |
//! |---|---|
//! | `lasting` | partitions and producers, which stay until they are deleted or evicted |
//! | `group_state` | consumer groups, which stay until they are deleted or expire |
//! | `requests` | requests being received or in progress: a core does not read what it has no room for |
//! | `answers` | answers, from the reading of their records until the client's side has taken them |
//!
//! A request or an answer without room waits in a line. If others wait, a connection that holds memory and stalls
//! is closed: see [`crate::connection`].

mod answers;
mod group_state;
mod lasting;
mod requests;

use answers::Accounts;
pub use answers::{ALONE_BYTES_MAX, Answers, Budget, Held};
pub use group_state::{GroupBytes, GroupState};
pub use lasting::Lasting;
pub use requests::{FREE_BYTES, FREE_DECODED_BYTES, Requests, Reservation};

use std::sync::Arc;
use types::CoreId;

/// One core's share for each use. With the shares of partitions and idempotent producers, they make up the whole
/// budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// The newest records in memory, flushed or not.
    pub log: u64,
    /// The part of `log` that may be kept for tailing consumers.
    pub cache: u64,
    pub read_ahead: u64,
    pub indexes: u64,
    /// State that checkpoints carry.
    pub carried: u64,
    /// Consumer groups.
    pub group_state: usize,
    pub requests: usize,
    pub answers: usize,
}

impl Shares {
    pub fn of(per_core_bytes: u64) -> Self {
        let part = |parts: u64| per_core_bytes / parts;
        Self {
            log: part(4) + part(32),
            cache: part(4),
            read_ahead: part(32),
            indexes: part(32),
            carried: part(32),
            group_state: part(16) as usize,
            requests: part(8) as usize,
            answers: part(8) as usize,
        }
    }
}

/// The shares, and the accounts that all cores see.
pub struct Broker {
    pub shares: Shares,
    answers: Arc<Accounts>,
    cold_answers: Arc<Accounts>,
}

impl Broker {
    pub fn new(per_core_bytes: u64, cores: usize) -> Arc<Self> {
        let shares = Shares::of(per_core_bytes);
        let accounts = || Accounts::new(cores, shares.answers / 2);
        Arc::new(Self { shares, answers: accounts(), cold_answers: accounts() })
    }
}

/// One core's accounts.
pub struct Memory {
    pub group_state: GroupState,
    pub requests: Requests,
    /// For records in memory, and for metadata.
    pub answers: Answers,
    /// For records that are read from the disk.
    pub cold_answers: Answers,
}

impl Memory {
    /// `queued_max`: this core's part of `queued.max.request.bytes`.
    pub fn new(broker: &Broker, core: CoreId, queued_max: usize) -> Self {
        Self {
            group_state: GroupState::new(broker.shares.group_state),
            requests: Requests::new(broker.shares.requests.min(queued_max)),
            answers: Answers::new(broker.answers.clone(), core),
            cold_answers: Answers::new(broker.cold_answers.clone(), core),
        }
    }

    /// Answers on all cores that wait for memory which others may hold unread.
    pub fn answers_waiting(&self) -> usize {
        self.answers.waiting_anywhere() + self.cold_answers.waiting_anywhere()
    }

    /// Whether answers wait, or hold so much on some core that others may soon wait. An answer may wait although less
    /// than half is held, since it needs up to a quarter, and what is read beyond it.
    pub fn answers_are_short(&self) -> bool {
        self.answers_waiting() > 0 || self.answers.is_half_full() || self.cold_answers.is_half_full()
    }

    /// Most bytes of all answers of one core.
    pub fn answers_max(&self) -> usize {
        self.answers.max() + self.cold_answers.max()
    }

    /// Whether requests or answers wait, or may soon.
    pub fn is_short(&self) -> bool {
        self.requests.waiting() > 0 || self.requests.is_half_full() || self.answers_are_short()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_leave_room_for_partitions_and_producers() {
        for per_core in [16 << 20, 128 << 20, 6 << 30_u64] {
            let shares = Shares::of(per_core);
            // See `Lasting`.
            let (partitions, producers) = (per_core / 4, per_core / 16);
            let all = shares.log
                + shares.read_ahead
                + shares.indexes
                + shares.carried
                + (shares.requests + shares.answers + shares.group_state) as u64
                + partitions
                + producers;
            assert_eq!(all, per_core);
            assert!(shares.cache < shares.log);
        }
    }
}
