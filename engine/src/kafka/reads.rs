//! Whether this broker may answer reads of the metadata from its own view.

use crate::core::Core;
use std::rc::Rc;

/// Why the view may be older than an answer is allowed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {}

/// Returns once the view is as new as an answer has to be.
pub async fn may_read(_core: &Rc<Core>) -> Result<(), ReadError> {
    Ok(())
}
