//! The parts of the memory budget for partitions and for idempotent producers. Pure.
//!
//! Both last: they can't be freed at once when memory is short. So they are limited when they are created. New
//! partitions are rejected with an error that names the limit (`handlers::topics::room`, `consensus::plane`). Idle
//! producers are evicted, the longest idle first (`partition::producers::share`). A broker that starts with more
//! than its share serves all that it has.

/// Partitions get one `PARTITIONS_SHARE`-th of the budget.
const PARTITIONS_SHARE: u64 = 4;
/// The metadata of all of the cluster's partitions gets one `REPLICAS_SHARE`-th of that. Replicas get the rest.
const REPLICAS_SHARE: u64 = 4;
/// Idempotent producers get one `PRODUCERS_SHARE`-th of the budget.
const PRODUCERS_SHARE: u64 = 16;

/// Memory of one replica on its broker, as a leader ready to serve: Raft group, log, state, and its entries in
/// maps. Measured as growth of the resident memory, with 20,000 partitions on 2 cores. New replicas take 6.6 KiB,
/// and 8.6 KiB after a restart. After a write to each partition it is 12 to 15 KiB, including the allocator's
/// waste.
const REPLICA_BYTES: u64 = 16 << 10;
/// Memory of one partition on each broker of the cluster, wherever its replicas are: in its slice, in the leader's
/// counts, and in each core's view. Measured as above, with partitions of another broker. A partition takes 900
/// bytes in a topic with 10,000 partitions. It takes 2,130 in a topic of its own with a name of 45 characters, and
/// 3,190 with three settings as well. These include 120 to 200 bytes for each core.
const METADATA_BYTES: u64 = 3 << 10;
const VIEW_BYTES: u64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lasting {
    /// Most replicas that this broker takes.
    pub replicas_max: u64,
    /// Most partitions of the whole cluster whose metadata this broker takes.
    pub partitions_max: u64,
    /// Most bytes of idempotent producers that each core remembers.
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
