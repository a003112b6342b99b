//! What cold readers have read beyond what they served, for those that continue there.
//! Lives on: the owning core only.

use crate::{
    disk::File,
    segment::{Scanner, format::SegmentId},
};
use bytes::Bytes;
use std::{
    cell::Cell,
    future::{poll_fn, ready},
    io,
    pin::Pin,
    rc::Rc,
    task::Poll,
};
use types::RaftIndex;

/// Where a reader continues: a consumer at an offset, a leader at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Next {
    Offset(u64),
    Index(RaftIndex),
}

/// Where a reader stopped, and the bytes that were read beyond it.
#[derive(Clone)]
pub(crate) struct Ahead {
    pub id: SegmentId,
    /// Where the frame behind the last one served begins, or padding before it.
    pub position: u64,
    pub buffer: Bytes,
    pub buffer_start: u64,
    /// A read from the block of `position` on, in flight in place of the buffer. The reader that continues takes it.
    pub coming: Option<Rc<Cell<Option<Coming>>>>,
}

pub(crate) type Coming = Pin<Box<dyn Future<Output = io::Result<Bytes>>>>;

impl Ahead {
    /// A scan that continues with the kept bytes.
    pub(crate) fn scanner<F: File>(&self, file: Rc<F>, len: u64, read_bytes: usize) -> Scanner<F> {
        let mut scanner = Scanner::behind(file, self.id, len, self.position, read_bytes);
        scanner.buffer = self.buffer.clone();
        scanner.buffer_start = self.buffer_start;
        scanner
    }
}

/// Submits a read, which proceeds without being awaited.
pub(crate) async fn begin<F: File>(file: Rc<F>, position: u64, len: usize) -> Coming {
    let mut read: Coming = Box::pin(async move { file.read(position, len).await });
    // The first poll submits the read.
    match poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await {
        Poll::Pending => read,
        Poll::Ready(done) => Box::pin(ready(done)),
    }
}
