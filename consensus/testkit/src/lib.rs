//! Tools that tests of several crates share: an allocator that counts, damaged inputs from a seed, and scripts with
//! their traces.

pub mod allocations;
pub mod damage;
pub mod script;
