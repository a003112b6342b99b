//! Promises about bytes that a disk gives back. Each function takes any bytes and panics if a promise is broken.
//! The programs in `fuzz_targets` call them with what a fuzzer invents, and `bounded` with damaged inputs.
//!
//! Random damage hardly ever passes a checksum. So each function also decodes its input with the right checksum put in.

pub mod checkpoint;
pub mod ring;
pub mod segments;
