//! The `rdkafka` crate (librdkafka), configured for tests.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::PATIENCE;
use super::broker::Broker;

/// Waits for a future on this thread. The admin client has threads of its own that drive it.
pub fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

pub fn config(broker: &Broker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.bootstrap());
    // Brokers come back within milliseconds here. The defaults would wait for up to 10 s.
    config.set("reconnect.backoff.ms", "10").set("reconnect.backoff.max.ms", "100");
    config
}

pub fn admin(broker: &Broker) -> AdminClient<DefaultClientContext> {
    config(broker).create().expect("an admin client")
}

pub fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}

pub fn try_create_topic(
    broker: &Broker,
    name: &str,
    partitions: i32,
    settings: &[(&str, &str)],
) -> Result<(), RDKafkaErrorCode> {
    let topic =
        settings.iter().fold(NewTopic::new(name, partitions, TopicReplication::Fixed(1)), |t, (k, v)| t.set(k, v));
    let results = wait(admin(broker).create_topics([&topic], &admin_options())).expect("CreateTopics is answered");
    results.into_iter().next().expect("one result").map(|_| ()).map_err(|(_, code)| code)
}

pub fn create_topic(broker: &Broker, name: &str, partitions: i32) {
    try_create_topic(broker, name, partitions, &[]).expect("the topic is created");
}

/// The outcome for one record: its partition and offset, or why the broker did not accept it.
pub type Delivery = Result<(i32, i64), KafkaError>;

/// Collects deliveries in the order in which librdkafka reports them.
#[derive(Default)]
pub struct Deliveries(std::sync::Mutex<Vec<(usize, Delivery)>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, index: Box<usize>) {
        let delivery = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, _)) => Err(error.clone()),
        };
        self.0.lock().unwrap().push((*index, delivery));
    }
}

/// One record, in the form in which tests compare it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub timestamp_ms: i64,
}

impl Record {
    pub fn of(value: impl Into<Vec<u8>>) -> Record {
        Record { value: Some(value.into()), timestamp_ms: 1_700_000_000_000, ..Record::default() }
    }
}

impl From<&BorrowedMessage<'_>> for Record {
    fn from(message: &BorrowedMessage<'_>) -> Record {
        let header = |h: rdkafka::message::Header<'_, &[u8]>| (h.key.to_owned(), h.value.map(<[u8]>::to_vec));
        Record {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: message.headers().map(|headers| headers.iter().map(header).collect()).unwrap_or_default(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
        }
    }
}

/// Sends records to one partition and waits for all answers. Returns the answers in the order of the records.
pub fn produce(config: &ClientConfig, topic: &str, partition: i32, records: &[Record]) -> Vec<Delivery> {
    let producer: BaseProducer<Deliveries> = config.create_with_context(Deliveries::default()).expect("a producer");
    for (index, record) in records.iter().enumerate() {
        let mut next = BaseRecord::<[u8], [u8], Box<usize>>::with_opaque_to(topic, Box::new(index))
            .partition(partition)
            .timestamp(record.timestamp_ms);
        next.key = record.key.as_deref();
        next.payload = record.value.as_deref();
        let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(rdkafka::message::Header { key, value: value.as_deref() })
        });
        next.headers = Some(headers).filter(|headers| headers.count() > 0);
        send(&producer, next);
    }
    producer.flush(PATIENCE).expect("all records are answered in time");
    let mut deliveries = std::mem::take(&mut *producer.context().0.lock().unwrap());
    deliveries.sort_by_key(|(index, _)| *index);
    deliveries.into_iter().map(|(_, delivery)| delivery).collect()
}

/// Queues a record. Serves deliveries while the queue is full.
fn send<C: ProducerContext>(producer: &BaseProducer<C>, mut record: BaseRecord<'_, [u8], [u8], C::DeliveryOpaque>) {
    let give_up = Instant::now() + PATIENCE;
    while let Err((error, unsent)) = producer.send(record) {
        assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull), "{error}");
        assert!(Instant::now() < give_up, "the queue stays full");
        producer.poll(std::time::Duration::from_millis(10));
        record = unsent;
    }
}

/// Offsets of records that the broker must all have accepted.
pub fn offsets(deliveries: Vec<Delivery>) -> Vec<i64> {
    deliveries.into_iter().map(|delivery| delivery.expect("the record is taken").1).collect()
}

pub fn consumer(config: &ClientConfig, group: &str) -> BaseConsumer {
    let mut config = config.clone();
    config.set("group.id", group).set("enable.auto.commit", "false").set("auto.offset.reset", "earliest");
    config.create().expect("a consumer")
}

/// All records of a partition from `offset` to its current end, with their offsets.
pub fn read_from(config: &ClientConfig, topic: &str, partition: i32, offset: i64) -> Vec<(i64, Record)> {
    let mut config = config.clone();
    // librdkafka notices the end when a fetch there returns nothing. That fetch need not wait long.
    config.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
    let consumer = consumer(&config, "reader");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("an offset");
    consumer.assign(&list).expect("an assignment");
    let mut records = Vec::new();
    while let Some(message) = next(&consumer) {
        records.push((message.offset(), Record::from(&message)));
    }
    records
}

/// The next message. `None`: the partition's end, if the consumer is configured to report it.
pub fn next(consumer: &BaseConsumer) -> Option<BorrowedMessage<'_>> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        match consumer.poll(PATIENCE) {
            Some(Ok(message)) => return Some(message),
            Some(Err(KafkaError::PartitionEOF(_))) => return None,
            // A broker that is down for the moment. librdkafka reconnects by itself.
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut,
            ))) => {}
            Some(Err(e)) => panic!("consuming failed: {e}"),
            None => {}
        }
        assert!(Instant::now() < give_up, "no message in {PATIENCE:?}");
    }
}
