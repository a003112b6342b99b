//! Workload `produce`: sends records by an open-loop schedule. The latency runs from a record's intended time to its
//! acknowledgement.

pub(crate) mod client_cap;
pub(crate) mod lane;
#[cfg(feature = "librdkafka")]
pub(crate) mod librdkafka;

use std::sync::Arc;

use bytes::Bytes;
use net::StrBytes;
use net::codec::api::ApiKey;
use net::records::compression::Codec;

use crate::error::AnyError;
use crate::figures::outcome::Outcome;
use crate::figures::stats::Live;
use crate::load::batcher::BatchLimits;
use crate::load::setup::{self, Lane, Target};
use crate::load::window::Window;
use crate::machine::ceiling::Ceiling;
use crate::options::sizes::Sizes;
use crate::options::workloads::ProduceOptions;
use crate::options::{Acks, Client, RecordOptions};
use crate::report::shares::Share;
use crate::report::{Report, Unit};
use crate::run;

/// Bytes of a key: a letter and ten digits.
pub const KEY_BYTES: usize = 11;
/// Bytes of the intended time at the start of a stamped value.
pub const STAMP_BYTES: usize = 8;

pub const SHARES: [Share; 5] =
    [Share::ClientCap, Share::DiskWrite, Share::LoopbackBytes, Share::WriteSync, Share::PacedWrite];

pub fn run(options: &ProduceOptions) -> Result<Report, AnyError> {
    let target = setup::prepare(&options.target, ApiKey::Produce)?;
    let mut ceiling = Ceiling::measure(&options.run);
    client_cap::measure(options, target.partitions, &mut ceiling);
    let outcome = load(options, target)?;
    Ok(Report::new("produce", Unit::Records, outcome, ceiling).against(&SHARES))
}

/// Runs the load with the client that the options name.
pub fn load(options: &ProduceOptions, target: Target) -> Result<Outcome, AnyError> {
    let window = Window::new(options.run.warm_up, options.run.duration);
    let rate = options.records.rate.unwrap_or(0);
    let plan = Plan::new(&options.target.topic, &target, &options.records, rate, window);
    if options.client == Client::Librdkafka {
        return librdkafka(options, plan);
    }
    let work = move |index: usize, lane: Lane, live: Arc<Live>| lane::lane_work(plan.clone(), index, lane, live);
    Ok(run::drive(&options.target.threads, target.lanes, window, work)?)
}

#[cfg(feature = "librdkafka")]
fn librdkafka(options: &ProduceOptions, plan: Plan) -> Result<Outcome, AnyError> {
    crate::workloads::produce::librdkafka::load(options, plan)
}

#[cfg(not(feature = "librdkafka"))]
fn librdkafka(_: &ProduceOptions, _: Plan) -> Result<Outcome, AnyError> {
    Err("--client librdkafka: this build does not have it; build with --features librdkafka".into())
}

/// The parameters that all connections share.
#[derive(Clone)]
pub struct Plan {
    pub topic: StrBytes,
    pub version: i16,
    pub acks: Acks,
    pub rate: u64,
    pub connections: usize,
    pub in_flight: usize,
    pub limits: BatchLimits,
    pub sizes: Sizes,
    pub keys: u64,
    /// Partitions of the whole topic, not of one connection.
    pub partitions: u64,
    pub codec: Codec,
    /// Values are slices of this text.
    pub values: Bytes,
    /// Values begin with their intended send time.
    pub stamped: bool,
    pub window: Window,
}

impl Plan {
    pub fn new(topic: &str, target: &Target, records: &RecordOptions, rate: u64, window: Window) -> Plan {
        let key_bytes = if records.keys > 0 { KEY_BYTES } else { 0 };
        let linger_ns = records.linger.as_nanos() as u64;
        Plan {
            topic: StrBytes::from_string(topic.to_owned()),
            version: target.version,
            acks: records.acks,
            rate,
            connections: target.lanes.len(),
            in_flight: records.in_flight,
            limits: BatchLimits { linger_ns, batch_bytes: records.batch_size, key_bytes },
            sizes: records.record_size.clone(),
            keys: records.keys,
            partitions: target.partitions as u64,
            codec: records.codec.codec(),
            values: values(records.record_size.max()),
            stamped: false,
            window,
        }
    }

    /// Makes each value begin with its intended time, for a consumer in this process. Every value must have room for
    /// the stamp.
    pub fn stamped(mut self) -> Plan {
        self.stamped = true;
        self
    }
}

/// Text that no codec compresses much below three quarters, and that is long enough for neighbouring values to
/// differ.
pub fn values(record_size: usize) -> Bytes {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let letters = (0..record_size + (1 << 16)).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ALPHABET[(state >> 32) as usize % 64]
    });
    letters.collect()
}

/// Picks a key of the partition: a key whose number is congruent to the partition's, modulo the number of partitions.
pub fn key(number: u64, partition: u64, plan: &Plan) -> [u8; KEY_BYTES] {
    let partitions = plan.partitions.min(plan.keys);
    let place = partition % partitions;
    let of_partition = (plan.keys - place).div_ceil(partitions);
    let key = number % of_partition * partitions + place;
    let mut text = [0; KEY_BYTES];
    let mut rest = key;
    for digit in text[1..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    text[0] = b'k';
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::batcher::RECORD_OVERHEAD_BYTES;
    use net::records::build::BatchBuilder;
    use std::collections::HashSet;
    use std::time::Duration;

    fn plan(keys: u64, partitions: i32) -> Plan {
        let line = format!("millrace-bench produce --keys {keys}");
        let command = crate::options::Command::parse_all(line.split(' ').map(str::to_owned)).unwrap();
        let crate::options::Workload::Produce(options) = command.workload else { panic!("it is produce") };
        let target = Target { lanes: Vec::new(), partitions, version: 12 };
        Plan::new("t", &target, &options.records, 0, Window::new(Duration::ZERO, Duration::ZERO))
    }

    #[test]
    fn each_key_belongs_to_one_partition_and_all_are_used() {
        let plan = plan(10, 4);
        let keys = |partition| -> HashSet<[u8; KEY_BYTES]> { (0..100).map(|n| key(n, partition, &plan)).collect() };
        let all: Vec<HashSet<_>> = (0..4).map(keys).collect();
        assert_eq!(all.iter().map(HashSet::len).collect::<Vec<_>>(), [3, 3, 2, 2]);
        assert_eq!(all.iter().flatten().collect::<HashSet<_>>().len(), 10);
        assert_eq!(key(0, 3, &plan), *b"k0000000003");
    }

    #[test]
    fn the_overhead_of_a_record_is_what_batches_show() {
        for size in [100, 1024] {
            let value = values(size);
            let mut builder = BatchBuilder::new(Codec::None);
            let empty = builder.byte_count();
            for _ in 0..1000 {
                builder.push(0, None, Some(&value[..size]));
            }
            let overhead = (builder.byte_count() - empty) / 1000 - size;
            assert!(overhead.abs_diff(RECORD_OVERHEAD_BYTES) <= 1, "{overhead} bytes at {size}");
        }
    }
}
