//! What of the memory budget partitions and idempotent producers may have. Pure.
//!
//! Both last: nothing that is done makes them go at once. So they are limited when they come to be: partitions are
//! refused by name (`kafka::room`, `consensus::plane`), producers are forgotten, the longest silent first
//! (`producers_share`). A broker that starts with more than its share serves what it has.

/// Partitions get one part in so many of the budget.
const PARTITIONS_SHARE: u64 = 4;
/// Of that, replicas get three parts in so many, and the metadata of all of the cluster's partitions gets one.
const REPLICAS_SHARE: u64 = 4;
/// Idempotent producers get one part in so many.
const PRODUCERS_SHARE: u64 = 16;

/// What one replica takes on its broker, leader and ready to serve: Raft group, log, state, and its entries in maps.
/// Measured as growth of the resident memory, with 20,000 partitions on 2 cores: 6.6 KiB as it is made, 8.6 KiB after a
/// restart, 12 to 15 KiB once each partition has been written to, with what the allocator wastes.
const REPLICA_BYTES: u64 = 16 << 10;
/// What one partition takes on each broker of the cluster, whoever holds it: in its slice, in what the leader counts,
/// and in the view of each core. Measured as above, with partitions of another broker: 900 bytes where a topic has
/// 10,000, 2,130 where each is a topic of its own with a name of 45 characters, 3,190 where that has three settings
/// too. Of these, 120 to 200 for each core.
const METADATA_BYTES: u64 = 3 << 10;
const VIEW_BYTES: u64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lasting {
    /// Replicas that this broker takes.
    pub replicas_max: u64,
    /// Partitions of the whole cluster whose metadata this broker takes.
    pub partitions_max: u64,
    /// Bytes of idempotent producers that each core remembers.
    pub producers_bytes: u64,
}

impl Lasting {
    pub fn of(memory_per_core: u64, cores: usize) -> Lasting {
        let cores = cores as u64;
        let partitions = memory_per_core * cores / PARTITIONS_SHARE;
        let metadata = partitions / REPLICAS_SHARE;
        Lasting {
            replicas_max: (partitions - metadata) / REPLICA_BYTES,
            partitions_max: metadata / (METADATA_BYTES + VIEW_BYTES * cores),
            producers_bytes: memory_per_core / PRODUCERS_SHARE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_enough_for_partitions_in_proportion() {
        let of = |budget: u64, cores: usize| Lasting::of(budget / cores as u64, cores);
        let least = Lasting { replicas_max: 768, partitions_max: 1260, producers_bytes: 4 << 20 };
        assert_eq!(of(64 << 20, 1), least);
        let small = of(256 << 20, 2);
        assert_eq!((small.replicas_max, small.partitions_max), (3072, 4681));
        let server = of(64 << 30, 16);
        assert_eq!((server.replicas_max, server.partitions_max), (786_432, 599_186));
        for (budget, cores) in [(64 << 20, 1), (64 << 20, 4), (1 << 30, 2), (512 << 30, 128)] {
            let Lasting { replicas_max, partitions_max, producers_bytes } = of(budget, cores);
            let metadata = partitions_max * (METADATA_BYTES + VIEW_BYTES * cores as u64);
            assert!(replicas_max * REPLICA_BYTES + metadata <= budget / PARTITIONS_SHARE);
            assert!(producers_bytes * cores as u64 <= budget / PRODUCERS_SHARE);
            assert!(replicas_max > 500 && partitions_max > 500, "{budget} {cores}");
        }
    }
}
