//! A pool of large aligned memory. The thread that drops a [`Chunk`](crate::buf::Chunk) keeps its memory for the next
//! one. Without the pool, a stream of appends would map, fault in and clear each megabyte anew.
//! Lives on: any thread. Each thread has its own pool, and memory goes to the pool of the thread that drops it.
//!
//! Memory comes from `mmap`, in powers of two, so untouched pages cost nothing. All of it is initialised: the kernel
//! clears it, and later owners leave what they wrote.
//!
//! The kernel takes up to some microseconds to clear a page, and the thread that touches the page first blocks
//! meanwhile. A thread that has no time for that lets another thread [`warm`] the memory. The pool uses no huge
//! pages: clearing one takes as long as clearing 512 small pages, up to milliseconds. The thread, and all work that
//! waits for its CPU, would block that long.

use crate::buf::BLOCK;
use std::{alloc::Layout, alloc::handle_alloc_error, cell::RefCell, ptr::NonNull};

/// Smaller sizes are left to the allocator.
pub const POOLED_MIN: usize = 64 << 10;
/// Larger sizes are returned to the kernel at once.
const POOLED_MAX: usize = 4 << 20;
/// The most that one thread keeps, in bytes.
const KEPT_MAX: usize = 16 << 20;
/// How many bytes [`warm`] faults in per call.
const WARM_STEP: usize = 64 << 10;
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

/// The number of bytes that are really mapped for `len`.
fn mapped(len: usize) -> usize {
    if len <= POOLED_MAX { len.next_power_of_two() } else { len }
}

fn class(mapped: usize) -> Option<usize> {
    (POOLED_MIN..=POOLED_MAX).contains(&mapped).then(|| (mapped / POOLED_MIN).ilog2() as usize)
}

/// Returns at least `len` bytes (`len` must be at least [`POOLED_MIN`]), aligned to a page. Their contents are
/// unspecified.
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

/// Like [`take`], but newly mapped and with every page faulted in.
pub fn warm(len: usize) -> NonNull<u8> {
    let len = mapped(len);
    let ptr = map(len);
    for at in (0..len).step_by(WARM_STEP) {
        // This is only advice. Pages that an older kernel does not populate are faulted in when they are written.
        // SAFETY: the range was mapped just now.
        unsafe { libc::madvise(ptr.as_ptr().add(at).cast(), WARM_STEP.min(len - at), libc::MADV_POPULATE_WRITE) };
    }
    ptr
}

/// How many times [`take`] can serve `len` bytes from this thread's pool before it has to map memory.
pub fn kept(len: usize) -> usize {
    let class = class(mapped(len));
    class.and_then(|class| POOL.try_with(|pool| pool.borrow().kept[class].len()).ok()).unwrap_or(0)
}

/// Whether this thread's pool has fewer than `most` pieces for `len` bytes, and would keep one more.
pub fn lacks(len: usize, most: usize) -> bool {
    let has_room = POOL.try_with(|pool| pool.borrow().bytes + mapped(len) <= KEPT_MAX).unwrap_or(false);
    class(mapped(len)).is_some() && kept(len) < most && has_room
}

/// Returns memory that [`take`] gave out for the same `len`.
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
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: an anonymous mapping at an address that the kernel chooses touches nothing that exists.
    let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0) };
    if ptr == libc::MAP_FAILED {
        handle_alloc_error(Layout::from_size_align(len, BLOCK).expect("a chunk's size fits the address space"));
    }
    NonNull::new(ptr.cast()).expect("the kernel maps nothing at address 0")
}

fn unmap(ptr: NonNull<u8>, len: usize) {
    // SAFETY: whole pages mapped by `map`, and nobody else refers to them any more.
    let done = unsafe { libc::munmap(ptr.as_ptr().cast(), len) };
    debug_assert_eq!(done, 0, "our own mapping can be unmapped");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_another_thread_warmed_is_taken_next() {
        let len = POOLED_MAX;
        assert_eq!(kept(len), 0);
        let warmed = std::thread::spawn(move || warm(len).as_ptr() as usize).join().unwrap();
        give(NonNull::new(warmed as *mut u8).unwrap(), len);
        assert_eq!(kept(len), 1);
        let taken = take(len);
        assert_eq!((taken.as_ptr() as usize, kept(len)), (warmed, 0));
        let mut present = vec![0u8; len / BLOCK];
        // SAFETY: the range is mapped, and `present` has a byte for each of its pages.
        let told = unsafe { libc::mincore(taken.as_ptr().cast(), len, present.as_mut_ptr()) };
        assert!(told == 0 && present.iter().all(|page| page & 1 == 1), "every page is in place");
        give(taken, len);
    }

    #[test]
    fn a_pool_that_is_full_of_other_sizes_lacks_nothing() {
        assert!(lacks(POOLED_MAX, 1) && !lacks(POOLED_MIN / 2, 1) && !lacks(POOLED_MAX + 1, 1), "only what it keeps");
        let small: Vec<_> = (0..KEPT_MAX / POOLED_MIN).map(|_| take(POOLED_MIN)).collect();
        for ptr in small {
            give(ptr, POOLED_MIN);
        }
        assert_eq!(kept(POOLED_MAX), 0);
        assert!(!lacks(POOLED_MAX, 1), "it would not keep what it is given");
    }

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
