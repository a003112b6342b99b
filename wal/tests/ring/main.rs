//! The ring on the simulated disk.

mod harness;
mod model;
