//! Binds the broker's addresses.

use net::transport::listen::{self, BindError, Bound};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// After a process was killed, io_uring releases its sockets only some time later. A broker that is restarted at once
/// waits for its address for at most this time.
const REBIND_MAX: Duration = Duration::from_secs(5);
const REBIND_PAUSE: Duration = Duration::from_millis(20);

/// Binds an address once for each core.
pub fn bind(addr: SocketAddr, cores: usize) -> Result<Vec<Bound>, BindError> {
    let started = Instant::now();
    let mut told = false;
    loop {
        match listen::bind(addr, cores) {
            Err(BindError::InUse { .. }) if started.elapsed() < REBIND_MAX => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(%addr, "the address is in use; trying again for {} s", REBIND_MAX.as_secs());
                }
                std::thread::sleep(REBIND_PAUSE);
            }
            bound => return bound,
        }
    }
}
