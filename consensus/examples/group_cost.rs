//! Measures the cost of a Raft group with one voter: `cargo run --release -p consensus --example group_cost`.

use bytes::Bytes;
use consensus::group::{
    Group, GroupConfig, Restored,
    descriptor::{Descriptor, EntryData},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
};
use types::{GroupId, RaftIndex};

static HELD: AtomicUsize = AtomicUsize::new(0);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with counters.
struct Counting;

// SAFETY: it only counts, then calls the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Relaxed);
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller upholds the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn settle(group: &mut Group) {
    while let Some(ready) = group.ready() {
        group.on_persisted(ready.number);
        if let Some(last) = ready.committed.last() {
            group.applied_to(last.index);
        }
    }
}

fn leader(id: u64) -> Group {
    let mut group = Group::new(GroupConfig::single(GroupId(id), 1), Restored::default()).expect("a new group");
    group.campaign();
    settle(&mut group);
    group
}

fn descriptor(offset: u64) -> Bytes {
    EntryData::Batch(Descriptor { base_offset: offset, count: 1, bytes: 1024, crc: 7, max_timestamp: 0 }).encode()
}

/// Proposes, takes the Ready, persists, commits and applies, with `per_ready` proposals in each Ready.
fn proposals(per_ready: u64) {
    const ROUNDS: u64 = 200_000;
    let mut group = leader(1);
    let mut offset = 0;
    let (begun, allocations) = (Instant::now(), ALLOCATIONS.load(Relaxed));
    for round in 0..ROUNDS / per_ready {
        for _ in 0..per_ready {
            group.propose(black_box(descriptor(offset))).expect("it leads");
            offset += 1;
        }
        settle(&mut group);
        if round % 64 == 0 {
            group.compact(group.applied());
        }
    }
    let ns = begun.elapsed().as_nanos() as u64 / offset;
    let allocations = (ALLOCATIONS.load(Relaxed) - allocations) as u64 / offset;
    println!("{per_ready:>4} proposals a Ready: {ns} ns and {allocations} allocations each, from proposal to applied");
}

fn many_groups() {
    const GROUPS: u64 = 10_000;
    let held = HELD.load(Relaxed);
    let begun = Instant::now();
    let mut groups: Vec<Group> = (0..GROUPS).map(leader).collect();
    println!("{GROUPS} groups led after {} ms", begun.elapsed().as_millis());
    groups.iter_mut().for_each(|group| {
        group.compact(RaftIndex::MAX);
    });
    println!("{} bytes a group", (HELD.load(Relaxed) - held) as u64 / GROUPS);
    let begun = Instant::now();
    groups.iter_mut().for_each(Group::tick);
    println!("a tick of all takes {} µs", begun.elapsed().as_micros());
    let begun = Instant::now();
    let working = groups.iter().filter(|group| group.has_work()).count();
    println!("asking all for work takes {} µs ({working} have some)", begun.elapsed().as_micros());
}

fn main() {
    [1, 1, 8, 64].into_iter().for_each(proposals);
    many_groups();
}
