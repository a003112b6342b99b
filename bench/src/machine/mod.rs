//! The machine under a run: where it was made, how busy its CPUs were, what it allows.

pub(crate) mod ceiling;
pub(crate) mod clock;
pub(crate) mod cpu_load;
pub(crate) mod environment;
