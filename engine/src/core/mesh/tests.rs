use super::{
    list::{AskKind, asks, notices},
    *,
};
use std::{future::ready, sync::mpsc};

#[derive(Default)]
struct Seen {
    arrived: RefCell<Vec<u32>>,
    opened: Flag,
    ended: Flag,
}

pub(crate) struct TestCore {
    mesh: Mesh<TestCore>,
    seen: Rc<Seen>,
}

impl TestCore {
    fn new(mesh: Mesh<Self>) -> Rc<Self> {
        Rc::new(Self { mesh, seen: Rc::default() })
    }

    fn arrive(&self, number: u32) -> u32 {
        let mut arrived = self.seen.arrived.borrow_mut();
        arrived.push(number);
        arrived.len() as u32
    }

    /// The cancellations, and all other messages, that wait to be sent to the second core.
    fn outbox(&self) -> (usize, usize) {
        let outbox = self.mesh.outlet(CoreId(1), Lane::Work).outbox.borrow();
        let cancels = outbox.values().filter(|message| matches!(message, Message::Cancel(_))).count();
        (cancels, outbox.len() - cancels)
    }

    /// How many messages of a kind were sent from here.
    fn sent(&self, kind: &str) -> u64 {
        let counts: Vec<_> = self.mesh.sent_by_kind().filter(|(name, _)| *name == kind).collect();
        let [(_, count)] = counts[..] else { panic!("one kind has the name {kind}") };
        count
    }
}

/// Tells its core when it is dropped.
struct Ends(Rc<Seen>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.ended.set();
    }
}

asks! { TestCore:
    /// Notes the number. The reply is how many have arrived so far.
    Arrive { number: u32 } -> u32 = |core| ready(core.arrive(number));

    /// The numbers that have arrived since the last such ask.
    Arrived {} -> Vec<u32> as Box = |core| ready(core.seen.arrived.take());

    /// Replies with the number once the core is open.
    WhenOpened as Box { number: u32 } -> u32 = |core| async move {
        core.seen.opened.wait().await;
        number
    };

    /// Notes the number and never replies.
    Stay { number: u32 } -> () = |core| async move {
        core.arrive(number);
        let _ends = Ends(core.seen.clone());
        std::future::pending().await
    };

    /// Replies once the work on a [`Stay`] was dropped.
    WhenEnded {} -> () = |core| async move { core.seen.ended.wait().await };

    /// How many asks the core works on.
    Waiting {} -> usize = |core| ready(core.mesh.jobs.borrow().len());

    /// The counts of messages that the core received and got posted.
    Counted {} -> (u64, u64) = |core| ready((core.mesh.stats.received.get(), core.mesh.stats.posted.get()));

    Ping {} -> () = |_core| ready(());
}

notices! { TestCore:
    in Work {
        Note { number: u32 } = |core| _ = core.arrive(number);
    }
    in Control {
        Open = |core| core.seen.opened.set();
    }
}

impl HasMesh for TestCore {
    type Ask = Ask;
    type Reply = AskReply;
    type Notice = Notice;

    fn mesh(&self) -> &Mesh<Self> {
        &self.mesh
    }

    fn ping() -> impl AskKind<Self, Reply = ()> {
        Ping {}
    }
}

fn ask_second<K: AskKind<TestCore>>(core: &Rc<TestCore>, what: K) -> Called<TestCore, K> {
    ask(core, CoreId(1), what)
}

/// Two cores on any CPU that the test may use. `main` runs on the first.
pub(crate) fn on_two_cores<F: Future<Output = ()> + 'static>(main: impl FnOnce(Rc<TestCore>) -> F + Send + 'static) {
    let cpu = runtime::any_allowed_cpu();
    let mut seeds = seeds::<TestCore>(2).into_iter();
    let (first, second) = (seeds.next().unwrap(), seeds.next().unwrap());
    let (stop, stopped) = mpsc::channel::<()>();
    let second = runtime::spawn_core(cpu, "second", move || async move {
        let (mesh, inbox) = second.connect().await;
        inbox.serve(&TestCore::new(mesh));
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            runtime::sleep(std::time::Duration::from_millis(1)).await;
        }
    })
    .unwrap();
    let first = runtime::spawn_core(cpu, "first", move || async move {
        let (mesh, inbox) = first.connect().await;
        let core = TestCore::new(mesh);
        inbox.serve(&core);
        main(core).await;
    })
    .unwrap();
    first.join().unwrap();
    drop(stop);
    second.join().unwrap();
}

