//! Bounds how many batches a core decompresses over several turns at a time.
//! Lives on: the owning core.
//!
//! A decoder keeps a window of what it has unfolded: usually up to 2 MiB, but a batch of 2 KB may ask for 128 MiB. A
//! batch that is done in one turn needs no place, since its decoder is gone when the turn ends. Otherwise it waits here
//! for a place, without its decoder. Few batches with usual windows have one at a time, and one with a larger window.
//! So decoders take at most about 150 MiB on each core.
//!
//! Bound: each place belongs to a request that a connection has in flight. Deadline: a batch unfolds to a limited
//! number of bytes, so each place is given back. A request that is dropped leaves its line.

use crate::sync::line::{Line, Place, Places};
use net::records::scan::WINDOW_USUAL_MAX;

/// Batches with usual windows at a time.
const USUAL: usize = 4;

/// The places for decoders.
#[derive(Default)]
pub struct Decoders {
    usual: Places<USUAL>,
    wide: Line,
}

/// Whether a batch needs its place even for its first turn.
pub fn is_wide(window: usize) -> bool {
    window > WINDOW_USUAL_MAX
}

impl Decoders {
    /// Joins a line for a decoder with this window. It may unfold once the place is the first of its line.
    pub fn join(&self, window: usize) -> Place {
        if is_wide(window) {
            return self.wide.join();
        }
        self.usual.join()
    }

    /// Batches that have a place or wait for one.
    pub fn waiting(&self) -> usize {
        self.usual.len() + self.wide.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_usual_windows_and_one_wide_one_have_a_place_at_a_time() {
        let decoders = Decoders::default();
        let mut usual: Vec<Place> = (0..2 * USUAL).map(|_| decoders.join(WINDOW_USUAL_MAX)).collect();
        assert_eq!(usual.iter().filter(|place| place.is_first()).count(), USUAL);
        let wide: Vec<Place> = (0..2).map(|_| decoders.join(WINDOW_USUAL_MAX + 1)).collect();
        assert_eq!(wide.iter().map(Place::is_first).collect::<Vec<_>>(), [true, false]);
        usual.drain(..USUAL);
        assert!(usual.iter().all(Place::is_first));
        drop((usual, wide));
        assert_eq!(decoders.waiting(), 0);
    }
}
