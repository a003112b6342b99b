use engine::{
    broker::Broker,
    cgroup::Cgroups,
    config_layers::{self, FlagValue},
    cpus,
    metrics::Metrics,
};
use std::sync::Arc;
fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    std::panic::set_hook(Box::new(|i| {
        eprintln!("{i}\n{}", std::backtrace::Backtrace::force_capture());
        std::process::abort()
    }));
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flags: Vec<FlagValue> = args
        .chunks(2)
        .map(|c| FlagValue {
            name: c[0].trim_start_matches("--").replace('-', "."),
            value: c[1].clone(),
            flag: c[0].clone(),
        })
        .collect();
    let config = config_layers::load(None, std::env::vars(), &flags).unwrap();
    std::fs::create_dir_all(&config.data_dir).unwrap();
    let plan = cpus::plan(config.cores.as_ref(), &Cgroups::discover()).unwrap();
    let metrics = Arc::new(Metrics::new(plan.cpus.len()));
    let mut signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT]).unwrap();
    let b = Broker::start(Arc::new(config), &plan, 512 << 20, metrics).unwrap();
    println!("listening kafka {}", b.kafka_addr());
    signals.forever().next();
    b.stop().unwrap();
}
