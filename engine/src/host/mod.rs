//! The machine under the broker: CPUs, limits, the data directory, and what the broker prints about them at start.

pub mod banner;
pub mod bind;
pub mod cgroup;
pub mod cpus;
pub mod data_dir;
pub mod disk;
pub mod limits;
pub mod logging;
pub mod machine;
