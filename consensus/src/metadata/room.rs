//! Counts the partitions of the cluster and the replicas on each broker, and checks whether brokers have memory for
//! more. No I/O.
//!
//! The counts are updated whenever a topic changes, so the cost of a check does not depend on the number of
//! partitions. A broker registers its limits ([`Broker::replicas_max`], [`Broker::partitions_max`]). They limit
//! only what is created: a broker that is over its limit keeps what it has.

use super::{Broker, Topic};
use crate::generated::metadata::millrace::metadata as fb;
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// Counts of partitions, and of their replicas by broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    partitions: u64,
    /// Brokers without replicas have no entry.
    replicas: BTreeMap<i32, u64>,
}

/// The reason why no more partitions fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// The broker whose memory is the limit.
    pub node: i32,
    /// True: `has`, `wanted` and `takes` count the partitions of the whole cluster, whose metadata each broker
    /// keeps. False: they count the replicas on this broker.
    pub of_cluster: bool,
    /// The number that exists or is being created.
    pub has: u64,
    /// The number that the request adds.
    pub wanted: u64,
    /// The total that the memory of the broker allows.
    pub takes: u64,
}

impl std::error::Error for NoRoom {}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NoRoom { node, of_cluster, has, wanted, takes } = self;
        match of_cluster {
            false => write!(
                f,
                "broker {node} has {has} replicas of partitions (including those being created), {wanted} more are \
                 requested, and its memory takes {takes}; raise memory.budget.bytes of broker {node}, add brokers, or \
                 delete topics"
            ),
            true => write!(
                f,
                "the cluster has {has} partitions (including those being created), {wanted} more are requested, and \
                 the memory of broker {node} takes the metadata of {takes}; raise memory.budget.bytes of broker \
                 {node}, or delete topics"
            ),
        }
    }
}

impl Placed {
    /// Counts new partitions with these replicas.
    pub fn of<'a>(replicas: impl IntoIterator<Item = &'a Vec<i32>>) -> Self {
        let mut placed = Self::default();
        for replicas in replicas {
            placed.partitions += 1;
            for node in replicas {
                *placed.replicas.entry(*node).or_default() += 1;
            }
        }
        placed
    }

    fn of_topic(topic: &Topic) -> Self {
        Self::of(topic.partitions.iter().map(|partition| &partition.replicas))
    }

    pub fn partitions(&self) -> u64 {
        self.partitions
    }

    /// The number of replicas that a broker holds.
    pub fn replicas(&self, node: i32) -> u64 {
        self.replicas.get(&node).copied().unwrap_or(0)
    }

    /// Updates the counts when a topic is created, changed or deleted.
    pub fn replace(&mut self, before: Option<&Topic>, after: Option<&Topic>) {
        if let Some(after) = after {
            self.join(&Self::of_topic(after));
        }
        if let Some(before) = before {
            self.leave(&Self::of_topic(before));
        }
    }

    /// Subtracts counts that were [joined](Placed::join).
    pub fn leave(&mut self, others: &Placed) {
        self.partitions -= others.partitions;
        for (node, replicas) in &others.replicas {
            let left = self.replicas.get_mut(node).expect("its replicas were counted");
            *left -= replicas;
            if *left == 0 {
                self.replicas.remove(node);
            }
        }
    }

    /// Adds the counts of `others`.
    pub fn join(&mut self, others: &Placed) {
        self.partitions += others.partitions;
        for (node, replicas) in &others.replicas {
            *self.replicas.entry(*node).or_default() += replicas;
        }
    }

    /// Checks whether `brokers` have memory for `more` in addition to these counts.
    pub fn check_room<'a>(
        &self,
        brokers: impl IntoIterator<Item = &'a Arc<Broker>>,
        more: &Placed,
    ) -> Result<(), NoRoom> {
        let is_over = |has: u64, wanted: u64, takes: u64| takes > 0 && wanted > 0 && has + wanted > takes;
        for Broker { node, replicas_max, partitions_max, .. } in brokers.into_iter().map(|broker| &**broker) {
            let (has, wanted) = (self.replicas(*node), more.replicas(*node));
            if is_over(has, wanted, *replicas_max) {
                return Err(NoRoom { node: *node, of_cluster: false, has, wanted, takes: *replicas_max });
            }
            let (has, wanted) = (self.partitions, more.partitions);
            if is_over(has, wanted, *partitions_max) {
                return Err(NoRoom { node: *node, of_cluster: true, has, wanted, takes: *partitions_max });
            }
        }
        Ok(())
    }

    /// Like [`Placed::check_room`], but before replicas are chosen: checks whether `nodes` together have memory for
    /// `count` partitions with `factor` replicas each. The error names the fullest of them.
    pub fn check_total<'a>(
        &self,
        brokers: impl IntoIterator<Item = &'a Arc<Broker>>,
        nodes: &[i32],
        count: usize,
        factor: usize,
    ) -> Result<(), NoRoom> {
        let brokers: Vec<&Arc<Broker>> = brokers.into_iter().collect();
        let more = Placed { partitions: count as u64, replicas: BTreeMap::new() };
        self.check_room(brokers.iter().copied(), &more)?;
        let wanted = (count * factor) as u64;
        let mut room = 0u64;
        let mut fullest: Option<(u64, i32, u64)> = None;
        for node in nodes {
            let takes = brokers.iter().find(|broker| broker.node == *node).map_or(0, |broker| broker.replicas_max);
            if takes == 0 {
                return Ok(());
            }
            let left = takes.saturating_sub(self.replicas(*node));
            room += left;
            if fullest.is_none_or(|(least, ..)| left < least) {
                fullest = Some((left, *node, takes));
            }
        }
        match fullest.filter(|_| room < wanted) {
            None => Ok(()),
            Some((_, node, takes)) => {
                let wanted = wanted.div_ceil(nodes.len() as u64);
                Err(NoRoom { node, of_cluster: false, has: self.replicas(node), wanted, takes })
            }
        }
    }
}

pub(super) fn no_room_out<'b>(out: &mut FlatBufferBuilder<'b>, no_room: NoRoom) -> WIPOffset<fb::NoRoom<'b>> {
    let NoRoom { node, of_cluster, has, wanted, takes } = no_room;
    fb::NoRoom::create(out, &fb::NoRoomArgs { node, of_cluster, has, wanted, takes })
}

pub(super) fn no_room_in(no_room: fb::NoRoom<'_>) -> NoRoom {
    NoRoom {
        node: no_room.node(),
        of_cluster: no_room.of_cluster(),
        has: no_room.has(),
        wanted: no_room.wanted(),
        takes: no_room.takes(),
    }
}
