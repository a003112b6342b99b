//! Measures the cost of checking the records of producers' batches, in bytes per second of one core. The reference is
//! the CRC, which is computed for every batch anyway.
//!
//! `cargo run --release -p net --example validation_cost`

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use net::records::batch::{Check, Compressed};
use net::records::build::BatchBuilder;
use net::records::compression::Codec;
use net::turn::Share;

/// Long enough to make the clock's resolution irrelevant.
const WINDOW: Duration = Duration::from_millis(400);

/// A batch of about this many bytes before compression, with records like those that services write.
fn batch(codec: Codec, bytes: usize, record_bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(codec);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut at = 0;
    while at < bytes {
        let mut value =
            format!(r#"{{"id":{},"user":"user-{}","amount":{},"note":""#, rng.u32(..), rng.u16(..), rng.u16(..));
        while value.len() < record_bytes {
            value.push_str(["alpha ", "beta ", "gamma ", "delta ", "epsilon "][rng.usize(..5)]);
        }
        builder.push(1_700_000_000_000, Some(&rng.u64(..).to_be_bytes()), Some(&value.as_bytes()[..record_bytes]));
        at += record_bytes;
    }
    builder.finish()
}

/// Seconds for one check.
fn check(batch: &Bytes, compressed: Compressed) -> f64 {
    let (begun, mut checks) = (Instant::now(), 0);
    while begun.elapsed() < WINDOW {
        let mut check = Check::begin(batch.clone(), 9, compressed).expect("it is sound");
        while check.step(&mut { Share::TURN }).expect("it is sound").map(black_box).is_none() {}
        checks += 1;
    }
    begun.elapsed().as_secs_f64() / f64::from(checks)
}

fn main() {
    println!(
        "{:8} {:>10} {:>8} {:>10} {:>12} {:>12} {:>8}",
        "codec", "unfolded", "record", "packed", "sum, µs", "checked, µs", "MB/s"
    );
    for bytes in [1_000, 16_000, 128_000, 1_000_000] {
        for codec in Codec::ALL {
            for record_bytes in [100, 1_000] {
                let batch = batch(codec, bytes, record_bytes);
                let checked = check(&batch, Compressed::Check);
                let summed = if codec == Codec::None {
                    let (begun, mut sums) = (Instant::now(), 0);
                    while begun.elapsed() < WINDOW {
                        black_box(net::records::batch::crc(black_box(&batch)));
                        sums += 1;
                    }
                    begun.elapsed().as_secs_f64() / f64::from(sums)
                } else {
                    check(&batch, Compressed::Trust)
                };
                println!(
                    "{:8} {bytes:>10} {record_bytes:>8} {:>10} {:>12.2} {:>12.2} {:>8.0}",
                    format!("{codec:?}"),
                    batch.len(),
                    summed * 1e6,
                    checked * 1e6,
                    bytes as f64 / checked / 1e6,
                );
            }
        }
    }
}
