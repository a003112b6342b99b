//! The disk of one of three brokers fills up while clients work. The other brokers continue, and no acknowledged change
//! is lost. Once there is room again, the broker takes part as before.
//!
//! The disks are small file systems (see `support/small_disk.rs`). If the kernel does not let this user mount them, the
//! tests say so and pass.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use net::client::blocking::Client;
use net::errors::{self, ErrorCode};
use rdkafka::config::ClientConfig;

use support::broker::Broker;
use support::cluster::{Cluster, wait_until};
use support::ledger::{Ledger, TOPIC, judge};
use support::metadata_clients::{Clients, converged, try_change};
use support::metadata_history::Change;
use support::small_disk::not_tested;
use support::wire;

const BROKERS: usize = 3;
const ALL: [usize; BROKERS] = [0, 1, 2];
const PARTITIONS: i32 = 6;
/// More than a broker writes here.
const DISK_BYTES: u64 = 1 << 30;
/// Small rings need a flush soon.
const RING: &str = "wal.ring.bytes=16777216";
/// Minimum number of changes and records that are acknowledged at each step.
const CHANGES: usize = 10;
const RECORDS: u64 = 500;

/// Flags of all brokers.
const FLAGS: [&str; 4] = ["--cores", "0", "--set", RING];
/// One test at a time, because of locked memory: see `support/small_disk.rs`.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None`: file systems cannot be mounted here.
fn start() -> Option<Cluster> {
    let cluster = Cluster::start_on_small_disks(BROKERS, &FLAGS, &ALL, DISK_BYTES);
    cluster.broker(0).small_disk().is_some().then_some(cluster)
}

fn config(cluster: &Cluster) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", cluster.bootstraps().join(","))
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "100")
        .set("socket.timeout.ms", "1500")
        .set("topic.metadata.refresh.fast.interval.ms", "50");
    config
}

fn create(cluster: &Cluster, partitions: i32) {
    let created = wire::create_topic(&mut wire::connect(cluster.broker(0)), TOPIC, partitions, BROKERS as i16, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()), "{:?}", created.error_message);
}

/// The leaders of the partitions, as one broker shows them.
fn leaders(cluster: &Cluster, asked: usize) -> Vec<Option<usize>> {
    let shown = wire::partitions(&mut wire::connect(cluster.broker(asked)), TOPIC);
    shown.iter().map(|partition| usize::try_from(partition.leader_id.0 - 1).ok()).collect()
}

fn wait_until_whole(cluster: &Cluster) {
    let is_whole = |i: usize| {
        let shown = wire::partitions(&mut wire::connect(cluster.broker(i)), TOPIC);
        !shown.is_empty() && shown.iter().all(|partition| partition.isr_nodes.len() == BROKERS)
    };
    wait_until("set of replicas in sync that is whole", || ALL.into_iter().all(is_whole));
}

#[test]
fn a_full_disk_takes_a_brokers_leaderships_and_nothing_else() {
    let _alone = alone();
    let Some(mut cluster) = start() else { return };
    create(&cluster, PARTITIONS);
    wait_until_whole(&cluster);
    let seed = fastrand::u64(..);
    let changes = Clients::start(&cluster.bootstraps(), 2, &mut Rng::with_seed(seed));
    let ledger = Ledger::new(PARTITIONS);
    let mut producing = config(&cluster);
    producing.set("request.timeout.ms", "1000");
    let records = ledger.begin(&producing, 2);
    let go_on = || {
        changes.wait_for_acks(CHANGES);
        ledger.wait_for_more(RECORDS);
    };
    go_on();

    // It leads the metadata, and a third of the partitions.
    let full = cluster.leader();
    let other = (full + 1) % BROKERS;
    assert!(leaders(&cluster, other).contains(&Some(full)));
    let metric = |name: &str| cluster.broker(full).metric(&format!("millrace_{name}"));
    let disk = cluster.broker(full).small_disk().expect("it was mounted");
    disk.fill();
    wait_until("failure of a flush", || metric("disk_full") > 0.0);
    wait_until("other leader of the metadata", || metric("metadata_leads") == 0.0);
    wait_until("other leaders of its partitions", || {
        leaders(&cluster, other).iter().all(|leader| leader.is_some_and(|leader| leader != full))
    });
    go_on();
    // The other brokers fill its ring completely.
    wait_until("ring without room", || metric("replication_refused_total") > 0.0);
    go_on();

    disk.make_room();
    wait_until("flush by every core", || metric("disk_full") == 0.0);
    assert!(metric("flush_failures_total") > 0.0);
    go_on();
    let history = changes.stop();
    records.stop();
    wait_until_whole(&cluster);
    let mut shown = converged(&cluster);
    // Topics that hold records do not belong to the clients that make changes.
    shown.iter_mut().for_each(|topics| topics.retain(|name, _| name.starts_with("client-")));
    let wrong = history.check(&shown);
    assert!(wrong.is_empty(), "seed {seed}: {}", wrong.join("\n"));
    judge(&config(&cluster), &ledger);
    // The broker has the changes that were acknowledged while it could not write, and may lead again.
    cluster.stop(other);
    judge(&config(&cluster), &ledger);
}

