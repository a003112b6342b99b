//! Data directories that an earlier version wrote; `engine/tests/fixtures/README.md` tells about them.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use net::records::compression::Codec;

/// Blocks of a tar archive (POSIX ustar): a header for each file, followed by its bytes.
const BLOCK: usize = 512;
/// Fields of a header.
const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const SIZE: std::ops::Range<usize> = 124..136;
const KIND: usize = 156;
const PREFIX: std::ops::Range<usize> = 345..500;

/// An archive holds few brokers with rings of 16 MiB each.
const ARCHIVE_MAX: usize = 1 << 30;

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file)
}

/// What clients of the earlier version saw, a line for each thing.
pub fn seen_then(fixture: &str) -> Vec<String> {
    let path = path(&format!("{fixture}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(str::to_owned).collect()
}

/// Unpacks the data directory of the broker with this node id.
pub fn unpack(fixture: &str, node: usize, into: &Path) {
    let path = path(&format!("{fixture}.tar.zst"));
    let packed = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let archive = Codec::Zstd.decompress(&packed.into(), ARCHIVE_MAX).expect("the archive decompresses");
    let folder = format!("broker-{node}");
    let mut files = 0;
    for (name, mode, contents) in entries(&archive) {
        let Ok(inside) = Path::new(&name).strip_prefix(&folder) else { continue };
        let to = into.join(inside);
        match contents {
            None => fs::create_dir_all(&to),
            Some(bytes) => fs::write(&to, bytes).and_then(|()| fs::set_permissions(&to, Permissions::from_mode(mode))),
        }
        .unwrap_or_else(|e| panic!("{}: {e}", to.display()));
        files += 1;
    }
    assert!(files > 0, "{} has no {folder}", path.display());
}

/// The name, mode and contents of each file. `None`: it is a directory.
fn entries(archive: &Bytes) -> Vec<(String, u32, Option<Bytes>)> {
    let mut entries = Vec::new();
    let mut at = 0;
    while archive[at..at + BLOCK].iter().any(|byte| *byte != 0) {
        let header = &archive[at..at + BLOCK];
        let text = |field: std::ops::Range<usize>| {
            let field = &header[field];
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
            std::str::from_utf8(&field[..end]).expect("a header is text").trim().to_owned()
        };
        let octal = |field| usize::from_str_radix(&text(field), 8).expect("a header's numbers are octal");
        let name = [text(PREFIX), text(NAME)].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        let size = octal(SIZE);
        let contents = match header[KIND] {
            b'0' => Some(archive.slice(at + BLOCK..at + BLOCK + size)),
            b'5' => None,
            other => panic!("{name} is neither a file nor a directory: {other}"),
        };
        entries.push((name, octal(MODE) as u32, contents));
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
    entries
}
