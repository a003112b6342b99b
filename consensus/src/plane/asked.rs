//! Writes that other brokers have forwarded to the leader, until an entry takes them.

use super::{Acks, Ask, weight};
use crate::metadata::Request;
use std::{collections::VecDeque, time::Duration};

/// How long a question to the metadata plane may take if the asker sets no other time. Afterwards nobody waits for the
/// answer. The leader then drops a forwarded write that found no room in the log.
pub const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Bytes of the waiting writes, as in the log. At this size, the leader answers further ones that it is busy, and
/// their brokers retry. The sum exceeds it by less than one write.
pub(super) const ASKED_BYTES_MAX: usize = 16 << 20;

pub(super) struct Asked {
    pub(super) from: i32,
    pub(super) ask: Ask,
    pub(super) acks: Acks,
    pub(super) requests: Vec<Request>,
    /// The most bytes of the requests in an entry.
    pub(super) bytes: usize,
    /// When it arrived.
    at: Duration,
}

impl Asked {
    pub(super) fn new(from: i32, ask: Ask, acks: Acks, requests: Vec<Request>, at: Duration) -> Self {
        let bytes = requests.iter().map(|request| weight(&request.command)).sum();
        Self { from, ask, acks, requests, bytes, at }
    }
}

/// The writes in the order in which they arrived.
#[derive(Default)]
pub(super) struct AskedQueue {
    queue: VecDeque<Asked>,
    bytes: usize,
}

impl AskedQueue {
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= ASKED_BYTES_MAX
    }

    pub(super) fn push(&mut self, asked: Asked) {
        self.bytes += asked.bytes;
        self.queue.push_back(asked);
    }

    pub(super) fn front(&self) -> Option<&Asked> {
        self.queue.front()
    }

    pub(super) fn pop(&mut self) -> Option<Asked> {
        let asked = self.queue.pop_front()?;
        self.bytes -= asked.bytes;
        Some(asked)
    }

    /// Takes the oldest write if its asker has given up by now.
    pub(super) fn pop_late(&mut self, now: Duration) -> Option<Asked> {
        self.front().filter(|asked| asked.at + ANSWER_MAX <= now)?;
        self.pop()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
