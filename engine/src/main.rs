use engine::{broker::Broker, config::Config, cpus::CorePlan, metrics::Metrics};
use std::sync::Arc;
fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    std::panic::set_hook(Box::new(|i| {
        eprintln!("{i}\n{}", std::backtrace::Backtrace::force_capture());
        std::process::abort()
    }));
    let data_dir: std::path::PathBuf = std::env::args().nth(1).unwrap_or("./millrace-data".into()).into();
    let cpus = std::env::args().nth(2).unwrap_or("0,1".into()).split(',').map(|c| c.parse().unwrap()).collect();
    std::fs::create_dir_all(&data_dir).unwrap();
    let config = Config {
        node_id: 1,
        data_dir,
        kafka_addr: "127.0.0.1:9092".parse().unwrap(),
        auto_create_topics_enable: true,
        num_partitions: 1,
        offsets_topic_num_partitions: 8,
        socket_request_max_bytes: 100 << 20,
        queued_max_request_bytes: 256 << 20,
        fetch_max_bytes: 55 << 20,
        wal_ring_bytes: 512 << 20,
        segment_files_max: 8000,
    };
    let b = Broker::start(Arc::new(config), &CorePlan { cpus }, 512 << 20, Arc::new(Metrics)).unwrap();
    println!("listening {}", b.kafka_addr());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    b.stop().unwrap();
}
