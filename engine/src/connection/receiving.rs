//! Frames of a connection, received as far as there is memory for them.

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
    /// `None`: it is so small that it needs none.
    pub reserved: Option<Reservation>,
}

/// The next frame; `None` when the client has closed between two of them. What is large is received only as fast as it finds room.
pub async fn next_frame(
    core: &Core,
    connection: &Connection,
    reader: &mut FrameReader,
) -> Result<Option<Frame>, ConnError> {
    let mut receiving = Receiving { connection, reserved: None };
    loop {
        if let Some(bytes) = reader.buffered_frame().await? {
            // It may have come in one read with those before it.
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

/// Keeps what the connection shows of its reservation true, whenever this is dropped.
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
