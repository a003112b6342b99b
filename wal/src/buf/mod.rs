//! Memory aligned for O_DIRECT, written once from the front and shared while it is still being written.
//!
//! A [`Chunk`] has one writer. The bytes that it has written can be frozen into [`Bytes`] that other cores may hold.
//! Readers only ever see bytes below the writer's mark; the writer only touches bytes above it.

pub(crate) mod pool;

use crate::buf::pool::POOLED_MIN;
use bytes::Bytes;
use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ptr::NonNull,
    sync::Arc,
};

/// The unit of O_DIRECT here: offset, length and address of each transfer are multiples of it.
pub const BLOCK: usize = 4096;

/// Rounds up to whole blocks.
pub const fn block_ceil(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK) * BLOCK
}

/// One aligned piece of memory: a whole number of blocks, initialised, with unspecified contents.
struct Memory {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: `Memory` is a plain allocation without thread affinity. `Chunk` and `Frozen` restrict shared access. Each
// part belongs to one `Chunk` (`split_rest` divides them). Bytes below a chunk's mark are never written again, and
// only that `Chunk` reaches the bytes above it.
unsafe impl Send for Memory {}
// SAFETY: as for `Send`.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, BLOCK).expect("a chunk's size fits the address space")
    }

    fn new(len: usize) -> Self {
        assert!(len > 0 && len.is_multiple_of(BLOCK), "chunks are whole blocks, not {len} bytes");
        if len >= POOLED_MIN {
            return Self { ptr: pool::take(len), len };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero (asserted above).
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        Self { ptr, len }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.len >= POOLED_MIN {
            return pool::give(self.ptr, self.len);
        }
        // SAFETY: allocated in `new` with the same layout, freed once.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.len)) }
    }
}

/// A range of a chunk that will not change any more.
struct Frozen {
    memory: Arc<Memory>,
    start: usize,
    len: usize,
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `Chunk::frozen` checked the range against its mark; bytes below the mark are never written again.
        unsafe { std::slice::from_raw_parts(self.memory.ptr.as_ptr().add(self.start), self.len) }
    }
}

/// An aligned buffer that is filled once, from the front. It is not clonable, since it is the only writer of its part
/// of the memory.
pub struct Chunk {
    memory: Arc<Memory>,
    /// Where this chunk begins in the memory, in whole blocks. The chunk's positions count from here.
    start: usize,
    mark: usize,
    capacity: usize,
}

impl Chunk {
    /// Allocates room for `capacity` bytes. Panics unless that is a positive number of whole blocks.
    pub fn new(capacity: usize) -> Self {
        Self { memory: Arc::new(Memory::new(capacity)), start: 0, mark: 0, capacity }
    }

    /// Like [`Chunk::new`], but with every page faulted in. A thread that may block for it calls this. The thread
    /// that needs a chunk of this capacity next drops the result, which puts the memory into its pool.
    pub fn warm(capacity: usize) -> Self {
        assert!(capacity >= POOLED_MIN && capacity.is_multiple_of(BLOCK), "no pool has chunks of {capacity} bytes");
        let memory = Memory { ptr: pool::warm(capacity), len: capacity };
        Self { memory: Arc::new(memory), start: 0, mark: 0, capacity }
    }

    /// Returns a full chunk of `len` zeros. Panics unless `len` is a positive number of whole blocks.
    pub fn zeros(len: usize) -> Self {
        let mut chunk = Self::new(len);
        chunk.space(len).fill(0);
        chunk.advance(len);
        chunk
    }

