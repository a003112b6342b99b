//! Limits on client connections: for the broker, and for one address.
//! Lives on: every core. The cores share their counts, and nothing else about connections. The core that owns an
//! address counts it.
//!
//! A full broker makes room by closing the connection that has waited longest without sending a whole request. If
//! all connections have sent one, the broker closes the new one at once. Otherwise it would wait in the kernel's
//! queue without an error.

use super::{Connection, Host};
use ahash::AHashMap;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::IpAddr,
    rc::Rc,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};
use types::CoreId;

/// The number of connections, for the broker and for each core.
pub struct Spread {
    max: usize,
    all: AtomicUsize,
    cores: Vec<OnCore>,
}

#[derive(Default)]
struct OnCore {
    open: AtomicUsize,
    /// The number of them that have not sent a whole request.
    silent: AtomicUsize,
}

impl Spread {
    pub fn new(cores: usize, max: usize) -> Self {
        Self { max, all: AtomicUsize::new(0), cores: (0..cores).map(|_| OnCore::default()).collect() }
    }

    /// Counts one more connection, unless the maximum is reached.
    fn enter(&self) -> bool {
        let entered = self.all.fetch_add(1, Relaxed) < self.max;
        if !entered {
            self.all.fetch_sub(1, Relaxed);
        }
        entered
    }

    /// Picks the core with the fewest connections, and counts one more there.
    pub fn place(&self) -> CoreId {
        let counts = self.cores.iter().map(|core| core.open.load(Relaxed));
        let (core, _) = counts.enumerate().min_by_key(|(_, count)| *count).expect("there is a core");
        self.cores[core].open.fetch_add(1, Relaxed);
        CoreId(core)
    }

    pub fn leave(&self, core: CoreId) {
        self.cores[core.0].open.fetch_sub(1, Relaxed);
        self.all.fetch_sub(1, Relaxed);
    }

    /// The core with the most connections that have not sent a whole request, if there is any.
    fn most_silent(&self) -> Option<CoreId> {
        let counts = self.cores.iter().map(|core| core.silent.load(Relaxed));
        let (core, count) = counts.enumerate().max_by_key(|(_, count)| *count)?;
        (count > 0).then_some(CoreId(core))
    }

    fn set_silent(&self, core: CoreId, count: usize) {
        self.cores[core.0].silent.store(count, Relaxed);
    }
}

/// This core's connections that have not sent a whole request, the oldest first.
#[derive(Default)]
pub struct Silent {
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Rc<Connection>>>,
}

impl Silent {
    pub(super) fn insert(&self, core: &Rc<impl Host>, connection: &Rc<Connection>) -> u64 {
        let number = self.next.replace(self.next.get() + 1);
        self.waiting.borrow_mut().insert(number, connection.clone());
        self.count(core);
        number
    }

    /// The connection has sent a request, or is gone.
    pub fn remove(&self, core: &Rc<impl Host>, number: u64) {
        if self.waiting.borrow_mut().remove(&number).is_some() {
            self.count(core);
        }
    }

    fn count(&self, core: &Rc<impl Host>) {
        core.connections().spread.set_silent(core.id(), self.waiting.borrow().len());
    }

    /// Closes the oldest one, and waits until it and its descriptor are gone.
    pub async fn close_oldest(&self, core: &Rc<impl Host>) {
        let Some((_, oldest)) = self.waiting.borrow_mut().pop_first() else { return };
        self.count(core);
        core.metrics().connections_displaced_total.add(1);
        let ended = oldest.ended.clone();
        oldest.cut();
        drop(oldest);
        ended.wait().await;
    }
}

/// Counts of connections by client address, for the addresses that this core owns.
#[derive(Default)]
pub struct Addresses(RefCell<AHashMap<IpAddr, usize>>);

impl Addresses {
    /// Counts one more connection from an address, unless the maximum is reached.
    pub fn enter(&self, from: IpAddr, max: usize) -> bool {
        let mut counts = self.0.borrow_mut();
        let count = counts.entry(from).or_default();
        let enters = *count < max;
        *count += usize::from(enters);
        enters
    }

    pub fn leave(&self, from: IpAddr) {
        let mut counts = self.0.borrow_mut();
        if let Some(count) = counts.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&from);
            }
        }
    }
}

/// The core that counts an address.
fn core_of(from: IpAddr, cores: usize) -> CoreId {
    let bits = match from {
        IpAddr::V4(from) => u128::from(from.to_bits()),
        IpAddr::V6(from) => from.to_bits(),
    };
    CoreId((bits % cores as u128) as usize)
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedConnection {
    #[error("{max} connections from {from} are open (max.connections.per.ip); close some, or raise it")]
    PerAddress { max: usize, from: IpAddr },
    #[error(
        "{max} connections are open (max.connections, or fewer if the limit of open files is low); close some, or raise \
         it"
    )]
    Broker { max: usize },
}

/// Counts a connection from this address, or returns why it is refused. After `Ok`, the caller must [`leave`] at
/// the end.
pub async fn enter(core: &Rc<impl Host>, from: IpAddr) -> Result<(), RefusedConnection> {
    let from = from.to_canonical();
    if let Some(max) = core.config().max_connections_per_ip() {
        let to = core_of(from, core.cores());
        if !core.enter_address(to, from, max).await {
            return Err(RefusedConnection::PerAddress { max, from });
        }
    }
    let spread = &core.connections().spread;
    while !spread.enter() {
        let Some(on) = spread.most_silent() else {
            leave_address(core, from);
            return Err(RefusedConnection::Broker { max: spread.max });
        };
        core.close_oldest(on).await;
    }
    Ok(())
}

/// A connection that this core counted is gone.
pub fn leave(core: &Rc<impl Host>, from: IpAddr) {
    core.connections().spread.leave(core.id());
    leave_address(core, from.to_canonical());
}

fn leave_address(core: &Rc<impl Host>, from: IpAddr) {
    if core.config().max_connections_per_ip().is_some() {
        core.leave_address(core_of(from, core.cores()), from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_over_all_cores_and_spread_evenly() {
        let spread = Spread::new(3, 7);
        let places: Vec<_> = (0..9).map(|_| spread.enter().then(|| spread.place().0)).collect();
        assert_eq!(places, [Some(0), Some(1), Some(2), Some(0), Some(1), Some(2), Some(0), None, None]);
        spread.leave(CoreId(1));
        assert!(spread.enter());
        assert_eq!(spread.place(), CoreId(1));
        assert!(!spread.enter());
    }

    #[test]
    fn room_is_made_where_most_have_said_nothing() {
        let spread = Spread::new(3, 7);
        assert_eq!(spread.most_silent(), None);
        spread.set_silent(CoreId(2), 1);
        spread.set_silent(CoreId(1), 2);
        assert_eq!(spread.most_silent(), Some(CoreId(1)));
        spread.set_silent(CoreId(1), 0);
        assert_eq!(spread.most_silent(), Some(CoreId(2)));
    }

    #[test]
    fn addresses_are_counted_apart_and_forgotten() {
        let addresses = Addresses::default();
        let (one, two): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let enter = |from| addresses.enter(from, 2);
        assert_eq!([enter(one), enter(one), enter(one), enter(two)], [true, true, false, true]);
        addresses.leave(one);
        assert_eq!([enter(one), enter(one)], [true, false]);
        [one, one, two].into_iter().for_each(|from| addresses.leave(from));
        assert!(addresses.0.borrow().is_empty());
    }
}
