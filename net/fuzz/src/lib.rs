//! Promises about bytes that come from a network. Each function takes any bytes and panics if a promise is broken.
//! The programs in `fuzz_targets` call them with what a fuzzer invents, and `bounded` with damaged inputs.

pub mod peer;
pub mod records;
pub mod requests;
