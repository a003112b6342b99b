//! The runtime: everything of glommio that the broker uses, under names of its own.
//! Lives on: every core. No other file of this crate names glommio, so a change of runtime would touch only this
//! file.

use crate::{
    clock,
    sync::{Notify, race},
};
use glommio::{
    ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement,
    channels::shared_channel::{self, ConnectedReceiver, ConnectedSender, SharedReceiver, SharedSender},
    io::PollableFd,
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use uuid::Uuid;

/// Registered I/O memory per core, in bytes. It is small because the default limit of locked memory is low. The ring
/// brings its own buffers.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// How long tasks run, one after the other, before the executor looks for the kernel's completions and for due timers.
/// A task that has begun goes on until it waits.
const TURN_MAX: Duration = Duration::from_millis(10);

/// A core's thread.
pub struct CoreThread(ExecutorJoinHandle<()>);

impl CoreThread {
    /// Waits for the core's main future to end.
    pub fn join(self) -> io::Result<()> {
        self.0.join().map_err(|error| io::Error::other(error.to_string()))
    }
}

/// Starts an executor pinned to `cpu` and runs the future that `main` makes there.
pub fn spawn_core<F>(cpu: usize, name: &str, main: impl FnOnce() -> F + Send + 'static) -> io::Result<CoreThread>
where
    F: Future<Output = ()> + 'static,
{
    LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(name)
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(TURN_MAX)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .spawn(main)
        .map(CoreThread)
        .map_err(|error| io::Error::other(format!("cannot start an executor on CPU {cpu}: {error}")))
}

/// Runs `future` on this core, detached.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    #[cfg(test)]
    if crate::sim::is_running() {
        return crate::sim::spawn(future);
    }
    glommio::spawn_local(future).detach();
}

/// Runs blocking work on a thread beside the core. The work must not panic.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    #[cfg(test)]
    if crate::sim::is_running() {
        return work();
    }
    glommio::executor().spawn_blocking(work).await
}

/// Draws a nonce for a handshake. It was never used before.
pub fn draw_nonce() -> net::peer::auth::Nonce {
    net::peer::auth::nonce_of([draw_uuid(), draw_uuid()])
}

/// Draws an id that nothing else has.
pub fn draw_uuid() -> Uuid {
    #[cfg(test)]
    if crate::sim::is_running() {
        return uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
    }
    Uuid::new_v4()
}

/// A CPU that this process may run on, for tests that need an executor on any CPU.
#[cfg(test)]
pub fn any_allowed_cpu() -> usize {
    // SAFETY: a zeroed set is a valid value. The call fills it, and afterwards it is only read.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set), 0);
        (0..libc::CPU_SETSIZE as usize).find(|&cpu| libc::CPU_ISSET(cpu, &set)).expect("some CPU is allowed")
    }
}

/// Resolves once `duration` has passed.
pub fn sleep(duration: Duration) -> Sleep {
    Sleep { until: clock::now() + duration, queued: None }
}

/// A timer. Dropping it removes it completely.
///
/// glommio's own timer adds an entry to the reactor's timer wheel at each poll, and removes only the last one. A
/// timer that is polled often, such as that of a waiting fetch, would fill the wheel. So this module keeps all timers
/// of a core, and the wheel holds only the earliest.
pub struct Sleep {
    until: Duration,
    queued: Option<(Rc<Timers>, TimerKey)>,
}

/// A moment on [`clock::now`]'s clock, and a number that makes the key unique.
type TimerKey = (Duration, u64);

/// The timers of one core.
#[derive(Default)]
pub(crate) struct Timers {
    queue: RefCell<BTreeMap<TimerKey, Waker>>,
    next_id: Cell<u64>,
    /// Notified when a timer becomes the earliest one.
    earlier: Notify,
    driven: Cell<bool>,
}

thread_local! {
    /// Each executor has a thread of its own.
    static TIMERS: RefCell<Rc<Timers>> = RefCell::default();
}

/// For simulations, which run several cores on one thread and drive their timers themselves.
#[cfg(test)]
impl Timers {
    pub(crate) fn driven_by_hand() -> Rc<Self> {
        Rc::new(Self { driven: Cell::new(true), ..Self::default() })
    }

    /// From now on, new timers of this thread are kept here. Returns where they were kept until now.
    pub(crate) fn install(self: Rc<Self>) -> Rc<Self> {
        TIMERS.with(|timers| timers.replace(self))
    }

    pub(crate) fn earliest(&self) -> Option<Duration> {
        self.queue.borrow().first_key_value().map(|((at, _), _)| *at)
    }
}

