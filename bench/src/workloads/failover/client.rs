//! A producer that finds the partition's leader again after losing it, and a reader of all records. Blocking: one
//! request at a time, and each produce request carries the records that are due, up to a limit.

use std::collections::{HashSet, VecDeque};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use net::StrBytes;
use net::client::blocking::{Client, ClientError};
use net::codec::fetch::{FetchPartition, FetchRequest, FetchTopic};
use net::codec::produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef};
use net::errors;
use net::messages::metadata_request::MetadataRequestTopic;
use net::messages::{MetadataRequest, TopicName};
use net::records::batch::Batches;
use net::records::build::BatchBuilder;
use net::records::compression::Codec;
use net::records::record::Records;

use crate::clock;
use crate::error::AnyError;
use crate::load::schedule::Schedule;
use crate::load::window::Window;

/// A broker that does not answer within this time counts as lost.
const PATIENCE: Duration = Duration::from_millis(1_000);
const REQUEST_TIMEOUT_MS: i32 = 1_000;
/// Pause between two searches for a leader.
const ASK_AGAIN: Duration = Duration::from_millis(2);
/// How long reading back may retry after losing the leader, and how long each answer may take.
const READ_PATIENCE: Duration = Duration::from_secs(30);
/// Maximum bytes of a batch's values.
const BATCH_BYTES: usize = 512 << 10;
/// Bytes of a record's number, with which its value begins.
pub const NUMBER_BYTES: usize = 8;
const BATCH_BYTES_MAX: usize = 1 << 30;

/// Leader and replica counts of the partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub leader: Option<(i32, String)>,
    pub replicas: usize,
    pub in_sync: usize,
}

/// Describes the partition by asking the brokers in order; the first that answers decides.
pub fn describe(bootstrap: &[String], topic: &str) -> Option<Partition> {
    bootstrap.iter().find_map(|addr| {
        let mut client = Client::connect(addr, "millrace-bench", PATIENCE).ok()?;
        let topic = MetadataRequestTopic::default().with_name(Some(TopicName(StrBytes::from_string(topic.to_owned()))));
        let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(false);
        let metadata = client.call(request).ok()?;
        let partition = metadata.topics.first()?.partitions.first()?;
        let leader = metadata.brokers.iter().find(|broker| broker.node_id == partition.leader_id);
        Some(Partition {
            leader: leader.map(|broker| (broker.node_id.0, format!("{}:{}", broker.host, broker.port))),
            replicas: partition.replica_nodes.len(),
            in_sync: partition.isr_nodes.len(),
        })
    })
}

/// Records that one answer acknowledged.
#[derive(Debug)]
pub struct Acked {
    pub sent_ns: u64,
    /// Number and intended time of each record.
    pub records: Vec<(u64, u64)>,
}

pub struct Producer {
    bootstrap: Vec<String>,
    topic: String,
    value: Vec<u8>,
    schedule: Schedule,
    end_ns: u64,
    next_number: u64,
    /// Number and intended time of records that are due and not acknowledged.
    pending: VecDeque<(u64, u64)>,
    leader: Option<(i32, Client)>,
}

impl Producer {
    pub fn new(bootstrap: &[String], topic: &str, rate: u64, record_size: usize, window: Window) -> Producer {
        // Records are due until the last kill is over, which may take longer than the duration.
        let forever = Duration::from_secs(86_400).as_nanos() as u64;
        Producer {
            bootstrap: bootstrap.to_vec(),
            topic: topic.to_owned(),
            value: vec![b'v'; record_size],
            schedule: Schedule::new(window.start_ns, forever, rate, 0, 1),
            end_ns: window.start_ns + forever,
            // Start at a number that other runs on the same topic have not used.
            next_number: (clock::unix_ms() as u64) << 20,
            pending: VecDeque::new(),
            leader: None,
        }
    }

    /// The leader that the producer is connected to; `None` while it looks for one.
    pub fn leader(&self) -> Option<i32> {
        self.leader.as_ref().map(|(node, _)| *node)
    }

