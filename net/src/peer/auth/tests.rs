//! Handshakes between two honest sides, and with sides that are not what they claim.

use crate::peer::auth::*;

fn secret(byte: u8) -> Option<Secret> {
    Secret::new(&[byte; SECRET_BYTES_MIN])
}

fn pair(caller: Option<Secret>, answerer: Option<Secret>) -> (Handshake, Handshake) {
    let caller = Handshake::caller(caller, Lane::Data, Bytes::from_static(b"broker 1"), [1; NONCE_BYTES]);
    (caller, Handshake::answerer(answerer, Bytes::from_static(b"broker 2"), [2; NONCE_BYTES]))
}

/// The hellos that the caller and the answerer learned, the frames sent (1: to the answerer), and the errors of both
/// sides.
type Course = (Option<Bytes>, Option<Bytes>, Vec<(usize, Kind)>, Vec<PeerError>);

/// Runs a handshake. `change` may modify each frame in transit; it also gets the frame's number.
fn run(mut caller: Handshake, mut answerer: Handshake, mut change: impl FnMut(usize, &mut PeerFrame)) -> Course {
    let mut on_way = std::collections::VecDeque::from([(true, caller.begin())]);
    let (mut learned, mut sent, mut errors) = ([None, None], Vec::new(), Vec::new());
    while let Some((to_answerer, mut frame)) = on_way.pop_front() {
        change(sent.len(), &mut frame);
        sent.push((usize::from(to_answerer), frame.kind));
        let side = if to_answerer { &mut answerer } else { &mut caller };
        match side.take(frame) {
            Ok(Step::Go(frames)) => on_way.extend(frames.into_iter().map(|frame| (!to_answerer, frame))),
            Ok(Step::Met { send, theirs }) => {
                on_way.extend(send.into_iter().map(|frame| (!to_answerer, frame)));
                learned[usize::from(to_answerer)] = Some(theirs);
            }
            Err(error) => {
                on_way.extend(side.parting(&error).map(|frame| (!to_answerer, frame)));
                errors.push(error);
            }
        }
    }
    let [by_caller, by_answerer] = learned;
    (by_caller, by_answerer, sent, errors)
}

#[test]
fn both_sides_accept_a_peer_that_knows_the_secret() {
    let (caller, answerer) = pair(secret(7), secret(7));
    let (by_caller, by_answerer, sent, errors) = run(caller, answerer, |_, frame| {
        let clear = [7; SECRET_BYTES_MIN];
        assert!(!frame.bytes.windows(clear.len()).any(|window| window == clear), "the secret never travels");
        assert_eq!(frame.lane, Lane::Data);
    });
    assert_eq!((by_caller.as_deref(), by_answerer.as_deref()), (Some(&b"broker 2"[..]), Some(&b"broker 1"[..])));
    assert!(errors.is_empty(), "{errors:?}");
    let kinds = [Kind::Challenge, Kind::Challenge, Kind::Hello, Kind::Proof, Kind::Hello, Kind::Proof, Kind::Proof];
    assert_eq!(sent.iter().map(|(_, kind)| *kind).collect::<Vec<_>>(), kinds);
}

#[test]
fn the_bytes_stay_as_they_are() {
    // Brokers of the version before take part in this handshake while a cluster is upgraded.
    let (caller, answerer) = pair(secret(7), secret(7));
    let mut bytes = Vec::new();
    run(caller, answerer, |_, frame| {
        bytes.extend_from_slice(&frame.head());
        bytes.extend_from_slice(&frame.bytes);
    });
    assert_eq!((bytes.len(), crc32c::crc32c(&bytes)), (260, 1_574_018_261));
}

#[test]
fn a_peer_without_the_secret_learns_nothing() {
    let (caller, answerer) = pair(secret(7), secret(8));
    let (by_caller, by_answerer, sent, errors) = run(caller, answerer, |_, _| {});
    assert_eq!((by_caller, by_answerer), (None, None));
    assert!(matches!(errors[..], [PeerError::OtherSecret]), "{errors:?}");
    // The answerer sent only its nonce.
    assert_eq!(sent.iter().filter(|(to, _)| *to == 0).map(|(_, kind)| *kind).collect::<Vec<_>>(), [Kind::Challenge]);
}