#[test]
fn a_full_disk_has_room_again_once_a_topic_is_deleted() {
    let _alone = alone();
    let mut broker = Broker::new(&FLAGS);
    if let Err(why) = broker.put_on_small_disk(DISK_BYTES) {
        return not_tested(&why);
    }
    broker.begin();
    let mut client = wire::connect(&broker);
    let value = vec![b'x'; 256 << 10];
    let mut produce = |topic: &str| {
        let mut request = wire::produce_request(topic, 0, -1, wire::batch(&[&value]));
        request.timeout_ms = 1000;
        let answer = client.produce(request).expect("an answer");
        errors::check(answer.responses[0].partition_responses[0].error_code)
    };
    for topic in ["needless", TOPIC] {
        let created = wire::create_topic(&mut wire::connect(&broker), topic, 1, 1, &[]);
        assert_eq!(errors::check(created.error_code), Ok(()));
        for _ in 0..64 {
            assert_eq!(produce(topic), Ok(()));
        }
    }
    broker.small_disk().expect("it was mounted").fill();
    while produce(TOPIC).is_ok() {}
    wait_until("count of the flush that failed", || broker.metric("millrace_flush_failures_total") > 0.0);
    // There is no room even for the smallest file that has to be written first.
    let (answer, _) = try_change(&mut wire::connect(&broker), "needless", &Change::Delete).expect("an answer");
    assert_eq!(answer, Ok(()));
    wait_until("room", || produce(TOPIC).is_ok());
}

#[test]
fn a_broker_that_dies_while_its_disk_is_full_comes_back_with_everything_and_takes_a_deletion() {
    let _alone = alone();
    // Data directories of earlier versions have no block for the next manifest.
    for has_next in [true, false] {
        dies_on_a_full_disk(has_next);
    }
}

