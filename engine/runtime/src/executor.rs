//! Executors: a thread per core, and the tasks of this core.

use crate::{
    backend::{is_simulated, simulated},
    clock,
    fd::{Alarm, Watched},
    ticks::Ticks,
    timer::sleep,
};
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement};
use std::{
    cell::RefCell,
    future::Future,
    io,
    rc::Rc,
    thread::{self, JoinHandle},
    time::Duration,
};
use uuid::Uuid;

/// Registered I/O memory per core, in bytes. It is small because the default limit of locked memory is low. The ring
/// brings its own buffers, and sockets need none.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// How long tasks run, one after the other, before the executor looks for the kernel's completions and for due timers.
/// A task that has begun goes on until it waits.
const TURN_MAX: Duration = Duration::from_millis(10);

/// A core's thread.
pub struct CoreThread<T: Send + 'static = ()>(JoinHandle<io::Result<T>>);

impl<T: Send + 'static> CoreThread<T> {
    /// Waits for the core's main future to end. It is an error if the executor could not start, or if the core
    /// panicked.
    pub fn join(self) -> io::Result<T> {
        self.0.join().map_err(|_| io::Error::other("the thread panicked"))?
    }
}

/// Starts an executor pinned to `cpu` and runs the future that `main` makes there.
pub fn spawn_core<F, T>(cpu: usize, name: &str, main: impl FnOnce() -> F + Send + 'static) -> io::Result<CoreThread<T>>
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    spawn_thread(name, Some(cpu), main)
}

/// Starts a thread with an executor, pinned to `cpu` if one is given. Runs the future that `main` makes there.
pub fn spawn_thread<F, T>(
    name: &str,
    cpu: Option<usize>,
    main: impl FnOnce() -> F + Send + 'static,
) -> io::Result<CoreThread<T>>
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    start(cpu, name, TURN_MAX, main)
}

fn start<F, T>(
    cpu: Option<usize>,
    name: &str,
    turn: Duration,
    main: impl FnOnce() -> F + Send + 'static,
) -> io::Result<CoreThread<T>>
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let ticks = Ticks::begin()?;
    let what = match cpu {
        Some(cpu) => format!("cannot start an executor on CPU {cpu}"),
        None => format!("cannot start the thread {name}"),
    };
    let core = {
        let what = what.clone();
        move || {
            let executor = executor(cpu, turn, &ticks).map_err(|error| io::Error::other(format!("{what}: {error}")))?;
            Ok(executor.run(main()))
        }
    };
    let started = thread::Builder::new().name(name.to_owned()).spawn(core);
    started.map(CoreThread).map_err(|error| io::Error::other(format!("{what}: {error}")))
}

/// Makes the executor of this thread, which never sleeps for longer than a tick.
fn executor(cpu: Option<usize>, turn: Duration, ticks: &Ticks) -> io::Result<LocalExecutor> {
    let executor = LocalExecutorBuilder::new(cpu.map_or(Placement::Unbound, Placement::Fixed))
        .preempt_timer(turn)
        .io_memory(IO_MEMORY_BYTES)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .make()
        .map_err(|error| io::Error::other(error.to_string()))?;
    executor.spawn(ticks.awaken()).detach();
    Ok(executor)
}

/// Runs a future to its end, on an executor of its own on this thread. It is for tests.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let ticks = Ticks::begin().expect("a thread starts");
    executor(None, TURN_MAX, &ticks).expect("an executor starts").run(future)
}

/// Runs `future` on this core, detached.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    if is_simulated() {
        simulated(|backend| backend.spawn(Box::pin(future)));
        return;
    }
    glommio::spawn_local(future).detach();
}

/// A task of this core whose result is awaited later.
pub struct Task<T>(glommio::Task<T>);

/// Runs `future` on this core. Dropping the task cancels it.
pub fn spawn_task<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    Task(glommio::spawn_local(future))
}

impl<T> Task<T> {
    pub async fn join(self) -> T {
        self.0.await
    }
}

/// Runs blocking work on a thread beside the core. The work must not panic.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if is_simulated() {
        return work();
    }
    glommio::executor().spawn_blocking(work).await
}

/// Draws an id that nothing else has.
pub fn draw_uuid() -> Uuid {
    if is_simulated() {
        return uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
    }
    Uuid::new_v4()
}

/// A CPU that this process may run on, for tests that need an executor on any CPU.
pub fn any_allowed_cpu() -> usize {
    // SAFETY: a zeroed set is a valid value. The call fills it, and afterwards it is only read.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set), 0);
        (0..libc::CPU_SETSIZE as usize).find(|&cpu| libc::CPU_ISSET(cpu, &set)).expect("some CPU is allowed")
    }
}

