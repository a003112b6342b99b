//! The store's callbacks to its core, and the handling of failed storage.

use super::Core;
use crate::partition::{host::Parts as _, replica::Replicated};
use consensus::group::Unreadable;
use runtime::clock;
use std::{pin::Pin, time::Duration};
use types::{GroupId, META_GROUP};
use wal::store::{AppState, FlushHost};

/// Pause between large writes of a flush while the ring has room.
const BREATH: Duration = Duration::from_millis(5);

/// The first and the longest pause before a failed flush is retried.
const FLUSH_RETRY_MIN: Duration = Duration::from_millis(50);
const FLUSH_RETRY_MAX: Duration = Duration::from_secs(5);

impl Core {
    pub fn has_failed(&self) -> bool {
        self.failed.borrow().is_some()
    }

    /// Whether the last flush found no room on the disk. The core still serves while its ring has room, but other
    /// brokers are better leaders.
    pub fn has_full_disk(&self) -> bool {
        self.disk_full.get()
    }

    /// Waits until the last flush found no room on the disk.
    pub async fn until_disk_is_full(&self) {
        while !self.disk_full.get() {
            self.disk_filled.next().await;
        }
    }

    /// The ring or a segment of this core can't be trusted any more, so the core acknowledges nothing more.
    pub fn storage_failed(&self, why: &str) {
        if self.failed.borrow().is_some() {
            return;
        }
        tracing::error!(
            core = self.id().0,
            why,
            "storage failed: this core acknowledges nothing more until the broker is restarted"
        );
        *self.failed.borrow_mut() = Some(why.to_owned());
        self.metrics.storage_failed.set(1);
        for partition in self.partitions() {
            partition.fail();
            partition.stop_counting_health(&self.metrics);
        }
        self.coordinators.resign_all();
        if let Some(meta) = self.meta.get() {
            meta.fail();
            self.metrics.metadata_leads.set(0);
            self.metrics.stopped.add(META_GROUP, format!("the metadata: the storage of core 0 failed: {why}"));
        }
    }
}

impl Core {
    /// Whether a group's replica here has stopped at an entry that it can't apply.
    pub fn has_stopped(&self, group: GroupId) -> bool {
        self.group(group).is_some_and(|group| group.replica().with(|raft| raft.unreadable().is_some()))
    }

    /// A group has stopped at a committed entry that it can't apply. Other groups go on.
    pub fn group_stopped(&self, group: &dyn Replicated<Self>, unreadable: &Unreadable) {
        let id = group.replica().id();
        let name = match (id == META_GROUP, self.partition(id)) {
            (true, _) => "the metadata".to_owned(),
            (false, Some(partition)) => format!("partition {}", partition.name),
            (false, None) => "a partition".to_owned(),
        };
        let notice = format!("{name}: {unreadable}; see \"A group has stopped\" in deploy/docs/operating.md");
        tracing::error!(core = self.id().0, group = id.0, index = %unreadable.index, "{notice}");
        self.metrics.groups_stopped.set(self.metrics.groups_stopped.get() + 1);
        self.metrics.stopped.add(id, notice);
        group.storage_failed();
        if let Some(partition) = self.partition(id) {
            partition.stop_counting_health(&self.metrics);
        }
        self.view_changed.notify();
        self.groups.stop_timers(id);
        self.coordinators.resign(id);
        if id == META_GROUP {
            self.metrics.metadata_leads.set(0);
        }
    }
}

impl FlushHost for Core {
    fn wall_ms(&self) -> i64 {
        clock::wall_ms()
    }

    fn give_way(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(runtime::give_way())
    }

    fn breathe(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(runtime::sleep(BREATH))
    }

    fn app_state(&self, group: GroupId) -> Option<AppState> {
        self.partition(group).map(|partition| partition.app_state())
    }

    fn back_off(&self, attempt: u32) -> Pin<Box<dyn Future<Output = ()>>> {
        let pause = FLUSH_RETRY_MIN.saturating_mul(1 << attempt.clamp(1, 7)).min(FLUSH_RETRY_MAX);
        Box::pin(runtime::sleep(pause))
    }

    fn flush_failed(&self, why: &str) {
        self.disk_full.set(true);
        self.disk_filled.notify();
        self.metrics.disk_full.set(1);
        tracing::warn!(core = self.id().0, why, "cannot flush to segment files; other brokers should lead; retrying");
    }

    fn flushed(&self) {
        if self.disk_full.replace(false) {
            self.metrics.disk_full.set(0);
            tracing::info!(core = self.id().0, "the disk has room for segment files again");
        }
    }
}
