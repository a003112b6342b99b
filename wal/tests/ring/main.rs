//! The ring on the simulated disk.

mod faults;
mod format;
mod harness;
mod model;
mod sim;
mod table;
mod tail;
