//! Membership of a group: changes of its members, and the encoding of its configuration in checkpoints.
//!
//! ```text
//! 0           1            2        4        8          12         16              20
//! ┌───────────┬────────────┬────────┬────────┬──────────┬──────────┬───────────────┬────────────────────────┐
//! │ version 1 │ auto leave │ zero   │ voters │ learners │ outgoing │ learners next │ ids, u64, in that order │
//! └───────────┴────────────┴────────┴────────┴──────────┴──────────┴───────────────┴────────────────────────┘
//! ```
//!
//! Little-endian, ids ascending. Outgoing voters and next learners exist only while several members are being
//! changed (joint consensus, Raft thesis 4.3).
//!
//! A log that outlives its configurations keeps all of them, ascending, each with the first index at which it is in
//! force:
//!
//! ```text
//! 0           1      4         8               16
//! ┌───────────┬──────┬─────────┬───────────────┬────────┬───────────────────────┬───┐
//! │ version 2 │ zero │ count   │ first's index │ length │ first, as drawn above │ … │
//! └───────────┴──────┴─────────┴───────────────┴────────┴───────────────────────┴───┘
//! ```

use crate::group::errors::ConfigurationError;
use bytes::Bytes;
use raft_proto::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use types::RaftIndex;

const VERSION: u8 = 1;
const VERSION_ALL: u8 = 2;
const IDS_AT: usize = 20;

/// The new role of one peer of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    Voter(u64),
    /// Gets the log, but has no vote.
    Learner(u64),
    Removed(u64),
}

/// Builds one membership change. Several changes become one step through joint consensus, which ends by itself.
pub(crate) fn conf_change(changes: &[Member]) -> ConfChangeV2 {
    let singles = changes.iter().map(|change| {
        let (change_type, node_id) = match *change {
            Member::Voter(peer) => (ConfChangeType::AddNode, peer),
            Member::Learner(peer) => (ConfChangeType::AddLearnerNode, peer),
            Member::Removed(peer) => (ConfChangeType::RemoveNode, peer),
        };
        let mut single = ConfChangeSingle { node_id, ..ConfChangeSingle::default() };
        single.set_change_type(change_type);
        single
    });
    let mut change = ConfChangeV2::default();
    change.set_changes(singles.collect::<Vec<_>>().into());
    change
}

/// The most changes that one entry may hold.
const CHANGES_MAX: usize = 64;

/// Reads a change that a leader wrote: that of [`conf_change`], or the one by which raft-rs ends a joint
/// configuration. The bytes are Protocol Buffers' wire format, and only `ConfChangeV2` is accepted. (protobuf 2
/// itself can overflow the stack on bytes that were made for that.)
pub(crate) fn decode_change(data: &[u8]) -> Result<ConfChangeV2, ConfigurationError> {
    let mut change = ConfChangeV2::default();
    let mut changes = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        match take_field(&mut rest)? {
            (CHANGES_FIELD, Value::Bytes(single)) if changes.len() < CHANGES_MAX => {
                changes.push(decode_single(single)?)
            }
            (field, _) => return Err(ConfigurationError::Field(field)),
        }
    }
    change.set_changes(changes.into());
    Ok(change)
}

const CHANGES_FIELD: u64 = 2;
const TYPE_FIELD: u64 = 1;
const NODE_FIELD: u64 = 2;

fn decode_single(mut rest: &[u8]) -> Result<ConfChangeSingle, ConfigurationError> {
    let mut single = ConfChangeSingle::default();
    while !rest.is_empty() {
        match take_field(&mut rest)? {
            (TYPE_FIELD, Value::Number(number)) => single.set_change_type(match number {
                0 => ConfChangeType::AddNode,
                1 => ConfChangeType::RemoveNode,
                2 => ConfChangeType::AddLearnerNode,
                other => return Err(ConfigurationError::ChangeType(other)),
            }),
            (NODE_FIELD, Value::Number(peer)) => single.node_id = peer,
            (field, _) => return Err(ConfigurationError::SingleField(field)),
        }
    }
    if single.node_id == 0 {
        return Err(ConfigurationError::NoPeer);
    }
    Ok(single)
}

