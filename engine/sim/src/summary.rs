//! Counts of what runs did, added up.

macro_rules! summary {
    ($($name:ident),* $(,)?) => {
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(super) struct Summary {
            $(pub(super) $name: u64,)*
        }

        impl Summary {
            pub(super) fn add(&mut self, other: &Summary) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

summary! {
    steps, topics, acked, seen, pipelined, retried, given_up, jostled, ring_full, memory_waits, turns, lanes, frames_waited, killed, power_lost, disks_lost, partitions_lost, stopped, paused, cut, disks_ailed, jumped, epochs,
    trimmed, snapshots, rested, groups, generations, fenced, commits, commits_refused, offsets_fetched, topics_deleted, offsets_of_remade,
}
