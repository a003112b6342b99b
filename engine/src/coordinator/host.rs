//! The group coordinators of a core: one for each partition of `__consumer_offsets` that it owns, driven by requests, appends and
//! time.
//! Lives on: the partitions' owning core. The rules are [`crate::coordinator`]'s; here its outputs are performed.
//!
//! A coordinator begins at the first request for its partition: it replays the log. Requests wait for that, at most
//! [`LOAD_WAIT`], then they are answered COORDINATOR_LOAD_IN_PROGRESS.
//!
//! Requests that a coordinator answers once something is in the log wait for that at most `offsets.commit.timeout.ms`, then they are
//! answered COORDINATOR_NOT_AVAILABLE, as Kafka does; it may still get there. JoinGroup and SyncGroup wait for other members, as
//! long as the group's timeouts say.
//!
//! While the ring is down to its reserve, requests that append wait for [`Admission`](crate::partition::admission::Admission)'s turn before the
//! coordinator sees them, likewise at most `offsets.commit.timeout.ms`: its state moves on with a request, so the append that follows
//! can't wait. Appends that time causes (an ended session, an expired offset) don't wait. They fail, and come again with a later tick.
//!
//! Commits and assignments count once they are in the log. Offsets are read from memory, so a coordinator makes sure first that it still
//! leads: one that was stopped, or cut off, may have missed commits that another has acknowledged. It makes sure as well that its view
//! shows every change of topics that was acknowledged, since an offset counts only while the metadata has its topic. Before a log is
//! replayed the view has to show every topic that is committed to in it.

#[cfg(test)]
use crate::sim::{self, Bug};
use crate::{
    clock,
    cluster::meta,
    config::Config,
    coordinator::{
        self, AppendId, Context, Coordinator, GroupRequest, GroupResponse, Incarnation, Now, Output, Topics,
    },
    core::Core,
    handlers::{METADATA_TOPIC, metadata_log},
    partition::{Acks, Committed, FetchRead, Partition, admission::Turn},
    rt,
    sync::{Either, Flag, Notify, Promise, promise, race},
};
use bytes::Bytes;
use consensus::metadata::View;
use net::{
    errors::ErrorCode,
    records::batch::{BatchHeader, Batches},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};
use wal::{record::GroupId, store::Admission};

/// Bytes of the log read at a time while a coordinator loads.
const LOAD_BYTES: usize = 4 << 20;

/// How long a request waits for its coordinator to be loaded before it is told to come back.
const LOAD_WAIT: Duration = Duration::from_secs(2);

/// How long a load waits for its view to show all topics. Then the coordinator resigns, and the next request begins another load.
const VIEW_WAIT: Duration = Duration::from_secs(60);
/// Between two tries.
const VIEW_PAUSE: Duration = Duration::from_millis(100);

type Token = Promise<GroupResponse>;

/// The topics of this core's view.
struct Shown<'a>(&'a View);

impl Topics for Shown<'_> {
    fn find(&self, name: &str) -> Option<Incarnation> {
        // The metadata's own log is always there.
        if name == METADATA_TOPIC {
            return Some(Incarnation { id: metadata_log::METADATA_TOPIC_ID, made: 0, made_ms: 0 });
        }
        let topic = self.0.topic(name)?;
        Some(Incarnation { id: topic.id, made: topic.partitions[0].group, made_ms: topic.created_ms })
    }

    fn newest(&self) -> u64 {
        self.0.newest_group()
    }
}

/// The coordinators of one core.
pub struct Coordinators {
    origin: Duration,
    seats: RefCell<BTreeMap<GroupId, Rc<Seat>>>,
}

/// One coordinator and what it waits for.
struct Seat {
    partition: Rc<Partition>,
    /// `None` once it has resigned.
    coordinator: RefCell<Option<Coordinator<Token>>>,
    /// Appends on their way, in log order.
    appends: RefCell<VecDeque<(AppendId, Committed)>>,
    appended: Notify,
    loaded: Flag,
    /// Moves with every call, since the next deadline may be another then.
    called: Notify,
}

impl Default for Coordinators {
    fn default() -> Self {
        Self { origin: clock::now(), seats: RefCell::default() }
    }
}

impl Coordinators {
    fn now(&self) -> Now {
        Now { mono_ms: (clock::now() - self.origin).as_millis() as u64, wall_ms: clock::wall_ms() }
    }

    /// The view has applied a topic's deletion.
    pub fn topic_deleted(&self, core: &Rc<Core>) {
        let seats: Vec<Rc<Seat>> = self.seats.borrow().values().cloned().collect();
        for seat in seats {
            seat.call(core, |coordinator, now, _| coordinator.topic_deleted(now));
        }
    }

