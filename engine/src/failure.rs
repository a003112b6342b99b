//! The output of a command, and its failures.
//! Lives on: the main thread.

use crate::config::ConfigError;
use std::io::{self, Write as _};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// An invalid setting. Exits with 2, as an invalid command line does.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory is damaged, so that no restart helps. Exits with 3.
    #[error("{0}")]
    Damaged(String),
    /// Any other failure. Exits with 1.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    pub fn other(error: impl ToString) -> Failure {
        Failure::Other(error.to_string())
    }
}

/// Prints to stdout. A closed pipe (`| head`) is no error.
pub fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::other(format!("cannot write to stdout: {e}"))),
        _ => Ok(()),
    }
}
