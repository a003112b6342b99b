//! An encoded message as a sequence of shared buffers, ready for a vectored write.

use bytes::{Bytes, BytesMut};

/// A message's bytes in order. Clones share them.
///
/// A message of a single buffer needs no further allocation. A Fetch response alternates between its own fields and
/// shared record batches.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    first: Bytes,
    rest: Vec<Bytes>,
}

impl Parts {
    /// The sum of the buffers' lengths.
    pub fn byte_count(&self) -> usize {
        self.iter().map(Bytes::len).sum()
    }

    /// Whether the message has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.iter().all(Bytes::is_empty)
    }

    /// The buffers in order. Some may be empty.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// All bytes in one buffer. Copies them unless there is only one buffer. For tests and small messages.
    pub fn into_bytes(self) -> Bytes {
        if self.rest.is_empty() {
            return self.first;
        }
        let mut all = BytesMut::with_capacity(self.byte_count());
        self.iter().for_each(|part| all.extend_from_slice(part));
        all.freeze()
    }
}

impl From<Bytes> for Parts {
    fn from(first: Bytes) -> Parts {
        Parts { first, rest: Vec::new() }
    }
}

impl From<BytesMut> for Parts {
    fn from(first: BytesMut) -> Parts {
        Parts::from(first.freeze())
    }
}

impl IntoIterator for Parts {
    type Item = Bytes;
    type IntoIter = std::iter::Chain<std::iter::Once<Bytes>, std::vec::IntoIter<Bytes>>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self.first).chain(self.rest)
    }
}

/// Collects fields in one buffer and remembers where shared buffers go between them.
#[derive(Debug, Default)]
pub struct PartsBuilder {
    fields: BytesMut,
    /// A position within `fields`, and the shared buffer to insert there.
    shared: Vec<(usize, Bytes)>,
    shared_bytes: usize,
}

impl PartsBuilder {
    pub fn with_capacity(field_bytes: usize) -> PartsBuilder {
        PartsBuilder { fields: BytesMut::with_capacity(field_bytes), ..PartsBuilder::default() }
    }

    /// The buffer of fields, for the caller to append to.
    pub fn fields(&mut self) -> &mut BytesMut {
        &mut self.fields
    }

    /// Inserts a shared buffer after everything appended so far.
    pub fn share(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.shared_bytes += bytes.len();
            self.shared.push((self.fields.len(), bytes));
        }
    }

    /// The number of bytes so far, fields and shared buffers.
    pub fn byte_count(&self) -> usize {
        self.fields.len() + self.shared_bytes
    }

    pub fn finish(self) -> Parts {
        let fields = self.fields.freeze();
        let Some(&(first_cut, _)) = self.shared.first() else {
            return Parts::from(fields);
        };
        let mut rest = Vec::with_capacity(2 * self.shared.len());
        let mut cuts = self.shared.into_iter().peekable();
        while let Some((at, bytes)) = cuts.next() {
            let next_cut = cuts.peek().map_or(fields.len(), |(next, _)| *next);
            rest.push(bytes);
            if next_cut > at {
                rest.push(fields.slice(at..next_cut));
            }
        }
        Parts { first: fields.slice(..first_cut), rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_buffers_stand_where_they_were_put_and_are_not_copied() {
        let shared = Bytes::from(vec![7u8; 64]);
        let mut builder = PartsBuilder::with_capacity(8);
        builder.share(shared.slice(..2));
        builder.fields().extend_from_slice(b"ab");
        builder.share(shared.slice(2..4));
        builder.share(shared.slice(4..5));
        builder.share(Bytes::new());
        builder.fields().extend_from_slice(b"c");
        assert_eq!(builder.byte_count(), 8);
        let parts = builder.finish();
        assert_eq!(parts.byte_count(), 8);
        let pointers: Vec<_> = parts.iter().filter(|p| p.first() == Some(&7)).map(|p| p.as_ptr()).collect();
        assert_eq!(pointers, [0, 2, 4].map(|at| shared[at..].as_ptr()));
        assert_eq!(parts.clone().into_iter().map(|p| p.len()).sum::<usize>(), 8);
        assert_eq!(parts.into_bytes().as_ref(), b"\x07\x07ab\x07\x07\x07c");
        assert!(PartsBuilder::default().finish().is_empty());
    }
}
