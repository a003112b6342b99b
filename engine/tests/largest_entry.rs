//! Batches near the largest size that the write-ahead rings accept: all replicas store them, or the broker rejects them
//! for good and at once.

mod support;

use net::errors::{self, ErrorCode};
use net::records::batch::{Batches, HEADER_BYTES};

use support::broker::Broker;
use support::cluster::{Cluster, wait_until};
use support::small_disk::not_tested;
use support::wire::{self, OnlyMember};

const TOPIC: &str = "large";
const MB: usize = 1_000_000;
/// Larger than any ring here accepts.
const ANY_SIZE: (&str, &str) = ("max.message.bytes", "50000000");

/// Segments of 32 MiB.
const LARGE_RING: &str = "wal.ring.bytes=268435456";

fn of_bytes(bytes: usize) -> bytes::Bytes {
    wire::batch(&[&vec![b'x'; bytes]])
}

/// The number behind these words in a broker's output.
fn number_behind(words: &str, output: &str) -> usize {
    let (_, behind) = output.split_once(words).unwrap_or_else(|| panic!("no {words:?} in {output}"));
    let digits: String = behind.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// The setting `cores` for one core, and for two. `None`: this process may use only one CPU.
fn one_core_and_two() -> Option<(String, String)> {
    // SAFETY: zeros are an empty set, which the call fills. Afterwards it is only read.
    let may_use = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&set), &raw mut set), 0);
        move |cpu: &usize| libc::CPU_ISSET(*cpu, &set)
    };
    let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(may_use).take(2).collect();
    match cpus[..] {
        [first, second] => Some((first.to_string(), format!("{first},{second}"))),
        _ => None,
    }
}

/// Produces one batch. Returns its offset.
fn produce(broker: &Broker, bytes: usize) -> Result<i64, ErrorCode> {
    let answer = wire::produce(&mut wire::connect(broker), TOPIC, 0, of_bytes(bytes));
    errors::check(answer.error_code).map(|()| answer.base_offset)
}

/// Asserts that the partition has these batches of one record.
fn holds(broker: &Broker, batches: &[usize]) {
    let mut client = wire::connect(broker);
    for (offset, bytes) in batches.iter().enumerate() {
        let answer = client.fetch(wire::fetch_request(TOPIC, 0, offset as i64, 0, 1)).expect("Fetch is answered");
        let partition = &answer.responses[0].partitions[0];
        assert_eq!((errors::check(partition.error_code), partition.high_watermark), (Ok(()), batches.len() as i64));
        let records = partition.records.as_ref().expect("there are records");
        let stored = Batches::new(records.clone()).next().expect("a batch").expect("it is whole").1;
        // The broker stamps the offset and the leader's epoch. The checksum covers all that follows.
        assert_eq!(stored[HEADER_BYTES..], of_bytes(*bytes)[HEADER_BYTES..], "offset {offset}");
    }
}

fn create(broker: &Broker, replicas: i16, settings: &[(&str, &str)]) {
    let created = wire::create_topic(&mut wire::connect(broker), TOPIC, 2, replicas, settings);
    assert_eq!(errors::check(created.error_code), Ok(()), "{:?}", created.error_message);
}

#[test]
fn a_batch_that_no_ring_takes_is_refused_at_once_and_holds_nobody_up() {
    // Segments of 8 MiB.
    let broker = Broker::start_with(&["--cores", "0", "--set", "wal.ring.bytes=67108864"]);
    create(&broker, 1, &[ANY_SIZE]);
    let mut client = wire::connect(&broker);
    for (bytes, expected) in [
        (2 * MB, Ok(())),
        (8 * MB, Ok(())),
        (9 * MB, Err(ErrorCode::MessageTooLarge)),
        (40 * MB, Err(ErrorCode::MessageTooLarge)),
        (10, Ok(())),
    ] {
        let answer = wire::produce(&mut client, TOPIC, 0, of_bytes(bytes));
        assert_eq!(errors::check(answer.error_code), expected, "{bytes} bytes");
        if expected.is_err() {
            let message = answer.error_message.expect("the answer says why");
            assert!(message.contains("wal.ring.bytes") && message.contains("largest.entry.bytes"), "{message}");
        }
    }
    // The topic's own limit applies first.
    let (code, message) = wire::alter_topic(&broker, TOPIC, "max.message.bytes", Some("1000"));
    assert_eq!(errors::check(code), Ok(()), "{message}");
    let answer = wire::produce(&mut client, TOPIC, 1, of_bytes(2000));
    assert_eq!(errors::check(answer.error_code), Err(ErrorCode::MessageTooLarge));
    let message = answer.error_message.expect("the answer says why");
    assert!(message.contains("at most 1000 bytes") && message.contains("max.message.bytes"), "{message}");
}

