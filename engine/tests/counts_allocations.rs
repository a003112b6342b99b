//! The heap allocations of a produce request and of a fetch, from the bytes at the socket to the answer's bytes. The
//! broker has one core and runs in this process. ARCHITECTURE.md, "Counts", has the figures.
//!
//! The allocations of the whole process except the client's thread count. Background work of the broker (timers,
//! heartbeats) depends on how long requests take, so the smallest of several rounds counts.

use engine::{
    broker::Broker,
    config::Config,
    host::{
        cgroup::Cgroups,
        cpus::{self, CorePlan},
        limits,
    },
    metrics::Metrics,
};
use net::{
    StrBytes,
    client::blocking::Client,
    codec::{
        fetch::{FetchPartition, FetchRequest, FetchTopic},
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
    },
    messages::{CreateTopicsRequest, TopicName, create_topics_request::CreatableTopic},
    records::{build::BatchBuilder, compression::Codec},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

const TOPIC: &str = "allocations";
const SMALL: usize = 100;
const LARGE: usize = 100 << 10;
const WARM_UP: u64 = 300;
const ROUNDS: usize = 5;
const REQUESTS: u64 = 200;
/// Bounds for one request with a small record: 70 to 84 allocations to produce, and 30 to 36 to fetch. The rest is for
/// the runtime, which allocates each time that it goes to sleep. How often it does depends on the machine.
/// `counts` of the crate `sim` bounds the part that does not.
const PRODUCE_MAX: f64 = 160.0;
const FETCH_MAX: f64 = 80.0;
/// Further allocations for a record of 100 KiB.
const READS_MAX: f64 = 60.0;
const PATIENCE: Duration = Duration::from_secs(60);

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// This thread does not belong to the broker.
    static IS_CLIENT: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(bytes: usize) {
    // A thread that is ending is not the client's.
    if !IS_CLIENT.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Relaxed);
        BYTES.fetch_add(bytes as u64, Relaxed);
    }
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size.saturating_sub(layout.size()));
        // SAFETY: as the caller promised.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

/// The average cost of one request.
#[derive(Clone, Copy, Debug)]
struct PerRequest {
    allocations: f64,
    bytes: f64,
}

/// The smallest values of several rounds, in a steady state.
fn measure(mut request: impl FnMut()) -> PerRequest {
    (0..WARM_UP).for_each(|_| request());
    let mut least = PerRequest { allocations: f64::INFINITY, bytes: f64::INFINITY };
    for _ in 0..ROUNDS {
        let before = (ALLOCATIONS.load(Relaxed), BYTES.load(Relaxed));
        (0..REQUESTS).for_each(|_| request());
        let after = (ALLOCATIONS.load(Relaxed), BYTES.load(Relaxed));
        let average = |before: u64, after: u64| (after - before) as f64 / REQUESTS as f64;
        least.allocations = least.allocations.min(average(before.0, after.0));
        least.bytes = least.bytes.min(average(before.1, after.1));
    }
    least
}

fn topic() -> TopicRef {
    TopicRef::Name(StrBytes::from_static_str(TOPIC))
}

/// Produces one batch of one record to one partition, acks=all.
fn produce(client: &mut Client, partition: i32, bytes: usize) {
    let mut batch = BatchBuilder::new(Codec::None);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later");
    batch.push(now.as_millis() as i64, None, Some(&vec![b'x'; bytes]));
    let partitions = vec![ProducePartition { index: partition, records: Some(batch.finish()) }];
    let topics = vec![ProduceTopic { topic: topic(), partitions }];
    let request = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 30_000, topics };
    let answer = client.produce(request).expect("answered");
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
}

/// Fetches the first batch of a partition.
fn fetch(client: &mut Client, partition: i32, bytes: usize) {
    let partitions = vec![FetchPartition::of_consumer(partition, 0, 1)];
    let topics = vec![FetchTopic { topic: topic(), partitions }];
    let answer = client.fetch(FetchRequest::of_consumer(0, 1, 1 << 20, topics)).expect("answered");
    assert_eq!((answer.error_code, answer.responses[0].partitions[0].error_code), (0, 0));
    let records = answer.responses[0].partitions[0].records.as_ref().expect("there are records");
    assert!((bytes..bytes + 200).contains(&records.len()));
}

fn start(dir: &tempfile::TempDir) -> (Broker, String) {
    let allowed = cpus::plan(None, &Cgroups::discover()).expect("there are CPUs");
    let plan = CorePlan { cpus: vec![allowed.cpus[0]], why: String::new() };
    limits::raise_memlock().expect("it can be asked for");
    let mut config = Config::default();
    config.data_dir = dir.path().to_owned();
    config.kafka_addr = "127.0.0.1:0".parse().expect("an address");
    config.peer_addr = "127.0.0.1:0".parse().expect("an address");
    config.wal_ring_bytes = 64 << 20;
    let broker = Broker::start(Arc::new(config), &plan, 1 << 30, Arc::new(Metrics::new(1)), || false).expect("started");
    let address = broker.kafka_addr().to_string();
    (broker, address)
}

#[test]
fn a_request_costs_a_bounded_number_of_allocations_whatever_its_records_size() {
    IS_CLIENT.set(true);
    let dir = tempfile::tempdir().expect("a directory");
    let (broker, address) = start(&dir);
    let mut client = Client::connect(&address, "allocations", PATIENCE).expect("connected");
    let topic = CreatableTopic::default()
        .with_name(TopicName(StrBytes::from_static_str(TOPIC)))
        .with_num_partitions(2)
        .with_replication_factor(1);
    let created = client.call(CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000));
    assert_eq!(created.expect("answered").topics[0].error_code, 0);

    let mut of = |partition: i32, bytes: usize| {
        let produced = measure(|| produce(&mut client, partition, bytes));
        let fetched = measure(|| fetch(&mut client, partition, bytes));
        println!("{bytes} bytes: produce {produced:?}, fetch {fetched:?}");
        (produced, fetched)
    };
    let ((small_produce, small_fetch), (large_produce, large_fetch)) = (of(0, SMALL), of(1, LARGE));
    assert!(small_produce.allocations <= PRODUCE_MAX, "{small_produce:?}");
    assert!(small_fetch.allocations <= FETCH_MAX, "{small_fetch:?}");
    // A large request arrives in several reads. The runtime waits anew for each, and the buffer grows.
    assert!(large_produce.allocations <= small_produce.allocations + READS_MAX, "{large_produce:?}");
    assert!(large_fetch.allocations <= small_fetch.allocations + READS_MAX, "{large_fetch:?}");
    // The payload is on the heap once, in the receive buffer: the ring's memory is mapped, and a fetch shares it.
    let payload = (LARGE - SMALL) as f64;
    assert!(large_produce.bytes - small_produce.bytes <= 1.9 * payload, "{small_produce:?}, {large_produce:?}");
    assert!(large_fetch.bytes - small_fetch.bytes <= 0.5 * payload, "{small_fetch:?}, {large_fetch:?}");
    drop(client);
    broker.stop().expect("stopped");
}
