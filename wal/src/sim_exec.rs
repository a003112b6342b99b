//! A tiny executor for simulations: one thread, which polls tasks in an order that the seed decides.

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Wake, Waker},
};

/// The tasks that were woken, each listed once.
#[derive(Default)]
struct Woken(Mutex<Vec<usize>>);

impl Woken {
    fn with<T>(&self, then: impl FnOnce(&mut Vec<usize>) -> T) -> T {
        then(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct TaskWaker {
    task: usize,
    woken: Arc<Woken>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.woken.with(|tasks| {
            if !tasks.contains(&self.task) {
                tasks.push(self.task);
            }
        });
    }
}

type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs tasks that may borrow from their surroundings.
pub struct SimExec<'a> {
    rng: fastrand::Rng,
    tasks: Vec<Option<Task<'a>>>,
    woken: Arc<Woken>,
}

impl<'a> SimExec<'a> {
    pub fn new(seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), tasks: Vec::new(), woken: Arc::default() }
    }

    /// Adds a task. [`SimExec::run`] polls it for the first time.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + 'a) {
        let number = self.tasks.len();
        self.tasks.push(Some(Box::pin(task)));
        self.woken.with(|tasks| tasks.push(number));
    }

    /// Adds a task; its result appears in the returned cell when it completes.
    pub fn spawn_with_result<T: 'a>(&mut self, task: impl Future<Output = T> + 'a) -> Rc<RefCell<Option<T>>> {
        let result = Rc::new(RefCell::new(None));
        let to = result.clone();
        self.spawn(async move {
            let value = task.await;
            *to.borrow_mut() = Some(value);
        });
        result
    }

    /// Polls one of the woken tasks. Returns `false` if no task was woken.
    pub fn step(&mut self) -> bool {
        let rng = &mut self.rng;
        let next = self
            .woken
            .with(|tasks| if tasks.is_empty() { None } else { Some(tasks.swap_remove(rng.usize(..tasks.len()))) });
        let Some(number) = next else { return false };
        if let Some(mut task) = self.tasks[number].take() {
            let waker = Waker::from(Arc::new(TaskWaker { task: number, woken: self.woken.clone() }));
            if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                self.tasks[number] = Some(task);
            }
        }
        true
    }

    /// Runs until no task is woken.
    pub fn run(&mut self) {
        while self.step() {}
    }

    /// Runs until `task` completes. Returns `None` if everything stalls first.
    pub fn block_on<T: 'a>(&mut self, task: impl Future<Output = T> + 'a) -> Option<T> {
        let result = self.spawn_with_result(task);
        while result.borrow().is_none() {
            if !self.step() {
                return None;
            }
        }
        result.take()
    }
}

/// Runs one future alone. Returns `None` if it stalls.
pub fn block_on<T>(seed: u64, task: impl Future<Output = T>) -> Option<T> {
    SimExec::new(seed).block_on(task)
}
