//! One run of one workload, whatever it is.

use std::error::Error;

use crate::options::Workload;
use crate::report::Report;
use crate::{
    backlog, commits, consume, end_to_end, failover, many_partitions, mesh, metadata, produce, ready_loop, wal_ring,
};

pub fn run_once(workload: &Workload) -> Result<Report, Box<dyn Error>> {
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
        Workload::Etcd(options) => crate::etcd::run(options),
        _ => Err("it is no single run".into()),
    }
}
