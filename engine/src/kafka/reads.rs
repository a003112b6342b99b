//! Whether this broker may answer reads of the metadata from its own view.

use crate::{core::Core, meta::SubmitError};
use std::rc::Rc;

/// Returns once the view is as new as an answer has to be.
pub async fn may_read(_core: &Rc<Core>) -> Result<(), SubmitError> {
    Ok(())
}

/// Returns once the view shows every write that was acknowledged before the call.
pub async fn linearize(_core: &Rc<Core>) -> Result<(), SubmitError> {
    Ok(())
}
