//! Counters with a second label beside the core's.

use std::sync::OnceLock;

use net::codec::api::{ApiKey, TABLE};

use super::{Counter, Figure, PREFIX, line};

/// One counter for each API in the table that [`net::codec::api`] serves.
#[derive(Debug)]
pub struct PerApi([Counter; TABLE.len()]);

impl Default for PerApi {
    fn default() -> PerApi {
        PerApi(std::array::from_fn(|_| Counter::default()))
    }
}

/// The position of each API key in the table.
const API_POSITIONS: [u8; 128] = {
    let mut positions = [u8::MAX; 128];
    let mut at = 0;
    while at < TABLE.len() {
        positions[TABLE[at].key as usize] = at as u8;
        at += 1;
    }
    positions
};

impl PerApi {
    pub fn of(&self, api: ApiKey) -> &Counter {
        &self.0[usize::from(API_POSITIONS[api as usize])]
    }
}

impl Figure for PerApi {
    const TYPE: &'static str = "counter";

    fn write(&self, out: &mut String, name: &str, core: usize) {
        for (api, counter) in TABLE.iter().zip(&self.0) {
            line(out, format_args!("{PREFIX}{name}{{core=\"{core}\",api=\"{}\"}} {}", api.name, counter.get()));
        }
    }

    fn number(&self) -> Option<u64> {
        Some(self.0.iter().map(Counter::get).sum())
    }
}

/// One counter for each kind of message between cores.
#[derive(Debug, Default)]
pub struct PerKind(OnceLock<Vec<(&'static str, Counter)>>);

impl PerKind {
    /// Sets totals that other code keeps. Their kinds are the same each time, in the same order.
    pub fn set(&self, totals: impl Iterator<Item = (&'static str, u64)> + Clone) {
        let kinds = totals.clone().map(|(kind, _)| (kind, Counter::default()));
        let counters = self.0.get_or_init(|| kinds.collect());
        counters.iter().zip(totals).for_each(|((_, counter), (_, total))| counter.set(total));
    }

    /// Empty until the core has published its first totals.
    fn counters(&self) -> &[(&'static str, Counter)] {
        self.0.get().map_or(&[], Vec::as_slice)
    }
}

impl Figure for PerKind {
    const TYPE: &'static str = "counter";

    fn write(&self, out: &mut String, name: &str, core: usize) {
        for (kind, counter) in self.counters() {
            line(out, format_args!("{PREFIX}{name}{{core=\"{core}\",kind=\"{kind}\"}} {}", counter.get()));
        }
    }

    fn number(&self) -> Option<u64> {
        Some(self.counters().iter().map(|(_, counter)| counter.get()).sum())
    }
}
