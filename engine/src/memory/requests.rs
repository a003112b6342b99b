//! Memory of requests that are being received or in progress.
//! Lives on: one core, the connection's.
//!
//! Each connection may receive [`FREE_BYTES`] of a frame. Beyond that it reserves memory before it reads more
//! bytes. There are lanes, so that heavy frames (a thirty-second of the share or more) do not delay the others, and
//! produce requests, which may wait for a full disk, do not delay requests that read or delete.
//! The reservation stays until the request is answered. A JoinGroup or SyncGroup that waits for other members gives
//! it back as soon as the coordinator has its own copy, which counts as the group's state.
//!
//! The decoded form of a request may take many times its frame. Beyond [`FREE_DECODED_BYTES`] it has a reservation of
//! its own, in a lane of its own, from right before it is decoded until the request is answered. It waits for that at
//! most 10 s. A request that holds one waits for no other. A produce request begins before others are answered, so its
//! decoded form counts with its frame, and its connection waits.
//!
//! A frame that is partly received may need more than is free. The first in line gets it anyway, but only one at a
//! time. So even if several frames are stuck, one always completes.
//!
//! Bound: the room of the lanes, and one more frame in each of them (`socket.request.max.bytes` in that of heavy ones)
//! and one more decoded form (40 MiB).

use runtime::sync::{Notify, line::Line};
use std::{cell::Cell, rc::Rc};

/// Bytes of a frame that each connection may receive without a reservation: one read.
pub const FREE_BYTES: usize = 16 << 10;

/// Bytes of a decoded request without a reservation.
pub const FREE_DECODED_BYTES: usize = 64 << 10;

/// One core's requests.
pub struct Requests {
    /// Most bytes of frames without a reservation whose requests are in progress.
    small_max: usize,
    heavy_from: usize,
    light: Rc<Lane>,
    /// Light frames of produce requests.
    produced: Rc<Lane>,
    heavy: Rc<Lane>,
    decoded: Rc<Lane>,
}

struct Lane {
    max: usize,
    held: Cell<usize>,
    /// One reservation holds more than there was room for.
    is_over: Cell<bool>,
    line: Line,
    freed: Notify,
}

/// Memory for a frame, held until this is dropped.
pub struct Reservation {
    lane: Rc<Lane>,
    bytes: usize,
    /// It may take all that it needs, even beyond the lane's room.
    is_over: bool,
}

impl Requests {
    pub fn new(share: usize) -> Self {
        let lane = |max| {
            Rc::new(Lane {
                max,
                held: Cell::new(0),
                is_over: Cell::new(false),
                line: Line::default(),
                freed: Notify::default(),
            })
        };
        Self {
            small_max: share / 8,
            heavy_from: share / 32,
            light: lane(share / 8),
            produced: lane(share / 8 * 3),
            heavy: lane(share / 4),
            decoded: lane(share / 8),
        }
    }

    /// Most bytes of all requests, not counting frames that exceed their lane's room.
    pub fn share(&self) -> usize {
        self.small_max * 8
    }

    /// Most bytes of requests in progress that have no reservation.
    pub fn small_max(&self) -> usize {
        self.small_max
    }

    /// An empty reservation for a frame of `frame_bytes`.
    pub fn reservation(&self, frame_bytes: usize, may_be_produce: bool) -> Reservation {
        let lane = match may_be_produce {
            _ if frame_bytes >= self.heavy_from => &self.heavy,
            true => &self.produced,
            false => &self.light,
        };
        Reservation { lane: lane.clone(), bytes: 0, is_over: false }
    }

    /// An empty reservation for a decoded request.
    pub fn decoded_reservation(&self) -> Reservation {
        Reservation { lane: self.decoded.clone(), bytes: 0, is_over: false }
    }

    fn lanes(&self) -> [&Rc<Lane>; 4] {
        [&self.light, &self.produced, &self.heavy, &self.decoded]
    }

    /// Frames that wait for room. What is to be decoded does not count: no client can end its wait.
    pub fn waiting(&self) -> usize {
        self.light.line.len() + self.produced.line.len() + self.heavy.line.len()
    }

    /// Requests that wait for room to be decoded.
    pub fn waiting_to_be_decoded(&self) -> usize {
        self.decoded.line.len()
    }

    /// Bytes that are reserved.
    pub fn held(&self) -> usize {
        self.lanes().iter().map(|lane| lane.held.get()).sum()
    }

