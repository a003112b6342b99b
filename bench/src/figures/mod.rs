//! The figures of a run: counts, latencies, and samples over time.

pub(crate) mod stats;
