//! Sockets: listening, and connections that carry frames.

pub mod conn;
pub mod listen;
