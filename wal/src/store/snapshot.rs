//! Snapshots of the group without segments: one file each, replaced as a whole.
//! Lives on: the owning core only.
//!
//! ```text
//!    0 | magic "MLS1" | crc: 8..end | version u32 | 0 u32 | group | index | term
//!   40 | conf state: length u64, bytes | state: length u64, bytes
//! ```
//!
//! All numbers are little-endian, the CRC is CRC-32C. Invariant: the checkpoint names a snapshot only once it is
//! durable. The previous snapshot is removed only once a durable checkpoint names the new one.

use crate::{
    checkpoint::Garbage,
    disk::Disk,
    errors::is_full,
    record::LogMark as Mark,
    segment::{
        files::{read_file, replace_file},
        format::{u32_at, u64_at},
    },
    store::{AppState, AppendError, LogPos, OpenError, SnapshotError, StoreDirs, state::Shared},
};
use bytes::Bytes;
use std::{path::PathBuf, rc::Rc};
use types::{GroupId, HardState, Position, RaftIndex, Term};

pub const SNAPSHOT_MAGIC: u32 = u32::from_le_bytes(*b"MLS1");
pub const SNAPSHOT_VERSION: u32 = 1;
const HEADER: usize = 40;

pub fn path(dirs: &StoreDirs, group: GroupId, index: RaftIndex, term: Term) -> PathBuf {
    dirs.snapshots.join(format!("{}-{index}-{term}.snap", group.0))
}

/// How many bytes are summed before yielding to other tasks of the core.
const SUMMED_A_TURN: usize = 1 << 20;

/// The headers of a snapshot's file: the bytes before the configuration and the bytes before the state.
async fn heads(group: GroupId, term: Term, app: &AppState, give_way: impl AsyncFn()) -> [Vec<u8>; 2] {
    let mut first = Vec::with_capacity(HEADER + 8);
    first.extend_from_slice(&SNAPSHOT_MAGIC.to_le_bytes());
    first.extend_from_slice(&[0; 4]);
    first.extend_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
    first.extend_from_slice(&[0; 4]);
    for word in [group.0, app.index.get(), term.0, app.conf_state.len() as u64] {
        first.extend_from_slice(&word.to_le_bytes());
    }
    let second = (app.blob.len() as u64).to_le_bytes().to_vec();
    let mut crc = 0;
    for part in [&first[8..], &app.conf_state[..], &second[..], &app.blob[..]] {
        for piece in part.chunks(SUMMED_A_TURN) {
            crc = crc32c::crc32c_append(crc, piece);
            if piece.len() == SUMMED_A_TURN {
                give_way().await;
            }
        }
    }
    first[4..8].copy_from_slice(&crc.to_le_bytes());
    [first, second]
}

/// Decodes the snapshot, or says why the bytes are not the snapshot of `group` at `index` and `term`.
fn decode(from: &[u8], group: GroupId, index: RaftIndex, term: Term) -> Result<AppState, &'static str> {
    if from.len() < HEADER || u32_at(from, 0) != SNAPSHOT_MAGIC || u32_at(from, 8) != SNAPSHOT_VERSION {
        return Err("it does not begin with a snapshot's header");
    }
    let mut at = HEADER;
    let mut part = || {
        let len = usize::try_from(u64_at(from.get(at..at + 8)?, 0)).ok()?;
        let end = at.checked_add(8)?.checked_add(len)?;
        let part = Bytes::copy_from_slice(from.get(at + 8..end)?);
        at = end;
        Some(part)
    };
    let (Some(conf_state), Some(blob)) = (part(), part()) else { return Err("it is shorter than it claims") };
    if u32_at(from, 4) != crc32c::crc32c(&from[8..at]) {
        return Err("it fails its CRC");
    }
    if (u64_at(from, 16), u64_at(from, 24), u64_at(from, 32)) != (group.0, index.get(), term.0) {
        return Err("it is the snapshot of another group, index or term");
    }
    Ok(AppState { index, blob, conf_state })
}

/// See [`crate::store::Store::write_snapshot`].
pub(crate) async fn write<D: Disk>(
    shared: &Rc<Shared<D>>,
    group: GroupId,
    term: Term,
    app: AppState,
) -> Result<(), SnapshotError> {
    if let Some(poisoned) = shared.poisoned() {
        return Err(poisoned.into());
    }
    let offset = {
        let state = shared.state.borrow();
        let log = state.groups.get(&group).filter(|log| log.by_snapshot);
        let log = log.unwrap_or_else(|| panic!("group {} is not the snapshot group", group.0));
        if app.index <= log.flushed.index {
            return Ok(());
        }
        assert!(app.index <= log.stable(shared.journal.durable()).index, "a snapshot holds durable entries only");
        assert_eq!(log.term_of(app.index), Some(term), "the snapshot's term is its last entry's");
        let last = log.held.iter().find(|held| held.entry.index == app.index).expect("it is in memory until flushed");
        last.end_offset()
    };
    stage(shared, group, term, &app).await?;
    let mut state = shared.state.borrow_mut();
    let log = state.groups.get_mut(&group).expect("the snapshot group is never removed");
    let (mark, before) = (Mark { index: app.index, term, offset }, log.flushed);
    if mark.index > before.index {
        log.flushed = mark;
        log.written_index = mark.index;
        log.app = AppState { blob: Bytes::new(), ..app };
        log.forget_to(mark);
        if before.index > RaftIndex::ZERO {
            state.garbage.push(Garbage::Snapshot { group, index: before.index, term: before.term });
        }
    }
    drop(state);
    shared.ask_flush();
    shared.snapshot.notify();
    Ok(())
}

