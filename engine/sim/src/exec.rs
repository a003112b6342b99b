//! One thread, virtual time, and processes whose tasks run in an order that the seed decides.
//!
//! A task belongs to the process that spawned it. Process 0 is the outside world, which neither stops nor ends.

use runtime::{backend::LocalTask, timer::Timers};
use slab::Slab;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Wake, Waker},
    time::Duration,
};
use wal::disk::sim::SimDisk;

/// A process, counted from 0.
pub(super) type ProcessId = usize;
/// The outside world: clients, operators, and the checks.
pub(super) const OUTSIDE: ProcessId = 0;

/// Virtual time at the beginning. All clocks start with this value.
const BEGINNING: Duration = Duration::from_secs(1_000_000);
/// The longest time that one step of a task takes, in ns.
const STEP_NS_MAX: u64 = 4_000;

/// The tasks that have been woken.
#[derive(Default)]
struct Woken(Mutex<Vec<usize>>);

struct TaskWaker {
    task: usize,
    woken: Arc<Woken>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.woken.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.task);
    }
}

struct Task {
    process: ProcessId,
    /// `None` while the task is being polled.
    future: Option<LocalTask>,
    waker: Waker,
    is_ready: bool,
}

#[derive(Default)]
struct Process {
    timers: Rc<Timers>,
    /// How far its clock is ahead of virtual time.
    ahead: Duration,
    stopped: bool,
    ready: Vec<usize>,
    disk: Option<SimDisk>,
}

type Event = Box<dyn FnOnce()>;

/// Everything that a simulation consists of.
pub(super) struct World {
    rng: RefCell<fastrand::Rng>,
    time: Cell<Duration>,
    current: Cell<ProcessId>,
    processes: RefCell<Vec<Process>>,
    tasks: RefCell<Slab<Task>>,
    woken: Arc<Woken>,
    events: RefCell<BTreeMap<(Duration, u64), Event>>,
    next_event: Cell<u64>,
}

