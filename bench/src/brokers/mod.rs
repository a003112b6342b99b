//! The brokers under a run: how to find their program, start them, query them and read their metrics.

pub(crate) mod binary;
pub(crate) mod local;
pub(crate) mod orphans;
pub(crate) mod scrape;
pub(crate) mod tool;
