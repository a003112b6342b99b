//! The limits of the machine itself, measured in the same minute as the run: raw durable writes, reads, and loopback.
//! Uses plain system calls and nothing of the broker. The workload adds the limit of the client.

pub(crate) mod cores;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use wal::buf::{BLOCK, Chunk, block_ceil};

use crate::clock;
use crate::error::AnyError;
use crate::figures::stats::{histogram, quantile_ms};
use crate::figures::with_commas;
use crate::machine::environment;
use crate::options::RunOptions;

/// How long each measurement before a run takes.
const BRIEF: Duration = Duration::from_millis(250);
/// Size of the file for raw writes. It is written once before measuring, so that its blocks are allocated, and then
/// used as a ring.
const FILE_BYTES: u64 = 64 << 20;
/// Bytes of one write or read where bandwidth is measured.
const LARGE_BYTES: usize = 1 << 20;
/// Bytes of a loopback message.
const MESSAGE_BYTES: usize = 100;

/// `None`: not measured, or not available on this machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ceiling {
    /// One block written with O_DIRECT, then fdatasync.
    pub raw_write_sync_p50_ms: Option<f64>,
    pub raw_write_sync_p99_ms: Option<f64>,
    /// The same while this client loads other CPUs at the run's rate, against a broker that does nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_write_sync_loaded_p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_write_sync_loaded_p99_ms: Option<f64>,
    /// Sequential writes of 1 MiB with O_DIRECT, each followed by fdatasync.
    pub raw_write_mb_per_s: Option<f64>,
    /// The same file read back with O_DIRECT.
    pub raw_read_mb_per_s: Option<f64>,
    pub loopback_p50_ms: Option<f64>,
    pub loopback_p99_ms: Option<f64>,
    /// One connection, in one direction.
    pub loopback_mb_per_s: Option<f64>,
    /// Round trips of two threads on two CPUs: through memory that both poll, and by waking each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_spin_p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_spin_p99_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_wake_p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_wake_p99_ms: Option<f64>,
    /// Results of the same client with the same options against a broker that does nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cap_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cap_p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cap_p99_ms: Option<f64>,
    /// The broker that the client's cap was measured against, or why it was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cap_by: Option<String>,
}

impl Ceiling {
    pub fn measure(options: &RunOptions) -> Ceiling {
        let mut ceiling = Ceiling::default();
        if options.no_ceiling {
            return ceiling;
        }
        if let Err(e) = ceiling.measure_disk(&options.disk_dir) {
            eprintln!(
                "cannot measure raw writes in {}: {e}; name a directory on the broker's disk with --disk-dir",
                options.disk_dir.display()
            );
        }
        if let Err(e) = ceiling.measure_loopback() {
            eprintln!("cannot measure loopback round trips: {e}");
        }
        ceiling
    }

    /// Measures what limits messages between cores: round trips of two threads on two CPUs, and loopback. Does not
    /// measure the disk. If `cpus` is empty, the first two CPUs that this process may use are taken.
    pub fn measure_cores(options: &RunOptions, cpus: &[usize]) -> Result<Ceiling, AnyError> {
        let cpus = two_cpus(&environment::allowed_cpu_numbers(), cpus)?;
        let mut ceiling = Ceiling::default();
        if options.no_ceiling {
            return Ok(ceiling);
        }
        match cpus.map(|cpus| ceiling.measure_two_cpus(cpus)) {
            Some(Ok(())) => {}
            Some(Err(e)) => eprintln!("cannot measure round trips between two CPUs: {e}"),
            None => eprintln!("cannot measure round trips between two CPUs: this process may use only one"),
        }
        if let Err(e) = ceiling.measure_loopback() {
            eprintln!("cannot measure loopback round trips: {e}");
        }
        Ok(ceiling)
    }

    fn measure_two_cpus(&mut self, cpus: [usize; 2]) -> io::Result<()> {
        let spun_ns = cores::spinning(cpus, BRIEF)?;
        self.core_spin_p50_ms = Some(quantile_ms(&spun_ns, 0.5));
        self.core_spin_p99_ms = Some(quantile_ms(&spun_ns, 0.99));
        let woken_ns = cores::waking(cpus, BRIEF)?;
        self.core_wake_p50_ms = Some(quantile_ms(&woken_ns, 0.5));
        self.core_wake_p99_ms = Some(quantile_ms(&woken_ns, 0.99));
        Ok(())
    }