    /// Whether so much is reserved that requests may soon wait.
    pub fn is_half_full(&self) -> bool {
        self.lanes().iter().any(|lane| lane.held.get() > lane.max / 2)
    }
}

impl Reservation {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it could grow to `bytes` in total at once.
    pub fn has_room(&self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        self.is_over || (self.lane.line.is_empty() && self.lane.has_room(more))
    }

    /// Whether it may exceed the lane's room, so that all others wait for it.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Grows to `bytes` in total, once there is room.
    pub async fn grow(&mut self, bytes: usize) {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else { return };
        if !self.has_room(bytes) {
            let place = self.lane.line.join();
            place.first().await;
            loop {
                let seen = self.lane.freed.version();
                if self.lane.has_room(more) {
                    break;
                }
                if !self.lane.is_over.replace(true) {
                    self.is_over = true;
                    break;
                }
                self.lane.freed.past(seen).await;
            }
        }
        self.lane.held.set(self.lane.held.get() + more);
        self.bytes = bytes;
    }
}

impl Lane {
    fn has_room(&self, bytes: usize) -> bool {
        self.held.get() + bytes <= self.max
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.lane.held.set(self.lane.held.get() - self.bytes);
        if self.is_over {
            self.lane.is_over.set(false);
        }
        self.lane.freed.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Waker},
    };

    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn frames_that_are_partly_here_end_one_after_the_other() {
        let requests = Requests::new(320 << 10);
        assert_eq!((requests.light.max, requests.produced.max, requests.heavy.max), (40 << 10, 120 << 10, 80 << 10));
        assert_eq!((requests.decoded.max, requests.small_max, requests.share()), (40 << 10, 40 << 10, 320 << 10));
        assert_eq!(requests.heavy_from, 10 << 10);
        let frame = || requests.reservation(1 << 20, true);
        let (mut one, mut two, mut three, mut four) = (frame(), frame(), frame(), frame());
        for frame in [&mut one, &mut two, &mut three, &mut four] {
            assert!(is_ready(frame.grow(20 << 10)));
        }
        // No frame has room for more, so the first to ask takes it. Only one frame may do so.
        assert!(is_ready(three.grow(40 << 10)) && three.is_over());
        assert!(is_ready(three.grow(1 << 20)));
        let mut waiting = Box::pin(one.grow(40 << 10));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert!(!is_ready(two.grow(21 << 10)) && !is_ready(four.grow(21 << 10)));
        assert_eq!(requests.waiting(), 1, "those that gave up have left the line");
        // A light frame does not wait behind heavy ones.
        assert!(is_ready(requests.reservation(9 << 10, true).grow(9 << 10)));
        assert_eq!(requests.held(), (60 << 10) + (1 << 20));
        drop(three);
        assert!(waiting.as_mut().poll(&mut context).is_ready(), "20 KiB have become free");
        drop(waiting);
        assert!(!one.is_over() && is_ready(two.grow(21 << 10)) && two.is_over());
        // Nor does a request that is received and to be decoded.
        let (mut first, mut second) = (requests.decoded_reservation(), requests.decoded_reservation());
        assert!(is_ready(first.grow(30 << 10)) && is_ready(second.grow(1 << 20)) && second.is_over());
        drop((first, second));
        drop((one, two, four));
        assert_eq!((requests.held(), requests.waiting()), (0, 0));
    }

    #[test]
    fn produce_requests_leave_room_for_others() {
        let requests = Requests::new(32 << 20);
        let frame = |may_be_produce| requests.reservation(900 << 10, may_be_produce);
        let mut produced: Vec<Reservation> = (0..40).map(|_| frame(true)).collect();
        let begun = produced.iter_mut().map(|frame| is_ready(frame.grow(900 << 10))).filter(|begun| *begun).count();
        assert_eq!(begun, 12 * 1024 / 900 + 1, "those that fit, and one more");
        assert!(is_ready(frame(false).grow(900 << 10)));
    }

    #[test]
    fn a_waiter_goes_on_when_room_is_returned() {
        let requests = Requests::new(32 << 10);
        let mut first = requests.reservation(100, true);
        let (mut second, mut third) = (requests.reservation(100, true), requests.reservation(100, true));
        assert!(is_ready(first.grow(12 << 10)));
        assert!(is_ready(second.grow(1)) && second.is_over());
        let mut waiting = pin!(third.grow(1));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop(second);
        assert!(waiting.as_mut().poll(&mut context).is_ready());
        drop(first);
        assert_eq!(requests.held(), 1);
    }
}
