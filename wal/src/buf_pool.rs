//! Large aligned memory, kept by the thread that lets it go, for its next [`Chunk`](crate::buf::Chunk): a stream of appends would
//! otherwise map, fault in and clear each megabyte anew.
//! Lives on: any thread; each has its own, and memory goes to the pool of whichever thread drops it.
//!
//! Memory comes from `mmap`, in powers of two: untouched pages of it cost nothing, and all of it is initialised (the kernel
//! clears it, later owners leave what they wrote).

use crate::buf::BLOCK;
use std::{alloc::Layout, alloc::handle_alloc_error, cell::RefCell, ptr::NonNull};

/// What is smaller is left to the allocator.
pub const POOLED_MIN: usize = 64 << 10;
/// What is larger is given back at once.
const POOLED_MAX: usize = 4 << 20;
/// What one thread keeps at most, in bytes.
const KEPT_MAX: usize = 16 << 20;
const HUGE_PAGE: usize = 2 << 20;
const CLASSES: usize = (POOLED_MAX / POOLED_MIN).ilog2() as usize + 1;

#[derive(Default)]
struct Pool {
    kept: [Vec<NonNull<u8>>; CLASSES],
    bytes: usize,
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (class, kept) in self.kept.iter().enumerate() {
            for ptr in kept {
                unmap(*ptr, POOLED_MIN << class);
            }
        }
    }
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// What is really taken for `len` bytes.
fn mapped(len: usize) -> usize {
    if len <= POOLED_MAX { len.next_power_of_two() } else { len }
}

fn class(mapped: usize) -> Option<usize> {
    (mapped <= POOLED_MAX).then(|| (mapped / POOLED_MIN).ilog2() as usize)
}

/// At least `len` bytes (at least [`POOLED_MIN`]), aligned to a page. What they hold is unspecified.
pub fn take(len: usize) -> NonNull<u8> {
    let len = mapped(len);
    let kept = class(len).and_then(|class| {
        POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let ptr = pool.kept[class].pop()?;
            pool.bytes -= len;
            Some(ptr)
        })
        .ok()?
    });
    kept.unwrap_or_else(|| map(len))
}

/// Gives back what [`take`] gave for the same `len`.
pub fn give(ptr: NonNull<u8>, len: usize) {
    let len = mapped(len);
    let kept = class(len).is_some_and(|class| {
        let keep = |pool: &RefCell<Pool>| {
            let mut pool = pool.borrow_mut();
            let room = pool.bytes + len <= KEPT_MAX;
            if room {
                pool.bytes += len;
                pool.kept[class].push(ptr);
            }
            room
        };
        POOL.try_with(keep).unwrap_or(false)
    });
    if !kept {
        unmap(ptr, len);
    }
}

fn map(len: usize) -> NonNull<u8> {
    if !len.is_multiple_of(HUGE_PAGE) {
        return map_anywhere(len);
    }
    let wide = map_anywhere(len + HUGE_PAGE);
    let before = wide.align_offset(HUGE_PAGE);
    // SAFETY: the mapping is longer by a huge page than `len`, and `before` is less than that.
    let (ptr, end) = unsafe { (wide.add(before), wide.add(before + len)) };
    for (ptr, len) in [(wide, before), (end, HUGE_PAGE - before)] {
        if len > 0 {
            unmap(ptr, len);
        }
    }
    // One fault instead of 512. Advice: a kernel without huge pages refuses it, and all is well.
    // SAFETY: the range was mapped just now.
    unsafe { libc::madvise(ptr.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
    ptr
}

fn map_anywhere(len: usize) -> NonNull<u8> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0) };
    if ptr == libc::MAP_FAILED {
        handle_alloc_error(Layout::from_size_align(len, BLOCK).expect("a chunk's size fits the address space"));
    }
    NonNull::new(ptr.cast()).expect("the kernel maps nothing at address 0")
}

fn unmap(ptr: NonNull<u8>, len: usize) {
    // SAFETY: whole pages mapped by `map_anywhere`, and nobody else knows of it any more.
    let done = unsafe { libc::munmap(ptr.as_ptr().cast(), len) };
    debug_assert_eq!(done, 0, "a mapping of our own can be given back");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_let_go_is_used_again_up_to_a_bound() {
        let first = take(POOLED_MIN + 1);
        give(first, POOLED_MIN + 1);
        assert_eq!(take(2 * POOLED_MIN), first, "the same class");
        let many: Vec<_> = (0..KEPT_MAX / POOLED_MAX + 2).map(|_| take(POOLED_MAX)).collect();
        for ptr in many {
            give(ptr, POOLED_MAX);
        }
        assert_eq!(POOL.with_borrow(|pool| pool.bytes), KEPT_MAX);
        let large = take(POOLED_MAX + 1);
        give(large, POOLED_MAX + 1);
        assert_eq!(POOL.with_borrow(|pool| pool.bytes), KEPT_MAX, "what is larger is not kept");
        give(first, 2 * POOLED_MIN);
    }
}
