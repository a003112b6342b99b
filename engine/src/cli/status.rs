//! The exit statuses of `millrace`: one table, from which `--help` and deploy/docs/operating.md list them.

use std::{fmt::Write as _, io};

use crate::{
    admin::AdminError,
    broker::BrokerError,
    cli::{client::CommandError, wal::DumpError},
    cluster::bootstrap::BootstrapError,
    config::ConfigError,
    serve::ServeError,
    start_error::StartError,
    stdout::StdoutError,
};
use net::transport::listen::BindError;

macro_rules! statuses {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal;)*) => {
        /// The exit status of the program.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Status {
            $($(#[doc = $doc])+ $name = $code,)*
        }

        /// All statuses, each with its meaning.
        pub const STATUSES: &[(Status, &str)] = &[$((Status::$name, concat!($($doc),+)),)*];
    };
}

statuses! {
    /// The command succeeded, or a signal stopped the broker.
    Done = 0;
    /// Any other failure; the message says which.
    Failed = 1;
    /// The command line or a setting is invalid.
    Refused = 2;
    /// The data directory is damaged. No restart helps.
    Damaged = 3;
    /// Another version wrote the data directory. The message names it.
    OtherVersion = 4;
    /// An address to listen on is in use.
    AddressInUse = 5;
    /// The system grants too little: no io_uring, or too few CPUs, files or memory.
    Limits = 6;
}

/// The statuses as `--help` lists them.
pub fn help() -> String {
    let mut out = String::from("Exit status:\n");
    for (status, meaning) in STATUSES {
        // Writing to a string does not fail.
        let _ = writeln!(out, "  {}  {}", *status as u8, meaning.trim());
    }
    out
}

/// The statuses in deploy/docs/operating.md, between their two markers.
pub fn markdown() -> String {
    let mut out = String::from("| Status | Meaning |\n|---|---|\n");
    for (status, meaning) in STATUSES {
        // Writing to a string does not fail.
        let _ = writeln!(out, "| {} | {} |", *status as u8, meaning.trim());
    }
    out
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error(transparent)]
    Stdout(#[from] StdoutError),
}

impl Failure {
    pub fn status(&self) -> Status {
        match self {
            Self::Config(_) => Status::Refused,
            Self::Serve(error) => of_serve(error),
            Self::Command(_) | Self::Stdout(_) => Status::Failed,
            Self::Dump(error) => of_dump(error),
        }
    }
}

fn of_serve(error: &ServeError) -> Status {
    match error {
        ServeError::Conflict(_) | ServeError::Secret(_) => Status::Refused,
        ServeError::Cpus(_) | ServeError::Limits(_) | ServeError::Uring(_) => Status::Limits,
        ServeError::Admin(AdminError::InUse { .. }) => Status::AddressInUse,
        ServeError::Broker(error) => of_broker(error),
        ServeError::Admin(_) | ServeError::DataDir(_) | ServeError::Signals(_) | ServeError::Stdout(_) => {
            Status::Failed
        }
    }
}

fn of_broker(error: &BrokerError) -> Status {
    match error {
        BrokerError::Secret(_) => Status::Refused,
        BrokerError::Bind { source: BindError::InUse { .. }, .. } => Status::AddressInUse,
        BrokerError::Bootstrap(BootstrapError::Listen { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {
            Status::AddressInUse
        }
        BrokerError::Core { why, .. } | BrokerError::DataDir(why) => of_start(why),
        BrokerError::Bind { .. } | BrokerError::Bootstrap(_) | BrokerError::Io(_) => Status::Failed,
    }
}

fn of_start(error: &StartError) -> Status {
    match error {
        error if error.is_damage() => Status::Damaged,
        error if error.is_other_version() => Status::OtherVersion,
        _ => Status::Failed,
    }
}

fn of_dump(error: &DumpError) -> Status {
    match error {
        DumpError::Damaged(_) => Status::Damaged,
        DumpError::Newer(_) => Status::OtherVersion,
        _ => Status::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meanings_are_sentences_that_fit_on_a_line() {
        for (status, meaning) in STATUSES {
            assert!(meaning.ends_with('.') && meaning.len() < 100, "{status:?}: {meaning}");
        }
    }
}
