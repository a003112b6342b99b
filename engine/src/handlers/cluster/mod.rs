//! DescribeCluster (KIP-700, KIP-919).

pub(crate) mod elect_leaders;
pub(crate) mod quorum;
pub(crate) mod unregister;

use super::{operations, refusal::Refusal};
use crate::{
    cluster::meta,
    core::{Core, brokers},
};
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{
        BrokerId, DescribeClusterRequest, DescribeClusterResponse, describe_cluster_response::DescribeClusterBroker,
    },
};
use std::rc::Rc;

/// KIP-919: 1 asks for brokers. 2 asks for controllers, which only a controller's own listener answers.
const ENDPOINT_BROKERS: i8 = 1;

pub async fn describe(core: &Rc<Core>, request: DescribeClusterRequest) -> DescribeClusterResponse {
    let response = DescribeClusterResponse::default()
        .with_cluster_id(StrBytes::from_string(core.cluster_id.to_string()))
        .with_endpoint_type(ENDPOINT_BROKERS);
    let refuse = |response: DescribeClusterResponse, code: ErrorCode, message: String| {
        response.with_error_code(code.code()).with_error_message(Some(StrBytes::from_string(message)))
    };
    if request.endpoint_type != ENDPOINT_BROKERS {
        let message = format!("endpoint type {}; this broker describes only brokers (1)", request.endpoint_type);
        return refuse(response, ErrorCode::MismatchedEndpointType, message);
    }
    if let Err(error) = meta::may_read(core).await {
        let Refusal { code, message } = error.into();
        return refuse(response, code, message);
    }
    let nodes = if request.include_fenced_brokers { brokers::all(core) } else { brokers::alive(core) };
    let brokers = nodes.into_iter().map(|node| {
        DescribeClusterBroker::default()
            .with_broker_id(BrokerId(node.id))
            .with_host(node.host)
            .with_port(i32::from(node.port))
            .with_rack(node.rack)
            .with_is_fenced(node.fenced)
    });
    response
        .with_controller_id(brokers::controller(core))
        .with_brokers(brokers.collect())
        .with_cluster_authorized_operations(operations::told(
            request.include_cluster_authorized_operations,
            operations::CLUSTER,
        ))
}
