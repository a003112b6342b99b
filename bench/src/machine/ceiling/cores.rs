//! Measures how fast two threads on two CPUs answer each other on this machine, in two ways. Through memory that both
//! poll: nothing is faster. Through an eventfd that wakes the other thread: a core that sleeps when idle pays at
//! least that.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::clock;
use crate::figures::stats::histogram;

/// The number that ends the echo thread.
const END: u64 = u64::MAX;

/// A channel between the two threads, usable from both sides.
trait Way: Sync {
    /// Sends a number to the other side.
    fn send(&self, to_echo: bool, number: u64) -> io::Result<()>;
    /// Waits for a number from the other side that differs from `before`.
    fn receive(&self, at_echo: bool, before: u64) -> io::Result<u64>;
}

/// Round trips through memory that both threads poll; neither thread sleeps.
pub fn spinning(cpus: [usize; 2], duration: Duration) -> io::Result<Histogram<u64>> {
    round_trips(&Words::default(), cpus, duration)
}

/// Round trips through eventfds that both threads sleep on.
pub fn waking(cpus: [usize; 2], duration: Duration) -> io::Result<Histogram<u64>> {
    round_trips(&EventFds([event_fd()?, event_fd()?]), cpus, duration)
}

fn round_trips(way: &impl Way, cpus: [usize; 2], duration: Duration) -> io::Result<Histogram<u64>> {
    let panicked = |_| io::Error::other("a thread that measures round trips panicked");
    thread::scope(|scope| {
        let echo = scope.spawn(|| -> io::Result<()> {
            let pinned = pin(&cpus[1..]);
            let mut number = 0;
            loop {
                number = way.receive(true, number)?;
                if number == END {
                    return pinned;
                }
                way.send(false, number)?;
            }
        });
        let asking = scope.spawn(|| -> io::Result<Histogram<u64>> {
            let measured = pin(&cpus[..1]).and_then(|()| ask(way, duration));
            way.send(true, END)?;
            measured
        });
        let measured = asking.join().map_err(panicked)?;
        echo.join().map_err(panicked)??;
        measured
    })
}

fn ask(way: &impl Way, duration: Duration) -> io::Result<Histogram<u64>> {
    let mut took_ns = histogram();
    let end_ns = clock::now_ns() + duration.as_nanos() as u64;
    for number in 1.. {
        let begin_ns = clock::now_ns();
        if begin_ns >= end_ns && number > 1 {
            break;
        }
        way.send(true, number)?;
        way.receive(false, number - 1)?;
        took_ns.saturating_record((clock::now_ns() - begin_ns).max(1));
    }
    Ok(took_ns)
}

/// One number in a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Word(AtomicU64);

#[derive(Default)]
struct Words {
    to_echo: Word,
    from_echo: Word,
}

impl Way for Words {
    fn send(&self, to_echo: bool, number: u64) -> io::Result<()> {
        let word = if to_echo { &self.to_echo } else { &self.from_echo };
        word.0.store(number, Ordering::Release);
        Ok(())
    }

    fn receive(&self, at_echo: bool, before: u64) -> io::Result<u64> {
        let word = if at_echo { &self.to_echo } else { &self.from_echo };
        loop {
            let number = word.0.load(Ordering::Acquire);
            if number != before {
                return Ok(number);
            }
            std::hint::spin_loop();
        }
    }
}

/// One eventfd to the echo thread, and one back.
struct EventFds([OwnedFd; 2]);

fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and returns a new descriptor, or a negative value.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Way for EventFds {
    fn send(&self, to_echo: bool, number: u64) -> io::Result<()> {
        // An eventfd sums up its writes. It holds at most one number at a time here, but it can't hold u64::MAX.
        let value = if number == END { END - 1 } else { number };
        // SAFETY: the call reads eight bytes of a number that outlives the call.
        let written = unsafe { libc::write(self.0[usize::from(!to_echo)].as_raw_fd(), (&raw const value).cast(), 8) };
        if written == 8 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn receive(&self, at_echo: bool, _before: u64) -> io::Result<u64> {
        let mut value = 0_u64;
        // SAFETY: the call writes eight bytes to a number that outlives the call.
        let read = unsafe { libc::read(self.0[usize::from(!at_echo)].as_raw_fd(), (&raw mut value).cast(), 8) };
        match read {
            8 if value == END - 1 => Ok(END),
            8 => Ok(value),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Pins the calling thread to these CPUs.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: a zeroed set is a valid value. CPU_SET ignores numbers beyond the set, and the call only reads it.
    let status = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cpus.iter().for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::other(format!("CPUs {cpus:?}: {}", io::Error::last_os_error()))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::environment;

    #[test]
    fn both_ways_there_are_round_trips() {
        let allowed = environment::allowed_cpu_numbers();
        let cpus = [allowed[0], allowed[allowed.len() - 1]];
        let brief = Duration::from_millis(5);
        // Two threads that spin on one CPU would wait for the scheduler at every message.
        let spun = if cpus[0] == cpus[1] { None } else { Some(spinning(cpus, brief).unwrap()) };
        for took_ns in spun.into_iter().chain([waking(cpus, brief).unwrap()]) {
            assert!(!took_ns.is_empty() && took_ns.min() > 0);
        }
    }

    #[test]
    fn a_cpu_that_is_not_there_ends_it_with_an_error() {
        let cpus = [environment::allowed_cpu_numbers()[0], 1023];
        for refused in [waking(cpus, Duration::ZERO), waking([1023, cpus[0]], Duration::ZERO)] {
            assert!(refused.unwrap_err().to_string().contains("CPUs [1023]"));
        }
    }
}
