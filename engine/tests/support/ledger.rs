//! Producers and a reading witness that continue through faults, and the ledger of the answers that they got.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{Offset, TopicPartitionList};

use super::PATIENCE;
use super::clients;
use super::history::{History, Id};

pub const TOPIC: &str = "ledger";

#[derive(Default, Clone, Copy)]
pub struct Counts {
    pub acks: u64,
    pub seen: u64,
}

/// The state that all threads share: one history per partition, and the numbers of acknowledged and seen records.
pub struct Ledger {
    partitions: i32,
    histories: Mutex<HashMap<i32, History>>,
    counts: Mutex<Counts>,
    counted: Condvar,
    done: AtomicBool,
}

impl Ledger {
    pub fn new(partitions: i32) -> Arc<Ledger> {
        Arc::new(Ledger {
            partitions,
            histories: Mutex::default(),
            counts: Mutex::default(),
            counted: Condvar::new(),
            done: AtomicBool::new(false),
        })
    }

    fn record(&self, partition: i32, event: impl FnOnce(&mut History)) {
        event(self.histories.lock().unwrap().entry(partition).or_default());
    }

    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap()
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap());
        self.counted.notify_all();
    }

    /// Waits until the counts satisfy the condition.
    pub fn wait_until(&self, what: &str, wanted: impl Fn(Counts) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        let mut counts = self.counts.lock().unwrap();
        while !wanted(*counts) {
            let left = give_up.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what} in {PATIENCE:?}: {} acks, {} seen", counts.acks, counts.seen);
            counts = self.counted.wait_timeout(counts, left).unwrap().0;
        }
    }

    /// Waits until this number of further records is acknowledged, and at least one more is seen.
    pub fn wait_for_more(&self, acks: u64) {
        let before = self.counts();
        self.wait_until("further acks", |now| now.acks >= before.acks + acks && now.seen > before.seen);
    }

    /// Starts idempotent producers with acks=all, and a witness that reads along.
    pub fn begin(self: &Arc<Ledger>, config: &ClientConfig, producers: u32) -> Clients {
        let mut producing = config.clone();
        producing
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "1")
            // Enough in flight that each fault hits unanswered batches, but not so much that the log grows without
            // bound.
            .set("queue.buffering.max.messages", "1000")
            .set("batch.num.messages", "50")
            .set("retry.backoff.ms", "10")
            // See Acks::log.
            .set("debug", "eos")
            .set_log_level(RDKafkaLogLevel::Debug)
            .set("message.timeout.ms", "600000");
        let start = |producer| {
            let (config, ledger) = (producing.clone(), self.clone());
            thread::spawn(move || produce(config, ledger, producer))
        };
        let producers = (0..producers).map(start).collect();
        let (config, ledger) = (config.clone(), self.clone());
        Clients { ledger: self.clone(), producers, witness: thread::spawn(move || consume(config, ledger)) }
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }
}

/// Records every acknowledgement in the ledger. A record that was not accepted needs no entry: it may be in the log at
/// most once, and the checker verifies that.
struct Acks {
    ledger: Arc<Ledger>,
    refused: AtomicU64,
    /// The client's log lines about new epochs of its producer.
    new_epochs: Mutex<Vec<String>>,
}

impl ClientContext for Acks {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "ERRSEQ" || message.contains("epoch bump") {
            self.new_epochs.lock().unwrap().push(format!("{facility} {message}"));
        }
    }
}

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

/// Sends until the ledger is done, then waits for the last answers. Returns the number of records that were never
/// accepted.
fn produce(config: ClientConfig, ledger: Arc<Ledger>, producer: u32) -> u64 {
    let context = Acks { ledger: ledger.clone(), refused: AtomicU64::new(0), new_epochs: Mutex::default() };
    let client: BaseProducer<Acks> = config.create_with_context(context).expect("a producer");
    let mut sequence = 0;
    while !ledger.is_done() {
        let id = Id { producer, sequence };
        let payload = id.payload();
        let partition = ((sequence / 7) % ledger.partitions as u64) as i32;
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
    // If a producer sends a batch again under a new epoch, no broker can recognise it as a duplicate.
    let new_epochs = client.context().new_epochs.lock().unwrap();
    assert!(new_epochs.is_empty(), "producer {producer} was brought to begin a new epoch: {new_epochs:#?}");
    client.context().refused.load(Ordering::Relaxed)
}

/// Reads along through all crashes, and records what it saw.
fn consume(config: ClientConfig, ledger: Arc<Ledger>) {
    let consumer: BaseConsumer = clients::consumer(&config, "witness");
    let mut list = TopicPartitionList::new();
    for partition in 0..ledger.partitions {
        list.add_partition_offset(TOPIC, partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("an assignment");
    while !ledger.is_done() {
        // Errors come from a broker that is down. librdkafka reconnects by itself.
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
            let (offset, payload) = (message.offset(), message.payload().unwrap_or_default());
            ledger.record(message.partition(), |history| history.seen(offset, payload));
            ledger.count(|counts| counts.seen += 1);
        }
    }
}

/// Running clients.
pub struct Clients {
    ledger: Arc<Ledger>,
    producers: Vec<JoinHandle<u64>>,
    witness: JoinHandle<()>,
}

impl Clients {
    /// Lets the clients finish. Every record must have been accepted.
    pub fn stop(self) {
        self.ledger.done.store(true, Ordering::Relaxed);
        for producer in self.producers {
            assert_eq!(producer.join().expect("the producer ends"), 0, "records were refused");
        }
        self.witness.join().expect("the witness ends");
    }
}

/// Compares all answers with the logs as they are now.
pub fn judge(config: &ClientConfig, ledger: &Ledger) {
    let histories = ledger.histories.lock().unwrap();
    let acked: usize = histories.values().map(History::acked_count).sum();
    let seen: usize = histories.values().map(History::seen_count).sum();
    assert_eq!(acked as u64, ledger.counts().acks);
    assert!(acked > 0 && seen > 0, "{acked} records acked, {seen} seen");
    for partition in 0..ledger.partitions {
        let log = clients::read_from(config, TOPIC, partition, 0);
        let log: Vec<_> = log.into_iter().map(|(offset, record)| (offset, record.value.unwrap_or_default())).collect();
        let violations = histories.get(&partition).map(|history| history.check(&log)).unwrap_or_default();
        let first = &violations[..violations.len().min(10)];
        assert!(violations.is_empty(), "partition {partition}: {} violations, such as {first:#?}", violations.len());
    }
}
