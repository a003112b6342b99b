//! Space reserved for checkpoints on a disk that fills up.
//! Lives on: the owning core, within a round of the flusher (`store::flush`).
//!
//! Data that a log no longer holds takes space until a checkpoint drops it. A checkpoint in turn takes space before
//! the one that it replaces is gone. On a full disk, nothing could ever be removed. So each core keeps a file of
//! zeros, `checkpoint.reserve`. When a checkpoint finds no room, the flusher writes it over this file and exchanges it
//! with the old checkpoint, which is the file from then on. So other programs never get the space, whenever the broker
//! dies. The checkpoint's file keeps the length of the reserve, until the reserve must grow and finds no other space.
//!
//! So no checkpoint may be larger than the file. Batches are carried only as far as there is [`room`] for them.
//! Before a round that might carry more, the file grows if the disk has the space. While it grows, its existing part
//! stays.

use crate::{
    buf::{BLOCK, Chunk, block_ceil},
    checkpoint::Checkpoint,
    disk::{Disk, Durability, File, OpenMode},
    errors::{FlushError, is_full},
    segment::files::exchange_or_rename,
    store::{kept, state::Shared},
};
use std::{
    io,
    path::{Path, PathBuf},
};

/// The file's least length. Otherwise the file has twice the length of a checkpoint without carried batches, plus the
/// carried batches once, or more if the last checkpoint is short. It grows when it is shorter than 4/3 of such a
/// checkpoint plus the carried batches.
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

/// How many bytes of batches checkpoints may carry, so that one fits into the file even if everything else in it
/// doubles. The next one after it must fit, too, and then has the space that both files have now.
pub(crate) fn room<D: Disk>(shared: &Shared<D>) -> u64 {
    let least = shared.state.borrow().groups.len() as u64 * GROUP_BYTES;
    let (reserved, checkpoint) = (shared.reserved.get(), shared.checkpoint_file.get());
    reserved.min((reserved + checkpoint) / 2).saturating_sub(2 * shared.besides.get().max(least))
}

/// Writes a checkpoint over the file, and puts it in the place of the old one. `Err`, full: the file is missing, or too
/// short and cannot grow.
pub(crate) async fn overwrite<D: Disk>(shared: &Shared<D>, checkpoint: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = path(shared);
    let file = match shared.disk.open(&path, OpenMode::Write).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(io::ErrorKind::StorageFull.into()),
        opened => opened?,
    };
    let missing = (block_ceil(bytes.len()) as u64).saturating_sub(file.len().await?);
    let mut written = write_over(shared, &file, bytes).await;
    if written.as_ref().is_err_and(is_full) && cut_slack(shared, checkpoint, missing).await? {
        written = write_over(shared, &file, bytes).await;
    }
    written?;
    let len = file.len().await?;
    drop(file);
    exchange_or_rename(&shared.disk, &path, checkpoint).await?;
    // From here on, the file is the old checkpoint, if it is there at all.
    shared.reserved.set(0);
    shared.checkpoint_file.set(len);
    shared.disk.sync_dir(&shared.dirs.core).await
}

async fn write_over<D: Disk>(shared: &Shared<D>, file: &D::File, bytes: &[u8]) -> io::Result<()> {
    let mut at = 0;
    for piece in bytes.chunks(PIECE as usize) {
        let mut chunk = Chunk::new(block_ceil(piece.len()));
        chunk.push(piece);
        chunk.pad_to_block();
        file.write(at, chunk.frozen(0, chunk.len()), Durability::Cached).await?;
        at += PIECE;
        if at.is_multiple_of(BREATH_BYTES) {
            shared.breathe().await;
        }
    }
    file.sync().await
}

/// Frees the end of the last checkpoint's file that does not belong to the checkpoint, up to `bytes` of it. Returns
/// whether there was any.
async fn cut_slack<D: Disk>(shared: &Shared<D>, checkpoint: &Path, bytes: u64) -> io::Result<bool> {
    let file = match shared.disk.open(checkpoint, OpenMode::Write).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    let head = file.read(0, BLOCK).await?;
    let (used, len) = (Checkpoint::len(&head).next_multiple_of(BLOCK as u64), file.len().await?);
    let cut = bytes.min(len.saturating_sub(used));
    if cut > 0 {
        file.truncate(len - cut).await?;
        shared.checkpoint_file.set(len - cut);
    }
    Ok(cut > 0)
}

/// The length that the file should have for a checkpoint with `carried` bytes of batches, or `None` if it suffices.
fn missing<D: Disk>(shared: &Shared<D>, carried: u64) -> Option<u64> {
    let (reserved, checkpoint, besides) = (shared.reserved.get(), shared.checkpoint_file.get(), shared.besides.get());
    // The next checkpoint must fit, and so must the one after it, see [`room`].
    let wanted = |bytes: u64| bytes.max((2 * bytes).saturating_sub(checkpoint)).max(BYTES_MIN);
    let is_enough = reserved >= wanted(besides * 4 / 3 + carried);
    (!is_enough).then(|| wanted(2 * besides + carried).next_multiple_of(PIECE))
}

/// Ensures enough space for the next checkpoint, if the disk has room for it.
pub(crate) async fn keep<D: Disk>(shared: &Shared<D>) -> Result<(), FlushError> {
    let Some(wanted) = missing(shared, shared.state.borrow().carried_bytes) else { return Ok(()) };
    make(shared, wanted).await.map(drop)
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

/// Makes the file at least `bytes` long. Returns `false` if there is no room; the file is then as long as there was
/// room for.
async fn make<D: Disk>(shared: &Shared<D>, bytes: u64) -> Result<bool, FlushError> {
    let path = path(shared);
    let made = async {
        // An earlier process may have left the file, or it was a checkpoint.
        let (file, len) = match shared.disk.open(&path, OpenMode::Write).await {
            Ok(file) => {
                let len = file.len().await?;
                (file, len)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (shared.disk.open(&path, OpenMode::CreateNew).await?, 0)
            }
            Err(error) => return Err(error),
        };
        shared.reserved.set(len);
        let mut reached = len / PIECE * PIECE;
        let grown = grow_to(shared, &file, &mut reached, bytes).await;
        // The space is certain only after a sync.
        let kept = len.max(reached);
        let synced = match &grown {
            Ok(()) => file.sync().await,
            Err(error) if is_full(error) => {
                file.truncate(kept).await?;
                file.sync().await
            }
            Err(_) => return grown,
        };
        match &synced {
            Ok(()) => shared.reserved.set(kept),
            Err(error) if is_full(error) => file.truncate(len).await?,
            Err(_) => {}
        }
        synced.and(grown)
    };
    match made.await.map_err(|error| FlushError::of(path.display(), error)) {
        Ok(()) => Ok(true),
        Err(FlushError::Full(_)) => Ok(false),
        Err(fatal) => Err(fatal),
    }
}

/// Writes pieces from `reached` on, and moves it along.
async fn grow_to<D: Disk>(shared: &Shared<D>, file: &D::File, reached: &mut u64, bytes: u64) -> io::Result<()> {
    let zeros = Chunk::zeros(PIECE as usize);
    while *reached < bytes {
        file.write(*reached, zeros.frozen(0, PIECE as usize), Durability::Cached).await?;
        *reached += PIECE;
        if reached.is_multiple_of(BREATH_BYTES) {
            shared.breathe().await;
        }
    }
    Ok(())
}
