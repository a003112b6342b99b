//! The memory that clients make a core hold, each kind within a share of `memory.budget.bytes`.
//! Lives on: every core, one [`Memory`] each. The sums of answers are shared between the cores.
//!
//! | module | is |
//! |---|---|
//! | `lasting` | partitions and producers, which do not go by themselves |
//! | `requests` | requests that are received or in progress: what a core does not have room for, it does not read |
//! | `answers` | answers from the reading of their records until the client's side has taken them |
//!
//! Whoever lacks room waits in a line. Whoever holds it and does not move, while others wait, is closed: see [`crate::connection`].

mod answers;
mod lasting;
mod requests;

use answers::Accounts;
pub use answers::{Answers, Held};
pub use lasting::Lasting;
pub use requests::{FREE_BYTES, Requests, Reservation};

use crate::core::CoreId;
use std::sync::Arc;

/// What one core may use for what. Together with the shares of partitions and producer ids, these are the whole budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// The newest records in memory, flushed or not.
    pub log: u64,
    /// What of those may be kept for tailing consumers.
    pub cache: u64,
    pub read_ahead: u64,
    pub indexes: u64,
    /// What checkpoints carry.
    pub carried: u64,
    pub requests: usize,
    pub answers: usize,
}

impl Shares {
    pub fn of(per_core_bytes: u64) -> Self {
        let part = |parts: u64| per_core_bytes / parts;
        Self {
            log: part(4) + part(16),
            cache: part(4),
            read_ahead: part(32),
            indexes: part(32),
            carried: part(16),
            requests: part(8) as usize,
            answers: part(8) as usize,
        }
    }
}

/// What all cores know of each other's accounts.
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
    pub requests: Requests,
    /// Of records that are in memory, and of metadata.
    pub answers: Answers,
    /// Of records that are read from the disk.
    pub cold_answers: Answers,
}

impl Memory {
    /// `queued_max`: this core's part of `queued.max.request.bytes`.
    pub fn new(broker: &Broker, core: CoreId, queued_max: usize) -> Self {
        Self {
            requests: Requests::new(broker.shares.requests.min(queued_max)),
            answers: Answers::new(broker.answers.clone(), core),
            cold_answers: Answers::new(broker.cold_answers.clone(), core),
        }
    }

    /// Answers that wait for memory which others may hold unread, on all cores.
    pub fn answers_waiting(&self) -> usize {
        self.answers.waiting_anywhere() + self.cold_answers.waiting_anywhere()
    }

    /// Bytes of all answers of one core, at most.
    pub fn answers_max(&self) -> usize {
        self.answers.max() + self.cold_answers.max()
    }

    /// Whether so much is held that somebody may soon wait.
    pub fn is_half_full(&self) -> bool {
        self.requests.is_half_full() || self.answers.is_half_full() || self.cold_answers.is_half_full()
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
                + (shares.requests + shares.answers) as u64
                + partitions
                + producers;
            assert_eq!(all, per_core);
            assert!(shares.cache < shares.log);
        }
    }
}
