//! Closes connections that hold memory and do not progress while others wait for it.
//! Lives on: every core, for its own connections.
//!
//! While memory is short, a client must send the rest of a large request, and take its answer, at [`PACE`] or
//! faster. An answer that is not taken also keeps the memory of the requests behind it. Slower clients are closed,
//! those that hold most memory first. No client is closed while there is enough memory for all.

use super::{Connection, Host, closed};
use std::{
    cell::Cell,
    cmp::Reverse,
    rc::Rc,
    time::{Duration, Instant},
};

/// How often connections are checked.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Bytes per second that a client must move so as not to count as stalled.
const PACE: u64 = 64 << 10;
/// How long a client may stall while few others wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client may stall while many wait, or if it holds the memory for which all others wait. Longer than
/// any round trip.
const PATIENCE_MIN: Duration = Duration::from_millis(600);
/// The patience is halved when this many requests or answers wait.
const WAITING_HALF: u32 = 8;

/// Progress of a connection in one direction since it was last found moving.
#[derive(Debug)]
pub struct Motion {
    bytes: Cell<u64>,
    since: Cell<Instant>,
}

impl Motion {
    pub fn new(now: Instant) -> Self {
        Self { bytes: Cell::new(0), since: Cell::new(now) }
    }

    /// Nothing is expected of it now, so its time starts again.
    fn rest(&self, bytes: u64, now: Instant) {
        self.bytes.set(bytes);
        self.since.set(now);
    }

    /// Whether it has been slower than [`PACE`] for `patience` or longer. `bytes`: the total that it has moved.
    fn is_stalled(&self, bytes: u64, now: Instant, patience: Duration) -> bool {
        let time = now.saturating_duration_since(self.since.get());
        let moved = bytes.wrapping_sub(self.bytes.get());
        let is_slow = u128::from(moved) * 1000 < u128::from(PACE) * time.as_millis();
        if !is_slow {
            // The patience begins where it stops: what the kernel's buffers take at once is not the client's pace.
            self.rest(bytes, now);
        }
        is_slow && time >= patience
    }
}

fn patience(waiting: usize) -> Duration {
    let waiting = u32::try_from(waiting).unwrap_or(u32::MAX).min(1 << 16);
    (PATIENCE * WAITING_HALF / (WAITING_HALF + waiting)).max(PATIENCE_MIN)
}

/// Bytes of a share that are to come back: a quarter for each that waits, at most all of it. With less, a client that
/// reads waits behind many that do not for longer than its request lasts.
fn wanted(share: usize, waiting: usize) -> usize {
    share / 4 * waiting.clamp(1, 4)
}

/// A connection that may be closed.
struct Stalled {
    connection: Rc<Connection>,
    bytes: usize,
    why: &'static str,
}

/// Closes connections that stall while others wait, until the broker stops.
pub async fn close_stalled(core: Rc<impl Host>) {
    let mut looked = false;
    while !core.stopping().is_set() {
        runtime::sleep(LOOK_EVERY).await;
        let (memory, unsent) = (core.memory(), core.connections().unsent_bytes.get());
        let is_due = memory.is_short() || unsent > memory.answers_max() / 2;
        if is_due {
            look(&core, !looked);
        }
        looked = is_due;
    }
}

/// `anew`: the last observations of connections are too old to count.
fn look(core: &Rc<impl Host>, anew: bool) {
    let now = Instant::now();
    let (mut of_requests, mut of_answers) = (Vec::new(), Vec::new());
    let memory = core.memory();
    let (requests_wait, answers_wait) = (memory.requests.waiting(), memory.answers_waiting());
    for (_, connection) in core.connections().open.borrow().iter() {
        let (sent, received) = (connection.handle.sent_bytes(), connection.handle.received_bytes());
        if anew {
            connection.received.rest(received, now);
            connection.sent.rest(sent, now);
        }
        match connection.receiving.get() {
            0 => connection.received.rest(received, now),
            bytes => {
                let patience = if connection.receives_over.get() { PATIENCE_MIN } else { patience(requests_wait) };
                if connection.received.is_stalled(received, now, patience) {
                    let why = "it does not send the rest of its request";
                    of_requests.push(Stalled { connection: connection.clone(), bytes, why });
                }
            }
        }
        match connection.handle.unsent_bytes() {
            0 => connection.sent.rest(sent, now),
            bytes => {
                // Its requests keep their memory until the answers before theirs have left.
                let requests = connection.requests_bytes();
                let waiting = if requests > 0 { answers_wait.max(requests_wait) } else { answers_wait };
                if connection.sent.is_stalled(sent, now, patience(waiting)) {
                    let (connection, why) = (connection.clone(), "it does not take its answer");
                    if requests > 0 {
                        let connection = connection.clone();
                        of_requests.push(Stalled { connection, bytes: requests, why });
                    }
                    of_answers.push(Stalled { connection, bytes, why });
                }
            }
        }
    }
    if requests_wait > 0 {
        close(core, of_requests, wanted(memory.requests.share(), requests_wait));
    }
    if answers_wait > 0 || core.connections().unsent_bytes.get() > memory.answers_max() {
        close(core, of_answers, wanted(memory.answers_max(), answers_wait));
    }
}

/// Closes the connections that hold most, until `wanted` bytes come back. A frame that exceeds its lane's room goes
/// first, whatever it holds, since all others wait for it.
fn close(core: &Rc<impl Host>, mut stalled: Vec<Stalled>, mut wanted: usize) {
    stalled.sort_by_key(|stalled| (Reverse(stalled.connection.receives_over.get()), Reverse(stalled.bytes)));
    for Stalled { connection, bytes, why } in stalled {
        if wanted == 0 {
            return;
        }
        if connection.gone.is_set() {
            continue;
        }
        wanted = wanted.saturating_sub(bytes);
        core.metrics().connections_stalled_total.add(1);
        closed(
            core,
            connection.peer,
            &format!(
                "{why}, holds {bytes} bytes and moves less than {} KiB a second while others wait for memory \
                 (memory.budget.bytes)",
                PACE >> 10
            ),
        );
        connection.cut();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_moves_too_little_for_too_long_is_stalled() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let motion = Motion::new(start);
        assert!(!motion.is_stalled(0, at(1.9), PATIENCE));
        assert!(motion.is_stalled(100_000, at(2.0), PATIENCE));
        assert!(motion.is_stalled(40_000, at(0.8), PATIENCE_MIN));
        // 64 KiB a second are enough, counted from the last moment at which it was fast enough.
        assert!(!motion.is_stalled(131_072, at(2.0), PATIENCE));
        assert!(!motion.is_stalled(131_072, at(3.9), PATIENCE));
        assert!(motion.is_stalled(131_072, at(4.0), PATIENCE));
        assert_eq!((patience(0), patience(8), patience(1000)), (PATIENCE, PATIENCE / 2, PATIENCE_MIN));
        motion.rest(131_072, at(4.0));
        assert!(!motion.is_stalled(131_072, at(5.9), PATIENCE));
        // A burst that the kernel takes buys no time beyond its end.
        motion.rest(0, at(6.0));
        assert!(!motion.is_stalled(4 << 20, at(6.25), PATIENCE_MIN));
        assert!(!motion.is_stalled(4 << 20, at(6.8), PATIENCE_MIN));
        assert!(motion.is_stalled(4 << 20, at(6.9), PATIENCE_MIN));
    }
}
