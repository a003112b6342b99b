//! The machine under a run: its description, the load of its CPUs, and its limits.

pub(crate) mod ceiling;
pub(crate) mod cpu_load;
pub(crate) mod environment;
