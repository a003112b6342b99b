//! Workload `produce` through librdkafka: the same schedule, one instance per load thread. librdkafka decides how to
//! batch, connect and pipeline, within the options.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use crate::clock;
use crate::error::AnyError;
use crate::figures::outcome::Outcome;
use crate::figures::stats::{Live, Tally, histogram};
use crate::load::schedule::Schedule;
use crate::load::window::Window;
use crate::options::Acks;
use crate::options::sizes::Numbers;
use crate::options::workloads::ProduceOptions;
use crate::run;
use crate::workloads::produce::{Plan, key};

/// How long to wait after the end for outstanding deliveries. librdkafka then reports them as failed.
const DRAIN: Duration = Duration::from_secs(10);
const PUBLISH_NS: u64 = 250_000_000;
/// Pause while librdkafka's queue is full.
const FULL_PAUSE: Duration = Duration::from_micros(200);
/// Smallest and largest `batch.size` of librdkafka.
const BATCH_BYTES: std::ops::RangeInclusive<usize> = 1..=2_147_483_647;

pub fn load(options: &ProduceOptions, plan: Plan) -> Result<Outcome, AnyError> {
    run::check_cpus(&options.target.threads)?;
    if options.target.threads.connections.is_some() {
        return Err(
            "--connections: librdkafka chooses its connections; set the number of its instances with --threads".into(),
        );
    }
    let config = config(options);
    let threads = options.target.threads.threads;
    let lives: Vec<Arc<Live>> = (0..threads).map(|_| Arc::default()).collect();
    let (ended, all_ended) = mpsc::channel::<()>();
    let mut running = Vec::new();
    for (index, live) in lives.iter().enumerate() {
        let (config, plan, live, ended) = (config.clone(), plan.clone(), live.clone(), ended.clone());
        let cpus = &options.target.threads.cpus;
        let cpu = cpus.get(index % cpus.len().max(1)).copied();
        running.push(thread::Builder::new().name(format!("load-{index}")).spawn(
            move || -> Result<Tally, AnyError> {
                // Dropped when the thread's work ends or panics; the last drop ends `watch`.
                let _ended = ended;
                // librdkafka's threads inherit the CPU of the thread that creates them.
                cpu.map_or(Ok(()), pin)?;
                produce(&config, &plan, index, threads, live)
            },
        )?);
    }
    drop(ended);
    let mut outcome = Outcome { series: run::watch(&all_ended, &lives, plan.window), ..Outcome::default() };
    for thread in running {
        let tally = thread.join().map_err(|_| "a load thread panicked")??;
        let share = tally.cpu_ns as f64 / plan.window.duration_ns().max(1) as f64;
        outcome.thread_cpu_share_max = outcome.thread_cpu_share_max.max(share);
        outcome.tally.add(tally);
    }
    Ok(outcome)
}

fn config(options: &ProduceOptions) -> ClientConfig {
    let records = &options.records;
    let acks = match records.acks {
        Acks::None => "0",
        Acks::Leader => "1",
        Acks::All => "all",
    };
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.target.bootstrap)
        .set("client.id", "millrace-bench")
        .set("acks", acks)
        .set("linger.ms", (records.linger.as_nanos() as f64 / 1e6).to_string())
        .set("batch.size", records.batch_size.clamp(*BATCH_BYTES.start(), *BATCH_BYTES.end()).to_string())
        .set("batch.num.messages", "1000000")
        .set("compression.codec", records.codec.name())
        .set("max.in.flight", records.in_flight.to_string())
        .set("queue.buffering.max.messages", "1000000")
        .set("queue.buffering.max.kbytes", "1048576");
    config
}

