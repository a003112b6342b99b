//! Receives a connection's frames, as far as there is memory for them.

use super::Connection;
use crate::{
    core::Core,
    memory::{FREE_BYTES, Reservation},
};
use bytes::Bytes;
use net::transport::conn::{ConnError, FrameReader};

/// A whole request, and the memory for it.
pub struct Frame {
    pub bytes: Bytes,
    /// `None`: the frame is small enough to need no reservation.
    pub reserved: Option<Reservation>,
}

/// The next frame. `None`: the client closed the connection. A large frame is received only as fast as memory is
/// reserved for it.
pub async fn next_frame(
    core: &Core,
    connection: &Connection,
    reader: &mut FrameReader,
) -> Result<Option<Frame>, ConnError> {
    let mut receiving = Receiving { connection, reserved: None };
    loop {
        if let Some(bytes) = reader.buffered_frame().await? {
            // It may have arrived in one read with earlier frames.
            receiving.reserve(core, bytes.len(), bytes.len()).await;
            return Ok(Some(Frame { bytes, reserved: receiving.reserved.take() }));
        }
        let (expected, goal) = (reader.expected_bytes(), reader.next_goal());
        receiving.reserve(core, expected, goal).await;
        connection.receives(receiving.reserved.as_ref());
        let goal = if expected > FREE_BYTES { goal.max(FREE_BYTES) } else { usize::MAX };
        if !reader.receive(goal).await? {
            return Ok(None);
        }
        connection.receives(None);
    }
}

/// Keeps the connection's published reservation correct, even if receiving is cancelled.
struct Receiving<'a> {
    connection: &'a Connection,
    reserved: Option<Reservation>,
}

impl Receiving<'_> {
    async fn reserve(&mut self, core: &Core, frame_bytes: usize, goal: usize) {
        if frame_bytes > FREE_BYTES {
            let reserved = self.reserved.get_or_insert_with(|| core.memory.requests.reservation(frame_bytes));
            if reserved.bytes() < goal {
                core.metrics.memory_request_waits_total.add(u64::from(!reserved.has_room(goal)));
                reserved.grow(goal).await;
            }
        }
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.connection.receives(None);
    }
}
