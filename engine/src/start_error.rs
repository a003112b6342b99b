//! Why a core, or the work before the cores, does not start.

use wal::store::OpenError;

/// Tells an operator what to do about a damaged data directory.
const REMEDY: &str = "the broker does not start with this data directory, now or later; if other brokers hold what it \
                      holds, move it away and start with an empty one; see \"A data directory is damaged\" in \
                      deploy/docs/operating.md";

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The disk holds something else than was written to it. No restart helps.
    #[error("damaged: {0}; {REMEDY}")]
    Damaged(String),
    #[error("{0}")]
    Other(String),
}

impl StartError {
    pub fn other(error: impl ToString) -> Self {
        Self::Other(error.to_string())
    }

    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_))
    }
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Damaged(what) => Self::Damaged(what),
            other => Self::other(other),
        }
    }
}
