//! Descriptors that a core watches, and an alarm that wakes a core from any thread.

use glommio::io::PollableFd;
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// A non-blocking descriptor that this core's reactor watches. It stays on the core that made it.
#[derive(Debug)]
pub struct Watched<T: AsRawFd>(PollableFd<T>);

impl<T: AsRawFd> Watched<T> {
    /// Must be called on an executor.
    pub fn new(fd: T) -> io::Result<Self> {
        PollableFd::new(fd).map(Self).map_err(io::Error::from)
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

/// Wakes a core. Any thread may ring it, and so may a signal handler and the kernel. It is an eventfd.
#[derive(Debug)]
pub struct Alarm(OwnedFd);

impl Alarm {
    pub fn new() -> io::Result<Self> {
        // SAFETY: a plain system call. Nobody else owns the descriptor that it returns.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn ring(&self) -> io::Result<()> {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the call writes eight bytes from a live buffer to a descriptor that we own.
        let written = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Makes the alarm silent, until it is rung again.
    pub fn silence(&self) {
        let mut count = 0u64;
        // SAFETY: the call reads eight bytes into a live buffer of that size. It fails only if the alarm is silent,
        // which is as good.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), size_of_val(&count)) };
    }

    /// Waits on this core until somebody rings the alarm.
    pub async fn rung(&self) -> io::Result<()> {
        Watched::new(self.0.try_clone()?)?.readable().await
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}
