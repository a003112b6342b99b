//! Valid inputs: requests that real clients sent, and what the crate's own encoders make.

use bytes::Bytes;
use net::peer::auth::{Handshake, Secret, Step};
use net::peer::{Kind, Lane, PeerFrame};
use net::records::build::BatchBuilder;
use net::records::compression::Codec;

use crate::peer::SECRET;

/// The requests of real clients, without length prefixes.
pub fn requests() -> Vec<Vec<u8>> {
    let lines = include_str!("../../src/codec/golden/requests.txt").lines().filter(|line| !line.starts_with('#'));
    let hex = lines.map(|line| line.rsplit(' ').next().expect("a line ends with the frame").as_bytes());
    let digit = |two: &[u8]| {
        let two = std::str::from_utf8(two).expect("hexadecimal digits are ASCII");
        u8::from_str_radix(two, 16).expect("a frame is hexadecimal")
    };
    hex.map(|hex| hex.chunks(2).map(digit).collect()).collect()
}

/// Streams of these requests, each with the size of its pieces before it.
pub fn streams() -> Vec<Vec<u8>> {
    let stream = |(at, requests): (usize, &[Vec<u8>])| {
        let frame = |body: &Vec<u8>| [&(body.len() as u32).to_be_bytes()[..], body].concat();
        [vec![at as u8], requests.iter().flat_map(frame).collect()].concat()
    };
    requests().chunks(3).enumerate().map(stream).collect()
}

/// A batch of each codec and shape.
pub fn batches() -> Vec<Vec<u8>> {
    let mut batches = Vec::new();
    for codec in Codec::ALL {
        for records in [1, 3, 40] {
            let mut builder = BatchBuilder::new(codec).producer(7, 1, 42);
            for n in 0..records {
                let headers: &[(&[u8], Option<&[u8]>)] = &[(b"h", Some(b"1")), (b"", None)];
                let headers = if n % 3 == 0 { headers } else { &[] };
                builder.push_with_headers(1_000 - n, Some(b"key"), Some(&[n as u8; 20]), headers);
            }
            builder.push(2_000, None, None);
            batches.push(builder.finish().to_vec());
        }
    }
    batches
}

/// The bytes that each side of a whole handshake sends, with and without a secret, and frames that are no part of one.
pub fn handshakes() -> Vec<Vec<u8>> {
    let secrets = [Secret::new(SECRET), None];
    let mut streams: Vec<Vec<u8>> = secrets.into_iter().flat_map(recorded).collect();
    for kind in [Kind::Messages, Kind::Batches, Kind::Request, Kind::Response] {
        streams.push(bytes_of(&PeerFrame::new(kind, Lane::Bulk, Bytes::from_static(b"content"))));
    }
    streams
}

fn recorded(secret: Option<Secret>) -> [Vec<u8>; 2] {
    let mut caller = Handshake::caller(secret.clone(), Lane::Data, Bytes::from_static(b"caller"), [3; 32]);
    let mut answerer = Handshake::answerer(secret, Bytes::from_static(b"answerer"), [4; 32]);
    let (mut by_caller, mut by_answerer) = (Vec::new(), Vec::new());
    let mut to_answerer = vec![caller.begin()];
    while !to_answerer.is_empty() {
        by_caller.extend(to_answerer.iter().flat_map(bytes_of));
        let to_caller: Vec<PeerFrame> = to_answerer.into_iter().flat_map(|frame| sent(&mut answerer, frame)).collect();
        by_answerer.extend(to_caller.iter().flat_map(bytes_of));
        to_answerer = to_caller.into_iter().flat_map(|frame| sent(&mut caller, frame)).collect();
    }
    [by_caller, by_answerer]
}

fn sent(side: &mut Handshake, frame: PeerFrame) -> Vec<PeerFrame> {
    match side.take(frame).expect("both have the same secret") {
        Step::Go(frames) => frames,
        Step::Met { send, .. } => send,
    }
}

fn bytes_of(frame: &PeerFrame) -> Vec<u8> {
    [&frame.head()[..], &frame.bytes].concat()
}