    /// The partition is no more, or its storage has failed: whoever waits is sent elsewhere.
    pub fn resign(&self, group: GroupId) {
        if let Some(seat) = self.seats.borrow_mut().remove(&group) {
            seat.resign();
        }
    }

    /// All partitions of this core are lost.
    pub fn resign_all(&self) {
        for (_, seat) in self.seats.take() {
            seat.resign();
        }
    }
}

/// Gives a request to the coordinator of an offsets partition of this core.
pub async fn ask(core: Rc<Core>, group: GroupId, context: Context, request: GroupRequest) -> GroupResponse {
    let refuse = |code| request.refuse(context.version, code);
    let Some(seat) = seat(&core, group) else { return refuse(ErrorCode::NotCoordinator) };
    // A load takes milliseconds as a rule; some clients take COORDINATOR_LOAD_IN_PROGRESS hard.
    race(seat.loaded.wait(), rt::sleep(LOAD_WAIT)).await;
    let is_read = matches!(request, GroupRequest::OffsetFetch(_)) && seat.loaded.is_set();
    let timeout = Duration::from_millis(core.config.offsets_commit_timeout_ms);
    if is_read {
        if !matches!(race(meta::linearize(&core), rt::sleep(LOAD_WAIT)).await, Either::First(Ok(()))) {
            return refuse(ErrorCode::CoordinatorLoadInProgress);
        }
        match race(seat.partition.still_leading(&core), rt::sleep(timeout)).await {
            Either::First(Ok(())) => {}
            Either::First(Err(_)) => return refuse(ErrorCode::NotCoordinator),
            Either::Second(()) => return refuse(ErrorCode::CoordinatorNotAvailable),
        }
    }
    let mut turn = seat.wait_for_room(&core, &request);
    if let Some(turn) = &mut turn {
        let waited = race(race(turn.come(&core.store), seat.resigned()), rt::sleep(timeout)).await;
        if matches!(waited, Either::Second(())) {
            core.metrics.admission_timed_out_total.add(1);
            return refuse(ErrorCode::CoordinatorNotAvailable);
        }
    }
    if seat.has_resigned() {
        return refuse(ErrorCode::NotCoordinator);
    }
    let unanswered = refuse(ErrorCode::CoordinatorNotAvailable);
    let waits_for_members = matches!(request, GroupRequest::JoinGroup(_) | GroupRequest::SyncGroup(_));
    let (token, answer) = promise();
    seat.call(&core, |coordinator, now, topics| coordinator.step(now, topics, &context, request, token));
    drop(turn);
    if waits_for_members {
        return answer.await.unwrap_or(unanswered);
    }
    match race(answer, rt::sleep(timeout)).await {
        Either::First(Some(answer)) => answer,
        Either::First(None) | Either::Second(()) => unanswered,
    }
}

fn seat(core: &Rc<Core>, group: GroupId) -> Option<Rc<Seat>> {
    if let Some(seat) = core.coordinators.seats.borrow().get(&group) {
        return Some(seat.clone());
    }
    let partition = core.partition(group).filter(|partition| partition.leads())?;
    let coordinator = Coordinator::new(settings(&core.config), fastrand::u64(..));
    let seat = Rc::new(Seat {
        partition,
        coordinator: RefCell::new(Some(coordinator)),
        appends: RefCell::default(),
        appended: Notify::default(),
        loaded: Flag::default(),
        called: Notify::default(),
    });
    core.coordinators.seats.borrow_mut().insert(group, seat.clone());
    rt::spawn(run(core.clone(), seat.clone()));
    rt::spawn(follow_appends(core.clone(), seat.clone()));
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
    /// One call of the coordinator, and all that follows from it.
    fn call(
        &self,
        core: &Rc<Core>,
        call: impl FnOnce(&mut Coordinator<Token>, Now, &dyn Topics) -> Vec<Output<Token>>,
    ) {
        let now = core.coordinators.now();
        let mut outputs = match &mut *self.coordinator.borrow_mut() {
            Some(coordinator) => VecDeque::from(core.view(|view| call(coordinator, now, &Shown(view)))),
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
            }
        }
        self.called.notify();
    }

    /// The turn to await before the coordinator is given the request, if the ring has no room for what it will append.
    fn wait_for_room(&self, core: &Core, request: &GroupRequest) -> Option<Turn> {
        let bytes = self.coordinator.borrow().as_ref()?.append_bytes(request)?;
        core.admission.enter(&core.store, self.partition.group(), bytes)
    }

    fn append(&self, core: &Rc<Core>, id: AppendId, batch: Bytes) -> Result<(), ErrorCode> {
        // The coordinator's state has moved on already, so it can't wait for room: the client tries again.
        if core.store.admit(batch.len()) == Admission::Wait {
            return Err(ErrorCode::RequestTimedOut);
        }
        let info = BatchHeader::read(&batch).expect("the coordinator writes whole batches");
        let acks = Acks::All;
        #[cfg(test)]
        let acks = if sim::planted(Bug::CommitAcknowledgedTooEarly) { Acks::Leader } else { acks };
        let committed = self.partition.append(core, batch, &info, clock::wall_ms(), acks)?;
        self.appends.borrow_mut().push_back((id, committed));
        self.appended.notify();
        Ok(())
    }

    fn resign(&self) {
        let Some(coordinator) = self.coordinator.borrow_mut().take() else { return };
        for output in coordinator.resign() {
            if let Output::Reply { token, response } = output {
                token.keep(response);
            }
        }
        self.called.notify();
        self.appended.notify();
    }

    fn has_resigned(&self) -> bool {
        self.coordinator.borrow().is_none()
    }

    async fn resigned(&self) {
        while !self.has_resigned() {
            let seen = self.called.version();
            self.called.past(seen).await;
        }
    }
}

