//! The runtime: wraps the parts of glommio that this crate uses.

use glommio::io::PollableFd;
use std::{future::Future, io, os::fd::AsRawFd};

/// Runs `future` on this core, detached.
pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(future).detach();
}

/// A descriptor that this core's reactor watches.
pub(crate) struct Watched<T: AsRawFd>(PollableFd<T>);

impl<T: AsRawFd> Watched<T> {
    pub(crate) fn new(fd: T) -> io::Result<Self> {
        PollableFd::new(fd).map(Self).map_err(io::Error::other)
    }

    pub(crate) fn get(&self) -> &T {
        self.0.get_ref()
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map_err(io::Error::other)
    }
}

/// Runs the future that `main` returns to completion, on an executor of its own.
#[cfg(test)]
pub(crate) fn block_on<F: Future<Output = ()> + 'static>(main: impl FnOnce() -> F + Send + 'static) {
    let thread = glommio::LocalExecutorBuilder::default().io_memory(64 << 10).spawn(main).expect("an executor starts");
    thread.join().expect("the test's future does not panic");
}
