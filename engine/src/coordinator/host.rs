//! The group coordinators of a core: one for each `__consumer_offsets` partition that the core leads. Requests,
//! appends and time drive them.
//! Lives on: the core that owns the partition. [`crate::coordinator`] has the rules; this module performs its
//! outputs.
//!
//! A coordinator starts at the first request for its partition, by replaying the log. Requests wait for the replay at
//! most [`LOAD_WAIT`]; then they are answered COORDINATOR_LOAD_IN_PROGRESS.
//!
//! Some requests are answered once a record is in the log. They wait for that at most `offsets.commit.timeout.ms`.
//! Then they are answered COORDINATOR_NOT_AVAILABLE, as in Kafka, although the record may still be committed.
//! JoinGroup and SyncGroup wait for other members, bounded by the group's own timeouts.
//!
//! While the ring is down to its reserve, a request that appends waits for its turn in
//! [`Admission`](crate::partition::admission::Admission), at most `offsets.commit.timeout.ms`. It waits before the
//! coordinator sees it, because a request changes the coordinator's state and the append that follows cannot wait.
//! Appends caused by time (an expired session or offset) do not wait: they fail, and a later tick retries them.
//!
//! Commits and assignments count once they are in the log. OffsetFetch is answered from memory, so two checks come
//! first:
//! - The coordinator still leads. If it was paused or cut off, another one may have acknowledged newer commits.
//! - The view shows every acknowledged change of topics, because an offset counts only while the metadata has its
//!   topic.
//!
//! Before a log is replayed, the view must show every topic that has commits in it.

use crate::{
    config::Config,
    coordinator::{
        self, AppendId, Context, Coordinator, Cursor, GroupRequest, GroupResponse, Now, Output, Room, Topics, Wanted,
        receipts::ReceiptId,
    },
    log_limit::{Admitted, LogLimit},
    long_work::{LongWork, Work},
    memory::{Budget, GroupBytes, GroupState},
    partition::{Acks, Committed, FetchRead, Partition, PartitionError, admission::Turn, host},
};
use bytes::Bytes;
use net::{
    StrBytes,
    errors::ErrorCode,
    records::batch::{BatchHeader, Batches},
    turn::Share,
};
use runtime::{
    clock,
    sync::{Either, Flag, Notify, Promise, line::Line, promise, race},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};
use types::{GroupId, planted};
use wal::store::Admission;

/// Bytes of the log read at a time while coordinators load: 4 MiB. They are replayed in turns.
const LOAD_BYTES: usize = 4 << 20;

/// How long a request waits for its coordinator to load before it is answered COORDINATOR_LOAD_IN_PROGRESS.
const LOAD_WAIT: Duration = Duration::from_secs(2);

/// How long a load waits for the view to show all topics. Then the coordinator resigns, and the next request starts
/// another load.
const VIEW_WAIT: Duration = Duration::from_secs(60);
/// Pause between two attempts.
const VIEW_PAUSE: Duration = Duration::from_millis(100);

type Token = Promise<GroupResponse>;

/// A core, as its group coordinators see it.
pub trait Host: host::Host + AsRef<LongWork> {
    fn coordinators(&self) -> &Coordinators;
    /// The memory for consumer groups.
    fn group_state(&self) -> &GroupState;
    /// Runs `look` on the topics in this core's view.
    fn topics<R>(&self, look: impl FnOnce(&dyn Topics) -> R) -> R;
    /// Waits until the view shows everything that was acknowledged before.
    fn linearize(self: &Rc<Self>) -> impl Future<Output = Result<(), String>>;
    /// Tells the core that waits for a receipt that this one has its own copy of the request.
    fn received(self: &Rc<Self>, receipt: ReceiptId);
}

/// The coordinators of one core.
pub struct Coordinators {
    origin: Duration,
    /// Limits the lines about groups.
    log: Rc<LogLimit>,
    seats: RefCell<BTreeMap<GroupId, Rc<Seat>>>,
    /// Loads, which read one piece at a time: all coordinators of a core may load together. Bound: one entry for each
    /// partition.
    loads: Line,
}

