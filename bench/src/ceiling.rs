//! What the machine itself allows, measured in the same minute as the run: a raw durable write, and a round trip over
//! loopback. Plain system calls, nothing of the broker's.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use wal::buf::{BLOCK, Chunk, block_ceil};

use crate::clock;
use crate::options::RunOptions;
use crate::stats::{histogram, quantile_ms};

/// How long each is measured before a run.
const BRIEF: Duration = Duration::from_millis(300);
/// The file that raw writes go to, written once before it is measured so that blocks are allocated, and then in a ring.
const FILE_BYTES: u64 = 16 << 20;
/// What a loopback message weighs.
const MESSAGE_BYTES: usize = 100;

/// `None`: not measured, or not to be had here.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Ceiling {
    /// One block, O_DIRECT, then fdatasync.
    pub raw_write_sync_p50_ms: Option<f64>,
    pub raw_write_sync_p99_ms: Option<f64>,
    pub loopback_p50_ms: Option<f64>,
    pub loopback_p99_ms: Option<f64>,
}

impl Ceiling {
    pub fn measure(options: &RunOptions) -> Ceiling {
        if options.no_ceiling {
            return Ceiling::default();
        }
        let disk = RawDisk::create(&options.disk_dir).and_then(|mut disk| disk.write_sync_for(BLOCK, BRIEF));
        let disk = disk.inspect_err(|e| eprintln!("no raw writes in {}: {e}", options.disk_dir.display())).ok();
        let loopback = loopback_for(BRIEF).inspect_err(|e| eprintln!("no loopback round trips: {e}")).ok();
        let quantile = |h: &Option<Histogram<u64>>, q| h.as_ref().map(|h| quantile_ms(h, q));
        Ceiling {
            raw_write_sync_p50_ms: quantile(&disk, 0.5),
            raw_write_sync_p99_ms: quantile(&disk, 0.99),
            loopback_p50_ms: quantile(&loopback, 0.5),
            loopback_p99_ms: quantile(&loopback, 0.99),
        }
    }

    pub fn print(&self) {
        if let (Some(p50), Some(p99)) = (self.raw_write_sync_p50_ms, self.raw_write_sync_p99_ms) {
            println!("machine: raw 4 KiB write + fdatasync p50 {p50:.3} ms, p99 {p99:.3} ms");
        }
        if let (Some(p50), Some(p99)) = (self.loopback_p50_ms, self.loopback_p99_ms) {
            println!("machine: loopback round trip p50 {p50:.3} ms, p99 {p99:.3} ms");
        }
    }
}

/// A file of its own for raw O_DIRECT writes, removed at the end.
pub struct RawDisk {
    file: File,
    path: PathBuf,
    position: u64,
}

impl RawDisk {
    pub fn create(dir: &Path) -> io::Result<RawDisk> {
        let path = dir.join(format!("millrace-bench-raw-{}", std::process::id()));
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).custom_flags(libc::O_DIRECT).open(&path)?;
        let disk = RawDisk { file, path, position: 0 };
        let zeros = aligned(1 << 20);
        for position in (0..FILE_BYTES).step_by(zeros.len()) {
            disk.file.write_all_at(&zeros, position)?;
        }
        disk.file.sync_all()?;
        Ok(disk)
    }

    /// Writes blocks one after the other, each made durable before the next; returns how long each took.
    pub fn write_sync_for(&mut self, bytes: usize, duration: Duration) -> io::Result<Histogram<u64>> {
        let data = aligned(block_ceil(bytes));
        let mut latency_ns = histogram();
        let end_ns = clock::now_ns() + duration.as_nanos() as u64;
        loop {
            let begin_ns = clock::now_ns();
            if begin_ns >= end_ns && !latency_ns.is_empty() {
                return Ok(latency_ns);
            }
            if self.position + data.len() as u64 > FILE_BYTES {
                self.position = 0;
            }
            self.file.write_all_at(&data, self.position)?;
            // SAFETY: the descriptor is open for as long as `self.file` is.
            if unsafe { libc::fdatasync(self.file.as_raw_fd()) } != 0 {
                return Err(io::Error::last_os_error());
            }
            self.position += data.len() as u64;
            latency_ns.saturating_record(clock::now_ns() - begin_ns);
        }
    }
}

impl Drop for RawDisk {
    fn drop(&mut self) {
        // What can't be removed is left behind; there is nobody to tell.
        _ = std::fs::remove_file(&self.path);
    }
}

/// Memory as O_DIRECT wants it, filled with something else than zeros.
fn aligned(bytes: usize) -> bytes::Bytes {
    let mut chunk = Chunk::new(bytes);
    chunk.push(&vec![0xa5; bytes]);
    chunk.frozen(0, bytes)
}

/// A blocking ping-pong between two threads.
fn loopback_for(duration: Duration) -> io::Result<Histogram<u64>> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let addr = listener.local_addr()?;
    let echo = thread::spawn(move || -> io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut message = [0; MESSAGE_BYTES];
        while stream.read_exact(&mut message).is_ok() {
            stream.write_all(&message)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    let mut latency_ns = histogram();
    let mut message = [7; MESSAGE_BYTES];
    let end_ns = clock::now_ns() + duration.as_nanos() as u64;
    loop {
        let begin_ns = clock::now_ns();
        if begin_ns >= end_ns {
            break;
        }
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        latency_ns.saturating_record(clock::now_ns() - begin_ns);
    }
    drop(stream);
    echo.join().map_err(|_| io::Error::other("the echo thread panicked"))??;
    Ok(latency_ns)
}