#[test]
fn asks_start_in_the_order_they_were_made_even_when_the_queue_is_full() {
    on_two_cores(|core| async move {
        let asks = 3 * QUEUE_MESSAGES as u32;
        let replies: Vec<_> = (0..asks).map(|number| ask_second(&core, Arrive { number })).collect();
        for (n, reply) in replies.into_iter().enumerate() {
            assert!(reply.await > n as u32);
        }
        assert_eq!(ask_second(&core, Arrived {}).await, (0..asks).collect::<Vec<_>>());
        assert_eq!(core.mesh.stats().sent.get(), u64::from(asks) + 1);
    });
}

#[test]
fn notices_of_the_work_lane_come_in_their_turn_among_the_asks_and_nothing_comes_back() {
    on_two_cores(|core| async move {
        let mut asks = Vec::new();
        for n in 0..4 {
            core.mesh.tell(CoreId(1), Notice::Note { number: 2 * n });
            asks.push(ask_second(&core, Arrive { number: 2 * n + 1 }));
        }
        assert_eq!(ask_second(&core, Arrived {}).await, (0..8).collect::<Vec<_>>());
        assert_eq!((core.mesh.stats().sent.get(), core.mesh.stats().received.get()), (9, 5));
    });
}

#[test]
fn work_that_waits_is_answered_when_it_ends() {
    on_two_cores(|core| async move {
        let reply = ask_second(&core, WhenOpened { number: 7 });
        core.mesh.tell(CoreId(1), Notice::Open);
        assert_eq!(reply.await, 7);
    });
}

#[test]
fn each_kind_of_message_is_counted_and_notices_of_the_control_lane_apart() {
    on_two_cores(|core| async move {
        core.mesh.tell(CoreId(1), Notice::Open);
        core.mesh.tell(CoreId(1), Notice::Note { number: 1 });
        assert_eq!(ask_second(&core, WhenOpened { number: 7 }).await, 7);
        drop(ask_second(&core, Stay { number: 2 }));
        // The note, three asks and a cancellation have arrived, and the opening apart from them.
        assert_eq!(ask_second(&core, Counted {}).await, (5, 1));
        let sent = ["Open", "Note", "WhenOpened", "Stay", "Cancel", "Counted", "Arrive", "Reply"];
        assert_eq!(sent.map(|kind| core.sent(kind)), [1, 1, 1, 1, 1, 1, 0, 0]);
        let all: u64 = core.mesh.sent_by_kind().map(|(_, count)| count).sum();
        assert_eq!(all, core.mesh.stats().sent.get() + 1);
    });
}

#[test]
fn work_ends_with_its_caller() {
    on_two_cores(|core| async move {
        let called = ask_second(&core, Stay { number: 7 });
        assert_eq!(ask_second(&core, Arrived {}).await, [7]);
        drop(called);
        ask_second(&core, WhenEnded {}).await;
        assert_eq!(ask_second(&core, Waiting {}).await, 0);
        assert!(core.mesh.open.borrow().is_empty());
    });
}

#[test]
fn an_ask_whose_caller_is_gone_leaves_the_outbox() {
    on_two_cores(|core| async move {
        let mut called = Vec::new();
        while core.outbox().1 < 100 {
            called.push(ask_second(&core, Arrive { number: called.len() as u32 }));
        }
        let sent = called.len() - 100;
        let last = called.pop();
        drop(called);
        assert_eq!(core.outbox(), (sent, 1));
        drop(last);
        assert_eq!(core.outbox(), (sent, 0));
        assert_eq!(ask_second(&core, Arrived {}).await, (0..sent as u32).collect::<Vec<_>>());
        assert!(core.mesh.open.borrow().is_empty());
    });
}

#[test]
fn a_reply_that_is_dropped_late_ends_no_other_work() {
    on_two_cores(|core| async move {
        let unread = ask_second(&core, Ping {});
        assert!(ask_second(&core, Arrived {}).await.is_empty());
        // Both replies have come, so their tokens are free.
        let next = [2, 3].map(|number| ask_second(&core, WhenOpened { number }));
        assert!(next.iter().any(|next| next.token == unread.token));
        drop(unread);
        core.mesh.tell(CoreId(1), Notice::Open);
        for (next, number) in next.into_iter().zip([2, 3]) {
            assert_eq!(next.await, number);
        }
        assert!(core.mesh.open.borrow().is_empty());
    });
}