/// One coordinator and what it waits for.
struct Seat {
    partition: Rc<Partition>,
    /// `None` once it has resigned.
    coordinator: RefCell<Option<Coordinator<Token>>>,
    /// The coordinator's memory, also while it is freed.
    held: Rc<GroupBytes>,
    /// Appends in flight, in log order.
    appends: RefCell<VecDeque<(AppendId, Committed)>>,
    appended: Notify,
    loaded: Flag,
    /// Set once it has resigned.
    ended: Flag,
    /// Notified after every call, because the next deadline may have changed.
    called: Notify,
}

impl Default for Coordinators {
    fn default() -> Self {
        Self { origin: clock::now(), log: Rc::default(), seats: RefCell::default(), loads: Line::default() }
    }
}

impl Coordinators {
    fn now(&self) -> Now {
        Now { mono_ms: (clock::now() - self.origin).as_millis() as u64, wall_ms: clock::wall_ms() }
    }

    /// The view has applied the deletion of a topic.
    pub fn topic_deleted(&self, core: &Rc<impl Host>) {
        let seats: Vec<Rc<Seat>> = self.seats.borrow().values().cloned().collect();
        for seat in seats {
            seat.call(core, |coordinator, now, _| coordinator.topic_deleted(now));
        }
    }

    /// The partition was deleted or is no longer led here, or its log has failed. Waiting requests are answered
    /// NOT_COORDINATOR.
    pub fn resign(&self, group: GroupId) {
        if let Some(seat) = self.seats.borrow_mut().remove(&group) {
            seat.resign();
        }
    }

    /// This core has lost all its partitions.
    pub fn resign_all(&self) {
        for (_, seat) in self.seats.take() {
            seat.resign();
        }
    }
}

impl Coordinators {
    /// Requests and appends of all coordinators that are not answered.
    pub fn unanswered(&self) -> usize {
        let of = |seat: &Rc<Seat>| seat.coordinator.borrow().as_ref().map_or(0, Coordinator::unanswered);
        self.seats.borrow().values().map(of).sum()
    }
}

/// Begins to load the coordinator of an offsets partition on this core, if it has one, and waits for it for at most
/// [`LOAD_WAIT`]. Returns whether requests to it need not wait for a load.
pub async fn load_soon(core: Rc<impl Host>, group: GroupId) -> bool {
    let Some(seat) = seat(&core, group) else { return true };
    race(seat.loaded.wait(), runtime::sleep(LOAD_WAIT)).await;
    seat.loaded.is_set()
}

/// Approximate bytes of what the coordinator of an offsets partition will answer about these groups. 0 if this core
/// has none, or if it does not load within [`LOAD_WAIT`].
pub async fn weigh(core: Rc<impl Host>, group: GroupId, wanted: Vec<Wanted>) -> usize {
    let Some(seat) = seat(&core, group) else { return 0 };
    race(seat.loaded.wait(), runtime::sleep(LOAD_WAIT)).await;
    let (mut work, mut sum) = (Work::on(&core), 0);
    for one in &wanted {
        let Some((bytes, entries)) = seat.coordinator.borrow().as_ref().map(|here| here.weigh(one)) else { break };
        sum += bytes;
        work.entries(entries).await;
    }
    sum
}

/// The same for the list of its groups.
pub fn weigh_list(core: Rc<impl Host>, group: GroupId) -> impl Future<Output = usize> {
    let seat = core.coordinators().seats.borrow().get(&group).cloned();
    let bytes = seat.and_then(|seat| seat.coordinator.borrow().as_ref().map(Coordinator::weigh_list));
    std::future::ready(bytes.unwrap_or(0))
}

