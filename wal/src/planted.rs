//! Bugs that a simulation plants on its thread, to prove that it would detect them. A release build contains none.

use std::cell::Cell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The ring frees everything durable, whether or not a checkpoint covers it.
    RecycledTooEarly,
    /// Recovery accepts bytes left by an earlier lap as if this lap had written them.
    StaleLapAccepted,
}

thread_local! {
    static PLANTED: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// Plants a bug on this thread, or removes it with `None`.
pub fn plant(mistake: Option<Mistake>) {
    PLANTED.set(mistake);
}

pub(crate) fn is(mistake: Mistake) -> bool {
    cfg!(debug_assertions) && PLANTED.get() == Some(mistake)
}
