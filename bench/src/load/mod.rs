//! The parts of a load: the schedule, record sizes, batches, connections and statistics.

pub(crate) mod batcher;
pub(crate) mod connection;
pub(crate) mod fetcher;
pub(crate) mod ops;
pub(crate) mod schedule;
pub(crate) mod setup;
pub(crate) mod sizes;
pub(crate) mod stats;
pub(crate) mod tail;
