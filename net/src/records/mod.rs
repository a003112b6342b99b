//! Record batches: layout, checks, compression, and iteration over their records.

pub mod batch;
pub mod build;
pub mod compression;
mod error;
mod header;
pub mod record;
pub mod scan;
pub(crate) mod unfold;
