//! The ring on the simulated disk.

mod faults;
mod format;
mod harness;
mod model;
mod room;
mod sim;
mod table;
mod tail;
