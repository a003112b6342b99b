//! Idempotent producers with acks=all while the broker is killed at random moments and started again: nothing that was
//! acked is lost, duplicated or reordered, and what a consumer saw stays.
//!
//! `CRASH_ROUNDS` sets the number of kills (5 by default), `CRASH_SEED` repeats the choices of a run.

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{Offset, TopicPartitionList};

use support::PATIENCE;
use support::broker::Broker;
use support::clients;
use support::history::{History, Id};

const TOPIC: &str = "ledger";
const PARTITIONS: i32 = 3;
const PRODUCERS: u32 = 2;

#[derive(Default, Clone, Copy)]
struct Counts {
    acks: u64,
    seen: u64,
}

/// What all threads know: one history per partition, and how many acks and sights there were.
#[derive(Default)]
struct Ledger {
    histories: Mutex<HashMap<i32, History>>,
    counts: Mutex<Counts>,
    counted: Condvar,
    done: AtomicBool,
}

impl Ledger {
    fn record(&self, partition: i32, event: impl FnOnce(&mut History)) {
        event(self.histories.lock().unwrap().entry(partition).or_default());
    }

    fn counts(&self) -> Counts {
        *self.counts.lock().unwrap()
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap());
        self.counted.notify_all();
    }

    /// Returns as soon as the counts are such.
    fn wait_until(&self, what: &str, wanted: impl Fn(Counts) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        let mut counts = self.counts.lock().unwrap();
        while !wanted(*counts) {
            let left = give_up.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what} in {PATIENCE:?}: {} acks, {} seen", counts.acks, counts.seen);
            counts = self.counted.wait_timeout(counts, left).unwrap().0;
        }
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }
}

/// Writes every ack into the ledger. A record that was not taken needs no entry: it may be in the log at most once, and
/// the checker sees to that.
struct Acks {
    ledger: Arc<Ledger>,
    refused: AtomicU64,
}

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = Box<Id>;

    fn delivery(&self, result: &DeliveryResult<'_>, id: Box<Id>) {
        match result {
            Ok(message) => {
                self.ledger.record(message.partition(), |history| history.acked(*id, message.offset()));
                self.ledger.count(|counts| counts.acks += 1);
            }
            Err(_) => _ = self.refused.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// Sends until the ledger is done, then waits for the last answers. Returns how many records were never taken.
fn produce(config: ClientConfig, ledger: Arc<Ledger>, producer: u32) -> u64 {
    let context = Acks { ledger: ledger.clone(), refused: AtomicU64::new(0) };
    let client: BaseProducer<Acks> = config.create_with_context(context).expect("a producer");
    let mut sequence = 0;
    while !ledger.is_done() {
        let id = Id { producer, sequence };
        let payload = id.payload();
        let partition = ((sequence / 7) % PARTITIONS as u64) as i32;
        let record: BaseRecord<'_, [u8], [u8], Box<Id>> =
            BaseRecord::with_opaque_to(TOPIC, Box::new(id)).partition(partition).payload(&payload);
        match client.send(record) {
            Ok(()) => sequence += 1,
            Err((e, _)) if e.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => {
                client.poll(Duration::from_millis(5));
            }
            Err((e, _)) => panic!("producer {producer}: {e}"),
        }
        client.poll(Duration::ZERO);
    }
    client.flush(PATIENCE).expect("the last records are answered");
    assert!(client.client().fatal_error().is_none(), "producer {producer}: {:?}", client.client().fatal_error());
    client.context().refused.load(Ordering::Relaxed)
}

/// Reads along, over all crashes, and enters what it saw.
fn consume(config: ClientConfig, ledger: Arc<Ledger>) {
    let consumer: BaseConsumer = clients::consumer(&config, "witness");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(TOPIC, partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("an assignment");
    while !ledger.is_done() {
        // Errors are those of a broker that is down; librdkafka reconnects by itself.
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
            let (offset, payload) = (message.offset(), message.payload().unwrap_or_default());
            ledger.record(message.partition(), |history| history.seen(offset, payload));
            ledger.count(|counts| counts.seen += 1);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}

#[test]
fn what_was_acked_survives_kill_9() {
    let rounds = number("CRASH_ROUNDS").unwrap_or(5);
    let seed = number("CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("to repeat the choices of this run: CRASH_ROUNDS={rounds} CRASH_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);

    // A small ring: it is recycled many times between two kills.
    let mut broker = Broker::start_with(&["--set", "wal.ring.bytes=16777216"]);
    clients::create_topic(&broker, TOPIC, PARTITIONS);
    let ledger = Arc::new(Ledger::default());
    let mut producing = clients::config(&broker);
    producing
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "1")
        // Enough in flight that each kill falls among unanswered batches, and not so much that the log grows without end.
        .set("queue.buffering.max.messages", "1000")
        .set("batch.num.messages", "50")
        .set("retry.backoff.ms", "10")
        .set("message.timeout.ms", "600000");
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|producer| {
            let (config, ledger) = (producing.clone(), ledger.clone());
            thread::spawn(move || produce(config, ledger, producer))
        })
        .collect();
    let witness = {
        let (config, ledger) = (clients::config(&broker), ledger.clone());
        thread::spawn(move || consume(config, ledger))
    };

    for round in 0..rounds {
        // Both sides have found the broker again. The moment is drawn in acks, so that every round makes progress however
        // slow the machine is.
        let before = ledger.counts();
        ledger.wait_until("sight of a record", |now| now.seen > before.seen);
        let acks = ledger.counts().acks + random.u64(1..2000);
        ledger.wait_until("ack", |now| now.acks >= acks);
        broker.kill();
        if random.u8(..4) == 0 {
            // A second crash, at some point of the recovery from the first.
            broker.spawn();
            thread::sleep(Duration::from_micros(random.u64(..50_000)));
            broker.kill();
        }
        broker.begin();
        println!("round {round}: {} records acked, {} seen", ledger.counts().acks, ledger.counts().seen);
    }
    let acks = ledger.counts().acks + 100;
    ledger.wait_until("ack", |now| now.acks >= acks);
    ledger.done.store(true, Ordering::Relaxed);
    for producer in producers {
        assert_eq!(producer.join().expect("the producer ends"), 0, "records were refused");
    }
    witness.join().expect("the witness ends");

    // Once from the broker as it is, once after a clean restart.
    judge(&broker, &ledger);
    broker.restart();
    judge(&broker, &ledger);
    broker.stop();
}

fn judge(broker: &Broker, ledger: &Ledger) {
    let histories = ledger.histories.lock().unwrap();
    let acked: usize = histories.values().map(History::acked_count).sum();
    let seen: usize = histories.values().map(History::seen_count).sum();
    assert_eq!(acked as u64, ledger.counts().acks);
    assert!(acked > 0 && seen > 0, "{acked} records acked, {seen} seen");
    for partition in 0..PARTITIONS {
        let log = clients::read_from(&clients::config(broker), TOPIC, partition, 0);
        let log: Vec<_> = log.into_iter().map(|(offset, record)| (offset, record.value.unwrap_or_default())).collect();
        let violations = histories.get(&partition).map(|history| history.check(&log)).unwrap_or_default();
        let first = &violations[..violations.len().min(10)];
        assert!(violations.is_empty(), "partition {partition}: {} violations, such as {first:#?}", violations.len());
    }
}