    /// Sends the records that are due, or waits until one is. Returns the acknowledged records, if any. Records that
    /// were not acknowledged stay pending.
    pub fn send_due(&mut self) -> Result<Option<Acked>, AnyError> {
        let now_ns = clock::now_ns();
        while let Some(intended_ns) = self.schedule.take(now_ns) {
            self.pending.push_back((self.next_number, intended_ns));
            self.next_number += 1;
        }
        if self.pending.is_empty() {
            let next_ns = self.schedule.next_ns(now_ns).unwrap_or(self.end_ns);
            thread::sleep(Duration::from_nanos(next_ns.saturating_sub(now_ns)));
            return Ok(None);
        }
        let Some((_, client)) = self.leader.as_mut() else {
            self.leader = self.find_leader();
            if self.leader.is_none() {
                thread::sleep(ASK_AGAIN);
            }
            return Ok(None);
        };
        let count = self.pending.len().min((BATCH_BYTES / self.value.len()).max(1));
        let mut builder = BatchBuilder::new(Codec::None);
        for (number, _) in self.pending.iter().take(count) {
            self.value[..NUMBER_BYTES].copy_from_slice(&number.to_be_bytes());
            builder.push(clock::unix_ms(), None, Some(&self.value));
        }
        let topic = ProduceTopic {
            topic: TopicRef::Name(StrBytes::from_string(self.topic.clone())),
            partitions: vec![ProducePartition { index: 0, records: Some(builder.finish()) }],
        };
        let request =
            ProduceRequest { transactional_id: None, acks: -1, timeout_ms: REQUEST_TIMEOUT_MS, topics: vec![topic] };
        let sent_ns = clock::now_ns();
        let taken = client.produce(request).is_ok_and(|response| {
            let mut partitions = response.responses.iter().flat_map(|topic| &topic.partition_responses);
            partitions.next().is_some_and(|partition| errors::check(partition.error_code).is_ok())
        });
        if !taken {
            // After any failure, look for the leader again and retry the records.
            self.leader = None;
            return Ok(None);
        }
        Ok(Some(Acked { sent_ns, records: self.pending.drain(..count).collect() }))
    }

    fn find_leader(&self) -> Option<(i32, Client)> {
        let (node, addr) = describe(&self.bootstrap, &self.topic)?.leader?;
        Some((node, Client::connect(&addr, "millrace-bench", PATIENCE).ok()?))
    }
}

/// The numbers of all records of the partition. The order does not matter, only that every acknowledged record is
/// present.
///
/// The leader may change during the read, for example when the preferred leader returns. The reader then continues
/// with the new leader, like a consumer.
pub fn read_back(bootstrap: &[String], topic: &str) -> Result<HashSet<u64>, AnyError> {
    let give_up_ns = clock::now_ns() + READ_PATIENCE.as_nanos() as u64;
    let (mut numbers, mut next_offset) = (HashSet::new(), 0);
    loop {
        let (why, patient) = match read_from_leader(bootstrap, topic, &mut next_offset, &mut numbers) {
            Ok(()) => return Ok(numbers),
            Err(ReadFailed::Leader(why)) => (why, clock::now_ns() < give_up_ns),
            Err(ReadFailed::Other(why)) => (why, false),
        };
        if !patient {
            let seconds = READ_PATIENCE.as_secs();
            return Err(format!("cannot read the records back (leaders had up to {seconds} s): {why}").into());
        }
        thread::sleep(ASK_AGAIN);
    }
}

/// Why reading back failed.
enum ReadFailed {
    /// There is no leader, or the broker does not answer as the leader. A retry may succeed.
    Leader(AnyError),
    Other(AnyError),
}

fn read_from_leader(
    bootstrap: &[String],
    topic: &str,
    next_offset: &mut i64,
    numbers: &mut HashSet<u64>,
) -> Result<(), ReadFailed> {
    let leader = describe(bootstrap, topic).and_then(|partition| partition.leader);
    let (_, addr) = leader.ok_or_else(|| ReadFailed::Leader("the partition has no leader".into()))?;
    let lost = |e: ClientError| ReadFailed::Leader(e.into());
    let mut client = Client::connect(&addr, "millrace-bench", READ_PATIENCE).map_err(lost)?;
    loop {
        let topic = FetchTopic {
            topic: TopicRef::Name(StrBytes::from_string(topic.to_owned())),
            partitions: vec![FetchPartition::of_consumer(0, *next_offset, 4 << 20)],
        };
        let response = client.fetch(FetchRequest::of_consumer(500, 1, 16 << 20, vec![topic])).map_err(lost)?;
        let partition = response.responses.into_iter().flat_map(|topic| topic.partitions).next();
        let partition = partition.ok_or_else(|| ReadFailed::Other("an answer lacks the partition".into()))?;
        errors::check(partition.error_code).map_err(|e| ReadFailed::Leader(e.into()))?;
        for batch in Batches::new(partition.records.unwrap_or_default()) {
            let Ok((header, bytes)) = batch else { break };
            read_numbers(&bytes, numbers).map_err(ReadFailed::Other)?;
            *next_offset = header.next_offset();
        }
        if *next_offset >= partition.high_watermark {
            return Ok(());
        }
    }
}

fn read_numbers(batch: &Bytes, numbers: &mut HashSet<u64>) -> Result<(), AnyError> {
    for record in Records::open(batch, BATCH_BYTES_MAX)?.iter() {
        let value = record?.value.and_then(|value| value.first_chunk::<NUMBER_BYTES>().copied());
        numbers.extend(value.map(u64::from_be_bytes));
    }
    Ok(())
}
