//! What a ring says that it has room for can be staged.

use types::{GroupId, HardState, RaftIndex, Term};
use wal::{
    buf::BLOCK,
    record::Entry,
    ring::{Refused, Ring, RingConfig, RingStart, format::Record},
    store::LogPos,
};

const SEEDS: std::ops::Range<u64> = 0..1000;

/// A ring somewhere in its laps.
fn ring(rng: &mut fastrand::Rng) -> (Ring, RingConfig) {
    let segment_bytes = (rng.u64(16..64) * BLOCK as u64).next_multiple_of(BLOCK as u64);
    let write_bytes_max = rng.usize(1..=segment_bytes as usize / BLOCK) * BLOCK;
    let segments = rng.u32(4..9);
    let config =
        RingConfig { segment_bytes, segments, write_bytes_max, reserve_bytes: segment_bytes, ring_id: Some(1) };
    let mut ring = Ring::new(config, 1, segments, RingStart::default());
    for _ in 0..rng.usize(..200) {
        let most = if rng.bool() { BLOCK } else { ring.entry_bytes_max() - 8 };
        let bytes = rng.usize(..=most);
        if ring.takes(&[bytes], segment_bytes / 2) == 1 {
            stage(&mut ring, bytes).expect("it has room");
        }
        if rng.bool() {
            write_all(&mut ring);
            let freed = ring.freed().0;
            ring.release_below(LogPos(rng.u64(freed..=ring.durable().0)));
        }
    }
    (ring, config)
}

fn stage(ring: &mut Ring, bytes: usize) -> Result<(), Refused> {
    let entry =
        Entry { index: RaftIndex::new(1), term: Term(1), entry_type: 0, data: vec![7; bytes].into(), payload: None };
    let staged = ring.append(GroupId(0), HardState::default(), Record::Entry { entry: &entry });
    staged.map(drop)
}

fn write_all(ring: &mut Ring) {
    while ring.next_write().is_some() {
        ring.written();
    }
}

#[test]
fn entries_that_a_ring_takes_are_staged_and_leave_what_is_spared() {
    let (mut all, mut some) = (0, 0);
    for seed in SEEDS {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut ring, config) = ring(&mut rng);
        let most = if rng.bool() { BLOCK } else { config.segment_bytes as usize };
        let sizes: Vec<usize> = (0..rng.usize(1..200)).map(|_| rng.usize(..most)).collect();
        let spared = config.segment_bytes / 2;
        let takes = ring.takes(&sizes, spared);
        for bytes in &sizes[..takes] {
            stage(&mut ring, *bytes).unwrap_or_else(|refused| panic!("seed {seed}: {bytes} bytes: {refused:?}"));
        }
        if takes > 0 {
            let free = ring.space().free + 2 * BLOCK as u64;
            assert!(free >= spared, "seed {seed}: {free} of {spared} bytes are left");
        }
        ring.check();
        all += usize::from(takes == sizes.len());
        some += usize::from(takes > 0 && takes < sizes.len());
    }
    assert!(all > 50 && some > 50, "{all} and {some} of {SEEDS:?}");
}

#[test]
fn a_ring_that_was_flushed_takes_the_largest_entry() {
    for seed in SEEDS {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut ring, config) = ring(&mut rng);
        write_all(&mut ring);
        ring.release_below(ring.durable());
        let largest = ring.entry_bytes_max() - 8;
        assert_eq!(ring.takes(&[largest], config.segment_bytes / 2), 1, "seed {seed}");
        assert_eq!(ring.takes(&[ring.entry_bytes_max() + 1], 0), 0, "seed {seed}");
    }
}

#[test]
fn claimed_room_is_left_by_others() {
    for seed in SEEDS {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut ring, config) = ring(&mut rng);
        write_all(&mut ring);
        ring.release_below(ring.durable());
        let claimed = rng.usize(1..ring.entry_bytes_max() - 8);
        ring.claim(claimed);
        for _ in 0..1000 {
            let bytes = rng.usize(..ring.entry_bytes_max() / 2);
            if ring.admits(bytes) == Some(true) {
                stage(&mut ring, bytes).expect("it has room");
            }
        }
        assert_eq!(ring.takes(&[claimed], config.segment_bytes / 2), 1, "seed {seed}");
    }
}