fn dies_on_a_full_disk(has_next: bool) {
    let mut broker = Broker::new(&FLAGS);
    if let Err(why) = broker.put_on_small_disk(DISK_BYTES) {
        return not_tested(&why);
    }
    broker.begin();
    let mut client = wire::connect(&broker);
    for topic in ["needless", TOPIC] {
        let created = wire::create_topic(&mut client, topic, 1, 1, &[]);
        assert_eq!(errors::check(created.error_code), Ok(()));
    }
    for _ in 0..64 {
        let answer = wire::produce(&mut client, "needless", 0, wire::batch(&[&vec![b'x'; 256 << 10]]));
        assert_eq!(errors::check(answer.error_code), Ok(()));
    }
    broker.small_disk().expect("it was mounted").fill();
    let value = vec![b'x'; 256 << 10];
    let mut acked = 0;
    // Until the ring is full, because nothing can be flushed now.
    let refusal = loop {
        let mut request = wire::produce_request(TOPIC, 0, -1, wire::batch(&[&value]));
        request.timeout_ms = 1000;
        let answer = client.produce(request).expect("an answer");
        match errors::check(answer.responses[0].partition_responses[0].error_code) {
            Ok(()) => acked += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, ErrorCode::KafkaStorageError, "after {acked} records");
    assert!(acked > 0);
    // Each writes a checkpoint, in the space of the last but one.
    wait_until("some flushes that fail", || broker.metric("millrace_flush_failures_total") > 3.0);
    // The broker still serves reads and metadata, so it stays in rotation.
    assert_eq!(broker.admin_get("/health/ready"), (200, "ready\ndisk: full\n".to_owned()));

    broker.kill();
    if !has_next {
        fs::remove_file(broker.data_dir().join("MANIFEST.next")).expect("the broker is dead");
    }
    // Unnamed files of the dead process are gone, too, so fill the space that they have freed.
    broker.small_disk().expect("it was mounted").fill();
    assert!(files_below(&broker.data_dir()).iter().any(|path| path.ends_with("checkpoint.reserve")));
    broker.begin();
    let mut client = wire::connect(&broker);
    assert_eq!(end(&mut client), Ok(acked));
    let (answer, _) = try_change(&mut client, "needless", &Change::Delete).expect("an answer");
    assert_eq!(answer, Ok(()));
    wait_until("room", || {
        let answer = wire::produce(&mut client, TOPIC, 0, wire::batch(&[b"behind it"]));
        errors::check(answer.error_code).is_ok()
    });
    assert!(end(&mut client).expect("it leads") > acked);
    wait_until("flush", || broker.admin_get("/health/ready") == (200, "ready\n".to_owned()));
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// Frees the space of the ring's unused files. The ring has allocated it from the beginning.
fn punch_ring(broker: &Broker) {
    let disk = broker.small_disk().expect("it was mounted");
    let (root, mut punched) = (broker.data_dir(), 0);
    for path in files_below(&root) {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        if name.starts_with("ring-") && fs::read(&path).expect("a file").iter().all(|byte| *byte == 0) {
            disk.punch(path.strip_prefix(&root).expect("it is below").to_str().expect("text"));
            punched += 1;
        }
    }
    assert!(punched > 0);
}

/// Produces until the broker rejects a batch. Returns the number of acknowledged records, and the error.
fn produce_until_refused(client: &mut Client) -> (i64, ErrorCode) {
    let value = vec![b'x'; 256 << 10];
    let mut acked = 0;
    loop {
        let answer = wire::produce(client, TOPIC, 0, wire::batch(&[&value]));
        match errors::check(answer.error_code) {
            Ok(()) => {
                assert_eq!(answer.base_offset, acked);
                acked += 1;
            }
            Err(refusal) => return (acked, refusal),
        }
    }
}

/// The high watermark of the first partition, if the broker leads it.
fn end(client: &mut Client) -> Result<i64, ErrorCode> {
    let fetched = client.fetch(wire::fetch_request(TOPIC, 0, 0, 0, 0)).expect("an answer");
    let partition = wire::only_partition(&fetched);
    errors::check(partition.error_code).map(|()| partition.high_watermark)
}

#[test]
fn a_ring_that_can_not_be_written_is_a_storage_error_until_the_broker_is_restarted() {
    let _alone = alone();
    let mut broker = Broker::new(&FLAGS);
    if let Err(why) = broker.put_on_small_disk(DISK_BYTES) {
        return not_tested(&why);
    }
    broker.begin();
    let mut client = wire::connect(&broker);
    let created = wire::create_topic(&mut client, TOPIC, 1, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    punch_ring(&broker);
    let disk = broker.small_disk().expect("it was mounted");
    disk.fill();
    let (acked, refusal) = produce_until_refused(&mut client);
    assert_eq!(refusal, ErrorCode::KafkaStorageError, "after {acked} records");
    // The broker does not retry, even if that would succeed now.
    disk.make_room();
    assert_eq!(produce_until_refused(&mut client), (0, ErrorCode::KafkaStorageError));
    assert_eq!(end(&mut client), Err(ErrorCode::KafkaStorageError));

    broker.kill();
    broker.begin();
    let mut client = wire::connect(&broker);
    // The rejected record may be in the log all the same, but only once.
    let end = end(&mut client).expect("it leads");
    assert!((acked..=acked + 1).contains(&end), "{acked} records were acknowledged, and it ends at {end}");
    let answer = wire::produce(&mut client, TOPIC, 0, wire::batch(&[b"behind it"]));
    assert_eq!((errors::check(answer.error_code), answer.base_offset), (Ok(()), end));
}

#[test]
fn a_broker_whose_ring_can_not_be_written_is_led_by_the_others() {
    let _alone = alone();
    let Some(mut cluster) = start() else { return };
    create(&cluster, 1);
    wait_until_whole(&cluster);
    let full = leaders(&cluster, 0)[0].expect("it has a leader");
    let other = (full + 1) % BROKERS;
    punch_ring(cluster.broker(full));
    let disk = cluster.broker(full).small_disk().expect("it was mounted");
    disk.fill();
    let (acked, refusal) = produce_until_refused(&mut wire::connect(cluster.broker(full)));
    assert_eq!(refusal, ErrorCode::KafkaStorageError, "after {acked} records");
    wait_until("other leader", || leaders(&cluster, other)[0].is_some_and(|leader| leader != full));
    wait_until("other leader of the metadata", || cluster.leader() != full);
    let mut next = 0;
    wait_until("acknowledgement by another", || {
        let Some(leader) = leaders(&cluster, other)[0] else { return false };
        let answer = wire::produce(&mut wire::connect(cluster.broker(leader)), TOPIC, 0, wire::batch(&[b"behind it"]));
        next = answer.base_offset;
        errors::check(answer.error_code) == Ok(())
    });
    assert!((acked..=acked + 1).contains(&next), "{acked} records were acknowledged, and the next is {next}");

    disk.make_room();
    cluster.kill9(full);
    cluster.begin(full);
    wait_until_whole(&cluster);
    let leader = leaders(&cluster, other)[0].expect("a leader");
    assert_eq!(end(&mut wire::connect(cluster.broker(leader))), Ok(next + 1));
}
