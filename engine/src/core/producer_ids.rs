//! The producer ids that this core may still give out. It takes them from the metadata in blocks.

use std::{cell::RefCell, ops::Range};

/// The ids that this core may still give out.
#[derive(Default)]
pub struct ProducerIds {
    left: RefCell<Range<i64>>,
}

impl ProducerIds {
    pub fn take(&self) -> Option<i64> {
        self.left.borrow_mut().next()
    }

    /// Adds a block, unless there are ids left: several requests may have found none, and each brings a block.
    pub fn refill(&self, block: Range<i64>) {
        let mut left = self.left.borrow_mut();
        if left.is_empty() {
            *left = block;
        }
    }
}
