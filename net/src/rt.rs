//! The runtime as this crate sees it: waiting until a socket is ready. Only this file names glommio.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::task::Poll;

use glommio::io::PollableFd;

/// A non-blocking descriptor watched by this core's reactor.
#[derive(Debug)]
pub struct Watched<T: AsRawFd>(PollableFd<T>);

impl<T: AsRawFd> Watched<T> {
    /// Must be called on an executor. The descriptor stays with that executor.
    pub fn new(fd: T) -> io::Result<Watched<T>> {
        PollableFd::new(fd).map(Watched).map_err(io::Error::from)
    }

    /// Resolves when a read would not block. That includes errors and the end of the stream.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map_err(io::Error::from)
    }

    /// Resolves when a write would not block. That includes errors.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable().await.map_err(io::Error::from)
    }

    pub fn get(&self) -> &T {
        self.0.get_ref()
    }
}

/// Lets all tasks that are ready run first.
pub async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Yields to other tasks if this one has used up its time slice.
pub async fn yield_if_needed() {
    glommio::executor().yield_if_needed().await;
}

/// Runs a future on a new executor on this thread.
#[cfg(test)]
pub fn run<T>(future: impl Future<Output = T>) -> T {
    glommio::LocalExecutor::default().run(future)
}

/// Runs a future concurrently with the current one. The caller awaits the returned handle.
#[cfg(test)]
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> impl Future<Output = T> {
    glommio::spawn_local(future)
}