thread_local! {
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

pub(super) fn world() -> Rc<World> {
    WORLD.with_borrow(|world| world.clone().expect("a simulation runs"))
}

/// The current process, and the virtual time since the beginning.
pub(super) fn present() -> Option<(ProcessId, Duration)> {
    let present = |world: &Rc<World>| (world.current.get(), world.time.get() - BEGINNING);
    WORLD.with_borrow(|world| world.as_ref().map(present))
}

/// Makes a world the one that runs, with its outside as process 0.
pub(super) fn install(seed: u64) -> Rc<World> {
    let world = Rc::new(World {
        rng: RefCell::new(fastrand::Rng::with_seed(seed)),
        time: Cell::new(BEGINNING),
        current: Cell::new(OUTSIDE),
        processes: RefCell::default(),
        tasks: RefCell::default(),
        woken: Arc::default(),
        events: RefCell::default(),
        next_event: Cell::new(0),
    });
    WORLD.with_borrow_mut(|running| {
        assert!(running.replace(world.clone()).is_none(), "a thread runs one simulation at a time");
    });
    assert_eq!(world.add_process(), OUTSIDE);
    world
}

/// Lets the thread run another world.
pub(super) fn remove() {
    Rc::<Timers>::default().install();
    WORLD.take();
}

impl World {
    pub(super) fn add_process(&self) -> ProcessId {
        let mut processes = self.processes.borrow_mut();
        processes.push(Process { timers: Timers::driven_by_hand(), ..Process::default() });
        processes.len() - 1
    }

    /// The virtual time.
    pub(super) fn time(&self) -> Duration {
        self.time.get()
    }

    /// The time that the current process's clock shows.
    pub(super) fn now(&self) -> Duration {
        self.time.get() + self.processes.borrow()[self.current.get()].ahead
    }

    /// The disk of the current process.
    pub(super) fn disk(&self) -> SimDisk {
        let processes = self.processes.borrow();
        processes[self.current.get()].disk.clone().expect("the process was given a disk")
    }

    pub(super) fn give_disk(&self, process: ProcessId, disk: SimDisk) {
        self.processes.borrow_mut()[process].disk = Some(disk);
    }

    pub(super) fn spawn(&self, process: ProcessId, future: impl Future<Output = ()> + 'static) {
        self.spawn_boxed(process, Box::pin(future));
    }

    /// Spawns a task of the current process.
    pub(super) fn spawn_here(&self, task: LocalTask) {
        self.spawn_boxed(self.current.get(), task);
    }

    fn spawn_boxed(&self, process: ProcessId, future: LocalTask) {
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let task = entry.key();
        let waker = Waker::from(Arc::new(TaskWaker { task, woken: self.woken.clone() }));
        entry.insert(Task { process, future: Some(future), waker, is_ready: true });
        self.processes.borrow_mut()[process].ready.push(task);
    }

    /// Schedules an event after this virtual time.
    pub(super) fn after(&self, wait: Duration, event: impl FnOnce() + 'static) {
        let number = self.next_event.get();
        self.next_event.set(number + 1);
        self.events.borrow_mut().insert((self.time.get() + wait, number), Box::new(event));
    }

    pub(super) fn draw(&self, range: std::ops::Range<Duration>) -> Duration {
        let (from, to) = (range.start.as_micros() as u64, range.end.as_micros() as u64);
        Duration::from_micros(self.rng.borrow_mut().u64(from..to.max(from + 1)))
    }

    /// Draws a number from this range.
    pub(super) fn number(&self, range: impl std::ops::RangeBounds<u64>) -> u64 {
        self.rng.borrow_mut().u64(range)
    }

    /// Draws an index below `of`.
    pub(super) fn place(&self, of: usize) -> usize {
        self.rng.borrow_mut().usize(..of)
    }

    pub(super) fn chance(&self, of: f64) -> bool {
        self.rng.borrow_mut().f64() < of
    }

    /// Pauses a process, as SIGSTOP does, or resumes it.
    pub(super) fn stop(&self, process: ProcessId, stopped: bool) {
        self.processes.borrow_mut()[process].stopped = stopped;
    }

    pub(super) fn is_stopped(&self, process: ProcessId) -> bool {
        self.processes.borrow()[process].stopped
    }

    /// Lets a process's clock jump ahead, as after a suspension of its machine.
    pub(super) fn jump(&self, process: ProcessId, ahead: Duration) {
        self.processes.borrow_mut()[process].ahead += ahead;
    }

    /// Drops all tasks of a process.
    pub(super) fn end(&self, process: ProcessId) {
        loop {
            let mut tasks = self.tasks.borrow_mut();
            let of_process: Vec<usize> =
                tasks.iter().filter(|(_, task)| task.process == process).map(|(key, _)| key).collect();
            if of_process.is_empty() {
                break;
            }
            let ended: Vec<Task> = of_process.into_iter().map(|key| tasks.remove(key)).collect();
            drop(tasks);
            self.within(process, || drop(ended));
        }
        let mut processes = self.processes.borrow_mut();
        processes[process].ready.clear();
        processes[process].stopped = false;
    }

    /// Ends all processes, and the outside world.
    pub(super) fn end_all(&self) {
        let processes = self.processes.borrow().len();
        (0..processes).for_each(|process| self.end(process));
        self.events.take();
    }

    /// Runs a closure as a part of a process.
    pub(super) fn within<R>(&self, process: ProcessId, work: impl FnOnce() -> R) -> R {
        let before = self.current.replace(process);
        let timers = self.processes.borrow()[process].timers.clone();
        let timers_before = timers.install();
        let result = work();
        timers_before.install();
        self.current.set(before);
        result
    }

    /// Runs one step of one task. If no task is ready, lets time pass until the next event, but not beyond `until`.
    /// Returns the process of the task, or the outside world. `None`: `until` has come.
    pub(super) fn step(&self, until: Duration) -> Option<ProcessId> {
        if self.next_moment().is_some_and(|next| next <= self.time.get()) {
            self.fire();
        }
        self.gather_woken();
        let Some((process, task)) = self.choose() else {
            return self.pass_time(until).then_some(OUTSIDE);
        };
        if self.time.get() >= until {
            // The task stays ready.
            self.processes.borrow_mut()[process].ready.push(task);
            return None;
        }
        let taken = self.tasks.borrow_mut().get_mut(task).and_then(|task| {
            task.is_ready = false;
            Some((task.future.take()?, task.waker.clone()))
        });
        if let Some((mut future, waker)) = taken {
            let is_pending =
                self.within(process, || future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            if is_pending {
                if let Some(task) = self.tasks.borrow_mut().get_mut(task) {
                    task.future = Some(future);
                }
            } else {
                self.tasks.borrow_mut().remove(task);
                self.within(process, || drop(future));
            }
        }
        let took = Duration::from_nanos(self.rng.borrow_mut().u64(..STEP_NS_MAX));
        self.time.set(self.time.get() + took);
        Some(process)
    }

    fn gather_woken(&self) {
        let woken = std::mem::take(&mut *self.woken.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut tasks = self.tasks.borrow_mut();
        let mut processes = self.processes.borrow_mut();
        for key in woken {
            if let Some(task) = tasks.get_mut(key).filter(|task| !task.is_ready) {
                task.is_ready = true;
                processes[task.process].ready.push(key);
            }
        }
    }

    fn choose(&self) -> Option<(ProcessId, usize)> {
        let mut processes = self.processes.borrow_mut();
        let able = || |process: &&mut Process| !process.stopped;
        let count: usize = processes.iter_mut().filter(able()).map(|process| process.ready.len()).sum();
        if count == 0 {
            return None;
        }
        let mut at = self.rng.borrow_mut().usize(..count);
        for (number, process) in processes.iter_mut().enumerate().filter(|(_, process)| !process.stopped) {
            if at < process.ready.len() {
                return Some((number, process.ready.swap_remove(at)));
            }
            at -= process.ready.len();
        }
        unreachable!("one of them was counted")
    }

    /// When the next timer expires or the next event is due.
    fn next_moment(&self) -> Option<Duration> {
        let processes = self.processes.borrow();
        let waits = processes.iter().filter(|process| !process.stopped);
        let waits = waits.filter_map(|process| Some(process.timers.earliest()?.saturating_sub(process.ahead)));
        let event = self.events.borrow().first_key_value().map(|((at, _), _)| *at);
        waits.chain(event).min()
    }

    fn pass_time(&self, until: Duration) -> bool {
        match self.next_moment().filter(|next| *next < until) {
            Some(next) => {
                self.time.set(next.max(self.time.get()));
                self.fire();
                true
            }
            None => {
                self.time.set(until.max(self.time.get()));
                false
            }
        }
    }

    /// Fires the timers and events that are due.
    fn fire(&self) {
        let now = self.time.get();
        let due: Vec<(Rc<Timers>, Duration)> = {
            let processes = self.processes.borrow();
            let able = processes.iter().filter(|process| !process.stopped);
            able.map(|process| (process.timers.clone(), now + process.ahead)).collect()
        };
        for (timers, now) in due {
            while let Some(waker) = timers.take_due(now) {
                waker.wake();
            }
        }
        loop {
            let event = {
                let mut events = self.events.borrow_mut();
                events.first_entry().filter(|first| first.key().0 <= now).map(|first| first.remove())
            };
            match event {
                Some(event) => self.within(OUTSIDE, event),
                None => return,
            }
        }
    }
}
