//! The ring on the simulated disk.

mod faults;
mod harness;
mod model;