    /// Runs `load` and writes durable blocks meanwhile, on the CPUs outside `client_cpus` if there are any.
    #[cfg_attr(not(feature = "librdkafka"), allow(dead_code))] // Without a mock cluster there is no such load.
    pub fn measure_disk_beside<T>(&mut self, dir: &Path, client_cpus: &[usize], load: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        let mut others = environment::allowed_cpu_numbers();
        others.retain(|cpu| !client_cpus.contains(cpu));
        let (loaded, measured) = thread::scope(|scope| {
            let writing = scope.spawn(|| -> io::Result<Histogram<u64>> {
                if !others.is_empty() {
                    cores::pin(&others)?;
                }
                RawDisk::create(dir)?.write_sync_while(BLOCK, || !over.load(Ordering::Relaxed))
            });
            let loaded = load();
            over.store(true, Ordering::Relaxed);
            (loaded, writing.join().expect("raw writes do not panic"))
        });
        match measured {
            Ok(latency_ns) => {
                self.raw_write_sync_loaded_p50_ms = Some(quantile_ms(&latency_ns, 0.5));
                self.raw_write_sync_loaded_p99_ms = Some(quantile_ms(&latency_ns, 0.99));
            }
            Err(e) => eprintln!("cannot measure raw writes beside the client in {}: {e}", dir.display()),
        }
        loaded
    }

    fn measure_disk(&mut self, dir: &Path) -> io::Result<()> {
        let mut disk = RawDisk::create(dir)?;
        let latency_ns = disk.write_sync_for(BLOCK, BRIEF)?;
        self.raw_write_sync_p50_ms = Some(quantile_ms(&latency_ns, 0.5));
        self.raw_write_sync_p99_ms = Some(quantile_ms(&latency_ns, 0.99));
        let begin_ns = clock::now_ns();
        let writes = disk.write_sync_for(LARGE_BYTES, BRIEF)?.len();
        self.raw_write_mb_per_s = Some(mb_per_s(writes * LARGE_BYTES as u64, begin_ns));
        let begin_ns = clock::now_ns();
        let bytes = disk.read_for(BRIEF)?;
        self.raw_read_mb_per_s = Some(mb_per_s(bytes, begin_ns));
        Ok(())
    }

    fn measure_loopback(&mut self) -> io::Result<()> {
        let latency_ns = loopback_for(BRIEF)?;
        self.loopback_p50_ms = Some(quantile_ms(&latency_ns, 0.5));
        self.loopback_p99_ms = Some(quantile_ms(&latency_ns, 0.99));
        let begin_ns = clock::now_ns();
        let bytes = loopback_bytes_for(BRIEF)?;
        self.loopback_mb_per_s = Some(mb_per_s(bytes, begin_ns));
        Ok(())
    }

    pub fn to_text(&self) -> String {
        let mut text = String::new();
        if let (Some(p50), Some(p99)) = (self.raw_write_sync_p50_ms, self.raw_write_sync_p99_ms) {
            text += &format!("machine: raw 4 KiB write + fdatasync p50 {p50:.3} ms, p99 {p99:.3} ms\n");
        }
        if let (Some(p50), Some(p99)) = (self.raw_write_sync_loaded_p50_ms, self.raw_write_sync_loaded_p99_ms) {
            text +=
                &format!("machine: the same while this client loads other CPUs: p50 {p50:.3} ms, p99 {p99:.3} ms\n");
        }
        if let (Some(write), Some(read)) = (self.raw_write_mb_per_s, self.raw_read_mb_per_s) {
            text += &format!("machine: raw 1 MiB write + fdatasync {write:.0} MB/s, read {read:.0} MB/s\n");
        }
        if let (Some(p50), Some(p99)) = (self.loopback_p50_ms, self.loopback_p99_ms) {
            let mb = self.loopback_mb_per_s.unwrap_or(0.0);
            text += &format!("machine: loopback round trip p50 {p50:.3} ms, p99 {p99:.3} ms; {mb:.0} MB/s one way\n");
        }
        let core = [
            ("memory", self.core_spin_p50_ms, self.core_spin_p99_ms),
            ("eventfd", self.core_wake_p50_ms, self.core_wake_p99_ms),
        ];
        for (by, p50, p99) in core {
            if let (Some(p50), Some(p99)) = (p50, p99) {
                text += &format!("machine: round trip of two CPUs by {by} p50 {p50:.4} ms, p99 {p99:.4} ms\n");
            }
        }
        let by = self.client_cap_by.as_deref().unwrap_or_default();
        if let (Some(per_s), Some(p50), Some(p99)) =
            (self.client_cap_per_s, self.client_cap_p50_ms, self.client_cap_p99_ms)
        {
            let per_s = with_commas(per_s as u64);
            text += &format!("client's cap, against {by}: {per_s}/s, p50 {p50:.3} ms, p99 {p99:.3} ms\n");
        } else if !by.is_empty() {
            text += &format!("client's cap: not measured, {by}\n");
        }
        text
    }
}