impl Timers {
    fn insert(self: &Rc<Self>, until: Duration, waker: Waker) -> TimerKey {
        let key = (until, self.next_id.get());
        self.next_id.set(key.1 + 1);
        let mut queue = self.queue.borrow_mut();
        queue.insert(key, waker);
        let is_first = queue.first_key_value().is_some_and(|(first, _)| *first == key);
        drop(queue);
        if is_first {
            self.earlier.notify();
        }
        if !self.driven.replace(true) {
            spawn(self.clone().drive());
        }
        key
    }

    async fn drive(self: Rc<Self>) {
        loop {
            let seen = self.earlier.version();
            let now = clock::now();
            while let Some(waker) = self.take_due(now) {
                waker.wake();
            }
            let first = self.queue.borrow().first_key_value().map(|((at, _), _)| *at);
            match first {
                None => self.earlier.past(seen).await,
                Some(at) => {
                    let timer = glommio::timer::sleep(at.saturating_sub(now));
                    race(self.earlier.past(seen), timer).await;
                }
            }
        }
    }

    pub(crate) fn take_due(&self, now: Duration) -> Option<Waker> {
        let mut queue = self.queue.borrow_mut();
        let first = queue.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if clock::now() >= self.until {
            return Poll::Ready(());
        }
        if let Some((timers, key)) = &self.queued
            && let Some(waker) = timers.queue.borrow_mut().get_mut(key)
        {
            waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        let timers = TIMERS.with_borrow(Rc::clone);
        let key = timers.insert(self.until, cx.waker().clone());
        self.queued = Some((timers, key));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((timers, key)) = &self.queued {
            timers.queue.borrow_mut().remove(key);
        }
    }
}

/// Yields in the middle of long background work. All ready tasks of this core run first, and all tasks for which the
/// kernel has completions by then.
///
/// [`yield_if_needed`] only lets ready tasks run. The executor then looks for the kernel's completions only once no
/// task is ready, or after [`TURN_MAX`]. A short [`sleep`] does not help either if it ends before the executor looks.
pub async fn give_way() {
    #[cfg(test)]
    if crate::sim::is_running() {
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
    static READABLE: RefCell<Option<Rc<PollableFd<OwnedFd>>>> = const { RefCell::new(None) };
}

async fn round_of_executor() -> io::Result<()> {
    let known = READABLE.with_borrow(Clone::clone);
    let readable = match known {
        Some(readable) => readable,
        None => {
            let alarm = Alarm::new()?;
            alarm.ring()?;
            let readable = Rc::new(PollableFd::new(alarm.0).map_err(io::Error::other)?);
            READABLE.set(Some(readable.clone()));
            readable
        }
    };
    readable.readable().await.map_err(io::Error::other)
}

/// Lets other ready tasks of this core run if this task has used up its share.
pub async fn yield_if_needed() {
    #[cfg(test)]
    if crate::sim::is_running() {
        return;
    }
    glommio::yield_if_needed().await;
}

/// A value that moves between cores. Nobody looks at it through a reference.
struct Moved<T>(T);

// SAFETY: no method gives out a `&T`, so sharing a `&Moved<T>` reaches no `T`. glommio's queue asks for `Sync`
// although it only moves values.
unsafe impl<T: Send> Sync for Moved<T> {}

/// The sending half of a bounded single-producer, single-consumer queue between two cores, not yet connected.
pub struct QueueSender<T: Send>(Way<SharedSender<Moved<T>>, T>);
/// The receiving half, not yet connected.
pub struct QueueReceiver<T: Send>(Way<SharedReceiver<Moved<T>>, T>);
/// The sending half, on its core.
pub struct Sender<T: Send>(Way<ConnectedSender<Moved<T>>, T>);
/// The receiving half, on its core.
pub struct Receiver<T: Send>(Way<ConnectedReceiver<Moved<T>>, T>);

/// One end of a queue: the runtime's, or in a simulation the simulation's.
enum Way<E, T> {
    Real(E, PhantomData<T>),
    #[cfg(test)]
    Simulated(crate::sim::End<T>),
}

/// A queue for `capacity` values from one core to another.
pub fn queue<T: Send>(capacity: usize) -> (QueueSender<T>, QueueReceiver<T>) {
    #[cfg(test)]
    if crate::sim::is_running() {
        let (sender, receiver) = crate::sim::End::pair(capacity);
        return (QueueSender(Way::Simulated(sender)), QueueReceiver(Way::Simulated(receiver)));
    }
    let (sender, receiver) = shared_channel::new_bounded(capacity);
    (QueueSender(Way::Real(sender, PhantomData)), QueueReceiver(Way::Real(receiver, PhantomData)))
}

impl<T: Send + 'static> QueueSender<T> {
    /// Binds this end to the calling core, and waits for the other end.
    pub async fn connect(self) -> Sender<T> {
        Sender(match self.0 {
            Way::Real(sender, _) => Way::Real(sender.connect().await, PhantomData),
            #[cfg(test)]
            Way::Simulated(end) => Way::Simulated(end.connect().await),
        })
    }
}

impl<T: Send + 'static> QueueReceiver<T> {
    pub async fn connect(self) -> Receiver<T> {
        Receiver(match self.0 {
            Way::Real(receiver, _) => Way::Real(receiver.connect().await, PhantomData),
            #[cfg(test)]
            Way::Simulated(end) => Way::Simulated(end.connect().await),
        })
    }
}

