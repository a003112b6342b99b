//! The data directory's MANIFEST: format version, owner, placement epoch and number of cores. Also changes the number
//! of cores at start.
//! Lives on: the thread that starts the broker, before any core serves.
//!
//! ```text
//! millrace-data 2
//! cluster-id 3Yk0bXb0QkGuVY5oGzJb4A
//! node 1
//! peer 4294967303
//! incarnation 12
//! founding 4294967303,8589934601
//! epoch 2
//! cores 4
//! crc32c 1b2c3d4e
//! ```
//!
//! `-` stands for a cluster id or founding peers that are not known yet. The lines are in this order, and each ends
//! with a newline. More newlines follow up to the end of the block. The CRC covers the lines before its own.
//!
//! Invariant: the manifest is replaced atomically, and only once everything that it names is durable.

use crate::{
    buf::{BLOCK, Chunk, block_ceil},
    checkpoint::{CHECKPOINT_FILE, Checkpoint, GroupState},
    disk::{Disk, Durability, File, OpenMode},
    errors::{AppendError, FlushError, Poisoned, is_full},
    record::Held,
    ring::{RingConfig, journal::slot_of},
    segment::files::{exchange_or_rename, read_file, remove_if_there, replace_file},
    store::{
        AppState, FlushHost, LogPos, OpenError, Store, StoreConfig, StoreDirs, checkpoint::settled_state, flush::round,
        reserve::RESERVE_FILE, state::State,
    },
};
use runtime::sync::{Either, race};
use std::{
    future::pending,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    time::{SystemTime, UNIX_EPOCH},
};
use types::GroupId;

/// The newest layout of the data directory that this version reads, and the one that it writes.
pub const FORMAT_VERSION: u32 = 2;
/// The file's name in the data directory.
pub const MANIFEST_FILE: &str = "MANIFEST";
/// The file that becomes the next manifest. Until then, it only keeps a block for it.
const NEXT_FILE: &str = "MANIFEST.next";

/// The identity and layout of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Printable, without spaces. `None`: the directory belongs to no cluster yet.
    pub cluster_id: Option<String>,
    /// The broker that owns this directory.
    pub node: i32,
    /// Distinguishes this directory from every other that this broker ever had. Drawn at random when the directory is
    /// set up.
    pub peer: u64,
    /// The number of the newest process on it, larger than that of every earlier process.
    pub incarnation: u64,
    /// The peers with which the cluster began. Empty if the directory belongs to no cluster yet.
    pub founding: Vec<u64>,
    /// Names the directory of the rings and checkpoints. It grows with each change of the number of cores.
    pub epoch: u64,
    pub cores: usize,
}

/// Why the bytes are not a manifest.
#[derive(Debug, PartialEq, Eq)]
enum ParseError {
    Damaged(&'static str),
    Newer(u32),
    Older(u32),
}

/// Stands for a value that is not known yet.
const NONE: &str = "-";

impl Manifest {
    /// The manifest of a directory that is being set up.
    pub fn new(node: i32, peer: u64, cores: usize) -> Self {
        Self { cluster_id: None, node, peer, incarnation: 0, founding: Vec::new(), epoch: 0, cores }
    }

    /// Reads `<data>/MANIFEST`. Returns `None` if the directory was never set up. A newer format is an error of its
    /// own.
    pub async fn read<D: Disk>(disk: &D, data: &Path) -> Result<Option<Self>, OpenError> {
        let path = data.join(MANIFEST_FILE);
        let Some(bytes) = read_file(disk, &path).await.map_err(named(&path))? else { return Ok(None) };
        let what = path.display().to_string();
        match Self::parse(&bytes) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(ParseError::Damaged(why)) => Err(OpenError::Damaged(format!("{what}: {why}"))),
            Err(ParseError::Older(found)) => Err(OpenError::Older { path: what, found, reads: FORMAT_VERSION }),
            Err(ParseError::Newer(found)) => Err(OpenError::Newer { path: what, found, newest: FORMAT_VERSION }),
        }
    }

