//! The little that every part of a core needs of it.

use crate::{config::Config, metrics::CoreMetrics};
use runtime::sync::Flag;
use types::CoreId;

/// A core, as each of its parts sees it. The trait `Host` of a part adds what that part needs besides.
pub trait OnCore: Sized + 'static {
    fn id(&self) -> CoreId;
    /// The number of this broker's cores.
    fn cores(&self) -> usize;
    /// The node id of this broker.
    fn node(&self) -> i32;
    fn config(&self) -> &Config;
    fn metrics(&self) -> &CoreMetrics;
    /// Set once the broker stops.
    fn stopping(&self) -> &Flag;
}