/// Passes a request that only reads to the coordinator of an offsets partition on this core. It is answered part by
/// part, in turns. If the answer needs more than is left of the budget, it is refused with COORDINATOR_NOT_AVAILABLE.
pub async fn read(
    core: Rc<impl Host>,
    group: GroupId,
    context: Context,
    request: GroupRequest,
    budget: Budget,
) -> GroupResponse {
    let refuse = |code| request.refuse(context.version, code);
    let Some(seat) = seat(&core, group) else { return refuse(ErrorCode::NotCoordinator) };
    // A load usually takes milliseconds, and some clients handle COORDINATOR_LOAD_IN_PROGRESS badly.
    race(seat.loaded.wait(), runtime::sleep(LOAD_WAIT)).await;
    if matches!(request, GroupRequest::OffsetFetch(_))
        && seat.loaded.is_set()
        && let Err(code) = seat.is_current(&core).await
    {
        return refuse(code);
    }
    let (mut work, mut whole) = (Work::on(&core), None);
    let mut next = Some(Cursor::default());
    while let Some(from) = next {
        let part = match &*seat.coordinator.borrow() {
            Some(here) => core.topics(|topics| here.read(topics, context.version, &request, &from)),
            None => return refuse(ErrorCode::NotCoordinator),
        };
        if !budget.take(part.bytes) {
            return refuse(ErrorCode::CoordinatorNotAvailable);
        }
        match &mut whole {
            None => whole = Some(part.response),
            Some(whole) => whole.add_part(part.goes_on, part.response),
        }
        next = part.next;
        if next.is_some() {
            work.entries(part.entries).await;
        }
    }
    whole.expect("there is a first part")
}

/// Passes a request that may change something to the coordinator of an offsets partition on this core. `receipt`: for a
/// request that may wait for members. It is given when the wait begins. Then nothing here has slices of the request's
/// frame any more.
pub async fn ask(
    core: Rc<impl Host>,
    group: GroupId,
    context: Context,
    request: GroupRequest,
    receipt: Option<ReceiptId>,
) -> GroupResponse {
    let refuse = |code| request.refuse(context.version, code);
    let Some(seat) = seat(&core, group) else { return refuse(ErrorCode::NotCoordinator) };
    // As for reads.
    race(seat.loaded.wait(), runtime::sleep(LOAD_WAIT)).await;
    let timeout = Duration::from_millis(core.config().offsets_commit_timeout_ms);
    let deadline = clock::now() + timeout;
    let mut turn = seat.wait_for_room(&core, &request);
    if let Some(turn) = &mut turn {
        seat.call(&core, |coordinator, now, _| coordinator.request_waits(now, &request));
        let waited = race(race(turn.come(core.store()), seat.ended.wait()), runtime::sleep(timeout)).await;
        if matches!(waited, Either::Second(())) {
            core.metrics().admission_timed_out_total.add(1);
            return refuse(ErrorCode::CoordinatorNotAvailable);
        }
    }
    if seat.has_resigned() {
        return refuse(ErrorCode::NotCoordinator);
    }
    let unanswered = refuse(ErrorCode::CoordinatorNotAvailable);
    let (token, answer) = promise();
    let state = core.group_state();
    let room = Room { bytes: state.left(), new_groups: state.left_for_new_groups() };
    seat.call(&core, |coordinator, now, topics| coordinator.step(now, topics, room, &context, request, token));
    drop(turn);
    if let Some(receipt) = receipt {
        if !answer.is_settled() {
            core.received(receipt);
        }
        return answer.await.unwrap_or(unanswered);
    }
    match race(answer, runtime::sleep(deadline.saturating_sub(clock::now()))).await {
        Either::First(Some(answer)) => answer,
        Either::First(None) | Either::Second(()) => unanswered,
    }
}