/// Pins the calling thread to one CPU.
pub fn pin(cpu: usize) -> std::io::Result<()> {
    // SAFETY: a CPU set is plain bits, and all zeros is a valid set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is owned here; CPU_SET ignores a CPU beyond its size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the call only reads the set and is given its size. 0 means the calling thread.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Counts deliveries. The thread that polls librdkafka's events calls it.
struct Deliveries {
    window: Window,
    live: Arc<Live>,
    results: Arc<Mutex<(Tally, Histogram<u64>, u64)>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    /// Intended time of the record, in nanoseconds.
    type DeliveryOpaque = usize;

    fn delivery(&self, delivery: &DeliveryResult<'_>, intended_ns: usize) {
        let intended_ns = intended_ns as u64;
        let mut results = self.results.lock().expect("nothing panics while it holds this");
        let (tally, recent_ns, published_ns) = &mut *results;
        match delivery {
            Ok(message) => {
                let now_ns = clock::now_ns();
                let latency_ns = now_ns.saturating_sub(intended_ns).max(1);
                let bytes = message.payload_len() as u64;
                self.live.count(1, bytes);
                recent_ns.saturating_record(latency_ns);
                if intended_ns >= self.window.measured_from_ns {
                    tally.records += 1;
                    tally.bytes += bytes;
                    tally.latency_ns.saturating_record(latency_ns);
                    tally.span_ns = tally.span_ns.max(now_ns - self.window.measured_from_ns);
                }
                if now_ns - *published_ns > PUBLISH_NS {
                    *published_ns = now_ns;
                    self.live.publish(recent_ns);
                }
            }
            Err((error, _)) => {
                self.live.errors.fetch_add(1, Ordering::Relaxed);
                tally.fail(1, || error.to_string());
            }
        }
    }
}

fn produce(
    config: &ClientConfig,
    plan: &Plan,
    index: usize,
    threads: usize,
    live: Arc<Live>,
) -> Result<Tally, AnyError> {
    let results = Arc::new(Mutex::new((Tally::default(), histogram(), 0)));
    let context = Deliveries { window: plan.window, live, results: results.clone() };
    let producer: ThreadedProducer<Deliveries> = config.create_with_context(context)?;
    let mut schedule = Schedule::new(plan.window.start_ns, plan.window.duration_ns(), plan.rate, index, threads);
    let mut held_until_ns = plan.window.start_ns;
    let mut client_late_ns = histogram();
    let (mut numbers, mut number) = (Numbers::new(index as u64), 0);
    let room = plan.values.len() - plan.sizes.max();
    let cpu_ns = clock::thread_cpu_ns();
    loop {
        let now_ns = clock::now_ns();
        let Some(next_ns) = schedule.next_ns(now_ns) else { break };
        if next_ns > now_ns {
            thread::sleep(Duration::from_nanos(next_ns - now_ns));
            continue;
        }
        let Some(intended_ns) = schedule.take(now_ns) else { continue };
        if plan.rate > 0 && intended_ns >= plan.window.measured_from_ns {
            client_late_ns.saturating_record(now_ns.saturating_sub(intended_ns.max(held_until_ns)).max(1));
        }
        let partition = number % plan.partitions;
        number += 1;
        let random = numbers.next();
        let at = random as usize % room;
        let value = &plan.values[at..at + plan.sizes.pick(random)];
        let key = (plan.keys > 0).then(|| key(random, partition, plan));
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&plan.topic, intended_ns as usize)
            .payload(value)
            .partition(partition as i32);
        if let Some(key) = &key {
            record = record.key(key.as_slice());
        }
        let mut sent = producer.send(record);
        while let Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) = sent {
            thread::sleep(FULL_PAUSE);
            held_until_ns = clock::now_ns();
            sent = producer.send(record);
        }
        if let Err((error, _)) = sent {
            return Err(error.into());
        }
    }
    let cpu_ns = clock::thread_cpu_ns() - cpu_ns;
    // Records that are unanswered after the drain are purged. librdkafka reports them as failed, so they are counted.
    let flushed = producer.flush(DRAIN);
    producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
    _ = producer.flush(DRAIN);
    drop(producer);
    let mut results = results.lock().map_err(|_| "the thread of deliveries panicked")?;
    let mut tally = std::mem::take(&mut results.0);
    if let Err(error) = flushed {
        tally.first_error.get_or_insert(error.to_string());
    }
    (tally.cpu_ns, tally.client_late_ns) = (cpu_ns, client_late_ns);
    Ok(tally)
}
