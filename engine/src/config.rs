//! stand-in
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
pub struct Config {
    pub node_id: i32,
    pub data_dir: PathBuf,
    pub kafka_addr: SocketAddr,
    pub auto_create_topics_enable: bool,
    pub num_partitions: i32,
    pub offsets_topic_num_partitions: i32,
    pub socket_request_max_bytes: usize,
    pub queued_max_request_bytes: usize,
    pub fetch_max_bytes: usize,
    pub wal_ring_bytes: u64,
    pub segment_files_max: usize,
}
impl Config {
    pub fn queued_max_request_bytes_per_core(&self, cores: usize) -> usize {
        self.queued_max_request_bytes / cores
    }
    pub fn connections_max_idle(&self) -> Option<Duration> {
        Some(Duration::from_secs(600))
    }
    pub fn retention_check_interval(&self) -> Duration {
        Duration::from_secs(300)
    }
    pub fn advertised(&self, bound: SocketAddr) -> (Arc<str>, u16) {
        (bound.ip().to_string().into(), bound.port())
    }
}