fn seat(core: &Rc<impl Host>, group: GroupId) -> Option<Rc<Seat>> {
    if let Some(seat) = core.coordinators().seats.borrow().get(&group) {
        return Some(seat.clone());
    }
    let partition = core.partition(group).filter(|partition| partition.leads())?;
    let coordinator = Coordinator::new(settings(core.config()), fastrand::u64(..));
    let coordinator = coordinator.log_with(core.coordinators().log.clone());
    let seat = Rc::new(Seat {
        partition,
        coordinator: RefCell::new(Some(coordinator)),
        held: Rc::new(core.group_state().account()),
        appends: RefCell::default(),
        appended: Notify::default(),
        loaded: Flag::default(),
        ended: Flag::default(),
        called: Notify::default(),
    });
    core.coordinators().seats.borrow_mut().insert(group, seat.clone());
    runtime::spawn(run(core.clone(), seat.clone()));
    runtime::spawn(follow_appends(core.clone(), seat.clone()));
    Some(seat)
}

fn settings(config: &Config) -> coordinator::Config {
    coordinator::Config {
        group_min_session_timeout_ms: config.group_min_session_timeout_ms,
        group_max_session_timeout_ms: config.group_max_session_timeout_ms,
        group_initial_rebalance_delay_ms: config.group_initial_rebalance_delay_ms,
        group_max_size: config.group_max_size,
        offset_metadata_max_bytes: config.offset_metadata_max_bytes,
        offsets_retention_ms: config.offsets_retention_minutes.saturating_mul(60_000),
        offsets_retention_check_interval_ms: config.offsets_retention_check_interval_ms,
        ..coordinator::Config::default()
    }
}

impl Seat {
    /// Makes sure that no other coordinator has acknowledged newer commits, and that the view shows all topics.
    async fn is_current(&self, core: &Rc<impl Host>) -> Result<(), ErrorCode> {
        if !matches!(race(core.linearize(), runtime::sleep(LOAD_WAIT)).await, Either::First(Ok(()))) {
            return Err(ErrorCode::CoordinatorLoadInProgress);
        }
        let timeout = Duration::from_millis(core.config().offsets_commit_timeout_ms);
        match race(self.partition.still_leading(core), runtime::sleep(timeout)).await {
            Either::First(Ok(())) => Ok(()),
            Either::First(Err(_)) => Err(ErrorCode::NotCoordinator),
            Either::Second(()) => Err(ErrorCode::CoordinatorNotAvailable),
        }
    }

    /// Calls the coordinator once and performs all outputs that follow.
    fn call(
        &self,
        core: &Rc<impl Host>,
        call: impl FnOnce(&mut Coordinator<Token>, Now, &dyn Topics) -> Vec<Output<Token>>,
    ) {
        let now = core.coordinators().now();
        let mut outputs = match &mut *self.coordinator.borrow_mut() {
            Some(coordinator) => VecDeque::from(core.topics(|topics| call(coordinator, now, topics))),
            None => return,
        };
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Reply { token, response } => token.keep(response),
                Output::Append { id, batch } => {
                    if let Err(error) = self.append(core, id, batch)
                        && let Some(coordinator) = &mut *self.coordinator.borrow_mut()
                    {
                        outputs.extend(coordinator.appended(now, id, Err(error)));
                    }
                }
                Output::NoRoom { group, bytes } => on_refused(core, &group, bytes),
            }
        }
        self.count();
        self.called.notify();
    }

    /// Counts the coordinator's memory anew.
    fn count(&self) {
        if let Some(coordinator) = &*self.coordinator.borrow() {
            self.held.set(coordinator.bytes());
        }
    }

    /// If the ring has no room for what the request will append, returns the turn to await before the coordinator
    /// gets the request.
    fn wait_for_room(&self, core: &Rc<impl Host>, request: &GroupRequest) -> Option<Turn> {
        let bytes = self.coordinator.borrow().as_ref()?.append_bytes(request)?;
        core.admission().pass(core.store(), self.partition.group(), bytes)
    }

    fn append(&self, core: &Rc<impl Host>, id: AppendId, batch: Bytes) -> Result<(), ErrorCode> {
        // The coordinator's state has already changed, so the append cannot wait for room. The client retries.
        if core.store().admit(batch.len()) == Admission::Wait {
            return Err(ErrorCode::RequestTimedOut);
        }
        let info = BatchHeader::read(&batch).expect("the coordinator writes whole batches");
        let acks = if planted!(CommitAcknowledgedTooEarly) { Acks::Leader } else { Acks::All };
        let committed = self.partition.append(core, batch, &info, clock::wall_ms(), acks)?;
        self.appends.borrow_mut().push_back((id, committed));
        self.appended.notify();
        Ok(())
    }

    fn resign(&self) {
        let Some(coordinator) = self.coordinator.borrow_mut().take() else { return };
        self.ended.set();
        let mut resigned = coordinator.resign();
        reply_all(resigned.turn());
        let held = self.held.clone();
        match resigned.is_empty() {
            true => held.set(0),
            false => runtime::spawn(async move {
                while !resigned.is_empty() {
                    runtime::give_way().await;
                    reply_all(resigned.turn());
                }
                held.set(0);
            }),
        }
        self.called.notify();
        self.appended.notify();
    }

    fn has_resigned(&self) -> bool {
        self.coordinator.borrow().is_none()
    }
}