    /// Writes or replaces `<data>/MANIFEST` atomically and durably; creates the directory if it is missing.
    pub async fn write<D: Disk>(&self, disk: &D, data: &Path) -> Result<(), OpenError> {
        let bad = |c: char| !c.is_ascii_graphic();
        let is_word = |id: &String| !id.is_empty() && id != NONE && !id.contains(bad);
        assert!(self.cluster_id.as_ref().is_none_or(is_word), "a cluster id is one printable word");
        disk.create_dir(data).await.map_err(named(data))?;
        if let Some(parent) = data.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            disk.sync_dir(parent).await.map_err(named(parent))?;
        }
        let path = data.join(MANIFEST_FILE);
        let text = self.render();
        let write = || replace(disk, &path, &text);
        let mut written = write().await;
        // The block may be missing, or the file system may write each block to a new place. A core that loses its
        // reserve creates it again before its first flush, unless another program took the space meanwhile.
        for core in 0..self.cores {
            if !written.as_ref().is_err_and(is_full) {
                break;
            }
            let reserve = StoreDirs::new(data, self.epoch, core).core.join(RESERVE_FILE);
            if remove_if_there(disk, &reserve).await.map_err(named(&reserve))? {
                written = write().await;
            }
        }
        written.map_err(named(&path))
    }

    fn render(&self) -> Vec<u8> {
        let Self { cluster_id, node, peer, incarnation, founding, epoch, cores } = self;
        let cluster_id = cluster_id.as_deref().unwrap_or(NONE);
        let founding: Vec<String> = founding.iter().map(u64::to_string).collect();
        let founding = if founding.is_empty() { NONE.to_owned() } else { founding.join(",") };
        let mut text = format!(
            "millrace-data {FORMAT_VERSION}\ncluster-id {cluster_id}\nnode {node}\npeer {peer}\n\
             incarnation {incarnation}\nfounding {founding}\nepoch {epoch}\ncores {cores}\n"
        )
        .into_bytes();
        let crc = crc32c::crc32c(&text);
        text.extend_from_slice(format!("crc32c {crc:08x}\n").as_bytes());
        text.resize(crate::buf::block_ceil(text.len()), b'\n');
        text
    }

    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        const BAD: ParseError = ParseError::Damaged("it is not a data directory's manifest");
        let text = std::str::from_utf8(bytes).map_err(|_| BAD)?;
        let mut lines = text.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let version: u32 = field("millrace-data").and_then(|version| version.parse().ok()).ok_or(BAD)?;
        if version > FORMAT_VERSION {
            return Err(ParseError::Newer(version));
        }
        if version < FORMAT_VERSION {
            return Err(ParseError::Older(version));
        }
        let mut read = || {
            let cluster_id = Some(field("cluster-id")?.to_owned()).filter(|id| id != NONE);
            let node = field("node")?.parse().ok()?;
            let peer = field("peer")?.parse().ok()?;
            let incarnation = field("incarnation")?.parse().ok()?;
            let founding = match field("founding")? {
                NONE => Vec::new(),
                peers => peers.split(',').map(|peer| peer.parse().ok()).collect::<Option<_>>()?,
            };
            let epoch = field("epoch")?.parse().ok()?;
            let cores = field("cores")?.parse().ok()?;
            let manifest = Self { cluster_id, node, peer, incarnation, founding, epoch, cores };
            Some((manifest, field("crc32c")?.to_owned()))
        };
        let (manifest, crc) = read().ok_or(BAD)?;
        // Only one text renders these values, so this checks the CRC, the order and the padding at once.
        if manifest.cores == 0 || u32::from_str_radix(&crc, 16).is_err() || manifest.render() != bytes {
            return Err(ParseError::Damaged("it fails its CRC"));
        }
        Ok(manifest)
    }
}

/// Replaces the manifest atomically and durably.
///
/// A broker that was killed on a full disk must be able to start, or nobody can delete what fills it. So a second file
/// keeps a block. The new manifest overwrites it, and exchanges the names.
async fn replace<D: Disk>(disk: &D, path: &Path, text: &[u8]) -> io::Result<()> {
    let next = path.with_file_name(NEXT_FILE);
    let mut chunk = Chunk::new(block_ceil(text.len()));
    chunk.push(text);
    chunk.pad_to_block();
    let data = chunk.frozen(0, chunk.len());
    let bytes = data.len() as u64;
    let file = open_or_create(disk, &next).await?;
    file.write(0, data, Durability::Cached).await?;
    if file.len().await? > bytes {
        file.truncate(bytes).await?;
    }
    file.sync().await?;
    drop(file);
    exchange_or_rename(disk, &next, path).await?;
    match lay_out(disk, &next).await {
        // Another program may have taken what was free.
        Err(error) if is_full(&error) => {}
        laid_out => laid_out?,
    }
    disk.sync_dir(path.parent().expect("a file has a directory")).await
}

/// Ensures that the file has a block.
async fn lay_out<D: Disk>(disk: &D, path: &Path) -> io::Result<()> {
    let file = open_or_create(disk, path).await?;
    match file.len().await? {
        0 => file.write(0, Chunk::zeros(BLOCK).frozen(0, BLOCK), Durability::Cached).await,
        _ => Ok(()),
    }
}

async fn open_or_create<D: Disk>(disk: &D, path: &Path) -> io::Result<D::File> {
    match disk.open(path, OpenMode::Write).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => disk.open(path, OpenMode::CreateNew).await,
        opened => opened,
    }
}

