//! The brokers under a run: their program, those that the harness starts itself, and what they tell of themselves.

pub(crate) mod binary;
pub(crate) mod local;
pub(crate) mod orphans;
pub(crate) mod scrape;
pub(crate) mod tool;
