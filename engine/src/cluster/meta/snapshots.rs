//! Snapshots of the metadata: cut from all slices at one index, and kept for brokers that lag behind the log.

use super::{Meta, host::Host};
use crate::log_limit::Admitted;
use bytes::{Bytes, BytesMut};
use consensus::{
    group::{Message, SnapshotMark, conf_state_bytes},
    metadata::{self, Delta, Joint, Slice},
    plane::node_of,
    wire::{PeerMessage, SnapshotChunk},
};
use runtime::{
    clock,
    sync::{Either, Notify, promise, race},
};
use std::{
    cell::{Cell, RefCell},
    ops::RangeInclusive,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use types::{CoreId, META_GROUP, Position, RaftIndex, SLICES, Term};
use wal::store::{AppState, AppendError, LogPos, Poisoned, SnapshotError};

/// Entries after which a snapshot is written even if the ring has room, so that a restart has little to replay. A
/// snapshot always costs its full size, whatever has changed, so a large one is written less often.
const SNAPSHOT_ENTRIES: RangeInclusive<u64> = 10_000..=100_000;
/// One entry for this many bytes of the last snapshot. Replaying that many entries takes no longer than writing the
/// snapshot.
const SNAPSHOT_BYTES_AN_ENTRY: u64 = 64;

/// Pause after a snapshot could not be written, for instance on a full disk. Until then the log holds everything.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(5);

/// The newest snapshot, for brokers that need it, and those on their way in.
#[derive(Default)]
pub(super) struct Snapshots {
    newest: RefCell<Option<(SnapshotMark, Bytes)>>,
    /// Notified when a peer needs a newer snapshot.
    pub(super) wanted: Notify,
    /// An incoming snapshot, until the leader announces it.
    arriving: RefCell<Option<Arriving>>,
    /// A snapshot that has arrived is being made durable.
    staging: Cell<bool>,
    /// A snapshot that is durable beside the log, until the group installs it.
    staged: RefCell<Option<(SnapshotMark, Vec<Slice>, Bytes)>>,
}

impl Snapshots {
    /// The index of the newest snapshot; 0 before the first.
    fn covered(&self) -> RaftIndex {
        self.newest.borrow().as_ref().map_or(RaftIndex::ZERO, |(mark, _)| mark.at.index)
    }

    /// Bytes of the newest snapshot.
    fn len(&self) -> usize {
        self.newest.borrow().as_ref().map_or(0, |(_, blob)| blob.len())
    }

    /// Number of entries after the newest snapshot at which the next one is due.
    fn due_after(&self) -> u64 {
        (self.len() as u64 / SNAPSHOT_BYTES_AN_ENTRY).clamp(*SNAPSHOT_ENTRIES.start(), *SNAPSHOT_ENTRIES.end())
    }
}

impl Meta {
    /// A snapshot is durable. From now on, it is sent to peers that lack what it covers.
    pub(super) fn has_snapshot(&self, mark: SnapshotMark, blob: Bytes) {
        if self.snapshots.newest.borrow().as_ref().is_some_and(|(newest, _)| newest.at.index > mark.at.index) {
            return;
        }
        *self.snapshots.newest.borrow_mut() = Some((mark.clone(), blob));
        self.replica.with(|raft| {
            let index = mark.at.index;
            raft.set_snapshot(mark);
            raft.compact(index);
        });
    }
}

/// On core 0: writes a snapshot whenever the ring or a peer needs one, or enough entries have been published.
pub async fn snapshot_when_wanted(core: Rc<impl Host>) {
    let meta = core.meta().clone();
    loop {
        let covered = meta.snapshots.covered();
        let seen = meta.snapshots.wanted.version();
        let due = race(meta.entries_since(covered, meta.snapshots.due_after()), meta.snapshots.wanted.past(seen));
        let ring = async {
            core.store().snapshot_wanted().await?;
            // The ring may then hold only undecided entries, and no snapshot makes room by covering those.
            meta.entries_since(covered, 1).await;
            Ok::<_, Poisoned>(())
        };
        if let Either::First(Err(_poisoned)) = race(ring, due).await {
            return;
        }
        match snapshot(&core).await {
            Ok(_) => {}
            Err(error) if core.store().poisoned().is_some() => return core.storage_failed(&error.to_string()),
            Err(error) => {
                tracing::warn!(%error, "cannot write a metadata snapshot; trying again in {} s", SNAPSHOT_RETRY.as_secs());
                runtime::sleep(SNAPSHOT_RETRY).await;
            }
        }
    }
}

/// Cuts every slice at one index and makes the snapshot durable. Returns the index.
pub async fn snapshot(core: &Rc<impl Host>) -> Result<u64, SnapshotError> {
    let meta = core.meta();
    // All applied entries are in the slices' queues already; the request for a part is queued behind them.
    let (at, conf_state) = meta.replica.with(|raft| {
        let index = raft.applied();
        let term = raft.term_at(index).expect("an applied entry's term is known");
        (Position { index, term }, raft.conf_state())
    });
    let parts: Vec<_> = (0..core.cores())
        .map(|owner| {
            let (part, answer) = promise();
            let token = meta.parts.borrow_mut().insert(part);
            core.tell_cut(CoreId(owner), token);
            answer
        })
        .collect();
    let mut slices = Vec::with_capacity(SLICES);
    for part in runtime::sync::all(parts).await {
        slices.extend(part.expect("every requested part arrives"));
    }
    slices.sort_unstable_by_key(Slice::id);
    let before = meta.snapshots.len();
    let mut joint = Joint::with_room((before + before / 4).max(64 << 10));
    let mut turns = runtime::Turns::begin();
    for slice in slices {
        joint.add(&slice);
        turns.give_way().await;
    }
    let blob = joint.finish(at.index);
    let app = AppState { index: at.index, blob: blob.clone(), conf_state: conf_state.clone() };
    core.store().write_snapshot(META_GROUP, at.term, app).await?;
    meta.has_snapshot(SnapshotMark { at, conf_state }, blob);
    tracing::debug!(index = %at.index, "metadata snapshot written");
    Ok(at.index.get())
}

/// Bytes of one piece of a snapshot in transit: 256 KiB.
const CHUNK_BYTES: usize = 256 << 10;
/// The largest snapshot accepted from a leader: 4 GiB.
const SNAPSHOT_BYTES_MAX: u64 = 4 << 30;

/// An incoming snapshot, piece by piece.
pub(super) struct Arriving {
    from: i32,
    at: Position,
    total: u64,
    bytes: BytesMut,
}

impl Meta {
    /// Sends the newest snapshot to the peer to which the group announces it, then the announcement. The group
    /// continues meanwhile.
    pub(super) fn send_snapshot(&self, core: &Rc<impl Host>, message: Message) {
        let to = message.to;
        let newest = self.snapshots.newest.borrow().clone();
        let announced = RaftIndex::new(message.get_snapshot().get_metadata().index);
        let Some((mark, blob)) = newest.filter(|(mark, _)| mark.at.index == announced) else {
            // A newer snapshot has replaced it; the group announces that one next.
            self.replica.with(|raft| raft.report_snapshot(to, false));
            return;
        };
        let core = core.clone();
        runtime::spawn(async move {
            let (node, index, bytes) = (node_of(to), mark.at.index, blob.len());
            if let Some(Admitted { left_out }) =
                core.partition_log().admit(clock::now(), (META_GROUP, node), "snapshot")
            {
                tracing::info!(to = node, %index, bytes, left_out, "sending a metadata snapshot");
            }
            let sent = send_pieces(&core, to, mark.at, &blob, message).await;
            core.meta().happens(&core, |_, raft, _| raft.report_snapshot(to, sent));
        });
    }

    /// Takes a piece of a snapshot. Pieces come in order; one that does not fit discards the incoming snapshot.
    pub(super) fn take_chunk(&self, from: i32, chunk: SnapshotChunk) {
        let at = Position { index: chunk.index, term: chunk.term };
        let mut arriving = self.snapshots.arriving.borrow_mut();
        if chunk.offset == 0 && chunk.total <= SNAPSHOT_BYTES_MAX {
            *arriving = Some(Arriving { from, at, total: chunk.total, bytes: BytesMut::new() });
        }
        let fits = |arriving: &&mut Arriving| {
            (arriving.from, arriving.at, arriving.total) == (from, at, chunk.total)
                && arriving.bytes.len() as u64 == chunk.offset
                && chunk.offset + chunk.bytes.len() as u64 <= chunk.total
                && crc32c::crc32c(&chunk.bytes) == chunk.crc
        };
        match arriving.as_mut().filter(fits) {
            Some(arriving) => arriving.bytes.extend_from_slice(&chunk.bytes),
            None => {
                tracing::debug!(from, index = %chunk.index, "discarding a snapshot: a piece does not fit");
                *arriving = None;
            }
        }
    }

    /// Handles the leader's announcement, which follows the last piece. The snapshot is made durable before the group
    /// learns of it.
    pub(super) fn take_snapshot(self: &Rc<Self>, core: &Rc<impl Host>, message: Message) {
        let metadata = message.get_snapshot().get_metadata();
        let at = Position { index: RaftIndex::new(metadata.index), term: Term(metadata.term) };
        let arrived = self.snapshots.arriving.take();
        let Some(arrived) = arrived.filter(|arrived| arrived.at == at && arrived.bytes.len() as u64 == arrived.total)
        else {
            tracing::debug!(index = %at.index, "ignoring an announced snapshot that did not arrive whole");
            return;
        };
        if self.with(|_, raft| raft.commit() >= at.index) || self.snapshots.staging.replace(true) {
            return;
        }
        let core = core.clone();
        runtime::spawn(async move {
            let meta = core.meta();
            if let Err(why) = stage(&core, at, arrived.bytes.freeze(), message).await
                && let Some(Admitted { left_out }) =
                    core.partition_log().admit(clock::now(), META_GROUP, &why.to_string())
            {
                tracing::warn!(index = %at.index, %why, left_out, "cannot install the leader's metadata snapshot");
            }
            meta.snapshots.staging.set(false);
        });
    }
}

/// Sends a snapshot's pieces as fast as the peer takes them, then the announcement. Returns whether all were sent.
async fn send_pieces(core: &Rc<impl Host>, to: u64, at: Position, blob: &Bytes, announcement: Message) -> bool {
    let total = blob.len() as u64;
    for offset in (0..blob.len()).step_by(CHUNK_BYTES) {
        let bytes = blob.slice(offset..blob.len().min(offset + CHUNK_BYTES));
        let (group, index, term, crc) = (META_GROUP, at.index, at.term, crc32c::crc32c(&bytes));
        let chunk = SnapshotChunk { group, index, term, offset: offset as u64, total, crc, bytes };
        if !core.peers().send_bulk(to, PeerMessage::SnapshotChunk(chunk)).await {
            return false;
        }
    }
    core.peers().send_bulk(to, PeerMessage::Raft { group: META_GROUP, message: announcement }).await
}

/// Why a leader's snapshot cannot be installed.
#[derive(Debug, thiserror::Error)]
enum StageError {
    #[error(transparent)]
    Content(#[from] metadata::RestoreError),
    #[error("its content is of index {0}")]
    Index(RaftIndex),
    #[error(transparent)]
    Store(#[from] SnapshotError),
}

/// Makes a snapshot durable beside the log, then steps the group with it.
async fn stage(core: &Rc<impl Host>, at: Position, blob: Bytes, message: Message) -> Result<(), StageError> {
    let (index, slices) = metadata::restore(&blob)?;
    if index != at.index {
        return Err(StageError::Index(index));
    }
    let members = message.get_snapshot().get_metadata().get_conf_state();
    let conf_state = conf_state_bytes(members);
    let app = AppState { index, blob: blob.clone(), conf_state: conf_state.clone() };
    core.store().stage_snapshot(META_GROUP, at.term, &app).await?;
    let meta = core.meta();
    *meta.snapshots.staged.borrow_mut() = Some((SnapshotMark { at, conf_state }, slices, blob));
    meta.happens(core, |plane, raft, now| {
        raft.step_snapshot(message);
        plane.observe(raft, now);
    });
    Ok(())
}

impl Meta {
    /// Installs the staged snapshot: log, slices and views start anew after it.
    pub(super) fn install_snapshot(&self, core: &Rc<impl Host>, mark: &SnapshotMark) -> Result<LogPos, AppendError> {
        let (staged, slices, blob) = self.snapshots.staged.take().expect("a snapshot is staged before it is stepped");
        assert_eq!(staged.at, mark.at, "the group takes the snapshot that was staged");
        let state = self.replica.with(|raft| raft.hard_state());
        let index = mark.at.index;
        let app = AppState { index, blob: blob.clone(), conf_state: staged.conf_state.clone() };
        let position = core.store().install_snapshot(META_GROUP, state, mark.at.term, app)?;
        tracing::info!(%index, "a metadata snapshot from the leader replaces the log");
        let image: Arc<[Delta]> = slices.iter().flat_map(Slice::image).collect();
        let group_high = slices.iter().map(Slice::group_high).max().unwrap_or(0);
        self.plane.borrow_mut().restored(index, group_high, &image[..]);
        super::start::install(core, index, slices, &image);
        self.has_snapshot(staged, blob);
        self.restore_shown(core, index, &image);
        Ok(position)
    }
}
