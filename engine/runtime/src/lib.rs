//! The runtime of every other crate: one executor per core, timers, queues between cores, descriptors that a core
//! watches, clocks, and waiting within a core. No other crate names glommio.
//!
//! | module | contents |
//! |---|---|
//! | [`clock`] | the clock for leases and turns, and the clock for the timestamps of records |
//! | [`sync`] | waiting within one core: notifications, promises, lines of waiters, races |
//! | [`executor`] | threads pinned to CPUs, tasks, blocking work, turns |
//! | `ticks` | what wakes an executor that sleeps although a task is ready |
//! | [`timer`] | sleeping, and deadlines |
//! | [`queue`](mod@queue) | bounded queues from one core to another |
//! | [`fd`] | descriptors that a core watches, and an alarm that any thread may ring |
//! | [`files`] | glommio's own files, for comparison with the ring that the broker uses |
//! | [`backend`] | the seam at which a simulation takes the place of all this |

pub mod backend;
pub mod clock;
pub mod executor;
pub mod fd;
pub mod files;
pub mod queue;
pub mod sync;
mod ticks;
pub mod timer;

pub use executor::{
    CoreThread, Task, Turns, any_allowed_cpu, block_on, blocking, draw_uuid, give_way, spawn, spawn_core, spawn_task,
    spawn_thread, yield_if_needed,
};
pub use fd::{Alarm, Watched};
pub use futures_lite::future::yield_now;
pub use queue::{QueueReceiver, QueueSender, Receiver, Sender, queue};
pub use timer::{Sleep, sleep, timeout};
