//! Counts the partitions that lack a leader or a replica in sync, for the metrics.
//! Lives on: the owning core only.
//!
//! A partition counts itself again whenever its leader or its in-sync replicas change, so no walk is needed.

use super::{Partition, host::Host};
use crate::metrics::CoreMetrics;
use std::rc::Rc;

/// One partition's part in the core's metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    /// This replica knows no leader.
    leaderless: bool,
    /// This replica leads, and another one is not in sync.
    under_replicated: bool,
}

impl Partition {
    /// Updates the core's counts after a change of leader or in-sync replicas.
    pub(super) fn count_health(&self, core: &Rc<impl Host>) {
        if self.replica.is_closed() {
            return;
        }
        // The caller may be changing the partition's state, so this does not look at it.
        let leads = self.established.get() && self.replica.with(|raft| raft.is_leader());
        let is_short = || self.in_sync.borrow().len() < self.replicas.borrow().len();
        self.set_health(
            core.metrics(),
            Health { leaderless: self.told.get().is_none(), under_replicated: leads && is_short() },
        );
    }

    /// Removes this partition from the core's counts: its replica is closed, or its storage has failed.
    pub fn stop_counting_health(&self, metrics: &CoreMetrics) {
        self.set_health(metrics, Health::default());
    }

    fn set_health(&self, metrics: &CoreMetrics, now: Health) {
        let before = self.health.replace(now);
        let leaderless = metrics.partitions_leaderless.get();
        metrics.partitions_leaderless.set(step(leaderless, before.leaderless, now.leaderless));
        let short = metrics.partitions_under_replicated.get();
        metrics.partitions_under_replicated.set(step(short, before.under_replicated, now.under_replicated));
    }
}

fn step(count: u64, before: bool, now: bool) -> u64 {
    count + u64::from(now) - u64::from(before)
}