fn named(path: &Path) -> impl Fn(io::Error) -> OpenError + '_ {
    move |source| OpenError::of(path.display(), source)
}

/// The host while cores change. The broker does not serve then, so the groups' own state stays as the checkpoints
/// have it.
struct Nobody;

impl FlushHost for Nobody {
    fn wall_ms(&self) -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
    }

    fn app_state(&self, _: GroupId) -> Option<AppState> {
        None
    }

    fn back_off(&self, _: u32) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(pending())
    }

    fn flush_failed(&self, _: &str) {}
}

/// A group on its way to another core.
struct Moving {
    state: GroupState,
    /// The entries that no segment, snapshot or checkpoint holds.
    tail: Vec<Held>,
}

/// Moves every group to the core that `place` names, for `cores` cores. Replays, flushes and checkpoints all old
/// rings, and writes the new cores' checkpoints and rings under a new epoch. One manifest write then installs them. A
/// crash at any point leaves either the old or the new placement, whole. Returns the new manifest. Needs one thread
/// and no running store.
pub async fn change_cores<D: Disk>(
    disk: &D,
    data: &Path,
    old: &Manifest,
    cores: usize,
    config: &StoreConfig,
    place: impl Fn(GroupId) -> usize,
) -> Result<Manifest, OpenError> {
    assert!(cores > 0, "a broker has at least one core");
    remove_stale_epochs(disk, data, old).await?;
    let mut placed: Vec<Vec<Moving>> = (0..cores).map(|_| Vec::new()).collect();
    for core in 0..old.cores {
        for group in flush_out(disk, &StoreDirs::new(data, old.epoch, core), old.epoch, config).await? {
            let to = place(group.state.id);
            assert!(to < cores, "group {} is placed on core {to} of {cores}", group.state.id.0);
            placed[to].push(group);
        }
    }
    let new = Manifest { epoch: old.epoch + 1, cores, ..old.clone() };
    for (core, groups) in placed.into_iter().enumerate() {
        move_in(disk, &StoreDirs::new(data, new.epoch, core), new.epoch, config, groups).await?;
    }
    new.write(disk, data).await?;
    remove_stale_epochs(disk, data, &new).await?;
    Ok(new)
}

