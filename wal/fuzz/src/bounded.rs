//! Runs the functions of the fuzz targets on valid inputs and on damaged ones. `FUZZ_SEEDS` sets the number of
//! damaged inputs.

mod checkpoint;
mod corpus;
mod ring;
mod segments;

use testkit::damage;

#[test]
fn writes_of_the_ring_are_read_or_refused() {
    damage::run(&corpus::writes(), ring::ring);
}

#[test]
fn frames_of_segments_are_read_or_refused() {
    damage::run(&corpus::frames(), segments::segment);
}

#[test]
fn indexes_are_read_or_refused() {
    damage::run(&corpus::indexes(), segments::index);
}

#[test]
fn checkpoints_are_read_or_refused() {
    damage::run(&corpus::checkpoints(), checkpoint::checkpoint);
}