enum Value<'b> {
    Number(u64),
    Bytes(&'b [u8]),
}

/// Takes the next field of a Protocol Buffers message: its number and its value.
fn take_field<'b>(rest: &mut &'b [u8]) -> Result<(u64, Value<'b>), ConfigurationError> {
    let tag = take_varint(rest)?;
    match tag & 7 {
        0 => Ok((tag >> 3, Value::Number(take_varint(rest)?))),
        2 => {
            let length = take_varint(rest)?;
            let length = usize::try_from(length).ok().filter(|length| *length <= rest.len());
            let (bytes, behind) = rest.split_at(length.ok_or(ConfigurationError::FieldLength)?);
            *rest = behind;
            Ok((tag >> 3, Value::Bytes(bytes)))
        }
        other => Err(ConfigurationError::WireType(other)),
    }
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, ConfigurationError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, behind) = rest.split_first().ok_or(ConfigurationError::NumberEnds)?;
        *rest = behind;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ConfigurationError::NumberBits)
}

/// The membership changes in an entry's data; none if the data can't be read as a membership change.
pub fn member_changes(data: &[u8]) -> Vec<Member> {
    let change = decode_change(data).unwrap_or_default();
    let changes = change.get_changes().iter().map(|single| match single.get_change_type() {
        ConfChangeType::AddNode => Member::Voter(single.node_id),
        ConfChangeType::AddLearnerNode => Member::Learner(single.node_id),
        ConfChangeType::RemoveNode => Member::Removed(single.node_id),
    });
    changes.collect()
}

/// Encodes a configuration for a checkpoint.
pub fn encode(state: &ConfState) -> Bytes {
    let lists = [&state.voters, &state.learners, &state.voters_outgoing, &state.learners_next];
    let mut bytes = vec![VERSION, u8::from(state.auto_leave), 0, 0];
    for list in lists {
        bytes.extend_from_slice(&(list.len() as u32).to_le_bytes());
    }
    for list in lists {
        let mut ids = list.clone();
        ids.sort_unstable();
        bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    }
    bytes.into()
}