fn reply_all(outputs: Vec<Output<Token>>) {
    for output in outputs {
        if let Output::Reply { token, response } = output {
            token.keep(response);
        }
    }
}

/// A request was refused, or a part of it, because there is no memory for what it brings.
fn on_refused(core: &Rc<impl Host>, group: &StrBytes, bytes: usize) {
    let state = core.group_state();
    core.metrics().consumer_groups_refused_total.add(1);
    if let Some(left_out) = state.admit_line(clock::now()) {
        tracing::warn!(
            %group,
            left_out,
            "refused a request of a consumer group: it needs {bytes} bytes more, and the consumer groups of core {} \
             hold {} of {}, of which new groups may take half; raise memory.budget.bytes, or delete groups",
            core.id().0,
            state.held(),
            state.max(),
        );
    }
}

/// Warns of more groups than the memory budget allows, because it was lowered or a broker failed. They are served all
/// the same: acknowledged offsets are never lost.
fn tell_if_over(core: &Rc<impl Host>) {
    let state = core.group_state();
    if state.is_newly_over() {
        tracing::warn!(
            "the consumer groups of core {} hold {} bytes, but memory.budget.bytes is enough for {}: the broker \
             serves all of them, may use more memory, and refuses new groups, members and offsets; raise \
             memory.budget.bytes, add brokers, or delete groups",
            core.id().0,
            state.held(),
            state.max(),
        );
    }
}

/// Loads a coordinator, then wakes it at its deadlines until it resigns.
async fn run(core: Rc<impl Host>, seat: Rc<Seat>) {
    let started = clock::now();
    match load(&core, &seat).await {
        Ok(batches) => {
            let took = clock::now() - started;
            tracing::info!(partition = %seat.partition.name, batches, ?took, "group coordinator loaded");
        }
        // Another coordinator of this partition may have begun since.
        Err(_) if seat.has_resigned() => return,
        Err(error) => {
            // The next request to one of its groups begins another load.
            let (partition, group) = (&seat.partition.name, seat.partition.group());
            if let Some(Admitted { left_out }) = core.partition_log().admit(clock::now(), group, "cannot load") {
                tracing::error!(%partition, ?error, left_out, "cannot load a group coordinator; its groups are not served");
            }
            return core.coordinators().resign(group);
        }
    }
    seat.call(&core, |coordinator, now, _| coordinator.loaded(now));
    tell_if_over(&core);
    seat.loaded.set();
    while !seat.has_resigned() {
        let seen = seat.called.version();
        let deadline = seat.coordinator.borrow().as_ref().and_then(Coordinator::next_deadline);
        match deadline {
            None => seat.called.past(seen).await,
            Some(at) => {
                let left = at.saturating_sub(core.coordinators().now().mono_ms);
                if left == 0 {
                    seat.call(&core, Coordinator::tick);
                } else {
                    race(seat.called.past(seen), runtime::sleep(Duration::from_millis(left))).await;
                }
            }
        }
    }
}

