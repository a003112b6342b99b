//! Failing writes and syncs: afterwards nothing is acknowledged, and a restart finds what was acknowledged before.

use crate::{
    harness::{Said, disk, entry, open, opened, said, stage, write},
    model::acked_survives,
};
use wal::{
    disk::sim::{Fate, Kind, SimDisk},
    ring::journal::RingBody,
    sim_exec::SimExec,
    store::{Admission, AppendError, LogPos},
};

/// Makes the third write (or its sync) fail, with a fourth staged behind it.
fn poisoned_by(kind: Kind, fate: Fate, why: &str) {
    let disk = disk(5);
    let (journal, _) = opened(&disk);
    let records: Vec<Said> = (1..=4).map(|index| entry(index, vec![index as u8; 100])).collect();
    write(1, &journal, &[vec![records[0].clone()], vec![records[1].clone()]]);
    let acked = journal.durable();
    disk.fate_of(kind, 0, fate);
    let mut exec = SimExec::new(2);
    let ended = exec.spawn_with_result(journal.run());
    let waiting = exec.spawn_with_result(journal.durable_past(acked));
    let space = exec.spawn_with_result(journal.space_freed());
    stage(&journal, &records[2]).expect("there is room");
    // One step starts the write. Records staged now wait behind it.
    exec.step();
    let staged = stage(&journal, &records[3]);
    exec.run();

    let poisoned = journal.poisoned().expect("the ring is poisoned");
    assert!(poisoned.0.contains(why) && poisoned.0.contains("ring-0000.seg"), "{}", poisoned.0);
    assert_eq!(journal.durable(), acked, "nothing more is acked");
    assert_eq!(*ended.borrow(), Some(Err(poisoned.clone())), "the writer ends and says why");
    assert_eq!(*waiting.borrow(), Some(Err(poisoned.clone())), "who waits learns it");
    assert_eq!(*space.borrow(), Some(()), "nobody waits for space");
    assert_eq!(journal.admit(1 << 30), Admission::Ok);
    assert_eq!(stage(&journal, &records[3]), Err(AppendError::Poisoned(poisoned)));
    drop(staged);
    drop(exec);

    // The ring does not retry that write or sync.
    disk.trace();
    write(3, &journal, &[]);
    assert!(disk.trace().is_empty());
    drop(journal);
    for _ in 0..20 {
        let (_, found) = opened(&disk.crash());
        let found: Vec<Said> = found.records.iter().map(said).collect();
        assert!(found.len() >= 2 && found[..] == records[..found.len()], "acked records, and perhaps the third");
    }
}

#[test]
fn an_io_error_of_a_write_poisons() {
    poisoned_by(Kind::Write, Fate::Fail(libc::EIO), "Input/output error");
}

#[test]
fn a_full_disk_under_the_ring_poisons() {
    poisoned_by(Kind::Write, Fate::Fail(libc::ENOSPC), "No space left");
}

#[test]
fn a_short_write_poisons() {
    poisoned_by(Kind::Write, Fate::Short, "write zero");
}

#[test]
fn an_io_error_of_a_sync_poisons() {
    poisoned_by(Kind::Sync, Fate::Fail(libc::EIO), "Input/output error");
}

#[test]
fn a_full_disk_at_a_sync_poisons() {
    poisoned_by(Kind::Sync, Fate::Fail(libc::ENOSPC), "No space left");
}

#[test]
fn a_writer_dropped_in_the_middle_of_a_write_poisons() {
    let disk = disk(5);
    let (journal, _) = opened(&disk);
    disk.stop_after(1);
    write(1, &journal, &[vec![entry(1, &b"one"[..])]]);
    assert!(journal.poisoned().is_some_and(|poisoned| poisoned.0.contains("in the middle of a write")));
}

#[test]
fn opening_reports_each_failing_operation_and_succeeds_later() {
    for fate in [libc::EIO, libc::ENOSPC] {
        for at in 0.. {
            let disk = disk(7);
            let mut seen = 0;
            disk.fates(move |_| {
                seen += 1;
                if seen == at + 1 { Fate::Fail(fate) } else { Fate::Go }
            });
            let Err(error) = open(&disk) else {
                assert!(at > 20, "there was something to fail");
                break;
            };
            let named = error.to_string();
            assert!(named.contains("/core") && named.contains("os error"), "{named}");
            disk.no_fates();
            let (journal, found) = opened(&disk.crash());
            assert_eq!((found.records.len(), journal.durable()), (0, LogPos(0)));
        }
    }
}

/// A place where the ring syncs. Each is left out in turn.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Site {
    /// The sync that makes a write durable.
    Write,
    /// The sync of the records that were read back at open.
    ReadBack,
    /// The sync of a new file's zeros and length.
    NewFile,
    /// The sync of the names, at open and after each new file.
    Names,
}

fn leave_out(site: Site) -> impl Fn(&SimDisk) {
    move |disk| {
        let mut written = false;
        disk.fates(move |op| {
            let of_ring = op.path.extension().is_some_and(|kind| kind == "seg");
            let at = match op.kind {
                Kind::Sync if !of_ring => Some(Site::NewFile),
                Kind::Sync if written => Some(Site::Write),
                Kind::Sync => Some(Site::ReadBack),
                Kind::SyncDir => Some(Site::Names),
                _ => None,
            };
            written = op.kind == Kind::Write;
            if at == Some(site) { Fate::Skip } else { Fate::Go }
        });
    }
}

#[test]
fn leaving_out_any_sync_is_noticed() {
    for site in [Site::Write, Site::ReadBack, Site::NewFile, Site::Names] {
        let caught = (0..400).find(|seed| acked_survives(*seed, &leave_out(site)).is_err());
        assert!(caught.is_some(), "no life went wrong without the sync of {site:?}");
    }
}

#[test]
fn an_entry_beyond_a_segment_is_refused_by_name() {
    let disk = disk(5);
    let (journal, _) = opened(&disk);
    let max = journal.entry_bytes_max();
    let (group, hard_state, body) = entry(1, vec![1; max]);
    let RingBody::Entry(mut entry) = body else { unreachable!() };
    let refused = journal.append(group, hard_state, &entry).map(|_| ());
    assert!(matches!(refused, Err(AppendError::TooLarge { max: said, .. }) if said == max), "{refused:?}");
    entry.data = Default::default();
    let staged = journal.append(group, hard_state, &entry).expect("it fits exactly");
    assert_eq!(staged.payload.map(|payload| payload.bytes.len()), Some(max));
}
