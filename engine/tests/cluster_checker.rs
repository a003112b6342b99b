//! Tests of the cluster tests' checker. Each kind of violation is planted in an otherwise correct history, and the
//! checker must detect it.

#[path = "support/metadata_history.rs"]
#[allow(dead_code)] // The cluster tests use the rest.
mod metadata_history;

use metadata_history::{Change, Event, History, Outcome, Shown, Topic};
use net::Uuid;

const NAME: &str = "t";

fn id(number: u128) -> Option<Uuid> {
    Some(Uuid::from_u128(number))
}

fn topic(number: u128, partitions: i32, setting: Option<&str>) -> Option<Topic> {
    Some(Topic { id: id(number), partitions, setting: setting.map(str::to_owned) })
}

fn create(number: u128) -> Event {
    Event::Tried { change: Change::Create { partitions: 1 }, outcome: Outcome::Acked(id(number)) }
}

fn acked(change: Change) -> Event {
    Event::Tried { change, outcome: Outcome::Acked(None) }
}

fn refused(change: Change) -> Event {
    Event::Tried { change, outcome: Outcome::Refused }
}

fn unknown(change: Change) -> Event {
    Event::Tried { change, outcome: Outcome::Unknown }
}

fn set(value: &str) -> Change {
    Change::Set { value: value.to_owned() }
}

const CREATE: Change = Change::Create { partitions: 1 };
const GROW: Change = Change::Grow { to: 3 };

/// The violations in this history of one name. Each event comes with its broker. In the end all brokers show `last`.
fn judged(events: &[(usize, Event)], last: Option<Topic>) -> Vec<String> {
    let mut history = History::default();
    for (broker, event) in events {
        history.record(NAME, *broker, event.clone());
    }
    let shown: Shown = last.into_iter().map(|topic| (NAME.to_owned(), topic)).collect();
    history.check(&[shown.clone(), shown.clone(), shown])
}

#[track_caller]
fn sound(events: &[(usize, Event)], last: Option<Topic>) {
    assert_eq!(judged(events, last), [""; 0]);
}

#[track_caller]
fn caught(events: &[(usize, Event)], last: Option<Topic>) {
    assert_eq!(judged(events, last).len(), 1);
}

#[test]
fn a_sound_history_passes() {
    let events = [
        (0, create(1)),
        (0, Event::Saw(topic(1, 1, None))),
        (1, refused(CREATE)),
        (1, acked(GROW)),
        (2, acked(set("a"))),
        (2, Event::Saw(topic(1, 3, Some("a")))),
        (0, acked(Change::Delete)),
        (1, refused(GROW)),
        (2, create(2)),
    ];
    sound(&events, topic(2, 1, None));
}

#[test]
fn an_unanswered_write_may_have_happened_once_now_or_later_or_never() {
    let events = [(0, create(1)), (0, unknown(GROW)), (1, acked(set("a")))];
    sound(&events, topic(1, 3, Some("a")));
    sound(&events, topic(1, 1, Some("a")));
    let late = [(0, unknown(CREATE)), (0, refused(Change::Delete))];
    sound(&late, None);
    sound(&late, topic(9, 1, None));
}

#[test]
fn a_lost_ack_is_caught() {
    caught(&[(0, create(1))], None);
    caught(&[(0, create(1)), (0, acked(GROW))], topic(1, 1, None));
    caught(&[(0, create(1)), (0, acked(set("a"))), (1, acked(set("b")))], topic(1, 1, Some("a")));
}

#[test]
fn a_topic_that_comes_back_after_its_deletion_is_caught() {
    caught(&[(0, create(1)), (1, acked(Change::Delete))], topic(1, 1, None));
}

#[test]
fn an_older_topic_in_the_place_of_a_newer_is_caught() {
    caught(&[(0, create(1)), (1, acked(Change::Delete)), (0, create(2))], topic(1, 1, None));
}

#[test]
fn a_change_that_happens_twice_is_caught() {
    // The deletion with the unknown outcome made room for the second creation. It may not also delete that one.
    caught(&[(0, create(1)), (0, unknown(Change::Delete)), (0, create(2))], None);
    // The creation may not happen again after its topic was deleted.
    caught(&[(0, unknown(CREATE)), (0, acked(Change::Delete))], topic(5, 1, None));
    // Neither may an acknowledged creation, with another id.
    caught(&[(0, create(1)), (0, acked(Change::Delete))], topic(5, 1, None));
}

#[test]
fn a_refusal_without_a_reason_is_caught() {
    caught(&[(0, refused(CREATE))], None);
    caught(&[(0, create(1)), (1, refused(Change::Delete))], topic(1, 1, None));
}

#[test]
fn a_read_that_misses_its_own_brokers_ack_is_caught_and_anothers_may_be_late() {
    let missed = Event::Saw(None);
    caught(&[(0, create(1)), (0, missed.clone())], topic(1, 1, None));
    sound(&[(0, create(1)), (1, missed)], topic(1, 1, None));
}

#[test]
fn a_read_that_goes_back_is_caught() {
    let events = [(0, create(1)), (0, unknown(GROW)), (0, Event::Saw(topic(1, 3, None)))];
    sound(&events, topic(1, 3, None));
    caught(&[&events[..], &[(0, Event::Saw(topic(1, 1, None)))]].concat(), topic(1, 3, None));
}

#[test]
fn brokers_that_differ_are_caught() {
    let mut history = History::default();
    history.record(NAME, 0, create(1));
    let shown: Shown = topic(1, 1, None).into_iter().map(|topic| (NAME.to_owned(), topic)).collect();
    assert_eq!(history.check(&[shown.clone(), shown.clone()]), [""; 0]);
    assert_eq!(history.check(&[shown.clone(), Shown::new(), shown]).len(), 1);
}

#[test]
fn a_value_that_nobody_wrote_is_caught() {
    let shown: Shown = topic(1, 1, None).into_iter().map(|topic| (NAME.to_owned(), topic)).collect();
    assert_eq!(History::default().check(&[shown]), [format!("{NAME}: nobody asked for it")]);
}
