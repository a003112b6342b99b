//! Scripts with their traces in `testdata`, tests of the log's format, and a random simulation.

mod memory;
mod records;
mod rules;
mod script;
mod simulation;
mod world;
