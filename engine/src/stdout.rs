//! The output of a command.
//! Lives on: the main thread.

use std::io::{self, Write as _};

#[derive(Debug, thiserror::Error)]
#[error("cannot write to stdout: {0}")]
pub struct StdoutError(io::Error);

/// Prints to stdout. A closed pipe (`| head`) is no error.
pub fn print(text: &str) -> Result<(), StdoutError> {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(StdoutError(error)),
        _ => Ok(()),
    }
}
