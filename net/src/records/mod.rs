//! Record batches: layout, checks, compression, and iteration over their records.

pub mod batch;
pub mod build;
pub mod compression;
pub mod record;
pub mod scan;
pub(crate) mod unfold;
