//! DescribeCluster (KIP-700).

use crate::core::Core;
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{
        BrokerId, DescribeClusterRequest, DescribeClusterResponse, describe_cluster_response::DescribeClusterBroker,
    },
};
use std::rc::Rc;

/// KIP-919: 1 asks for brokers, 2 for controllers, which only a controller's own listener answers.
const ENDPOINT_BROKERS: i8 = 1;

pub fn describe(core: &Rc<Core>, request: DescribeClusterRequest) -> DescribeClusterResponse {
    let response = DescribeClusterResponse::default()
        .with_cluster_id(StrBytes::from_string(core.cluster_id.to_string()))
        .with_endpoint_type(ENDPOINT_BROKERS);
    if request.endpoint_type != ENDPOINT_BROKERS {
        let message = format!("endpoint type {}; a broker tells of brokers only (1)", request.endpoint_type);
        return response
            .with_error_code(ErrorCode::MismatchedEndpointType.code())
            .with_error_message(Some(StrBytes::from_string(message)));
    }
    let (host, port) = core.advertised();
    let broker = DescribeClusterBroker::default()
        .with_broker_id(BrokerId(core.node()))
        .with_host(StrBytes::from_string(host.to_owned()))
        .with_port(i32::from(port));
    response.with_controller_id(BrokerId(core.node())).with_brokers(vec![broker])
}
