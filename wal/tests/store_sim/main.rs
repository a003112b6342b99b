//! The whole store (ring, segments, checkpoints, snapshots, manifest) on the simulated disk.

mod crash;
mod harness;
