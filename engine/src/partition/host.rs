//! The host of a partition: the core that it lives on. A partition knows nothing else of its core.
//! Lives on: the owning core only.
//!
//! The broker's core is one host. A test may be another, with a store of its own and no other brokers.

use super::{
    Led, Partition,
    admission::Admission,
    producers::share::ProducersShare,
    replica::{ReadyLoop, Replicated},
};
use crate::{host::disk::Store, log_limit::LogLimit, on_core::OnCore, pace::Pace};
use consensus::{
    group::{Unfit, Unreadable},
    wire::PeerMessage,
};
use net::peer::Lane;
use std::{rc::Rc, time::Duration};
use types::GroupId;

/// Producers to look at before a walk through all partitions yields. A partition is never split.
const PRODUCERS_A_TURN: usize = 4096;
/// A partition takes as long as this many producers.
const PARTITION_IN_PRODUCERS: usize = 64;

/// The parts of a core that its partitions share.
pub trait Parts: OnCore {
    fn store(&self) -> &Store;
    fn ready_loop(&self) -> &ReadyLoop<Self>;
    fn admission(&self) -> &Admission;
    /// Grants turns to read for lagging replicas.
    fn pace(&self) -> &Pace;
    fn producers_share(&self) -> &ProducersShare;
    /// Limits the lines that reads and other replicas can cause.
    fn partition_log(&self) -> &Rc<LogLimit>;
    fn partition(&self, group: GroupId) -> Option<Rc<Partition>>;
    /// The first partition with this group id or a larger one.
    fn partition_from(&self, group: GroupId) -> Option<Rc<Partition>>;
    /// The replica behind a group: a partition's, or that of the metadata.
    fn group(&self, group: GroupId) -> Option<Rc<dyn Replicated<Self>>>;
    /// Bytes of the largest entry that every broker's ring takes.
    fn largest_entry(&self) -> usize;
}

/// The timers of groups, and which brokers are alive.
pub trait Liveness {
    /// Something happened in a group, so its timers must run.
    fn wake_timers(&self, group: GroupId);
    /// A group's timers may stand still.
    fn stop_timers(&self, group: GroupId);
    /// A planted bug: a resting group ignores brokers that come and go.
    fn sleeps_on(&self, group: GroupId) -> bool;
    /// How long this core has run. Pauses do not count.
    fn ran_for(&self) -> Duration;
    /// Whether the broker's core that has the group's replica is alive.
    fn is_there(&self, group: GroupId, node: i32) -> bool;
    /// Whether that core is alive and healthy, so that it may be asked to lead.
    fn can_lead(&self, group: GroupId, node: i32) -> bool;
    /// Whether this core can lead as well as any other.
    fn is_well(&self) -> bool;
}

/// The way to the other brokers.
pub trait Way {
    fn send_on(&self, lane: Lane, to: u64, message: PeerMessage);
    /// Waits until the bulk lane has room.
    fn bulk_room(&self) -> impl Future<Output = ()>;
    /// Whether there is a connection to this peer.
    fn has_peer(&self, peer: u64) -> bool;
    /// The broker's current peer id, by the metadata.
    fn peer_of(&self, node: i32) -> Option<u64>;
    /// Counts and logs a dropped message that no replica of the group can have sent.
    fn refused(&self, group: GroupId, from: u64, unfit: &Unfit);
}

/// A core hears of what happens to its replicas.
pub trait Events<H> {
    /// The node that leads a partition, as far as this broker knows.
    fn leader_of(&self, group: GroupId) -> Option<i32>;
    /// The leader of a partition has changed, or its replicas in sync. [`Events::tell_leaders`] follows.
    fn announce_leader(self: &Rc<Self>, led: Led);
    /// The ready loop's turn is over: the other cores may learn of the changes.
    fn tell_leaders(self: &Rc<Self>);
    /// This replica leads no more.
    fn resigned(&self, group: GroupId);
    /// This core's storage has failed.
    fn storage_failed(&self, why: &str);
    /// A group cannot apply a committed entry, and has stopped.
    fn group_stopped(&self, group: &dyn Replicated<H>, why: &Unreadable);
}

/// A core, as its partitions see it.
pub trait Host: Parts + Liveness + Way + Events<Self> {}

impl<H: Parts + Liveness + Way + Events<H>> Host for H {}

/// Calls `each` for each partition of this core, and yields in between.
pub async fn in_turns(core: &Rc<impl Host>, mut each: impl FnMut(&Rc<Partition>)) {
    in_turns_while(core, |partition| {
        each(partition);
        true
    })
    .await;
}

/// The same, until it returns `false`.
pub async fn in_turns_while(core: &Rc<impl Host>, mut each: impl FnMut(&Rc<Partition>) -> bool) {
    let (mut turns, mut looked_at, mut next) = (runtime::Turns::begin(), 0, GroupId(0));
    while let Some(partition) = core.partition_from(next) {
        next = GroupId(partition.group().0 + 1);
        looked_at += PARTITION_IN_PRODUCERS + partition.with_producers(|producers| producers.remembered());
        if !each(&partition) {
            return;
        }
        if looked_at >= PRODUCERS_A_TURN {
            looked_at = 0;
            turns.give_way().await;
        }
    }
}
