//! Compares the ring with a plain vector: random appends, releases, crashes, process deaths, and clean stops.

use crate::harness::{EPOCH, SEGMENT, Said, Shared, any, close, config, dir, disk, said, seeds, stage};
use std::rc::Rc;
use wal::{
    buf::BLOCK,
    disk::sim::SimDisk,
    ring::journal::{Journal, RecoveredRing},
    sim_exec::{SimExec, block_on},
    store::{LogPos, OpenError},
};

/// All records that were staged and not cut by a crash, in order. Each has its beginning (as far as the caller knows)
/// and its end.
#[derive(Default)]
struct Model {
    records: Vec<(LogPos, LogPos, Said)>,
    durable: LogPos,
    released: LogPos,
    /// The last life ended with a clean mark.
    clean: bool,
    /// The end of the last clean mark.
    marked: LogPos,
    laps: u64,
    cuts: u64,
}

impl Model {
    /// Compares what was read back, and forgets what was cut.
    fn compare(&mut self, found: &RecoveredRing) -> Result<(), String> {
        let acked = self.records.partition_point(|(_, end, _)| *end <= self.durable);
        let first = self.records.partition_point(|(_, end, _)| *end <= found.first);
        if self.records[..acked].iter().any(|(start, ..)| *start >= self.released && *start < found.first) {
            return Err(format!("what was not released is gone below {}", found.first.0));
        }
        let kept = first + found.records.len();
        if kept < acked {
            return Err(format!("{} of {acked} acked records are left", kept));
        }
        if kept > self.records.len() {
            return Err("more records than were staged".to_owned());
        }
        for ((start, end, staged), found) in self.records[first..kept].iter().zip(&found.records) {
            if said(found) != *staged {
                return Err(format!("the record at {} is another", start.0));
            }
            if found.end != *end || found.start < *start || found.start >= *end {
                return Err(format!("the record of {}..{} is at {}..{}", start.0, end.0, found.start.0, found.end.0));
            }
        }
        // After a clean stop, a life that leaves nothing behind may leave the ring clean.
        let only_marked = self.records[..kept].last().is_none_or(|(_, end, _)| *end <= self.marked);
        if self.clean && !found.clean || found.clean && !(only_marked && self.marked > LogPos(0)) {
            return Err(format!("clean: {}", found.clean));
        }
        self.cuts += u64::from(kept < self.records.len());
        self.records.truncate(kept);
        Ok(())
    }
}

async fn write(journal: &Journal<SimDisk>, model: &Shared<Model>, seed: u64, steps: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..steps {
        match rng.u32(..10) {
            0..6 => {
                let record = any(&mut rng, SEGMENT as usize / 2);
                let start = journal.staged();
                if let Ok(end) = stage(journal, &record) {
                    model.borrow_mut().records.push((start, end, record));
                }
            }
            6..8 => {
                let staged = journal.staged();
                while journal.durable() < staged {
                    let Ok(durable) = journal.durable_past(journal.durable()).await else { return };
                    model.borrow_mut().durable = durable;
                }
            }
            _ => {
                let durable = journal.durable();
                let mut model = model.borrow_mut();
                model.durable = durable;
                model.released = model.released.max(LogPos(rng.u64(model.released.0..=durable.0)));
                journal.release_below(model.released);
                model.laps = durable.0 / (4 * SEGMENT);
            }
        }
    }
    model.borrow_mut().durable = journal.durable();
}

pub fn acked_survives(seed: u64, prepare: &dyn Fn(&SimDisk)) -> Result<(u64, u64), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut disk = disk(seed);
    let model = Shared::<Model>::default();
    for life in 0..8 {
        prepare(&disk);
        // Opening may be interrupted too.
        if rng.u32(..4) == 0 {
            disk.stop_after(rng.u64(1..60));
            let released = model.borrow().released;
            let found = block_on(rng.u64(..), Journal::open_from(disk.clone(), dir(), EPOCH, config(), released));
            if let Some(Err(error)) = found {
                return Err(format!("life {life}: {error}"));
            }
            if rng.bool() {
                disk.resume();
            } else {
                disk = disk.crash();
                prepare(&disk);
            }
        }
        let released = model.borrow().released;
        let opened = block_on(rng.u64(..), Journal::open_from(disk.clone(), dir(), EPOCH, config(), released));
        let (journal, found) =
            opened.expect("the disk answers").map_err(|error: OpenError| format!("life {life}: {error}"))?;
        model.borrow_mut().compare(&found).map_err(|wrong| format!("life {life}: {wrong}"))?;
        let durable = journal.durable();
        (model.borrow_mut().clean, model.borrow_mut().durable) = (false, durable);
        let ends_clean = rng.u32(..4) == 0;
        if !ends_clean && rng.u32(..4) > 0 {
            disk.stop_after(rng.u64(1..300));
        }
        let mut exec = SimExec::new(rng.u64(..));
        exec.spawn(async {
            let _ = journal.run().await;
        });
        exec.spawn(write(&journal, &model, rng.u64(..), rng.usize(1..200)));
        exec.run();
        drop(exec);
        model.borrow_mut().durable = journal.durable();
        if ends_clean {
            // The mark may only lack room if the mark of an earlier stop took its place.
            let marks = journal.space().free >= BLOCK as u64;
            close(&journal);
            let mut model = model.borrow_mut();
            (model.clean, model.durable) = (marks, journal.durable());
            if marks {
                model.marked = model.durable;
            }
        }
        drop(journal);
        // Either the process dies, or the machine does.
        if rng.u32(..3) == 0 {
            disk.stop();
            disk.resume();
        } else {
            disk = disk.crash();
        }
    }
    let model = model.borrow();
    Ok((model.laps, model.cuts))
}

#[test]
fn acknowledged_records_are_read_back_after_crashes_at_any_operation() {
    let totals = Rc::new(std::cell::Cell::new((0, 0)));
    seeds("what_was_acked", 200, |seed| {
        let (laps, cuts) = acked_survives(seed, &|_| {})?;
        totals.set((totals.get().0 + laps, totals.get().1 + cuts));
        Ok(())
    });
    let (laps, cuts) = totals.get();
    assert!(laps > 0 && cuts > 0, "the ring went round ({laps}) and lost unsynced records ({cuts})");
}