/// The CPUs of the two threads; `None` if this process may use only one.
fn two_cpus(allowed: &[usize], wanted: &[usize]) -> Result<Option<[usize; 2]>, AnyError> {
    let wrong = |what: &str| AnyError::from(format!("--ceiling-cpus: {what}; name two of {allowed:?}"));
    match *wanted {
        [] => Ok(allowed.first_chunk().copied()),
        [a, b] if a == b => Err(wrong("it names one CPU twice")),
        [a, b] if allowed.contains(&a) && allowed.contains(&b) => Ok(Some([a, b])),
        [_, _] => Err(wrong("this process may not run on both")),
        _ => Err(wrong("it must name two")),
    }
}

fn mb_per_s(bytes: u64, begin_ns: u64) -> f64 {
    bytes as f64 * 1e3 / (clock::now_ns() - begin_ns).max(1) as f64
}

/// A temporary file for raw O_DIRECT writes and reads. It is removed on drop.
pub struct RawDisk {
    file: File,
    path: PathBuf,
    position: u64,
}

impl RawDisk {
    pub fn create(dir: &Path) -> io::Result<RawDisk> {
        let path = dir.join(format!("millrace-bench-raw-{}", std::process::id()));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT).open(&path)?;
        let disk = RawDisk { file, path, position: 0 };
        let zeros = aligned(LARGE_BYTES);
        for position in (0..FILE_BYTES).step_by(zeros.len()) {
            disk.file.write_all_at(&zeros, position)?;
        }
        disk.file.sync_all()?;
        Ok(disk)
    }

    /// Writes blocks one after the other and makes each durable before the next. Returns how long each took.
    pub fn write_sync_for(&mut self, bytes: usize, duration: Duration) -> io::Result<Histogram<u64>> {
        let end_ns = clock::now_ns() + duration.as_nanos() as u64;
        self.write_sync_while(bytes, || clock::now_ns() < end_ns)
    }

    /// The same for as long as `goes_on` returns true, but at least once.
    fn write_sync_while(&mut self, bytes: usize, goes_on: impl Fn() -> bool) -> io::Result<Histogram<u64>> {
        let data = aligned(block_ceil(bytes));
        let mut latency_ns = histogram();
        loop {
            if !goes_on() && !latency_ns.is_empty() {
                return Ok(latency_ns);
            }
            let begin_ns = clock::now_ns();
            if self.position + data.len() as u64 > FILE_BYTES {
                self.position = 0;
            }
            self.file.write_all_at(&data, self.position)?;
            // SAFETY: the descriptor stays open as long as `self.file`.
            if unsafe { libc::fdatasync(self.file.as_raw_fd()) } != 0 {
                return Err(io::Error::last_os_error());
            }
            self.position += data.len() as u64;
            latency_ns.saturating_record(clock::now_ns() - begin_ns);
        }
    }
}

