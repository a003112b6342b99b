//! Record batches: their form, checks, compression, and a walk through their records.

pub mod batch;
pub mod build;
pub mod compression;
pub mod record;
pub mod scan;
pub(crate) mod unfold;
