//! The encoding of the metadata plane's messages: what one broker asks another, and the answers.

use super::{Out, Union, VERIFIED, WireError};
use crate::{
    generated::peer::millrace::peer as fb,
    metadata::{self, Request, RequestResult},
    plane::{Accepted, Acks, Ask, PlaneMessage, Progress, Quorum, Refused},
};
use flatbuffers::WIPOffset;
use std::time::Duration;
use types::{RaftIndex, Term};

pub(super) fn ask_out(ask: Ask) -> fb::Ask {
    fb::Ask::new(ask.incarnation, ask.number)
}

pub(super) fn ask_in(ask: &fb::Ask) -> Ask {
    Ask { incarnation: ask.incarnation(), number: ask.number() }
}

pub(super) fn acks_out(acks: Acks) -> fb::Acks {
    match acks {
        Acks::Quorum => fb::Acks::Quorum,
        Acks::Leader => fb::Acks::Leader,
    }
}

pub(super) fn acks_in(acks: fb::Acks) -> Result<Acks, WireError> {
    match acks {
        fb::Acks::Quorum => Ok(Acks::Quorum),
        fb::Acks::Leader => Ok(Acks::Leader),
        other => Err(WireError::UnknownKind(other.0)),
    }
}

fn refusal_out<T>(answer: &Result<T, Refused>) -> (fb::Refusal, u64) {
    match answer {
        Ok(_) => (fb::Refusal::None, 0),
        Err(Refused::NotLeader { leader }) => (fb::Refusal::NotLeader, leader.unwrap_or(0)),
        Err(Refused::Busy) => (fb::Refusal::Busy, 0),
    }
}

fn refusal_in(refusal: fb::Refusal, leader: u64) -> Result<Option<Refused>, WireError> {
    match refusal {
        fb::Refusal::None => Ok(None),
        fb::Refusal::NotLeader => Ok(Some(Refused::NotLeader { leader: (leader != 0).then_some(leader) })),
        fb::Refusal::Busy => Ok(Some(Refused::Busy)),
        other => Err(WireError::UnknownKind(other.0)),
    }
}

pub(super) fn plane_out<'b>(out: &mut Out<'b>, message: &PlaneMessage) -> (fb::Body, Union) {
    match message {
        PlaneMessage::Forward { ask, acks, requests } => {
            let args = fb::ForwardArgs {
                ask: Some(&ask_out(*ask)),
                acks: acks_out(*acks),
                requests: Some(out.create_vector::<u8>(&metadata::encode_requests(requests))),
            };
            (fb::Body::Forward, fb::Forward::create(out, &args).as_union_value())
        }
        PlaneMessage::Forwarded { ask, answer } => {
            let (refusal, leader) = refusal_out(answer);
            let accepted = answer.as_ref().ok();
            let args = fb::ForwardedArgs {
                ask: Some(&ask_out(*ask)),
                refusal,
                leader,
                term: accepted.map_or(0, |accepted| accepted.term.0),
                index: accepted.map_or(0, |accepted| accepted.index.get()),
                results: accepted.map(|accepted| out.create_vector::<u8>(&metadata::encode_results(&accepted.results))),
            };
            (fb::Body::Forwarded, fb::Forwarded::create(out, &args).as_union_value())
        }
        PlaneMessage::ReadIndex { ask } => {
            let args = fb::ReadIndexArgs { ask: Some(&ask_out(*ask)) };
            (fb::Body::ReadIndex, fb::ReadIndex::create(out, &args).as_union_value())
        }
        PlaneMessage::ReadIndexed { ask, answer } => {
            let (refusal, leader) = refusal_out(answer);
            let index = answer.unwrap_or(RaftIndex::ZERO);
            let args = fb::ReadIndexedArgs { ask: Some(&ask_out(*ask)), refusal, leader, index: index.get() };
            (fb::Body::ReadIndexed, fb::ReadIndexed::create(out, &args).as_union_value())
        }
        PlaneMessage::Probe { incarnation, sent_at } => {
            let args = fb::ProbeArgs { incarnation: *incarnation, sent_at: sent_at.as_nanos() as u64 };
            (fb::Body::Probe, fb::Probe::create(out, &args).as_union_value())
        }
        PlaneMessage::Heartbeat { incarnation, sent_at, term, commit } => {
            let sent_at = sent_at.as_nanos() as u64;
            let args = fb::HeartbeatArgs { incarnation: *incarnation, sent_at, term: term.0, commit: commit.get() };
            (fb::Body::Heartbeat, fb::Heartbeat::create(out, &args).as_union_value())
        }
        PlaneMessage::Describe { ask } => {
            let args = fb::DescribeArgs { ask: Some(&ask_out(*ask)) };
            (fb::Body::Describe, fb::Describe::create(out, &args).as_union_value())
        }
        PlaneMessage::Described { ask, answer } => {
            let (refusal, leader) = refusal_out(answer);
            let quorum = answer.as_ref().ok().map(|quorum| quorum_out(out, quorum));
            let args = fb::DescribedArgs { ask: Some(&ask_out(*ask)), refusal, leader, quorum };
            (fb::Body::Described, fb::Described::create(out, &args).as_union_value())
        }
    }
}

