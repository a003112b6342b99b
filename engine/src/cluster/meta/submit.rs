//! Changes of the metadata, from any core. The largest entry rises first if a command needs it.

use super::{CommandResult, SubmitError, Submitting, asks::submit_as_is, host::Host, largest};
use consensus::metadata::Command;
use std::rc::Rc;

/// Submits commands from any core. Returns once every core's view shows them.
pub async fn submit(core: &Rc<impl Host>, commands: Vec<Command>) -> Result<Vec<CommandResult>, SubmitError> {
    submit_with(core, commands, Submitting::default()).await
}

/// Submits commands from any core.
pub async fn submit_with(
    core: &Rc<impl Host>,
    commands: Vec<Command>,
    how: Submitting,
) -> Result<Vec<CommandResult>, SubmitError> {
    largest::rise_for(core, &commands).await?;
    submit_as_is(core, commands, how).await
}
