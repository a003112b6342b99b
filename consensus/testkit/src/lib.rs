//! Tools that tests of several crates share: an allocator that counts, and damaged inputs from a seed.

pub mod allocations;
pub mod damage;