/// Yields in the middle of long background work. All ready tasks of this core run first, and all tasks for which the
/// kernel has completions by then.
///
/// [`yield_if_needed`] only lets ready tasks run. The executor then looks for the kernel's completions only once no
/// task is ready, or after [`TURN_MAX`]. A short [`sleep`] does not help either if it ends before the executor looks.
pub async fn give_way() {
    if is_simulated() {
        return sleep(MOMENT).await;
    }
    if round_of_executor().await.is_err() {
        glommio::timer::sleep(MOMENT).await;
    }
}

/// Paces long background work whose pieces keep their core busy. Between two pieces, other tasks get as much
/// time as the piece took. One round of the executor would not be enough: from the socket to the disk and back, an
/// answer takes ten or twenty.
pub struct Turns {
    began: Duration,
}

impl Turns {
    pub fn begin() -> Self {
        Self { began: clock::now() }
    }

    /// To be called after each piece of the work.
    pub async fn give_way(&mut self) {
        sleep((clock::now() - self.began).max(MOMENT)).await;
        self.began = clock::now();
    }
}

/// Longer than the time between asking for a timer and waiting for it.
const MOMENT: Duration = Duration::from_micros(50);

thread_local! {
    /// A descriptor that is always readable. The executor notices it the next time that it looks.
    static READABLE: RefCell<Option<Rc<Watched<Alarm>>>> = const { RefCell::new(None) };
}

async fn round_of_executor() -> io::Result<()> {
    let known = READABLE.with_borrow(Clone::clone);
    let readable = match known {
        Some(readable) => readable,
        None => {
            let alarm = Alarm::new()?;
            alarm.ring()?;
            let readable = Rc::new(Watched::new(alarm)?);
            READABLE.set(Some(readable.clone()));
            readable
        }
    };
    readable.readable().await
}

/// Lets other ready tasks of this core run if this task has used up its share.
pub async fn yield_if_needed() {
    if is_simulated() {
        return;
    }
    glommio::yield_if_needed().await;
}

/// Runs the future that `main` makes to its end, on a core of its own.
#[cfg(test)]
pub(crate) fn on_a_core<F: Future<Output = ()> + 'static>(main: impl FnOnce() -> F + Send + 'static) {
    spawn_core(any_allowed_cpu(), "test", main).unwrap().join().unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        cell::Cell,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::Relaxed},
        },
    };

    /// Other threads keep taking the CPU away, and a turn is not much longer than the executor needs to begin it. So
    /// the executor overlooks ready tasks, about once in a thousand sleeps. Without ticks, it would sleep for ever.
    #[test]
    fn an_executor_that_overlooks_ready_tasks_goes_on() {
        const TURN: Duration = Duration::from_micros(150);
        const SLEEPS: usize = 5000;
        const RIVALS: usize = 2;
        let cpu = any_allowed_cpu();
        let done = Arc::new(AtomicBool::new(false));
        let rivals: Vec<_> = (0..RIVALS)
            .map(|_| {
                let done = done.clone();
                let spin = move || async move { while !done.load(Relaxed) {} };
                spawn_core(cpu, "rival", spin).unwrap()
            })
            .collect();
        let work = || async {
            let alarm = Alarm::new().unwrap();
            for _ in 0..SLEEPS {
                let begun = clock::now();
                while clock::now() - begun < TURN {}
                alarm.ring().unwrap();
                alarm.rung().await.unwrap();
            }
        };
        start(Some(cpu), "test", TURN, work).unwrap().join().unwrap();
        done.store(true, Relaxed);
        rivals.into_iter().for_each(|rival| rival.join().unwrap());
    }

    /// Work that yields with `give_way` does not run ahead of tasks that wait for the kernel. Both progress in turns.
    #[test]
    fn give_way_runs_the_tasks_that_the_kernel_has_woken() {
        const READS: usize = 20;
        on_a_core(|| async {
            round_of_executor().await.unwrap();
            let file = glommio::io::BufferedFile::open(std::env::current_exe().unwrap()).await.unwrap();
            let (done, turns) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
            spawn({
                let (done, turns) = (done.clone(), turns.clone());
                async move {
                    while !done.get() {
                        turns.set(turns.get() + 1);
                        give_way().await;
                    }
                }
            });
            for _ in 0..READS {
                assert_eq!(file.read_at(0, 1).await.unwrap().len(), 1);
            }
            done.set(true);
            assert!(turns.get() < 100 * READS, "{} turns of the work for {READS} reads", turns.get());
        });
    }

    #[test]
    fn a_task_that_takes_turns_leaves_others_as_much_time() {
        on_a_core(|| async {
            let (begun, mut worked) = (clock::now(), Duration::ZERO);
            let mut turns = Turns::begin();
            for _ in 0..5 {
                let piece = clock::now();
                while clock::now() - piece < Duration::from_millis(2) {}
                worked += clock::now() - piece;
                turns.give_way().await;
            }
            assert!(clock::now() - begun >= 2 * worked, "{:?} of {:?}", worked, clock::now() - begun);
        });
    }
}
