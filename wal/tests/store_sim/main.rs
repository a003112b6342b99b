//! The whole store (ring, segments, checkpoints, snapshots, manifest) on the simulated disk.

mod cores;
mod crash;
mod faults;
mod harness;
mod reads;
mod syncs;