/// Writes a snapshot's file, which nothing names yet. See [`crate::store::Store::stage_snapshot`].
pub(crate) async fn stage<D: Disk>(
    shared: &Rc<Shared<D>>,
    group: GroupId,
    term: Term,
    app: &AppState,
) -> Result<(), SnapshotError> {
    if let Some(poisoned) = shared.poisoned() {
        return Err(poisoned.into());
    }
    let path = path(&shared.dirs, group, app.index, term);
    let [first, second] = heads(group, term, app, async || shared.give_way().await).await;
    let parts = [&first[..], &app.conf_state[..], &second[..], &app.blob[..]];
    let Err(source) = replace_file(&shared.disk, &path, &parts, async || shared.breathe().await).await else {
        return Ok(());
    };
    let what = path.display().to_string();
    if is_full(&source) {
        return Err(SnapshotError::Full { what, source });
    }
    Err(shared.poison(format!("{what}: {source}")).into())
}

/// Restarts the group's log behind a staged snapshot. See [`crate::store::Store::install_snapshot`].
pub(crate) fn install<D: Disk>(
    shared: &Rc<Shared<D>>,
    group: GroupId,
    hard_state: HardState,
    term: Term,
    app: AppState,
) -> Result<LogPos, AppendError> {
    let mut state = shared.state.borrow_mut();
    let log = state.log(group);
    assert!(app.index > log.app.index, "group {}: a snapshot never goes back", group.0);
    let staged = shared.journal.restart(group, hard_state, Position { index: app.index, term })?;
    let (before, offset) = (log.flushed, log.end.offset);
    log.hard_state = hard_state;
    log.restart(Mark { index: app.index, term, offset }, staged.pos);
    log.app = AppState { blob: Bytes::new(), ..app };
    if before.index > RaftIndex::ZERO {
        state.garbage.push(Garbage::Snapshot { group, index: before.index, term: before.term });
    }
    drop(state);
    shared.ask_flush();
    shared.snapshot.notify();
    Ok(staged.pos)
}

/// Loads the snapshot that the checkpoint names.
pub(crate) async fn load<D: Disk>(disk: &D, dirs: &StoreDirs, group: GroupId, at: Mark) -> Result<AppState, OpenError> {
    let path = path(dirs, group, at.index, at.term);
    let what = path.display().to_string();
    let bytes = read_file(disk, &path).await.map_err(|source| OpenError::of(&what, source))?;
    let Some(bytes) = bytes else { return Err(OpenError::Damaged(format!("{what} is missing"))) };
    if bytes.len() >= HEADER && u32_at(&bytes, 0) == SNAPSHOT_MAGIC && u32_at(&bytes, 8) > SNAPSHOT_VERSION {
        return Err(OpenError::Newer { path: what, found: u32_at(&bytes, 8), newest: SNAPSHOT_VERSION });
    }
    decode(&bytes, group, at.index, at.term).map_err(|why| OpenError::Damaged(format!("{what}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_comes_back_or_says_why_not() {
        let app = AppState {
            index: RaftIndex::new(9),
            blob: Bytes::from_static(b"state of all slices"),
            conf_state: Bytes::from_static(b"voters"),
        };
        let [first, second] =
            crate::sim_exec::block_on(1, heads(GroupId(0), Term(3), &app, async || ())).expect("it ends");
        let bytes = [&first[..], &app.conf_state[..], &second[..], &app.blob[..]].concat();
        assert_eq!(decode(&bytes, GroupId(0), RaftIndex::new(9), Term(3)), Ok(app));
        assert_eq!(
            decode(&bytes, GroupId(0), RaftIndex::new(9), Term(4)),
            Err("it is the snapshot of another group, index or term")
        );
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped, GroupId(0), RaftIndex::new(9), Term(3)).is_err(), "bit {bit} was flipped unseen");
        }
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len], GroupId(0), RaftIndex::new(9), Term(3)).is_err());
        }
        assert_eq!(&bytes[..4], b"MLS1");
        assert_eq!(
            &bytes[8..48],
            [
                1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 6, 0,
                0, 0, 0, 0, 0, 0
            ]
        );
    }
}
