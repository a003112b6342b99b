//! Checkpoints.

use testkit::allocations;
use wal::checkpoint::{CHECKPOINT_MAGIC, Checkpoint};

const CRC_AT: usize = 4;
const CRC_END: usize = 8;
const LENGTH_AT: usize = 16;
const LENGTH_END: usize = 24;

/// A checkpoint that was read can be written, and comes back the same from then on. Memory is bounded by its bytes.
pub fn checkpoint(data: &[u8]) {
    read(data);
    if data.len() >= LENGTH_END {
        let mut sealed = data.to_vec();
        sealed[..CRC_AT].copy_from_slice(&CHECKPOINT_MAGIC.to_le_bytes());
        sealed[LENGTH_AT..LENGTH_END].copy_from_slice(&(data.len() as u64).to_le_bytes());
        let crc = crc32c::crc32c(&sealed[CRC_END..]);
        sealed[CRC_AT..CRC_END].copy_from_slice(&crc.to_le_bytes());
        read(&sealed);
    }
}

fn read(data: &[u8]) {
    let (read, allocated) = allocations::during(|| Checkpoint::decode(data));
    assert!(allocated <= 1024 + 64 * data.len(), "{allocated} bytes for a checkpoint of {}", data.len());
    let Ok(checkpoint) = read else { return };
    let written = checkpoint.encode();
    let again = Checkpoint::decode(&written).expect("what was written can be read");
    assert_eq!(again.encode(), written);
    assert!(checkpoint.needs_ring_from() <= checkpoint.cut);
}
