//! Shared by tests: an allocator that counts, and random valid messages made from the schemas.

pub mod allocations;
pub mod generate;
