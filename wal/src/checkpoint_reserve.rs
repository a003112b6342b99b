//! Space kept for checkpoints on a disk that fills up.
//! Lives on: the owning core, within a round of the flusher (`store_flush`).
//!
//! What a log no longer holds takes space until a checkpoint says so, and a checkpoint takes space before the one that it replaces is
//! gone: on a disk without any, nothing could ever be removed. So each core keeps a file of zeros, `checkpoint.reserve`; where a
//! checkpoint finds no room, the file is removed, the checkpoint written, what it makes needless removed, and the file made anew.
//!
//! So no checkpoint may be larger than the file: batches are carried only as far as there is [`room`] for them. Where there was not, the
//! file is made larger by as much as may be carried.

use crate::{
    buf::Chunk,
    checkpoint::CHECKPOINT_FILE,
    disk::{Disk, Durability, File, OpenMode},
    files::remove_if_there,
    store_flush::FlushError,
    store_state::Shared,
};
use std::{io, path::PathBuf};

/// The file's least length; otherwise it is twice what a checkpoint took besides what it carries of batches, and those once. It is made
/// anew when it is too small by a third.
const BYTES_MIN: u64 = 256 << 10;
const PIECE: u64 = 64 << 10;
/// Of a group, in a checkpoint, without its entries: about that, for stores that have not written one.
const GROUP_BYTES: u64 = 256;
/// Written before others may have the disk.
const BREATH_BYTES: u64 = 1 << 20;

fn path<D: Disk>(shared: &Shared<D>) -> PathBuf {
    shared.dirs.core.join("checkpoint.reserve")
}

/// Bytes of batches that checkpoints may carry without outgrowing the file, though all else that they hold doubles.
pub(crate) fn room<D: Disk>(shared: &Shared<D>) -> u64 {
    let least = shared.state.borrow().groups.len() as u64 * GROUP_BYTES;
    shared.reserved.get().saturating_sub(2 * shared.besides.get().max(least))
}

/// When a store opens: takes over what an earlier process has left.
pub(crate) async fn begin<D: Disk>(shared: &Shared<D>) -> Result<(), FlushError> {
    let checkpoint = shared.dirs.core.join(CHECKPOINT_FILE);
    let len = async {
        match shared.disk.open(&checkpoint, OpenMode::Read).await {
            Ok(file) => file.len().await,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    };
    let len = len.await.map_err(|error| FlushError::of(checkpoint.display(), error))?;
    shared.besides.set(len.saturating_sub(shared.state.borrow().carried_bytes));
    keep(shared).await
}

/// Gives the space up; whether there was any.
pub(crate) async fn give<D: Disk>(shared: &Shared<D>) -> Result<bool, FlushError> {
    shared.reserved.set(0);
    let path = path(shared);
    remove_if_there(&shared.disk, &path).await.map_err(|error| FlushError::of(path.display(), error))
}

/// Has enough for the next checkpoint, if there is room for it.
pub(crate) async fn keep<D: Disk>(shared: &Shared<D>) -> Result<(), FlushError> {
    let carried = {
        let mut state = shared.state.borrow_mut();
        if std::mem::take(&mut state.short_of_room) { shared.config.carried_bytes } else { state.carried_bytes }
    };
    let besides = shared.besides.get();
    if shared.reserved.get() >= BYTES_MIN.max(besides * 4 / 3 + carried) {
        return Ok(());
    }
    let wanted = (2 * besides + carried).max(BYTES_MIN).next_multiple_of(PIECE);
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