/// Loads a coordinator, then wakes it at its deadlines, as long as it serves.
async fn run(core: Rc<Core>, seat: Rc<Seat>) {
    let started = clock::now();
    match load(&core, &seat).await {
        Ok(batches) => {
            let took = clock::now() - started;
            tracing::info!(partition = %seat.partition.name, batches, ?took, "group coordinator loaded");
        }
        Err(error) => {
            tracing::error!(partition = %seat.partition.name, ?error, "cannot load a group coordinator; its groups are not served");
            return core.coordinators.resign(seat.partition.group());
        }
    }
    seat.call(&core, |coordinator, now, _| coordinator.loaded(now));
    seat.loaded.set();
    while !seat.has_resigned() {
        let seen = seat.called.version();
        let deadline = seat.coordinator.borrow().as_ref().and_then(Coordinator::next_deadline);
        match deadline {
            None => seat.called.past(seen).await,
            Some(at) => {
                let left = at.saturating_sub(core.coordinators.now().mono_ms);
                if left == 0 {
                    seat.call(&core, Coordinator::tick);
                } else {
                    race(seat.called.past(seen), rt::sleep(Duration::from_millis(left))).await;
                }
            }
        }
    }
}

/// Replays the log from its start to the high watermark; returns how many batches there were.
async fn load(core: &Rc<Core>, seat: &Seat) -> Result<usize, ErrorCode> {
    let end = seat.partition.high_watermark();
    until_all_topics_are_shown(core, seat).await?;
    let mut offset = seat.partition.log_start(core);
    let mut count = 0;
    while offset < end {
        let batches = match seat.partition.read(core, offset, end, LOAD_BYTES, true) {
            FetchRead::Hot(batches) => batches,
            FetchRead::Cold(read) => read.await?,
            FetchRead::Refused(code) => return Err(code),
        };
        for (header, batch) in batches.into_iter().flat_map(Batches::new).flatten() {
            offset = header.next_offset() as u64;
            count += 1;
            if let Some(coordinator) = &mut *seat.coordinator.borrow_mut() {
                for unusable in core.view(|view| coordinator.replay(&Shown(view), &batch)) {
                    tracing::warn!(partition = %seat.partition.name, %unusable, "skipped while loading groups");
                }
            }
        }
        rt::give_way().await;
    }
    Ok(count)
}

/// A topic that is not shown afterwards, though the log has commits to it, is gone.
async fn until_all_topics_are_shown(core: &Rc<Core>, seat: &Seat) -> Result<(), ErrorCode> {
    let shown = async {
        while !seat.has_resigned() {
            match meta::linearize(core).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::debug!(partition = %seat.partition.name, %error, "groups wait for the metadata"),
            }
            rt::sleep(VIEW_PAUSE).await;
        }
        Err(ErrorCode::NotCoordinator)
    };
    match race(shown, rt::sleep(VIEW_WAIT)).await {
        Either::First(outcome) => outcome,
        Either::Second(()) => Err(ErrorCode::RequestTimedOut),
    }
}

/// Tells the coordinator of its appends, in the order of the log.
async fn follow_appends(core: Rc<Core>, seat: Rc<Seat>) {
    while !seat.has_resigned() {
        let seen = seat.appended.version();
        let next = seat.appends.borrow_mut().pop_front();
        match next {
            Some((id, committed)) => {
                let outcome = committed.await.unwrap_or(Err(ErrorCode::NotLeaderOrFollower)).map(drop);
                seat.call(&core, |coordinator, now, _| coordinator.appended(now, id, outcome));
            }
            None => seat.appended.past(seen).await,
        }
    }
}
