//! The whole store (ring, segments, checkpoints, snapshots, manifest) on the simulated disk.

mod ages;
mod carried;
mod cores;
mod counts;
mod crash;
mod faults;
mod harness;
mod kept;
mod life;
mod memory;
mod model;
mod reads;
mod syncs;
mod verify;