#[test]
fn the_smallest_ring_bounds_what_leaders_take_and_a_smaller_one_does_not_join() {
    const SMALL: usize = 2;
    let mut cluster = Cluster::start(3, &["--cores", "0"]);
    create(cluster.broker(0), 3, &[("max.message.bytes", "3000000")]);
    let send = |cluster: &Cluster, bytes: usize| {
        let mut sent = Err(ErrorCode::NotLeaderOrFollower);
        wait_until("answer of the leader", || {
            let leader = wire::partitions(&mut wire::connect(cluster.broker(0)), TOPIC)[0].leader_id.0;
            let Some(leader) = usize::try_from(leader - 1).ok().filter(|leader| *leader < cluster.len()) else {
                return false;
            };
            let answer = wire::produce(&mut wire::connect(cluster.broker(leader)), TOPIC, 0, of_bytes(bytes));
            sent = errors::check(answer.error_code);
            sent != Err(ErrorCode::NotLeaderOrFollower)
        });
        sent
    };
    let whole = |cluster: &Cluster| {
        wait_until("set of replicas in sync that is whole", || {
            let shown = wire::partitions(&mut wire::connect(cluster.broker(0)), TOPIC);
            shown.iter().all(|partition| partition.isr_nodes.len() == 3)
        });
    };
    assert_eq!(send(&cluster, 2_900_000), Ok(()));
    assert_eq!(send(&cluster, 3_100_000), Err(ErrorCode::MessageTooLarge));
    whole(&cluster);

    // A new disk with a ring that accepts less than the others may hold.
    cluster.stop(SMALL);
    cluster.empty_disk(SMALL);
    cluster.set(SMALL, "wal.ring.bytes", "16777216");
    let output = cluster.begin_or_end(SMALL).expect_err("it is refused");
    assert!(output.contains("partitions of this cluster may hold batches of 3000000"), "{output}");
    cluster.set(SMALL, "wal.ring.bytes", &number_behind("set wal.ring.bytes to at least ", &output).to_string());
    cluster.begin(SMALL);
    whole(&cluster);

    // From now on, the smallest ring limits every topic, whatever the topic's setting.
    let (code, message) = wire::alter_topic(cluster.broker(0), TOPIC, ANY_SIZE.0, Some(ANY_SIZE.1));
    assert_eq!(errors::check(code), Ok(()), "{message}");
    assert_eq!(send(&cluster, 3_000_000 - 200), Ok(()));
    assert_eq!(send(&cluster, 3_100_000), Err(ErrorCode::MessageTooLarge));
    whole(&cluster);
}

#[test]
fn a_ring_is_made_anew_for_a_larger_batch_after_a_restart() {
    let mut broker = Broker::start_with(&["--cores", "0", "--set", "wal.ring.bytes=16777216"]);
    create(&broker, 1, &[ANY_SIZE]);
    let mut client = wire::connect(&broker);
    assert_eq!(errors::check(wire::produce(&mut client, TOPIC, 0, of_bytes(MB)).error_code), Ok(()));
    let answer = wire::produce(&mut client, TOPIC, 0, of_bytes(6 * MB));
    assert_eq!(errors::check(answer.error_code), Err(ErrorCode::MessageTooLarge));
    broker.set("wal.ring.bytes", "67108864");
    broker.kill_and_begin();
    let answer = wire::produce(&mut wire::connect(&broker), TOPIC, 0, of_bytes(6 * MB));
    assert_eq!((errors::check(answer.error_code), answer.base_offset), (Ok(()), 1));
}

/// Asserts that a broker with two cores refused to start, since each core's ring is too small. Returns the value of
/// `wal.ring.bytes` with which it would start.
fn refused(output: &str) -> String {
    let takes = number_behind("with 2 cores, each core's ring takes batches of at most ", output);
    let largest = number_behind("partitions of this cluster may hold batches of ", output);
    assert!(takes < 8 * MB && largest > 8 * MB && output.contains("or use fewer cores"), "{output}");
    number_behind("set wal.ring.bytes to at least ", output).to_string()
}

#[test]
fn more_cores_than_the_ring_is_large_enough_for_are_refused_and_nothing_is_lost() {
    let Some((one, two)) = one_core_and_two() else { return not_tested("it takes two CPUs") };
    let mut broker = Broker::start_with(&["--set", &format!("cores={one}"), "--set", "wal.ring.bytes=67108864"]);
    create(&broker, 1, &[ANY_SIZE]);
    // It is in the ring only, and as large as a segment of the ring takes.
    assert_eq!(produce(&broker, 8 * MB), Ok(0));
    broker.kill();
    broker.set("cores", &two);
    let least = refused(&broker.begin_or_end().expect_err("it is refused"));
    assert_eq!(refused(&broker.begin_or_end().expect_err("it is refused again")), least);
    broker.set("cores", &one);
    broker.begin();
    assert_eq!(produce(&broker, 7 * MB), Ok(1));
    holds(&broker, &[8 * MB, 7 * MB]);
    broker.stop();
    broker.set("cores", &two);
    assert_eq!(refused(&broker.begin_or_end().expect_err("it is refused")), least);
    broker.set("wal.ring.bytes", &least);
    broker.begin();
    assert_eq!(produce(&broker, 8 * MB), Ok(2));
    holds(&broker, &[8 * MB, 7 * MB, 8 * MB]);
}

