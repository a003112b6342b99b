//! The parts of a load: the schedule, batches and connections.

pub(crate) mod batcher;
pub(crate) mod connection;
pub(crate) mod error;
pub(crate) mod fetcher;
pub(crate) mod ops;
pub(crate) mod schedule;
pub(crate) mod setup;
pub(crate) mod window;
