//! The error of a run as a whole.

use std::error::Error;

/// Any error that ends a run. Nobody distinguishes its kinds: `main` prints it and its causes. It may come from another
/// thread.
pub type AnyError = Box<dyn Error + Send + Sync>;
