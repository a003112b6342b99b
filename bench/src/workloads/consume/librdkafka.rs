//! Workload `consume` through librdkafka: partitions are assigned by hand, one instance per load thread. librdkafka
//! prefetches as it likes, so the latency is the wait for each record.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::clock;
use crate::error::AnyError;
use crate::figures::outcome::Outcome;
use crate::figures::stats::{Live, Tally, histogram};
use crate::options::workloads::ConsumeOptions;
use crate::run;
use crate::workloads::consume::Plan;
use crate::workloads::produce::librdkafka::pin;

const POLL: Duration = Duration::from_millis(100);
const PUBLISH_NS: u64 = 250_000_000;

pub fn load(options: &ConsumeOptions, plan: Plan) -> Result<Outcome, AnyError> {
    run::check_cpus(&options.target.threads)?;
    if options.target.threads.connections.is_some() {
        return Err(
            "--connections: librdkafka chooses its connections; set the number of its instances with --threads".into(),
        );
    }
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.target.bootstrap)
        .set("client.id", "millrace-bench")
        .set("group.id", "millrace-bench")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("max.partition.fetch.bytes", options.fetch_size.max(1).to_string())
        .set("queued.max.messages.kbytes", "262144");
    let mut partitions: Vec<i32> = plan.starts.keys().copied().collect();
    partitions.sort_unstable();
    let threads = options.target.threads.threads.min(partitions.len());
    let lives: Vec<Arc<Live>> = (0..threads).map(|_| Arc::default()).collect();
    let (ended, all_ended) = mpsc::channel::<()>();
    let mut running = Vec::new();
    for (index, live) in lives.iter().enumerate() {
        let (config, plan, live, ended) = (config.clone(), plan.clone(), live.clone(), ended.clone());
        let own: Vec<i32> = partitions.iter().copied().skip(index).step_by(threads).collect();
        let cpus = &options.target.threads.cpus;
        let cpu = cpus.get(index % cpus.len().max(1)).copied();
        running.push(thread::Builder::new().name(format!("load-{index}")).spawn(
            move || -> Result<Tally, AnyError> {
                // Dropped when the thread's work ends or panics; the last drop ends `watch`.
                let _ended = ended;
                cpu.map_or(Ok(()), pin)?;
                consume(&config, &plan, &own, &live)
            },
        )?);
    }
    drop(ended);
    let mut outcome = Outcome { series: run::watch(&all_ended, &lives, plan.window), ..Outcome::default() };
    for thread in running {
        let tally = thread.join().map_err(|_| "a load thread panicked")??;
        let wall_ns = tally.span_ns + plan.window.measured_from_ns - plan.window.start_ns;
        let share = tally.cpu_ns as f64 / wall_ns.max(1) as f64;
        outcome.thread_cpu_share_max = outcome.thread_cpu_share_max.max(share);
        outcome.tally.add(tally);
    }
    Ok(outcome)
}

fn consume(config: &ClientConfig, plan: &Plan, partitions: &[i32], live: &Live) -> Result<Tally, AnyError> {
    let consumer: BaseConsumer = config.create()?;
    let mut places = TopicPartitionList::new();
    for partition in partitions {
        let start = plan.starts.get(partition).copied().unwrap_or(0);
        places.add_partition_offset(&plan.topic, *partition, Offset::Offset(start))?;
    }
    thread::sleep(Duration::from_nanos(plan.window.start_ns.saturating_sub(clock::now_ns())));
    consumer.assign(&places)?;
    let (mut tally, mut recent_ns) = (Tally::default(), histogram());
    let ends = plan.ends.as_deref();
    let mut open: Vec<i32> = partitions.to_vec();
    // Skip partitions without records.
    open.retain(|p| ends.is_none_or(|ends| ends.get(p) > plan.starts.get(p)));
    let cpu_ns = clock::thread_cpu_ns();
    let (mut records, mut bytes) = (0, 0);
    let mut begin_ns = clock::now_ns();
    let mut published_ns = begin_ns;
    while begin_ns < plan.window.end_ns && !open.is_empty() {
        let polled = consumer.poll(POLL);
        let now_ns = clock::now_ns();
        match polled {
            Some(Ok(message)) => {
                let latency_ns = (now_ns - begin_ns).max(1);
                let size = message.payload_len() as u64;
                (records, bytes) = (records + 1, bytes + size);
                recent_ns.saturating_record(latency_ns);
                if begin_ns >= plan.window.measured_from_ns {
                    tally.records += 1;
                    tally.requests += 1;
                    tally.bytes += size;
                    tally.latency_ns.saturating_record(latency_ns);
                    tally.span_ns = now_ns - plan.window.measured_from_ns;
                }
                let end = ends.and_then(|ends| ends.get(&message.partition()));
                if end.is_some_and(|end| message.offset() + 1 >= *end) {
                    open.retain(|partition| *partition != message.partition());
                }
            }
            // No record for now: the poll timed out, or it reached the end of a partition.
            None | Some(Err(KafkaError::PartitionEOF(_))) => {}
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::PartitionEOF))) => {}
            Some(Err(error)) => {
                live.errors.fetch_add(1, Ordering::Relaxed);
                tally.fail(1, || error.to_string());
            }
        }
        if now_ns - published_ns > PUBLISH_NS {
            published_ns = now_ns;
            live.count(records, bytes);
            (records, bytes) = (0, 0);
            live.publish(&mut recent_ns);
        }
        begin_ns = now_ns;
    }
    tally.cpu_ns = clock::thread_cpu_ns() - cpu_ns;
    Ok(tally)
}
