//! raft-rs logs through slog. This adapter sends its records to `tracing`, so that one filter covers everything.

use slog::{Drain, Level, Logger, OwnedKVList, Record, o};
use std::sync::OnceLock;

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), slog::Never> {
        let message = record.msg();
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{message}"),
            Level::Warning => tracing::warn!(target: "raft", "{message}"),
            // At `info`, every election of every partition would log a line.
            Level::Info | Level::Debug => tracing::debug!(target: "raft", "{message}"),
            Level::Trace => tracing::trace!(target: "raft", "{message}"),
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        match level {
            Level::Critical | Level::Error | Level::Warning => true,
            _ => tracing::enabled!(target: "raft", tracing::Level::DEBUG),
        }
    }
}

/// One logger for all groups.
pub(crate) fn logger() -> &'static Logger {
    static LOGGER: OnceLock<Logger> = OnceLock::new();
    LOGGER.get_or_init(|| Logger::root(ToTracing.fuse(), o!()))
}
