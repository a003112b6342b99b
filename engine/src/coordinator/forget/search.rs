//! A search through all groups and their offsets, in turns: for offsets of deleted topics (`topics`), and for expired
//! ones.

use net::StrBytes;

use crate::coordinator::{group::Group, records::CommittedOffset};

/// Groups, members and offsets that one turn of a search looks at.
pub const SEARCH_TURN_ENTRIES: usize = 4096;

/// A turn ends once the tombstones that it writes have this many bytes (1 MiB). The names of a group and of a topic
/// can make a single tombstone as large as 64 KiB.
pub(crate) const SEARCH_TURN_BYTES: usize = 1 << 20;

/// Approximate bytes of a tombstone in the log besides the group's and the topic's name.
const TOMBSTONE_BYTES: usize = 80;

/// Approximate bytes of a tombstone, for an offset or, with an empty topic, for a group.
pub(crate) fn tombstone_bytes(group: &str, topic: &str) -> usize {
    TOMBSTONE_BYTES + group.len() + topic.len()
}

/// The place at which a search continues.
#[derive(Clone, Debug, Default)]
pub(crate) struct SearchSpot {
    pub(crate) group: StrBytes,
    /// The group's first offset to look at; `None`: the group is looked at from its beginning.
    offset: Option<(StrBytes, i32)>,
}

impl SearchSpot {
    pub(crate) fn new(group: &StrBytes, offset: Option<(StrBytes, i32)>) -> SearchSpot {
        SearchSpot { group: group.clone(), offset }
    }

    /// Where to begin in a group that the search meets.
    pub(crate) fn within(&self, group: &StrBytes) -> Option<&(StrBytes, i32)> {
        self.offset.as_ref().filter(|_| self.group == *group)
    }
}

/// The work of a turn so far.
#[derive(Debug, Default)]
pub(crate) struct SearchTurn {
    entries: usize,
    tombstone_bytes: usize,
}

impl SearchTurn {
    pub(crate) fn is_over(&self) -> bool {
        self.entries >= SEARCH_TURN_ENTRIES || self.tombstone_bytes >= SEARCH_TURN_BYTES
    }

    /// Whether so many entries more fit this turn. The first ones of a turn always do.
    pub(crate) fn has_room(&self, entries: usize) -> bool {
        self.entries == 0 || (!self.is_over() && self.entries + entries <= SEARCH_TURN_ENTRIES)
    }

    pub(crate) fn look(&mut self, entries: usize) {
        self.entries += entries;
    }

    pub(crate) fn write(&mut self, tombstone_bytes: usize) {
        self.tombstone_bytes += tombstone_bytes;
    }
}

impl<T> Group<T> {
    /// The group's offsets in order, from the given one on.
    pub(crate) fn offsets_from(
        &self,
        from: Option<&(StrBytes, i32)>,
    ) -> impl Iterator<Item = (&StrBytes, i32, &CommittedOffset)> {
        let (first_topic, first_partition) = from.cloned().unwrap_or((StrBytes::new(), i32::MIN));
        self.offsets.range(first_topic.clone()..).flat_map(move |(topic, partitions)| {
            let first = if *topic == first_topic { first_partition } else { i32::MIN };
            partitions.range(first..).map(move |(&partition, offset)| (topic, partition, offset))
        })
    }

    /// Members and offsets.
    pub(crate) fn entries(&self) -> usize {
        self.members.len() + self.offsets.values().map(|partitions| partitions.len()).sum::<usize>()
    }
}
