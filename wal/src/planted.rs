//! Mistakes that a simulation plants on its thread, to show that it would see them. A release build has none.

use std::cell::Cell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The ring gives back all that is durable, checkpointed or not.
    RecycledTooEarly,
    /// Recovery takes what an earlier lap has left for what this lap wrote.
    StaleLapAccepted,
}

thread_local! {
    static PLANTED: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// Plants a mistake on this thread, or takes it out again.
pub fn plant(mistake: Option<Mistake>) {
    PLANTED.set(mistake);
}

pub(crate) fn is(mistake: Mistake) -> bool {
    cfg!(debug_assertions) && PLANTED.get() == Some(mistake)
}