pub(super) fn plane_in(message: fb::Message<'_>) -> Result<PlaneMessage, WireError> {
    Ok(match message.body_type() {
        fb::Body::Forward => {
            let body = message.body_as_forward().expect(VERIFIED);
            let requests: Vec<Request> = metadata::decode_requests(body.requests().bytes())?;
            PlaneMessage::Forward { ask: ask_in(body.ask()), acks: acks_in(body.acks())?, requests }
        }
        fb::Body::Forwarded => {
            let body = message.body_as_forwarded().expect(VERIFIED);
            let answer = match refusal_in(body.refusal(), body.leader())? {
                Some(refused) => Err(refused),
                None => Ok(Accepted {
                    term: Term(body.term()),
                    index: RaftIndex::new(body.index()),
                    results: results_in(body.results().map(|results| results.bytes()))?,
                }),
            };
            PlaneMessage::Forwarded { ask: ask_in(body.ask()), answer }
        }
        fb::Body::ReadIndex => {
            PlaneMessage::ReadIndex { ask: ask_in(message.body_as_read_index().expect(VERIFIED).ask()) }
        }
        fb::Body::ReadIndexed => {
            let body = message.body_as_read_indexed().expect(VERIFIED);
            let refused = refusal_in(body.refusal(), body.leader())?;
            PlaneMessage::ReadIndexed {
                ask: ask_in(body.ask()),
                answer: refused.map_or(Ok(RaftIndex::new(body.index())), Err),
            }
        }
        fb::Body::Probe => {
            let body = message.body_as_probe().expect(VERIFIED);
            PlaneMessage::Probe { incarnation: body.incarnation(), sent_at: Duration::from_nanos(body.sent_at()) }
        }
        fb::Body::Heartbeat => {
            let body = message.body_as_heartbeat().expect(VERIFIED);
            PlaneMessage::Heartbeat {
                incarnation: body.incarnation(),
                sent_at: Duration::from_nanos(body.sent_at()),
                term: Term(body.term()),
                commit: RaftIndex::new(body.commit()),
            }
        }
        fb::Body::Describe => PlaneMessage::Describe { ask: ask_in(message.body_as_describe().expect(VERIFIED).ask()) },
        fb::Body::Described => {
            let body = message.body_as_described().expect(VERIFIED);
            let answer = match (refusal_in(body.refusal(), body.leader())?, body.quorum()) {
                (Some(refused), _) => Err(refused),
                (None, Some(quorum)) => Ok(quorum_in(quorum)),
                (None, None) => Err(Refused::NotLeader { leader: None }),
            };
            PlaneMessage::Described { ask: ask_in(body.ask()), answer }
        }
        other => return Err(WireError::UnknownKind(other.0)),
    })
}

fn results_in(bytes: Option<&[u8]>) -> Result<Vec<RequestResult>, WireError> {
    Ok(bytes.map(metadata::decode_results).transpose()?.unwrap_or_default())
}

pub(super) fn quorum_out<'b>(out: &mut Out<'b>, quorum: &Quorum) -> WIPOffset<fb::Quorum<'b>> {
    let mut peers = |peers: &[Progress]| {
        let ago = |ago: Option<u64>| ago.map_or(-1, |ago| i64::try_from(ago).unwrap_or(i64::MAX));
        let peers: Vec<_> = peers
            .iter()
            .map(|peer| {
                let args = fb::ProgressArgs {
                    peer: peer.peer,
                    matched: peer.matched.get(),
                    heard_ago: ago(peer.heard_ms_ago),
                    caught_up_ago: ago(peer.caught_up_ms_ago),
                };
                fb::Progress::create(out, &args)
            })
            .collect();
        out.create_vector(&peers)
    };
    let (voters, learners) = (peers(&quorum.voters), peers(&quorum.learners));
    let args = fb::QuorumArgs {
        leader: quorum.leader,
        term: quorum.term.0,
        commit: quorum.commit.get(),
        voters: Some(voters),
        learners: Some(learners),
    };
    fb::Quorum::create(out, &args)
}

pub(super) fn quorum_in(quorum: fb::Quorum<'_>) -> Quorum {
    let peer = |peer: fb::Progress<'_>| Progress {
        peer: peer.peer(),
        matched: RaftIndex::new(peer.matched()),
        heard_ms_ago: u64::try_from(peer.heard_ago()).ok(),
        caught_up_ms_ago: u64::try_from(peer.caught_up_ago()).ok(),
    };
    Quorum {
        leader: quorum.leader(),
        term: Term(quorum.term()),
        commit: RaftIndex::new(quorum.commit()),
        voters: quorum.voters().iter().map(peer).collect(),
        learners: quorum.learners().iter().map(peer).collect(),
    }
}