#[test]
fn fewer_cores_take_larger_batches_and_more_cores_than_before_are_refused_from_then_on() {
    let Some((one, two)) = one_core_and_two() else { return not_tested("it takes two CPUs") };
    let mut broker = Broker::start_with(&["--set", &format!("cores={two}"), "--set", "wal.ring.bytes=67108864"]);
    create(&broker, 1, &[ANY_SIZE]);
    assert_eq!(produce(&broker, 4 * MB), Ok(0));
    assert_eq!(produce(&broker, 8 * MB), Err(ErrorCode::MessageTooLarge));
    broker.kill();
    broker.set("cores", &one);
    broker.begin();
    assert_eq!(produce(&broker, 8 * MB), Ok(1));
    holds(&broker, &[4 * MB, 8 * MB]);
    broker.kill();
    broker.set("cores", &two);
    let least = refused(&broker.begin_or_end().expect_err("it is refused"));
    broker.set("wal.ring.bytes", &least);
    broker.begin();
    holds(&broker, &[4 * MB, 8 * MB]);
}

#[test]
fn a_replica_with_more_cores_than_its_ring_is_large_enough_for_is_refused_also_without_the_others() {
    let Some((one, two)) = one_core_and_two() else { return not_tested("it takes two CPUs") };
    const MORE: usize = 2;
    let mut cluster = Cluster::start(3, &["--set", &format!("cores={one}")]);
    create(cluster.broker(0), 3, &[ANY_SIZE]);
    let in_sync = |cluster: &Cluster, broker: usize| {
        wait_until("set of replicas in sync that is whole", || {
            let shown = wire::partitions(&mut wire::connect(cluster.broker(broker)), TOPIC);
            shown.iter().all(|partition| partition.isr_nodes.len() == 3)
        });
    };
    in_sync(&cluster, MORE);
    cluster.kill9(MORE);
    cluster.set(MORE, "cores", &two);
    let least = refused(&cluster.begin_or_end(MORE).expect_err("it is refused"));
    // Its own metadata says so, too.
    cluster.kill9(0);
    cluster.kill9(1);
    assert_eq!(refused(&cluster.begin_or_end(MORE).expect_err("it is refused")), least);
    cluster.set(MORE, "wal.ring.bytes", &least);
    (0..3).for_each(|broker| cluster.spawn(broker));
    (0..3).for_each(|broker| cluster.wait_until_serving(broker));
    in_sync(&cluster, MORE);
}

#[test]
fn group_state_that_does_not_fit_is_answered_as_in_kafka() {
    let broker = Broker::start_with(&["--cores", "0", "--set", "wal.ring.bytes=16777216"]);
    let mut client = wire::connect(&broker);
    wire::await_coordinator(&mut client, "large-group");
    let mut member = OnlyMember::new("large-group");
    assert_eq!(member.assign(&mut client, 6 * MB), Err(ErrorCode::UnknownServerError));
}

/// Sends `before` to the leader, which is more than its and its followers' memory for the newest records, then a batch
/// of each size.
fn send_behind_a_full_cache(leader: &Broker, before: usize, sizes: &[usize]) {
    let mut client = wire::connect(leader);
    for &size in sizes {
        for bytes in std::iter::repeat_n(MB, before / MB).chain([size]) {
            let answer = wire::produce(&mut client, TOPIC, 0, of_bytes(bytes));
            assert_eq!(errors::check(answer.error_code), Ok(()), "{bytes} bytes, of {size}");
        }
    }
}

#[test]
fn a_batch_that_the_ring_takes_gets_its_memory_from_the_cache() {
    // 20 MiB of the budget are for the newest records, of which 16 MiB are for the cache.
    let broker = Broker::start_with(&["--cores", "0", "--set", LARGE_RING, "--set", "memory.budget.bytes=67108864"]);
    create(&broker, 1, &[ANY_SIZE]);
    // The last one is larger than the whole share.
    send_behind_a_full_cache(&broker, 30 * MB, &[12 * MB, 12 * MB, 30 * MB]);
    assert_eq!(broker.metric("millrace_admission_timed_out_total"), 0.0);
}

#[test]
fn a_followers_cache_makes_room_for_a_large_batch() {
    // 72 MiB of a broker's budget are for the newest records, of which 64 MiB are for the cache.
    let cluster = Cluster::start(3, &["--cores", "0", "--set", LARGE_RING]);
    // A batch is acknowledged once both replicas have it.
    create(cluster.broker(0), 2, &[ANY_SIZE]);
    let mut leader = None;
    wait_until("leader with a replica in sync", || {
        let shown = &wire::partitions(&mut wire::connect(cluster.broker(0)), TOPIC)[0];
        leader = usize::try_from(shown.leader_id.0 - 1).ok();
        leader.is_some() && shown.isr_nodes.len() == 2
    });
    send_behind_a_full_cache(cluster.broker(leader.expect("it was seen")), 90 * MB, &[30 * MB]);
}
