//! The workloads. `run_once` performs one run of any of them.

pub(crate) mod backlog;
pub(crate) mod commits;
pub(crate) mod consume;
pub(crate) mod end_to_end;
#[cfg(feature = "etcd")]
pub(crate) mod etcd;
pub(crate) mod failover;
pub(crate) mod many_partitions;
pub(crate) mod mesh;
pub(crate) mod metadata;
pub(crate) mod produce;
pub(crate) mod ready_loop;
pub(crate) mod tail;
pub(crate) mod wal_ring;

use crate::error::AnyError;
use crate::options::Workload;
use crate::report::Report;

pub fn run_once(workload: &Workload) -> Result<Report, AnyError> {
    match workload {
        Workload::Produce(options) => produce::run(options),
        Workload::Consume(options) => consume::run(options),
        Workload::EndToEnd(options) => end_to_end::run(options),
        Workload::Metadata(options) => metadata::run(options),
        Workload::ReadyLoop(options) => ready_loop::run(options),
        Workload::Mesh(options) => mesh::run(options),
        Workload::Commits(options) => commits::run(options),
        Workload::ManyPartitions(options) => many_partitions::run(options),
        Workload::Backlog(options) => backlog::run(options),
        Workload::Failover(options) => failover::run(options),
        Workload::Wal(options) => wal_ring::run(options),
        #[cfg(feature = "etcd")]
        Workload::Etcd(options) => etcd::run(options),
        _ => Err("the command is not a single run".into()),
    }
}
