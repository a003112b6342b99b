//! The disk of a running broker: each core has its own `io_uring`, which the core's reactor watches.
//! Lives on: one core. Every operation goes through the ring, also opening and renaming, so a core never blocks in
//! them. Only [`Disk::list`], [`File::len`] and, on kernels without it, [`File::truncate`] are plain calls, made when
//! files are opened.
//!
//! Invariant: an operation owns the memory that the kernel reads or writes until it completes, even if its future is
//! dropped.

use crate::{
    buf::{BLOCK, Chunk, block_ceil},
    disk::{Disk, Durability, File, OpenMode, modified_ms},
};
use bytes::Bytes;
use io_uring::{IoUring, opcode, squeue, types};
use runtime::{Alarm, Watched};
use slab::Slab;
use std::{
    cell::RefCell,
    collections::VecDeque,
    ffi::CString,
    future::Future,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
};

/// Operations in flight at once. More wait in the submission queue's overflow, [`Ring::backlog`].
const DEPTH: u32 = 256;

/// RWF_DSYNC of `preadv2(2)`: the write is durable when it completes.
const RWF_DSYNC: i32 = 0x2;

/// How a [`Durability::Synced`] write is made durable. On an idle machine the three differ little. On busy cores the
/// first one has the highest latency, since its completion goes through a kernel worker that competes for the core.
/// Measured with a compiler on both cores: 90 of 100 appends of 4 KiB within 4 ms, against 0.2 ms for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncBy {
    /// The write itself, with RWF_DSYNC: one operation, and a device with FUA needs no flush of its cache.
    Write,
    /// An fdatasync linked to the write. If the write fails, the reported error is that the sync was cancelled.
    LinkedSync,
    /// An fdatasync after the write has completed: the fastest in most of our measurements, and errors are precise.
    #[default]
    LaterSync,
}

/// The resources of an operation in flight. They belong to the kernel until the operation completes. Descriptors are
/// included, because an operation that is still queued might otherwise hit another file under the same number.
#[allow(dead_code, reason = "held for the kernel, not for us")]
enum Held {
    File(Rc<OwnedFd>),
    Data(Rc<OwnedFd>, Bytes),
    Space(Rc<OwnedFd>, Chunk),
    Paths(CString, CString),
    /// The operation's result is a descriptor.
    Open(CString),
}

impl Held {
    /// Handles the result of an operation that nobody waits for any more.
    fn let_go(self, result: i32) {
        if let Held::Open(_) = self
            && result >= 0
        {
            // SAFETY: the kernel just opened it for us, and nobody else refers to it.
            drop(unsafe { OwnedFd::from_raw_fd(result) });
        }
    }
}

enum Op {
    Waiting {
        held: Held,
        waker: Option<Waker>,
    },
    /// Its future was dropped. The resources are released when the operation completes.
    Abandoned {
        held: Held,
    },
    Done {
        held: Held,
        result: i32,
    },
}

/// Entries that must reach the kernel in one call: a single one, or two that are linked.
type Entries = (squeue::Entry, Option<squeue::Entry>);

struct Ring {
    uring: RefCell<IoUring>,
    ops: RefCell<Slab<Op>>,
    /// Entries that did not fit into the submission queue.
    backlog: RefCell<VecDeque<Entries>>,
    sync_by: SyncBy,
}

/// One core's disk. Clones are handles to the same ring.
#[derive(Clone)]
pub struct UringDisk(Rc<Ring>);

impl UringDisk {
    /// Sets up the ring. Must be called on the core's executor, which watches the ring from then on.
    pub fn new() -> io::Result<Self> {
        Self::with(SyncBy::default())
    }

    pub fn with(sync_by: SyncBy) -> io::Result<Self> {
        // Both flags save interrupts (Linux 6.1); older kernels run without them.
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(DEPTH)
            .or_else(|_| IoUring::builder().build(DEPTH))?;
        // Polling the ring's own descriptor would miss deferred work; the kernel rings an alarm for it.
        let bell = Alarm::new()?;
        uring.submitter().register_eventfd(bell.as_raw_fd())?;
        let watched = Watched::new(bell)?;
        let ring =
            Rc::new(Ring { uring: RefCell::new(uring), ops: RefCell::default(), backlog: RefCell::default(), sync_by });
        runtime::spawn(reap(Rc::downgrade(&ring), watched));
        Ok(Self(ring))
    }