#[test]
fn every_byte_that_is_changed_on_the_way_is_noticed() {
    for number in 0..7 {
        for at in [0, 5, 31] {
            let (caller, answerer) = pair(secret(7), secret(7));
            let (by_caller, by_answerer, _, errors) = run(caller, answerer, |sent, frame| {
                if sent == number && at < frame.bytes.len() {
                    let mut bytes = frame.bytes.to_vec();
                    bytes[at] ^= 1;
                    frame.bytes = bytes.into();
                }
            });
            let is_hello = matches!(number, 2 | 4);
            if is_hello && at >= 8 {
                continue;
            }
            assert!(by_answerer.is_none(), "frame {number}, byte {at}");
            assert!(number == 6 || by_caller.is_none(), "frame {number}, byte {at}");
            assert!(!errors.is_empty(), "frame {number}, byte {at}");
        }
    }
}

#[test]
fn a_proof_of_another_connection_or_of_the_other_side_is_none() {
    // Replays a caller's earlier proof; the caller uses the same nonce again.
    let mut heard = Vec::new();
    let (caller, answerer) = pair(secret(7), secret(7));
    run(caller, answerer, |_, frame| heard.push(frame.clone()));
    let mut answerer = Handshake::answerer(secret(7), Bytes::from_static(b"broker 2"), [3; NONCE_BYTES]);
    answerer.take(heard[0].clone()).unwrap();
    answerer.take(heard[2].clone()).unwrap();
    assert!(matches!(answerer.take(heard[3].clone()), Err(PeerError::OtherSecret)));
    // Sends the caller's own frames back to it.
    let (mut caller, _) = pair(secret(7), None);
    let own = caller.begin();
    let Step::Go(said) = caller.take(own).unwrap() else { panic!("it is not over") };
    caller.take(said[0].clone()).unwrap();
    assert!(matches!(caller.take(said[1].clone()), Err(PeerError::OtherSecret)));
}

#[test]
fn frames_out_of_order_end_it() {
    for first in [Kind::Messages, Kind::Request, Kind::Proof, Kind::Batches] {
        let mut answerer = Handshake::answerer(secret(7), Bytes::new(), [2; NONCE_BYTES]);
        let frame = PeerFrame::new(first, Lane::Control, Bytes::from_static(&[0; NONCE_BYTES]));
        assert!(answerer.take(frame).is_err(), "{first:?}");
        let again = PeerFrame::new(Kind::Challenge, Lane::Control, Bytes::from_static(&[0; NONCE_BYTES]));
        assert!(answerer.take(again).is_err(), "it is over");
    }
    let mut answerer = Handshake::answerer(secret(7), Bytes::new(), [2; NONCE_BYTES]);
    assert!(answerer.take(PeerFrame::new(Kind::Challenge, Lane::Control, Bytes::from_static(b"short"))).is_err());
}

#[test]
fn without_a_secret_hellos_are_exchanged_and_each_side_says_what_the_other_lacks() {
    let (caller, answerer) = pair(None, None);
    let (by_caller, by_answerer, sent, _) = run(caller, answerer, |_, _| {});
    assert_eq!((by_caller.as_deref(), by_answerer.as_deref()), (Some(&b"broker 2"[..]), Some(&b"broker 1"[..])));
    assert_eq!(sent.len(), 2);
    let (caller, answerer) = pair(None, secret(7));
    let (by_caller, by_answerer, _, errors) = run(caller, answerer, |_, _| {});
    assert_eq!((by_caller, by_answerer), (None, None));
    assert!(matches!(errors[..], [PeerError::NoProof, PeerError::SecretWanted]), "{errors:?}");
    let (caller, answerer) = pair(secret(7), None);
    let (by_caller, by_answerer, _, errors) = run(caller, answerer, |_, _| {});
    assert_eq!((by_caller, by_answerer), (None, None));
    assert!(matches!(errors[..], [PeerError::NoSecretHere, PeerError::OtherHasNoSecret]), "{errors:?}");
}

#[test]
fn a_secret_is_made_once_for_its_owner_alone() {
    let dir = std::env::temp_dir().join(format!("millrace-secret-{}", uuid::Uuid::new_v4()));
    fs::create_dir(&dir).unwrap();
    let path = dir.join(SECRET_FILE);
    let made = Secret::read_or_make(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!is_readable_by_all(&path));
    assert_eq!(Secret::read_or_make(&path).unwrap(), made);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.len() == 65 && text.ends_with('\n'), "{text:?}");
    assert!(!format!("{made:?}").contains(text.trim()), "it is not shown");
    // White space around the secret is ignored.
    fs::write(&path, format!("  {text}\n\n")).unwrap();
    assert_eq!(Secret::read(&path).unwrap(), made);
    fs::write(&path, "too short\n").unwrap();
    let refused = Secret::read(&path).unwrap_err().to_string();
    assert!(refused.contains("9 bytes; it must have 32 to 4096"), "{refused}");
    fs::remove_dir_all(&dir).unwrap();
    assert!(Secret::read(&path).unwrap_err().to_string().contains("cannot read the cluster's secret in"));
}