/// Whether the rings on the disk have smaller segments than the configuration asks for. A ring keeps the segment size
/// that it was created with, so a larger entry fits only once [`change_cores`] has made new ones.
pub async fn has_smaller_segments<D: Disk>(
    disk: &D,
    data: &Path,
    manifest: &Manifest,
    config: &StoreConfig,
) -> Result<bool, OpenError> {
    let wanted = RingConfig::from(config).segment_bytes;
    for core in 0..manifest.cores {
        let dir = StoreDirs::new(data, manifest.epoch, core).core;
        let listed = disk.list(&dir).await.map_err(named(&dir))?;
        let Some(path) = listed.into_iter().find(|path| slot_of(path).is_some()) else { continue };
        let file = disk.open(&path, OpenMode::Read).await.map_err(named(&path))?;
        if file.len().await.map_err(named(&path))? < wanted {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Replays a core's ring and flushes it to segments. Returns the core's groups.
async fn flush_out<D: Disk>(
    disk: &D,
    dirs: &StoreDirs,
    epoch: u64,
    config: &StoreConfig,
) -> Result<Vec<Moving>, OpenError> {
    let (store, ..) = Store::open(disk.clone(), dirs, epoch, config.clone()).await?;
    let shared = &store.shared;
    match round(shared, &Nobody).await {
        Ok(()) => {}
        Err(FlushError::Full(why)) => {
            return Err(OpenError::Full(format!("cannot change the number of cores: {why}")));
        }
        Err(fatal) => return Err(fatal.into()),
    }
    let mut state = shared.state.borrow_mut();
    let State { groups, garbage, .. } = &mut *state;
    let moving = groups.values_mut().map(|log| {
        let mut group = settled_state(shared, log, garbage);
        group.kept = log.kept().cloned().collect();
        let tail = log.unflushed().skip(group.kept.len()).cloned().collect();
        // The new ring begins at 0, and holds nothing that is stored elsewhere.
        group.replay_from = LogPos::default();
        for held in &mut group.kept {
            (held.start, held.end) = (LogPos::default(), LogPos::default());
        }
        Moving { tail, state: group }
    });
    Ok(moving.collect())
}

/// Writes a new core's checkpoint, and writes the entries into its ring that no segment, snapshot or checkpoint
/// holds.
async fn move_in<D: Disk>(
    disk: &D,
    dirs: &StoreDirs,
    epoch: u64,
    config: &StoreConfig,
    mut groups: Vec<Moving>,
) -> Result<(), OpenError> {
    crate::store::recovery::make_dirs(disk, dirs).await?;
    groups.sort_unstable_by_key(|group| group.state.id);
    let states = groups.iter().map(|group| group.state.clone()).collect();
    let checkpoint = Checkpoint { epoch, groups: states, ..Checkpoint::default() };
    let path = dirs.core.join(CHECKPOINT_FILE);
    replace_file(disk, &path, &[&checkpoint.encode()], async || ()).await.map_err(named(&path))?;
    let (store, ..) = Store::open(disk.clone(), dirs, epoch, config.clone()).await?;
    let refused = |error: AppendError| match error {
        AppendError::Full | AppendError::TooLarge { .. } => small_ring(dirs, &store, &groups),
        AppendError::Poisoned(why) => why.into(),
    };
    let write = async {
        for group in &groups {
            for held in &group.tail {
                store.append(group.state.id, group.state.hard_state, &held.entry).map_err(refused)?;
            }
        }
        let staged = store.shared.journal.staged();
        while store.durable() < staged {
            store.durable_past(store.durable()).await?;
        }
        Ok(())
    };
    match race(write, store.run_journal()).await {
        Either::First(written) => written,
        Either::Second(ended) => Err(ended.err().unwrap_or_else(|| Poisoned("the ring closed".to_owned())).into()),
    }
}

/// The error for a new ring that does not take the entries that no other file holds.
fn small_ring<D: Disk>(dirs: &StoreDirs, store: &Store<D>, groups: &[Moving]) -> OpenError {
    let bytes = |held: &Held| held.entry.data.len() + held.entry.payload.as_ref().map_or(0, |(_, bytes)| bytes.len());
    let sizes = || groups.iter().flat_map(|group| &group.tail).map(bytes);
    OpenError::SmallRing {
        what: dirs.core.display().to_string(),
        ring_bytes: store.stats().ring_bytes,
        takes: store.entry_bytes_max(),
        bytes: sizes().sum(),
        largest: sizes().max().unwrap_or(0),
    }
}

/// Removes the directories of all epochs but the manifest's, left by an interrupted or finished change of cores. Call
/// this at each start, before the stores open: a directory that reappears after a crash is then removed by the next
/// start. Returns how many there were.
pub async fn remove_stale_epochs<D: Disk>(disk: &D, data: &Path, current: &Manifest) -> Result<usize, OpenError> {
    let epoch_of = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("epoch-")?.parse::<u64>().ok();
    let listed = disk.list(data).await.map_err(named(data))?;
    let stale: Vec<PathBuf> =
        listed.into_iter().filter(|path| epoch_of(path).is_some_and(|epoch| epoch != current.epoch)).collect();
    for epoch in &stale {
        for core in disk.list(epoch).await.map_err(named(epoch))? {
            for file in disk.list(&core).await.map_err(named(&core))? {
                remove_if_there(disk, &file).await.map_err(named(&file))?;
            }
            remove_if_there(disk, &core).await.map_err(named(&core))?;
        }
        remove_if_there(disk, epoch).await.map_err(named(epoch))?;
    }
    Ok(stale.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            cluster_id: Some("3Yk0bXb0QkGuVY5oGzJb4A".to_owned()),
            incarnation: 12,
            founding: vec![4_294_967_303, 8_589_934_601],
            epoch: 2,
            ..Manifest::new(1, 4_294_967_303, 4)
        }
    }

    #[test]
    fn a_manifest_is_this_text() {
        let bytes = manifest().render();
        let text = String::from_utf8(bytes.clone()).expect("text");
        let lines = "millrace-data 2\ncluster-id 3Yk0bXb0QkGuVY5oGzJb4A\nnode 1\npeer 4294967303\nincarnation 12\n\
                     founding 4294967303,8589934601\nepoch 2\ncores 4\n";
        let crc = crc32c::crc32c(lines.as_bytes());
        assert_eq!(text.trim_end_matches('\n'), format!("{lines}crc32c {crc:08x}"));
        assert_eq!(bytes.len(), crate::buf::BLOCK);
        assert_eq!(Manifest::parse(&bytes), Ok(manifest()));
        let alone = Manifest::new(7, 9, 1);
        assert_eq!(Manifest::parse(&alone.render()), Ok(alone));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = manifest().render();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::parse(&flipped).is_err(), "bit {bit} was flipped unseen");
        }
        assert!(Manifest::parse(&[]).is_err());
        assert!(Manifest::parse(&bytes[..80]).is_err());
    }

    #[test]
    fn another_format_is_named_whatever_follows() {
        assert_eq!(Manifest::parse(b"millrace-data 3\nanything\n"), Err(ParseError::Newer(3)));
        assert_eq!(Manifest::parse(b"millrace-data 1\ncluster-id x\n"), Err(ParseError::Older(1)));
    }
}
