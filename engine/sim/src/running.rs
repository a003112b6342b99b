//! A simulation that runs: the backend of [`runtime`], and the machine of [`engine::host`].
//!
//! A broker uses time, tasks, queues, disks and the network only through these two.

use super::{exec, exec::World, net, queue};
use ::net::peer::auth::Handshake;
use engine::host::machine::{self, AnyDisk, Connected, Machine};
use runtime::backend::{self, Backend, Later, LocalTask, QueueEnd};
use std::{rc::Rc, time::Duration};
use types::planted::{Bug, plant};

/// The broker's code runs on this.
impl Backend for World {
    fn now(&self) -> Duration {
        World::now(self)
    }

    fn spawn(&self, task: LocalTask) {
        self.spawn_here(task);
    }

    fn queue(&self, capacity: usize) -> (Box<dyn QueueEnd>, Box<dyn QueueEnd>) {
        queue::pair(capacity)
    }
}

impl Machine for World {
    fn disk(&self) -> Rc<dyn AnyDisk> {
        Rc::new(World::disk(self))
    }

    fn connect(&self, address: String, from: i32, handshake: Handshake) -> Later<'_, Connected> {
        Box::pin(net::connect(address, from, handshake))
    }
}

/// Ends the simulation when it is dropped, also after a panic.
pub(super) struct Running(Rc<World>);

impl Running {
    pub(super) fn begin(seed: u64, bug: Option<Bug>) -> Self {
        fastrand::seed(seed ^ 0x5EED);
        let world = exec::install(seed);
        backend::install(Some(world.clone()));
        machine::install(Some(world.clone()));
        plant(bug);
        Self(world)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end_all();
        net::remove();
        plant(None);
        machine::install(None);
        backend::install(None);
        exec::remove();
    }
}
