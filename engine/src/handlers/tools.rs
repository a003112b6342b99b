//! Answers to tools on the peer port: raw commands and queries, the state of the quorum, and latencies between the
//! cores.
//! Lives on: core 0.

use super::{refusal::Refusal, topics::raw};
use crate::{
    cluster::{
        meta::{SubmitError, Submitting, asks, describe_quorum, largest, may_read},
        peers::Answering,
        placement,
    },
    core::{
        Core,
        mesh_probe::{self, Probe},
    },
};
use consensus::{
    metadata::{Command, Query, QueryAnswer},
    plane::{Accepted, Acks, Until},
    wire::{Consistency, ToolAnswer, ToolAsk, ToolRequest, ToolResponse},
};
use net::errors::ErrorCode;
use std::rc::Rc;
use types::META_CORE;

/// Most commands of one request.
const COMMANDS_MAX: usize = 512;

pub fn answer(core: Rc<Core>, request: ToolRequest) -> Answering {
    Box::pin(respond(core, request))
}

async fn respond(core: Rc<Core>, request: ToolRequest) -> ToolResponse {
    let ToolRequest { id, ask } = request;
    let answer = match ask {
        ToolAsk::Write { acks, commands } => write(&core, acks, commands).await,
        ToolAsk::Read { consistency, queries } => read(&core, consistency, &queries).await,
        ToolAsk::Describe => describe_quorum(&core).await.map(ToolAnswer::Quorum).map_err(failed),
        ToolAsk::ProbeMesh { to, rounds, in_flight } => probe_mesh(&core, Probe { to, rounds, in_flight }).await,
    };
    ToolResponse { id, answer: answer.unwrap_or_else(|failed| failed) }
}

fn failed(error: SubmitError) -> ToolAnswer {
    let code = match error {
        SubmitError::NoLeader => ErrorCode::NotController,
        SubmitError::TimedOut => ErrorCode::RequestTimedOut,
        SubmitError::Storage => ErrorCode::KafkaStorageError,
    };
    ToolAnswer::Failed { code: code.code() as u16, message: error.to_string() }
}

fn refused(message: impl Into<String>) -> ToolAnswer {
    ToolAnswer::Failed { code: ErrorCode::InvalidRequest.code() as u16, message: message.into() }
}

fn not_for_tools(command: &str, instead: &str) -> ToolAnswer {
    let code = ErrorCode::ClusterAuthorizationFailed.code() as u16;
    ToolAnswer::Failed { code, message: format!("a tool may not send {command}: {instead}") }
}

async fn write(core: &Rc<Core>, acks: Option<Acks>, commands: Vec<Command>) -> Result<ToolAnswer, ToolAnswer> {
    if commands.is_empty() || commands.len() > COMMANDS_MAX {
        return Err(refused(format!("{} commands in one request; 1 to {COMMANDS_MAX} are allowed", commands.len())));
    }
    commands.iter().try_for_each(|command| check(core, command))?;
    debug_assert_eq!(core.id(), META_CORE);
    largest::rise_for(core, &commands).await.map_err(failed)?;
    let how = Submitting { acks, until: Until::Acked, ..Submitting::default() };
    // An entry for all of them could be larger than brokers take.
    let written = asks::write_all(core, commands, how).await.map_err(failed)?;
    Ok(ToolAnswer::Written(Accepted { term: written.term, index: written.index, results: written.results }))
}

/// Rejects commands that slices would accept, but that harm the cluster or that this version cannot carry out.
fn check(core: &Core, command: &Command) -> Result<(), ToolAnswer> {
    raw::check(core, command)
        .map_err(|Refusal { code, message }| ToolAnswer::Failed { code: code.code() as u16, message })?;
    let check_replicas = |replicas: &[Vec<i32>]| {
        let registered: Vec<i32> = core.view(|view| view.brokers().map(|broker| broker.node).collect());
        replicas.iter().try_for_each(|replicas| {
            placement::assigned(&registered, replicas).map(drop).map_err(|error| refused(error.to_string()))
        })
    };
    match command {
        Command::CreateTopic { replicas, .. } | Command::CreatePartitions { replicas, .. } => check_replicas(replicas),
        Command::AssignPartition { name, partition, .. } => Err(refused(format!(
            "partition {partition} of '{name}': partitions can't move between brokers in this version"
        ))),
        // A tool that sent these could take a broker's place, or force a broker out for good.
        Command::RegisterBroker { broker } => {
            Err(not_for_tools("RegisterBroker", &format!("broker {} registers itself when it starts", broker.node)))
        }
        Command::UpdateBrokerStatus { node, .. } => Err(not_for_tools(
            "UpdateBrokerStatus",
            &format!("the metadata leader fences broker {node} when it is silent"),
        )),
        Command::SetPartitionLeader { name, .. } => {
            Err(not_for_tools("SetPartitionLeader", &format!("the leaders of '{name}' report themselves")))
        }
        Command::UpdateHighWatermark { name, .. } => {
            Err(not_for_tools("UpdateHighWatermark", &format!("the leaders of '{name}' report their high watermarks")))
        }
        Command::SetFeatureLevel { name, .. } => {
            Err(not_for_tools("SetFeatureLevel", &format!("the level of '{name}' follows what all brokers can read")))
        }
        Command::AllocateProducerIds { .. } => {
            Err(not_for_tools("AllocateProducerIds", "producers get their ids with Kafka's InitProducerId"))
        }
        Command::UnregisterBroker { node } => Err(not_for_tools(
            "UnregisterBroker",
            &format!("Kafka's request of this name removes broker {node} once it is fenced"),
        )),
        _ => Ok(()),
    }
}

async fn probe_mesh(core: &Rc<Core>, probe: Probe) -> Result<ToolAnswer, ToolAnswer> {
    let times = mesh_probe::run(core, probe).await.map_err(|error| refused(error.to_string()))?;
    let from = u16::try_from(core.id().0).expect("a broker has fewer cores than that");
    Ok(ToolAnswer::MeshProbed { from, times })
}

async fn read(core: &Rc<Core>, consistency: Consistency, queries: &[Query]) -> Result<ToolAnswer, ToolAnswer> {
    match consistency {
        Consistency::Leased => may_read(core).await.map_err(failed)?,
        Consistency::Linearizable => asks::linearize(core).await.map_err(failed)?,
        Consistency::Overlay => return overlay(core, queries).await,
    }
    let answers: Vec<QueryAnswer> = core.view(|view| queries.iter().map(|query| view.answer(query)).collect());
    Ok(ToolAnswer::Answers(answers))
}

/// Also answers with what only the leader itself has acknowledged, although it may still be lost.
async fn overlay(core: &Rc<Core>, queries: &[Query]) -> Result<ToolAnswer, ToolAnswer> {
    if !core.meta().with(|plane, _| plane.is_established()) {
        return Err(failed(SubmitError::NoLeader));
    }
    let mut answers = Vec::with_capacity(queries.len());
    for query in queries {
        let Query::GetTopic { name } = query else {
            return Err(refused("only GetTopic is answered from the overlay"));
        };
        answers.push(asks::overlay_topic(core, name.clone()).await);
    }
    Ok(ToolAnswer::Answers(answers))
}