    async fn path_op(&self, path: &Path, entry: impl FnOnce(*const libc::c_char) -> squeue::Entry) -> io::Result<i32> {
        let path = c_path(path)?;
        let entry = entry(path.as_ptr());
        self.0.run((entry, None), Held::Paths(path, CString::default())).await.0
    }

    async fn open_with(&self, path: &Path, flags: i32) -> io::Result<Rc<OwnedFd>> {
        let path = c_path(path)?;
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr());
        let entry = open.flags(flags | libc::O_CLOEXEC).mode(0o640).build();
        let fd = self.0.run((entry, None), Held::Open(path)).await.0?;
        // SAFETY: the kernel just opened it for us.
        Ok(Rc::new(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// Reaps completions as long as the disk is in use.
async fn reap(ring: Weak<Ring>, bell: Watched<Alarm>) {
    while bell.readable().await.is_ok() {
        bell.get().silence();
        match ring.upgrade() {
            Some(ring) => ring.reap(),
            None => return,
        }
    }
}

impl Ring {
    fn submit(&self, entries: Entries) {
        self.backlog.borrow_mut().push_back(entries);
        self.flush();
    }

    /// Submits as many entries as the kernel takes.
    fn flush(&self) {
        let mut uring = self.uring.borrow_mut();
        let mut backlog = self.backlog.borrow_mut();
        {
            let mut queue = uring.submission();
            while let Some((first, linked)) = backlog.front() {
                if queue.capacity() - queue.len() < 1 + usize::from(linked.is_some()) {
                    break;
                }
                for entry in [Some(first), linked.as_ref()].into_iter().flatten() {
                    // SAFETY: `ops` holds what the entry points to until the operation completes.
                    unsafe { queue.push(entry) }.expect("the queue has room");
                }
                backlog.pop_front();
            }
        }
        tolerate(uring.submit(), "rejects io_uring submissions");
    }

    fn reap(&self) {
        let mut uring = self.uring.borrow_mut();
        // With deferred task work, the kernel posts completions only when the ring's owner asks for events.
        // SAFETY: no argument is passed.
        let asked = unsafe { uring.submitter().enter::<()>(0, 0, IORING_ENTER_GETEVENTS, None) };
        tolerate(asked, "does not report io_uring completions");
        let wakers = self.take_completions(&mut uring);
        let more = !self.backlog.borrow().is_empty() || !uring.submission().is_empty();
        drop(uring);
        if more {
            self.flush();
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    fn take_completions(&self, uring: &mut IoUring) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let mut ops = self.ops.borrow_mut();
        for completion in uring.completion() {
            if completion.user_data() == LINKED_WRITE {
                continue;
            }
            let key = completion.user_data() as usize;
            match ops.remove(key) {
                Op::Waiting { held, waker } => {
                    let again = ops.insert(Op::Done { held, result: completion.result() });
                    assert_eq!(again, key, "a slab reuses the slot that was freed last");
                    wakers.extend(waker);
                }
                Op::Abandoned { held } => held.let_go(completion.result()),
                Op::Done { .. } => unreachable!("an operation completes once"),
            }
        }
        wakers
    }

    /// Runs one operation, then returns its result and its resources.
    async fn run(self: &Rc<Self>, (entry, linked): Entries, held: Held) -> (io::Result<i32>, Held) {
        let key = self.ops.borrow_mut().insert(Op::Waiting { held, waker: None });
        let entries = match linked {
            // The last operation of a chain reports for both: it is cancelled if the first one fails or is short.
            Some(last) => (entry.user_data(LINKED_WRITE), Some(last.user_data(key as u64))),
            None => (entry.user_data(key as u64), None),
        };
        self.submit(entries);
        Running { ring: self.clone(), key: Some(key) }.await
    }
}

/// Accepts EBUSY and EAGAIN: the kernel wants its completions reaped first. They wake the reaper, which submits
/// again. Also accepts EINTR.
fn tolerate(result: io::Result<usize>, what: &str) {
    if let Err(error) = result
        && !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::EINTR))
    {
        panic!("the kernel {what}: {error}");
    }
}

impl Drop for Ring {
    /// Waits for the operations in flight. Otherwise their memory would be reused while the kernel still accesses it.
    fn drop(&mut self) {
        let unsent: Vec<Entries> = self.backlog.get_mut().drain(..).collect();
        for (first, last) in unsent {
            self.ops.get_mut().remove(last.unwrap_or(first).get_user_data() as usize);
        }
        while !self.ops.get_mut().is_empty() {
            let mut uring = self.uring.borrow_mut();
            tolerate(uring.submit_and_wait(1), "does not complete the operations in flight");
            self.take_completions(&mut uring);
        }
    }
}

const IORING_ENTER_GETEVENTS: u32 = 1;
/// The user data of a write whose linked operation reports for it.
const LINKED_WRITE: u64 = u64::MAX;

/// An operation whose completion a future awaits.
struct Running {
    ring: Rc<Ring>,
    key: Option<usize>,
}

impl Future for Running {
    type Output = (io::Result<i32>, Held);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key.expect("polled after completion");
        let mut ops = self.ring.ops.borrow_mut();
        if let Op::Waiting { waker, .. } = &mut ops[key] {
            *waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let Op::Done { held, result } = ops.remove(key) else { unreachable!("only a dropped future abandons") };
        drop(ops);
        self.key = None;
        Poll::Ready((if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }, held))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut ops = self.ring.ops.borrow_mut();
        match ops.remove(key) {
            Op::Waiting { held, .. } => {
                let again = ops.insert(Op::Abandoned { held });
                assert_eq!(again, key, "a slab reuses the slot that was freed last");
            }
            Op::Done { held, result } => held.let_go(result),
            Op::Abandoned { .. } => unreachable!("a future is dropped once"),
        }
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

impl Disk for UringDisk {
    type File = UringFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<UringFile> {
        let flags = match mode {
            OpenMode::Read => libc::O_RDONLY,
            OpenMode::Write => libc::O_RDWR,
            OpenMode::CreateNew => libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
        };
        let fd = match self.open_with(path, flags | libc::O_DIRECT).await {
            // The file system has no O_DIRECT. With O_CREAT the kernel may have created the name before it noticed
            // that.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.open_with(path, flags & !libc::O_EXCL).await?
            }
            opened => opened?,
        };
        Ok(UringFile { ring: self.0.clone(), fd })
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<&Path> =
            path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
        let cwd = types::Fd(libc::AT_FDCWD);
        for dir in missing.into_iter().rev() {
            match self.path_op(dir, |path| opcode::MkDirAt::new(cwd, path).mode(0o750).build()).await {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (c_path(from)?, c_path(to)?);
        let cwd = types::Fd(libc::AT_FDCWD);
        let entry = opcode::RenameAt::new(cwd, from.as_ptr(), cwd, to.as_ptr()).build();
        self.0.run((entry, None), Held::Paths(from, to)).await.0.map(drop)
    }

    async fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        let (one, other) = (c_path(one)?, c_path(other)?);
        let cwd = types::Fd(libc::AT_FDCWD);
        let entry = opcode::RenameAt::new(cwd, one.as_ptr(), cwd, other.as_ptr()).flags(libc::RENAME_EXCHANGE).build();
        self.0.run((entry, None), Held::Paths(one, other)).await.0.map(drop)
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        let cwd = types::Fd(libc::AT_FDCWD);
        let unlink = |flags| move |path| opcode::UnlinkAt::new(cwd, path).flags(flags).build();
        match self.path_op(path, unlink(0)).await {
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) => {
                self.path_op(path, unlink(libc::AT_REMOVEDIR)).await.map(drop)
            }
            removed => removed.map(drop),
        }
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let fd = self.open_with(dir, libc::O_RDONLY | libc::O_DIRECTORY).await?;
        let entry = opcode::Fsync::new(types::Fd(fd.as_raw_fd())).build();
        self.0.run((entry, None), Held::File(fd)).await.0.map(drop)
    }
}

/// An open file on a [`UringDisk`].
pub struct UringFile {
    ring: Rc<Ring>,
    fd: Rc<OwnedFd>,
}

impl UringFile {
    fn fd(&self) -> types::Fd {
        types::Fd(self.fd.as_raw_fd())
    }
}

fn whole_blocks(position: u64, len: usize) {
    let block = BLOCK as u64;
    assert!(
        position.is_multiple_of(block) && len.is_multiple_of(BLOCK),
        "{len} bytes at {position} are not whole blocks"
    );
}

impl File for UringFile {
    async fn write(&self, position: u64, data: Bytes, durability: Durability) -> io::Result<()> {
        whole_blocks(position, data.len());
        let (at, len) = (data.as_ptr(), u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?);
        let write = opcode::Write::new(self.fd(), at, len).offset(position);
        let held = Held::Data(self.fd.clone(), data);
        if durability == Durability::Synced && self.ring.sync_by == SyncBy::LinkedSync {
            let write = write.build().flags(squeue::Flags::IO_LINK);
            let sync = opcode::Fsync::new(self.fd()).flags(types::FsyncFlags::DATASYNC).build();
            return self.ring.run((write, Some(sync)), held).await.0.map(drop);
        }
        let (by_write, later) = match (durability, self.ring.sync_by) {
            (Durability::Synced, SyncBy::Write) => (RWF_DSYNC, false),
            (Durability::Synced, _) => (0, true),
            (Durability::Cached, _) => (0, false),
        };
        let written = self.ring.run((write.rw_flags(by_write).build(), None), held).await.0?;
        if written as u32 != len {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if later { self.sync().await } else { Ok(()) }
    }

    async fn read(&self, position: u64, len: usize) -> io::Result<Bytes> {
        whole_blocks(position, len);
        if len == 0 {
            return Ok(Bytes::new());
        }
        let mut chunk = Chunk::new(block_ceil(len));
        // One read normally suffices, but the kernel may also cut it short in the middle of a file.
        loop {
            let wanted = u32::try_from(len - chunk.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            let from = position + chunk.len() as u64;
            let to = chunk.space(wanted as usize).as_mut_ptr();
            let entry = opcode::Read::new(self.fd(), to, wanted).offset(from).build();
            let (read, held) = self.ring.run((entry, None), Held::Space(self.fd.clone(), chunk)).await;
            let Held::Space(_, back) = held else { unreachable!("an operation returns its own buffer") };
            chunk = back;
            let read = read? as usize;
            chunk.advance(read);
            if read == 0 || chunk.len() == len || !read.is_multiple_of(BLOCK) {
                let end = chunk.len();
                return Ok(chunk.frozen(0, end));
            }
        }
    }

    async fn sync(&self) -> io::Result<()> {
        let entry = opcode::Fsync::new(self.fd()).flags(types::FsyncFlags::DATASYNC).build();
        self.ring.run((entry, None), Held::File(self.fd.clone())).await.0.map(drop)
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        let entry = opcode::Fallocate::new(self.fd(), len).build();
        match self.ring.run((entry, None), Held::File(self.fd.clone())).await.0 {
            // This file system has no fallocate. Setting the length suffices; writes then allocate the blocks.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => self.truncate(len).await,
            allocated => allocated.map(drop),
        }
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        let entry = opcode::Ftruncate::new(self.fd(), len).build();
        match self.ring.run((entry, None), Held::File(self.fd.clone())).await.0 {
            // Linux before 6.9.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                // SAFETY: plain system call on a descriptor that we own.
                match unsafe { libc::ftruncate(self.fd.as_raw_fd(), len as libc::off_t) } {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            }
            truncated => truncated.map(drop),
        }
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(std::fs::File::from(self.fd.try_clone()?).metadata()?.len())
    }

    async fn modified_ms(&self) -> io::Result<i64> {
        modified_ms(&std::fs::File::from(self.fd.try_clone()?).metadata()?)
    }
}

#[cfg(test)]
mod tests;