impl RawDisk {
    /// Reads the file from its start, again and again. Returns the number of bytes read.
    pub fn read_for(&mut self, duration: Duration) -> io::Result<u64> {
        // `Chunk` provides aligned memory only for writing to the disk. A block-aligned slice of ordinary memory
        // serves for reading.
        let mut memory = vec![0u8; LARGE_BYTES + BLOCK];
        let begin = memory.as_ptr().align_offset(BLOCK);
        let into = &mut memory[begin..begin + LARGE_BYTES];
        let (mut position, mut bytes) = (0, 0);
        let end_ns = clock::now_ns() + duration.as_nanos() as u64;
        while clock::now_ns() < end_ns {
            self.file.read_exact_at(into, position)?;
            bytes += LARGE_BYTES as u64;
            position = (position + LARGE_BYTES as u64) % FILE_BYTES;
        }
        Ok(bytes)
    }
}

impl Drop for RawDisk {
    fn drop(&mut self) {
        // A file that can't be removed stays; a destructor has nobody to report the error to.
        _ = std::fs::remove_file(&self.path);
    }
}

/// Memory aligned for O_DIRECT, filled with a byte other than zero.
fn aligned(bytes: usize) -> bytes::Bytes {
    let mut chunk = Chunk::new(bytes);
    chunk.push(&vec![0xa5; bytes]);
    chunk.frozen(0, bytes)
}

/// Blocking round trips between two threads over loopback.
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

/// Sends from one thread to another over loopback as fast as possible. Returns the number of bytes received.
fn loopback_bytes_for(duration: Duration) -> io::Result<u64> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let addr = listener.local_addr()?;
    let receiver = thread::spawn(move || -> io::Result<u64> {
        let (mut stream, _) = listener.accept()?;
        let mut memory = vec![0; 256 << 10];
        let mut bytes = 0;
        loop {
            match stream.read(&mut memory)? {
                0 => return Ok(bytes),
                count => bytes += count as u64,
            }
        }
    });
    let mut stream = TcpStream::connect(addr)?;
    let message = vec![7; 256 << 10];
    let end_ns = clock::now_ns() + duration.as_nanos() as u64;
    while clock::now_ns() < end_ns {
        stream.write_all(&message)?;
    }
    drop(stream);
    receiver.join().map_err(|_| io::Error::other("the receiving thread panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_blocks_are_written_beside_a_load() {
        let mut ceiling = Ceiling::default();
        let load = || {
            thread::sleep(Duration::from_millis(5));
            7
        };
        assert_eq!(ceiling.measure_disk_beside(&std::env::temp_dir(), &[0], load), 7);
        let (p50, p99) = (ceiling.raw_write_sync_loaded_p50_ms, ceiling.raw_write_sync_loaded_p99_ms);
        assert!(p50 > Some(0.0) && p99 >= p50, "{p50:?} {p99:?}");
        assert!(ceiling.to_text().contains("while this client loads other CPUs"));
    }

    #[test]
    fn everything_is_measured_where_there_is_a_disk_and_loopback() {
        let mut ceiling = Ceiling::default();
        ceiling.measure_disk(&std::env::current_dir().unwrap()).unwrap();
        ceiling.measure_loopback().unwrap();
        let Ceiling { raw_write_sync_p50_ms, raw_write_mb_per_s, raw_read_mb_per_s, loopback_mb_per_s, .. } = ceiling;
        for figure in [raw_write_sync_p50_ms, raw_write_mb_per_s, raw_read_mb_per_s, loopback_mb_per_s] {
            assert!(figure.is_some_and(|figure| figure > 0.0), "{ceiling:?}");
        }
        assert_eq!(ceiling.to_text().lines().count(), 3);
    }

    #[test]
    fn two_cpus_are_those_named_or_the_first() {
        for (allowed, wanted, found) in [
            ([0, 1, 2].as_slice(), [].as_slice(), Some([0, 1])),
            (&[0, 1, 2], &[2, 0], Some([2, 0])),
            (&[3], &[], None),
        ] {
            assert_eq!(two_cpus(allowed, wanted).unwrap(), found);
        }
        for wanted in [[1].as_slice(), &[1, 1], &[0, 3], &[0, 1, 2]] {
            let refused = two_cpus(&[0, 1, 2], wanted).unwrap_err().to_string();
            assert!(refused.contains("--ceiling-cpus") && refused.contains("[0, 1, 2]"), "{refused}");
        }
    }
}
