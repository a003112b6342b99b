//! What a load is made of: when records are sent, how large they are, the connections that carry them, and what is counted.

pub(crate) mod batcher;
pub(crate) mod connection;
pub(crate) mod fetcher;
pub(crate) mod ops;
pub(crate) mod schedule;
pub(crate) mod setup;
pub(crate) mod sizes;
pub(crate) mod stats;
pub(crate) mod tail;