/// Replays the log from its start to the high watermark, even if that takes more memory than groups may take. Returns
/// the number of batches.
async fn load(core: &Rc<impl Host>, seat: &Seat) -> Result<usize, ErrorCode> {
    let end = seat.partition.high_watermark();
    until_all_topics_are_shown(core, seat).await?;
    let mut offset = seat.partition.log_start(core);
    let (mut count, mut share) = (0, Share::TURN);
    while offset < end {
        // A load counts a piece once it has replayed it, so one load at a time reads.
        let place = core.coordinators().loads.join();
        if let Either::Second(()) = race(place.first(), seat.ended.wait()).await {
            return Err(ErrorCode::NotCoordinator);
        }
        let batches = match seat.partition.read(core, offset, end, LOAD_BYTES, true) {
            FetchRead::Hot(batches) => batches,
            FetchRead::Cold(read) => read.await?,
            FetchRead::Refused(error) => return Err(error.into()),
        };
        for (header, batch) in batches.into_iter().flat_map(Batches::new).flatten() {
            offset = header.next_offset() as u64;
            count += 1;
            if let Some(coordinator) = &mut *seat.coordinator.borrow_mut() {
                for unusable in core.topics(|topics| coordinator.replay(topics, &batch)) {
                    let (partition, group) = (&seat.partition.name, seat.partition.group());
                    if let Some(Admitted { left_out }) =
                        core.partition_log().admit(clock::now(), group, &unusable.to_string())
                    {
                        tracing::warn!(%partition, %unusable, left_out, "skipped while loading groups");
                    }
                }
            }
            seat.count();
            share.take_bytes(batch.len());
            share.take_entries(header.record_count.max(0) as usize);
            if share.is_spent() {
                give_way(seat).await?;
                share = Share::TURN;
            }
        }
        give_way(seat).await?;
    }
    Ok(count)
}

/// Yields within a load. `Err`: the coordinator has resigned meanwhile, so nobody waits for the load any more.
async fn give_way(seat: &Seat) -> Result<(), ErrorCode> {
    runtime::give_way().await;
    if seat.has_resigned() { Err(ErrorCode::NotCoordinator) } else { Ok(()) }
}

/// Waits until the view shows every topic that was ever committed to. A topic that is then missing has been deleted.
async fn until_all_topics_are_shown(core: &Rc<impl Host>, seat: &Seat) -> Result<(), ErrorCode> {
    let shown = async {
        while !seat.has_resigned() {
            match core.linearize().await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::debug!(partition = %seat.partition.name, %error, "groups wait for the metadata"),
            }
            runtime::sleep(VIEW_PAUSE).await;
        }
        Err(ErrorCode::NotCoordinator)
    };
    match race(shown, runtime::sleep(VIEW_WAIT)).await {
        Either::First(outcome) => outcome,
        Either::Second(()) => Err(ErrorCode::RequestTimedOut),
    }
}

/// Reports the outcome of each append to the coordinator, in log order.
async fn follow_appends(core: Rc<impl Host>, seat: Rc<Seat>) {
    while !seat.has_resigned() {
        let seen = seat.appended.version();
        let next = seat.appends.borrow_mut().pop_front();
        match next {
            Some((id, committed)) => {
                let outcome = committed.await.unwrap_or(Err(PartitionError::NotLeader));
                let outcome = outcome.map(drop).map_err(ErrorCode::from);
                seat.call(&core, |coordinator, now, _| coordinator.appended(now, id, outcome));
            }
            None => seat.appended.past(seen).await,
        }
    }
}
