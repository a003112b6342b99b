//! Runs the functions of the fuzz targets on valid inputs and on damaged ones. `FUZZ_SEEDS` sets the number of
//! damaged inputs.

mod corpus;
mod peer;
mod records;
mod requests;

use testkit::damage;

#[test]
fn requests_are_decoded_or_refused() {
    damage::run(&corpus::requests(), requests::request);
}

#[test]
fn frames_come_out_whole() {
    damage::run(&corpus::streams(), requests::frames);
}

#[test]
fn batches_are_stored_whole_or_refused() {
    damage::run(&corpus::batches(), records::records);
}

#[test]
fn strangers_are_not_let_in() {
    damage::run(&corpus::handshakes(), peer::peer);
}
