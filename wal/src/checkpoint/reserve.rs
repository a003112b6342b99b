//! Space kept for checkpoints on a disk that fills up.
//! Lives on: the owning core, within a round of the flusher (`store_flush`).
//!
//! What a log no longer holds takes space until a checkpoint says so, and a checkpoint takes space before the one that it replaces is
//! gone: on a disk without any, nothing could ever be removed. So each core keeps a file of zeros, `checkpoint.reserve`; where a
//! checkpoint finds no room, the file is removed, the checkpoint written, what it makes needless removed, and the file made anew.
//!
//! So no checkpoint may be larger than the file: batches are carried only as far as there is [`room`] for them, and before a round that
//! might carry more the file grows, if the disk has the space. While it grows, what there was of it stays.

use crate::{
    buf::Chunk,
    checkpoint::kept,
    disk::{Disk, Durability, File, OpenMode},
    segment::files::remove_if_there,
    store::{
        flush::{FlushError, is_full},
        state::Shared,
    },
};
use std::{io, path::PathBuf};

/// The file's least length; otherwise it is twice what a checkpoint took besides what it carries of batches, and those once. It is made
/// anew when it is too small by a third.
const BYTES_MIN: u64 = 256 << 10;
const PIECE: u64 = 64 << 10;
/// Of a group, in a checkpoint, without its entries: about that, for stores that have not written one.
const GROUP_BYTES: u64 = 256;
/// Checkpoints after one for which the file could not grow, until it is tried again.
const PATIENCE: u64 = 16;
/// Written before others may have the disk.
const BREATH_BYTES: u64 = 1 << 20;

/// The file's name in a core's directory.
pub(crate) const RESERVE_FILE: &str = "checkpoint.reserve";

fn path<D: Disk>(shared: &Shared<D>) -> PathBuf {
    shared.dirs.core.join(RESERVE_FILE)
}

/// Bytes of batches that checkpoints may carry without outgrowing the file, though all else that they hold doubles.
pub(crate) fn room<D: Disk>(shared: &Shared<D>) -> u64 {
    let least = shared.state.borrow().groups.len() as u64 * GROUP_BYTES;
    shared.reserved.get().saturating_sub(2 * shared.besides.get().max(least))
}

/// Gives the space up; whether there was any.
pub(crate) async fn give<D: Disk>(shared: &Shared<D>) -> Result<bool, FlushError> {
    shared.reserved.set(0);
    let path = path(shared);
    remove_if_there(&shared.disk, &path).await.map_err(|error| FlushError::of(path.display(), error))
}

/// Whether there is enough for a checkpoint that carries so many bytes of batches; if not, what there should be.
fn missing<D: Disk>(shared: &Shared<D>, carried: u64) -> Option<u64> {
    let besides = shared.besides.get();
    let is_enough = shared.reserved.get() >= BYTES_MIN.max(besides * 4 / 3 + carried);
    (!is_enough).then(|| (2 * besides + carried).max(BYTES_MIN).next_multiple_of(PIECE))
}

/// Has enough for the next checkpoint, if there is room for it.
pub(crate) async fn keep<D: Disk>(shared: &Shared<D>) -> Result<(), FlushError> {
    let Some(wanted) = missing(shared, shared.state.borrow().carried_bytes) else { return Ok(()) };
    if !make(shared, wanted).await? {
        // What there is of it may be what the next checkpoint needs.
        give(shared).await?;
    }
    Ok(())
}

/// Before a round: space for what of the groups with something new might be carried. Without it, less is.
pub(crate) async fn grow<D: Disk>(shared: &Shared<D>) -> Result<(), FlushError> {
    let carried_max = shared.config.carried_bytes;
    let (carried, number) = {
        let state = shared.state.borrow();
        // First there may be more than may stay: what was carried longest is flushed at the end of the round.
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

/// Has the file be so long; `false` if there is no room for that: then it is as long as it was.
async fn make<D: Disk>(shared: &Shared<D>, bytes: u64) -> Result<bool, FlushError> {
    let path = path(shared);
    let made = async {
        // An earlier process may have left it.
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
    // Only then it has its space.
    file.sync().await
}