impl<T: Send> Sender<T> {
    /// Returns the value if the queue is full. `None`: the value was sent, or the other core is gone.
    pub fn try_send(&self, value: T) -> Option<T> {
        use glommio::{GlommioError, ResourceType};
        match &self.0 {
            Way::Real(sender, _) => match sender.try_send(Moved(value)) {
                Err(GlommioError::WouldBlock(ResourceType::Channel(value))) => Some(value.0),
                _ => None,
            },
            #[cfg(test)]
            Way::Simulated(end) => end.try_send(value),
        }
    }

    /// Waits for room. `false`: the other core is gone. Only one task at a time may wait.
    pub async fn send(&self, value: T) -> bool {
        match &self.0 {
            Way::Real(sender, _) => sender.send(Moved(value)).await.is_ok(),
            #[cfg(test)]
            Way::Simulated(end) => end.send(value).await,
        }
    }
}

impl<T: Send> Receiver<T> {
    /// `None`: the other core is gone, and everything that it sent has been received.
    pub async fn recv(&self) -> Option<T> {
        match &self.0 {
            Way::Real(receiver, _) => receiver.recv().await.map(|moved| moved.0),
            #[cfg(test)]
            Way::Simulated(end) => end.recv().await,
        }
    }
}

/// Wakes a core. Any thread may ring it, and so may a signal handler.
#[derive(Debug)]
pub struct Alarm(OwnedFd);

impl Alarm {
    pub fn new() -> io::Result<Self> {
        // SAFETY: a plain system call. Nobody else owns the descriptor that it returns.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn ring(&self) -> io::Result<()> {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the call writes eight bytes from a live buffer to a descriptor that we own.
        let written = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits on this core until somebody rings the alarm.
    pub async fn rung(&self) -> io::Result<()> {
        let watched = PollableFd::new(self.0.try_clone()?).map_err(io::Error::other)?;
        watched.readable().await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_a_core<F: Future<Output = ()> + 'static>(main: impl FnOnce() -> F + Send + 'static) {
        spawn_core(any_allowed_cpu(), "test", main).unwrap().join().unwrap();
    }

    #[test]
    fn waits_end_in_the_order_of_their_moments_and_none_is_left() {
        on_a_core(|| async {
            let order = Rc::new(RefCell::new(Vec::new()));
            let ended = Rc::new(Notify::default());
            let begun = clock::now();
            for n in 0..400u64 {
                let (order, ended) = (order.clone(), ended.clone());
                // Later timers first, so that each becomes the earliest one. Several may be due at once: they fire in
                // order.
                let until = begun + Duration::from_millis(100 - n / 10);
                spawn(async move {
                    Sleep { until, queued: None }.await;
                    order.borrow_mut().push(n / 10);
                    ended.notify();
                });
            }
            while order.borrow().len() < 400 {
                ended.next().await;
            }
            let order = order.take();
            assert_eq!(order.len(), 400);
            assert!(order.is_sorted_by(|a, b| a >= b), "{order:?}");
            TIMERS.with_borrow(|timers| assert!(timers.queue.borrow().is_empty()));
        });
    }

    #[test]
    fn a_wait_that_is_polled_often_is_queued_once_and_a_dropped_one_not_at_all() {
        on_a_core(|| async {
            let queued = || TIMERS.with_borrow(|timers| timers.queue.borrow().len());
            let mut wait = Box::pin(sleep(Duration::from_secs(60)));
            for _ in 0..100 {
                assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
            assert_eq!(queued(), 1);
            drop(wait);
            assert_eq!(queued(), 0);
        });
    }

    /// Work that yields with `give_way` does not run ahead of tasks that wait for the kernel. Both progress in turns.
    #[test]
    fn who_gives_way_lets_those_go_on_for_whom_the_kernel_has_something() {
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
    fn who_takes_turns_leaves_others_as_much_time_as_it_takes() {
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
