//! Shared by tests: random valid messages made from the schemas.

pub mod generate;