    /// A chunk of whole blocks that starts with `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut chunk = Self::new(block_ceil(bytes.len().max(1)));
        chunk.push(bytes);
        chunk
    }

    pub fn len(&self) -> usize {
        self.mark
    }

    pub fn is_empty(&self) -> bool {
        self.mark == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn remaining(&self) -> usize {
        self.capacity - self.mark
    }

    /// Reduces this chunk to the blocks that it has begun. The remaining blocks, if any, become the returned chunk.
    pub fn split_rest(&mut self) -> Option<Self> {
        let kept = block_ceil(self.mark);
        let capacity = self.capacity - kept;
        self.capacity = kept;
        (capacity > 0).then(|| Self { memory: self.memory.clone(), start: self.start + kept, mark: 0, capacity })
    }

    /// The address of a position, which must be at most the capacity.
    fn at(&self, position: usize) -> *mut u8 {
        // SAFETY: `start + capacity` is at most the memory's length.
        unsafe { self.memory.ptr.as_ptr().add(self.start + position) }
    }

    /// Appends `bytes`. Panics if they do not fit, so the caller checks [`Chunk::remaining`] first.
    pub fn push(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
        self.advance(bytes.len());
    }

    /// The next `len` unwritten bytes. The caller fills them, then calls [`Chunk::advance`].
    pub fn space(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.remaining(), "{len} bytes do not fit in the {} that remain", self.remaining());
        // SAFETY: in bounds (asserted) and above the mark, so no frozen range overlaps; `&mut self` is the only
        // writer.
        unsafe { std::slice::from_raw_parts_mut(self.at(self.mark), len) }
    }

    /// The next `len` unwritten bytes, unchanged, for callers that must give the kernel their address.
    pub fn unwritten(&self, len: usize) -> &[u8] {
        assert!(len <= self.remaining(), "{len} bytes do not fit in the {} that remain", self.remaining());
        // SAFETY: in bounds (asserted), initialised (as all of `Memory` is), and only written through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.at(self.mark), len) }
    }

    /// Moves the mark over `len` bytes that are now final.
    pub fn advance(&mut self, len: usize) {
        assert!(len <= self.remaining(), "the mark can't pass the chunk's end");
        self.mark += len;
    }

    /// Fills with zeros up to the next block boundary and moves the mark there.
    pub fn pad_to_block(&mut self) {
        let to = block_ceil(self.mark);
        self.space(to - self.mark).fill(0);
        self.mark = to;
    }

    /// Shares `start .. start + len`, which must lie below the mark. The returned bytes keep the whole chunk's memory
    /// alive.
    pub fn frozen(&self, start: usize, len: usize) -> Bytes {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.mark), "only written bytes can be shared");
        Bytes::from_owner(Frozen { memory: self.memory.clone(), start: self.start + start, len })
    }

    /// Overwrites bytes that are not shared yet, such as a header left blank. Panics unless `at .. at + bytes.len()`
    /// lies below the mark.
    ///
    /// # Safety
    /// No [`Bytes`] from [`Chunk::frozen`] that overlaps the range may be alive.
    pub unsafe fn patch(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.mark, "only written bytes can be patched");
        // SAFETY: in bounds (asserted); no reader of the range exists, as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(at), bytes.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_bytes_stay_while_the_writer_goes_on() {
        let mut chunk = Chunk::new(2 * BLOCK);
        chunk.push(b"first");
        let first = chunk.frozen(0, 5);
        chunk.pad_to_block();
        chunk.push(b"second");
        let second = chunk.frozen(BLOCK, 6);
        drop(chunk);
        assert_eq!((&first[..], &second[..]), (&b"first"[..], &b"second"[..]));
        assert_eq!(first.as_ptr() as usize % BLOCK, 0);
    }

    #[test]
    fn the_rest_that_is_split_off_is_a_chunk_of_its_own() {
        let mut first = Chunk::new(3 * BLOCK);
        first.push(b"first");
        let mut second = first.split_rest().expect("two blocks are left");
        assert_eq!((first.remaining(), second.capacity()), (BLOCK - 5, 2 * BLOCK));
        second.push(&[2; 2 * BLOCK]);
        first.pad_to_block();
        assert!(first.split_rest().is_none() && second.split_rest().is_none());
        assert_eq!((&first.frozen(0, 5)[..], &second.frozen(0, 2 * BLOCK)[..]), (&b"first"[..], &[2; 2 * BLOCK][..]));
        assert_eq!(first.frozen(5, BLOCK - 5), vec![0; BLOCK - 5]);
    }

    #[test]
    #[should_panic(expected = "only written bytes")]
    fn bytes_above_the_mark_are_not_shared() {
        Chunk::new(BLOCK).frozen(0, 1);
    }
}
