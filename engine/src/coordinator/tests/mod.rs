//! Scripts, whose traces are in `testdata`; the log's format; a random simulation.

mod records;
mod rules;
mod script;
mod simulation;
mod world;
