//! What tests share: an allocator that counts, and random valid requests made from the schemas.

pub mod allocations;
pub mod generate;
