//! Promises about bytes that come from other brokers and from tools. Each function takes any bytes and panics if a
//! promise is broken. The programs in `fuzz_targets` call them with what a fuzzer invents, and `bounded` with
//! damaged inputs.

pub mod entries;
pub mod wire;
