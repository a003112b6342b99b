//! The data of entries in Raft logs.

use consensus::group::descriptor::{EntryData, bytes_beside, check_entry};
use consensus::metadata::{decode, decode_requests, encode_requests};

use crate::wire::bounded;

/// An entry of a partition's log or of the metadata log. What was decoded can be encoded, and is the same from then
/// on.
pub fn entry(data: &[u8]) {
    match EntryData::decode(data) {
        Ok(entry) => assert_eq!(EntryData::decode(&entry.encode()), Ok(entry)),
        Err(error) => assert_eq!((check_entry(data), bytes_beside(data)), (Err(error.into()), 0)),
    }
    if let Ok(requests) = bounded(data, || decode_requests(data)) {
        assert_eq!(decode_requests(&encode_requests(&requests)).as_ref(), Ok(&requests));
        let commands = decode(data).expect("the same bytes");
        assert!(requests.iter().map(|request| &request.command).eq(&commands));
    }
}