/// Encodes configurations, each with the first index at which it is in force. The last is the current one.
pub(crate) fn encode_all(all: &[(RaftIndex, ConfState)]) -> Bytes {
    let mut bytes = vec![VERSION_ALL, 0, 0, 0];
    bytes.extend_from_slice(&(all.len() as u32).to_le_bytes());
    for (index, state) in all {
        let state = encode(state);
        bytes.extend_from_slice(&index.get().to_le_bytes());
        bytes.extend_from_slice(&(state.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&state);
    }
    bytes.into()
}

/// Decodes the bytes of [`encode_all`], or those of [`encode`] as one configuration that was always in force.
pub(crate) fn decode_all(bytes: &[u8]) -> Result<Vec<(RaftIndex, ConfState)>, ConfigurationError> {
    if bytes.first() != Some(&VERSION_ALL) {
        return Ok(vec![(RaftIndex::ZERO, decode(bytes)?)]);
    }
    let (head, mut rest) = bytes.split_at_checked(8).ok_or(ConfigurationError::Ends)?;
    let count = u32::from_le_bytes(head[4..].try_into().expect("four bytes"));
    let mut all = Vec::new();
    for _ in 0..count {
        let (head, behind) = rest.split_at_checked(12).ok_or(ConfigurationError::Ends)?;
        let index = RaftIndex::new(u64::from_le_bytes(head[..8].try_into().expect("eight bytes")));
        let length = u32::from_le_bytes(head[8..].try_into().expect("four bytes")) as usize;
        let (state, behind) = behind.split_at_checked(length).ok_or(ConfigurationError::Ends)?;
        all.push((index, decode(state)?));
        rest = behind;
    }
    if all.is_empty() || !rest.is_empty() || !all.is_sorted_by(|one, next| one.0 < next.0) {
        return Err(ConfigurationError::Order { count: all.len(), bytes: bytes.len() });
    }
    Ok(all)
}

pub(crate) fn decode(bytes: &[u8]) -> Result<ConfState, ConfigurationError> {
    let Some((head, ids)) = bytes.split_at_checked(IDS_AT) else {
        return Err(ConfigurationError::Counts { bytes: bytes.len(), least: IDS_AT });
    };
    if head[0] != VERSION {
        return Err(ConfigurationError::Version(head[0]));
    }
    let counts = [4, 8, 12, 16].map(|at| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes")));
    if ids.len() as u64 != counts.iter().map(|count| u64::from(*count) * 8).sum() {
        return Err(ConfigurationError::Length { counts, bytes: bytes.len() });
    }
    let mut ids = ids.chunks_exact(8).map(|id| u64::from_le_bytes(id.try_into().expect("eight bytes")));
    let [voters, learners, outgoing, next] = counts.map(|count| ids.by_ref().take(count as usize).collect::<Vec<_>>());
    let mut state = ConfState::from((voters, learners));
    state.set_voters_outgoing(outgoing);
    state.set_learners_next(next);
    state.set_auto_leave(head[1] != 0);
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_drawn_one() {
        let mut state = ConfState::from((vec![3, 1], vec![9]));
        state.set_voters_outgoing(vec![2]);
        state.set_learners_next(vec![4]);
        state.set_auto_leave(true);
        let mut expected = vec![1, 1, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
        for id in [1u8, 3, 9, 2, 4] {
            expected.extend_from_slice(&[id, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(encode(&state)[..], expected);
        state.set_voters(vec![1, 3]);
        assert_eq!(decode(&expected), Ok(state));
    }

    #[test]
    fn only_changes_of_members_as_protobuf_writes_them_are_read() {
        use protobuf::Message as _;
        let changes = [Member::Voter(1), Member::Learner(300), Member::Removed(u64::MAX)];
        for changes in [&changes[..], &changes[1..2], &[]] {
            let change = conf_change(changes);
            let bytes = change.write_to_bytes().unwrap();
            assert_eq!(decode_change(&bytes), Ok(change));
            assert_eq!(member_changes(&bytes), changes);
            for length in 0..bytes.len() {
                assert!(
                    decode_change(&bytes[..length]).is_err() || member_changes(&bytes[..length]).len() < changes.len()
                );
            }
        }
        let many = vec![Member::Voter(1); CHANGES_MAX + 1];
        for (bytes, why) in [
            (&[8, 2][..], "can't have field 1"),
            (&[18, 2, 8, 3], "unknown type 3"),
            (&[18, 2, 16, 0], "names no peer"),
            (&[18, 9, 16, 1], "longer than its message"),
            (&[18, 4, 16, 1, 26, 0], "can't have field 3"),
            (&[26, 1, 7], "can't have field 3"),
            (&[11], "wire type 3"),
            (&[18, 12, 16, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2, 0], "more than 64 bits"),
            (&conf_change(&many).write_to_bytes().unwrap()[..], "can't have field 2"),
        ] {
            let error = decode_change(bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn configurations_come_back_with_the_indices_from_which_they_were_in_force() {
        let (first, second) = (ConfState::from((vec![1, 2], vec![])), ConfState::from((vec![2, 3], vec![4])));
        let all = vec![(RaftIndex::ZERO, first), (RaftIndex::new(9), second)];
        let bytes = encode_all(&all);
        assert_eq!(decode_all(&bytes), Ok(all.clone()));
        assert_eq!(bytes[..16], [2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode_all(&encode(&all[1].1)), Ok(vec![(RaftIndex::ZERO, all[1].1.clone())]));
        for length in 0..bytes.len() {
            assert!(decode_all(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        let good = encode(&ConfState::from((vec![1, 2], vec![3])));
        for length in 0..good.len() {
            assert!(decode(&good[..length]).is_err(), "{length} bytes");
        }
        let mut newer = good.to_vec();
        newer[0] = 2;
        assert_eq!(decode(&newer), Err(ConfigurationError::Version(2)));
        let mut absurd = good.to_vec();
        absurd[4..8].fill(255);
        assert!(decode(&absurd).is_err());
    }
}
