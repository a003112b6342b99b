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

use net::records::scan::WINDOW_USUAL_MAX;
use runtime::sync::line::{Line, Place, Places};

/// Batches with usual windows at a time.
const USUAL: usize = 4;

/// The places for decoders.
#[derive(Default)]
pub struct Decoders {
    usual: Places<USUAL>,
    wide: Line,
}

impl Decoders {
    /// Joins a line for a decoder with this window. It may unfold once the place is the first of its line.
    fn join(&self, window: usize) -> Place {
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

fn is_wide(window: usize) -> bool {
    window > WINDOW_USUAL_MAX
}

/// The decoder of one batch: whether it may unfold now, and be kept until its next turn.
pub struct Decoder {
    window: usize,
    place: Option<Place>,
}

impl Decoder {
    /// `window`: the bytes that the decoder keeps. 0: the batch is not compressed, so that it needs no place.
    pub fn new(window: usize) -> Self {
        Self { window, place: None }
    }

    /// Whether the batch may be unfolded in this turn. With a large window, it needs its place even for its first turn.
    pub fn may_unfold(&self) -> bool {
        self.place.is_some() || !is_wide(self.window)
    }

    /// Keeps the decoder until its next turn if there is a place for it now. Returns whether it is kept.
    pub fn try_keep(&mut self, decoders: &Decoders) -> bool {
        if self.place.is_none() && self.window > 0 {
            self.place = Some(decoders.join(self.window)).filter(Place::is_first);
        }
        self.place.is_some() || self.window == 0
    }

    /// Keeps the decoder until its next turn. If there is no place for it now, it waits for one, and `rewind` drops
    /// what was unfolded before.
    pub async fn keep(&mut self, decoders: &Decoders, rewind: impl FnOnce()) {
        if self.place.is_some() || self.window == 0 {
            return;
        }
        let place = decoders.join(self.window);
        if !place.is_first() {
            rewind();
            place.first().await;
        }
        self.place = Some(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Waker},
    };

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

    #[test]
    fn a_decoder_without_a_place_is_rewound_and_waits_and_one_of_a_plain_batch_never_does() {
        let decoders = Decoders::default();
        let mut kept: Vec<Decoder> = (0..USUAL).map(|_| Decoder::new(1)).collect();
        assert!(kept.iter_mut().all(|decoder| decoder.may_unfold() && decoder.try_keep(&decoders)));
        let mut context = Context::from_waker(Waker::noop());
        let (mut late, mut rewound) = (Decoder::new(1), false);
        assert!(late.may_unfold() && !late.try_keep(&decoders));
        assert_eq!(decoders.waiting(), USUAL, "it waits in no line");
        {
            let mut waits = pin!(late.keep(&decoders, || rewound = true));
            assert!(waits.as_mut().poll(&mut context).is_pending());
            kept.remove(0);
            assert!(waits.as_mut().poll(&mut context).is_ready());
        }
        assert!(rewound && late.try_keep(&decoders));

        let mut plain = Decoder::new(0);
        assert!(plain.may_unfold() && plain.try_keep(&decoders));
        assert!(pin!(plain.keep(&decoders, || panic!("it is kept"))).poll(&mut context).is_ready());
        let mut wide = Decoder::new(WINDOW_USUAL_MAX + 1);
        assert!(!wide.may_unfold() && wide.try_keep(&decoders) && wide.may_unfold());
        drop((kept, late, plain, wide));
        assert_eq!(decoders.waiting(), 0);
    }
}
