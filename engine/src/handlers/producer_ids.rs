//! InitProducerId for idempotent producers. Transactions are not served.

use crate::{cluster::meta, core::Core};
use consensus::metadata::{Command, Outcome};
use net::{
    errors::ErrorCode,
    messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId},
};
use std::rc::Rc;

/// Ids that one core takes from the metadata at a time. A restart wastes the rest of a block; there are 2^63 ids.
const BLOCK: u32 = 1000;

pub async fn init(core: &Rc<Core>, request: InitProducerIdRequest) -> InitProducerIdResponse {
    if request.transactional_id.is_some() {
        return refused(ErrorCode::TransactionalIdAuthorizationFailed);
    }
    // An idempotent producer that names an id wants a new epoch (KIP-360). A new id serves as well, as in Kafka.
    match next(core).await {
        Ok(id) => InitProducerIdResponse::default().with_producer_id(ProducerId(id)).with_producer_epoch(0),
        Err(code) => refused(code),
    }
}

fn refused(code: ErrorCode) -> InitProducerIdResponse {
    InitProducerIdResponse::default()
        .with_error_code(code.code())
        .with_producer_id(ProducerId(-1))
        .with_producer_epoch(-1)
}

async fn next(core: &Rc<Core>) -> Result<i64, ErrorCode> {
    loop {
        if let Some(id) = core.producer_ids.take() {
            return Ok(id);
        }
        // Several requests may find the block empty. Each then allocates a block, and the first one is used.
        let results = meta::submit(core, vec![Command::AllocateProducerIds { count: BLOCK }]).await;
        match results.map_err(|_| ErrorCode::CoordinatorNotAvailable)?.pop() {
            Some(Ok(Outcome::ProducerIds { first, count })) => {
                core.producer_ids.refill(first..first + i64::from(count));
            }
            other => {
                tracing::error!(?other, "unexpected answer to a request for producer ids");
                return Err(ErrorCode::CoordinatorNotAvailable);
            }
        }
    }
}
