//! Space reserved for checkpoints on a disk that fills up.
//! Lives on: the owning core, within a round of the flusher (`store::flush`).
//!
//! Data that a log no longer holds takes space until a checkpoint drops it. A checkpoint in turn takes space before
//! the one that it replaces is gone. On a full disk, nothing could ever be removed. So each core keeps a file of
//! zeros, `checkpoint.reserve`. When a checkpoint finds no room, the flusher removes the file, writes the checkpoint,
//! removes what it makes obsolete, and creates the file again.
//!
//! So no checkpoint may be larger than the file. Batches are carried only as far as there is [`room`] for them.
//! Before a round that might carry more, the file grows if the disk has the space. While it grows, its existing part
//! stays.

use crate::{
    buf::Chunk,
    disk::{Disk, Durability, File, OpenMode},
    errors::{FlushError, is_full},
    segment::files::remove_if_there,
    store::{kept, state::Shared},
};
use std::{io, path::PathBuf};

/// The file's least length. Otherwise the file is twice as long as a checkpoint without carried batches, plus the
/// carried batches once. It grows when it is shorter than 4/3 of such a checkpoint plus the carried batches.
const BYTES_MIN: u64 = 256 << 10;
const PIECE: u64 = 64 << 10;
/// The approximate size of a group in a checkpoint, without its entries, for stores that have not written one yet.
const GROUP_BYTES: u64 = 256;
/// How many checkpoints pass before growing the file is retried after a failure.
const PATIENCE: u64 = 16;
/// How many bytes are written before a pause for other users of the disk.
const BREATH_BYTES: u64 = 1 << 20;

/// The file's name in a core's directory.
pub(crate) const RESERVE_FILE: &str = "checkpoint.reserve";

fn path<D: Disk>(shared: &Shared<D>) -> PathBuf {
    shared.dirs.core.join(RESERVE_FILE)
}

/// How many bytes of batches checkpoints may carry without outgrowing the file, even if everything else in them
/// doubles.
pub(crate) fn room<D: Disk>(shared: &Shared<D>) -> u64 {
    let least = shared.state.borrow().groups.len() as u64 * GROUP_BYTES;
    shared.reserved.get().saturating_sub(2 * shared.besides.get().max(least))
}

/// Gives up the space. Returns whether there was any.
pub(crate) async fn give<D: Disk>(shared: &Shared<D>) -> Result<bool, FlushError> {
    shared.reserved.set(0);
    let path = path(shared);
    remove_if_there(&shared.disk, &path).await.map_err(|error| FlushError::of(path.display(), error))
}

/// The length that the file should have for a checkpoint with `carried` bytes of batches, or `None` if it suffices.
fn missing<D: Disk>(shared: &Shared<D>, carried: u64) -> Option<u64> {
    let besides = shared.besides.get();
    let is_enough = shared.reserved.get() >= BYTES_MIN.max(besides * 4 / 3 + carried);
    (!is_enough).then(|| (2 * besides + carried).max(BYTES_MIN).next_multiple_of(PIECE))
}

/// Ensures enough space for the next checkpoint, if the disk has room for it.
pub(crate) async fn keep<D: Disk>(shared: &Shared<D>) -> Result<(), FlushError> {
    let Some(wanted) = missing(shared, shared.state.borrow().carried_bytes) else { return Ok(()) };
    if !make(shared, wanted).await? {
        // The next checkpoint may need the space of the existing file.
        give(shared).await?;
    }
    Ok(())
}

/// Called before a round. Reserves space for what might be carried of the groups with new entries. Without that
/// space, less is carried.
pub(crate) async fn grow<D: Disk>(shared: &Shared<D>) -> Result<(), FlushError> {
    let carried_max = shared.config.carried_bytes;
    let (carried, number) = {
        let state = shared.state.borrow();
        // At first more may be carried than may stay; the end of the round flushes what was carried longest.
        let new = state.dirty.len() as u64 * kept::GROUP_BYTES;
        ((state.carried_bytes + new).min(carried_max * 3 / 2), state.number)
    };
    let tries = carried_max > 0 && number >= shared.grows_after.get();
    if let Some(wanted) = missing(shared, carried).filter(|_| tries)
        && !make(shared, wanted).await?
    {
        shared.grows_after.set(number + PATIENCE);
    }
    Ok(())
}

/// Makes the file at least `bytes` long. Returns `false` if there is no room; the file is then as long as before.
async fn make<D: Disk>(shared: &Shared<D>, bytes: u64) -> Result<bool, FlushError> {
    let path = path(shared);
    let made = async {
        // An earlier process may have left the file.
        let (file, before) = match shared.disk.open(&path, OpenMode::Write).await {
            Ok(file) => {
                let len = file.len().await?;
                (file, len / PIECE * PIECE)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (shared.disk.open(&path, OpenMode::CreateNew).await?, 0)
            }
            Err(error) => return Err(error),
        };
        if before >= bytes {
            return Ok(());
        }
        let grown = grow_to(shared, &file, before, bytes).await;
        if grown.as_ref().is_err_and(is_full) {
            file.truncate(before).await?;
        }
        grown
    };
    match made.await.map_err(|error| FlushError::of(path.display(), error)) {
        Ok(()) => {
            shared.reserved.set(bytes);
            Ok(true)
        }
        Err(FlushError::Full(_)) => Ok(false),
        Err(fatal) => Err(fatal),
    }
}

async fn grow_to<D: Disk>(shared: &Shared<D>, file: &D::File, before: u64, bytes: u64) -> io::Result<()> {
    let zeros = Chunk::zeros(PIECE as usize);
    for at in (before..bytes).step_by(PIECE as usize) {
        file.write(at, zeros.frozen(0, PIECE as usize), Durability::Cached).await?;
        if (at + PIECE).is_multiple_of(BREATH_BYTES) {
            shared.breathe().await;
        }
    }
    // The space is certain only after the sync.
    file.sync().await
}
