//! Space kept for checkpoints on a disk that fills up.
//! Lives on: the owning core, within a round of the flusher (`store_flush`).
//!
//! What a log no longer holds takes space until a checkpoint says so, and a checkpoint takes space before the one that it replaces is
//! gone: on a disk without any, nothing could ever be removed. So each core keeps a file of zeros, `checkpoint.reserve`; where a
//! checkpoint finds no room, the file is removed, the checkpoint written, what it makes needless removed, and the file made anew.
//!
//! Nothing depends on the file but that; it is made where it is missing.

use crate::{
    buf::Chunk,
    disk::{Disk, Durability, File, OpenMode},
    files::remove_if_there,
    store_flush::FlushError,
    store_state::Shared,
};
use std::{io, path::PathBuf};

/// The file's least length; otherwise it is twice what a checkpoint took, and made anew when one takes more than three quarters of it.
const BYTES_MIN: u64 = 256 << 10;
const PIECE: u64 = 64 << 10;
/// Written before others may have the disk.
const BREATH_BYTES: u64 = 1 << 20;

fn path<D: Disk>(shared: &Shared<D>) -> PathBuf {
    shared.dirs.core.join("checkpoint.reserve")
}

fn wanted(checkpoint_bytes: usize) -> u64 {
    (2 * checkpoint_bytes as u64).max(BYTES_MIN).next_multiple_of(PIECE)
}

/// Gives the space up; whether there was any.
pub(crate) async fn give<D: Disk>(shared: &Shared<D>) -> Result<bool, FlushError> {
    shared.reserved.set(0);
    let path = path(shared);
    remove_if_there(&shared.disk, &path).await.map_err(|error| FlushError::of(path.display(), error))
}

/// Has enough for a checkpoint of so many bytes, if there is room for it.
pub(crate) async fn keep<D: Disk>(shared: &Shared<D>, checkpoint_bytes: usize) -> Result<(), FlushError> {
    let wanted = wanted(checkpoint_bytes);
    if shared.reserved.get() >= BYTES_MIN.max(checkpoint_bytes as u64 * 4 / 3) {
        return Ok(());
    }
    match make(shared, wanted).await {
        Ok(()) => {
            shared.reserved.set(wanted);
            Ok(())
        }
        Err(error) => match FlushError::of(path(shared).display(), error) {
            // What there is of it may be what the next checkpoint needs.
            FlushError::Full(_) => give(shared).await.map(drop),
            fatal => Err(fatal),
        },
    }
}

async fn make<D: Disk>(shared: &Shared<D>, bytes: u64) -> io::Result<()> {
    let path = path(shared);
    // An earlier process may have left it.
    match shared.disk.open(&path, OpenMode::Read).await {
        Ok(file) if file.len().await? >= bytes => return Ok(()),
        Ok(_) => drop(remove_if_there(&shared.disk, &path).await?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = shared.disk.open(&path, OpenMode::CreateNew).await?;
    let zeros = Chunk::zeros(PIECE as usize);
    for at in (0..bytes).step_by(PIECE as usize) {
        file.write(at, zeros.frozen(0, PIECE as usize), Durability::Cached).await?;
        if (at + PIECE).is_multiple_of(BREATH_BYTES) {
            shared.breathe().await;
        }
    }
    // Only then it has its space.
    file.sync().await
}
