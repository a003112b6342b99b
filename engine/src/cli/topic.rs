//! `millrace topic create|list|describe|delete`: uses the Kafka protocol, as any client does.
//! Lives on: the main thread. Works with any broker that serves these APIs.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use net::{
    StrBytes,
    client::blocking::Client,
    codec::api::ApiKey,
    messages::{
        CreateTopicsRequest, DeleteTopicsRequest, DescribeConfigsRequest, MetadataRequest, MetadataResponse, TopicName,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        delete_topics_request::DeleteTopicState,
        describe_configs_request::DescribeConfigsResource,
        describe_configs_response::DescribeConfigsResult,
        metadata_request::MetadataRequestTopic,
        metadata_response::MetadataResponseTopic,
    },
};

use crate::{
    cli::{
        client::{self, CommandError, Refused, TIMEOUT, connect},
        name_and_value,
    },
    stdout::print,
};

/// From this version on, DeleteTopics names topics by name or id.
const DELETE_BY_STATE_FROM: i16 = 6;
/// DescribeConfigs: the resource type of a topic, and the source of a topic's own value.
const RESOURCE_TOPIC: i8 = 2;
const SOURCE_TOPIC: i8 = 1;

pub fn command() -> Command {
    let names = || Arg::new("names").value_name("NAME").required(true).num_args(1..);
    let create = Command::new("create")
        .about("Create topics")
        .arg(names())
        .arg(
            Arg::new("partitions")
                .long("partitions")
                .value_name("N")
                .value_parser(value_parser!(i32).range(1..))
                .help("Number of partitions [default: the broker's num.partitions]"),
        )
        .arg(
            Arg::new("replication-factor")
                .long("replication-factor")
                .value_name("N")
                .value_parser(value_parser!(i16).range(1..))
                .help("Replicas of each partition [default: the broker's default.replication.factor]"),
        )
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("NAME=VALUE")
                .action(ArgAction::Append)
                .value_parser(name_and_value)
                .help("Override a setting for the topic; may be repeated"),
        )
        .after_help(
            "Examples:\n  millrace topic create orders --partitions 12\n  \
             millrace topic create log --config retention.ms=86400000 --config segment.bytes=67108864",
        );
    let list = Command::new("list").about("List topics").after_help("Example:\n  millrace topic list");
    let describe = Command::new("describe")
        .about("Show partitions and settings of topics")
        .arg(names())
        .after_help("Example:\n  millrace topic describe orders");
    let delete = Command::new("delete")
        .about("Delete topics and all their records")
        .arg(names())
        .after_help("Example:\n  millrace topic delete orders");
    Command::new("topic")
        .about("Create, list, describe and delete topics of a running broker")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .arg(client::bootstrap())
        .after_help(
            "Examples:\n  millrace topic create orders --partitions 12\n  \
             millrace topic list --bootstrap kafka.example:9092",
        )
        .subcommands([create, list, describe, delete])
}

/// Runs the command and returns the text to print.
pub fn run(matches: &ArgMatches) -> Result<String, CommandError> {
    let (verb, matches) = matches.subcommand().expect("clap asks for a subcommand");
    let bootstrap = matches.get_one::<String>("bootstrap").expect("it has a default");
    let mut client = connect(bootstrap)?;
    let names = || matches.get_many::<String>("names").into_iter().flatten().map(String::as_str).collect::<Vec<_>>();
    match verb {
        "create" => create(&mut client, &names(), matches),
        "list" => list(&mut client),
        "describe" => describe(&mut client, &names()),
        "delete" => delete(&mut client, &names()),
        other => unreachable!("clap knows no subcommand '{other}'"),
    }
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// Prints the successes even if something else failed.
fn outcome(lines: impl Iterator<Item = Result<String, Refused>>) -> Result<String, CommandError> {
    let (mut done, mut refused) = (String::new(), Vec::new());
    for line in lines {
        match line {
            Ok(line) => done.push_str(&line),
            Err(why) => refused.push(why),
        }
    }
    if refused.is_empty() {
        return Ok(done);
    }
    print(&done)?;
    Err(CommandError::Refused(refused))
}

fn create(client: &mut Client, names: &[&str], matches: &ArgMatches) -> Result<String, CommandError> {
    let configs = matches.get_many::<(String, String)>("config").into_iter().flatten().map(|(name, value)| {
        CreatableTopicConfig::default()
            .with_name(StrBytes::from_string(name.clone()))
            .with_value(Some(StrBytes::from_string(value.clone())))
    });
    let template = CreatableTopic::default()
        .with_num_partitions(matches.get_one("partitions").copied().unwrap_or(-1))
        .with_replication_factor(matches.get_one("replication-factor").copied().unwrap_or(-1))
        .with_configs(configs.collect());
    let topics = names.iter().map(|name| template.clone().with_name(topic_name(name))).collect();
    let request = CreateTopicsRequest::default().with_topics(topics).with_timeout_ms(timeout_ms());
    let response = client.call(request)?;
    let lines = response.topics.iter().map(|topic| {
        let name = topic.name.0.as_str();
        Refused::check(format!("cannot create topic '{name}'"), topic.error_code, topic.error_message.as_ref())?;
        Ok(match topic.num_partitions {
            count @ 1.. => format!("created {name}: partitions {count}, replicas {}\n", topic.replication_factor),
            _ => format!("created {name}\n"),
        })
    });
    outcome(lines)
}

/// Half of the connection's timeout, so that the broker's own answer arrives before it.
fn timeout_ms() -> i32 {
    i32::try_from(TIMEOUT.as_millis() / 2).expect("the time is short")
}

fn metadata(client: &mut Client, names: Option<&[&str]>) -> Result<MetadataResponse, CommandError> {
    let topics = names.map(|names| {
        names.iter().map(|name| MetadataRequestTopic::default().with_name(Some(topic_name(name)))).collect()
    });
    // Looking at a topic must not create it.
    let request = MetadataRequest::default().with_topics(topics).with_allow_auto_topic_creation(false);
    Ok(client.call(request)?)
}

fn name_of(topic: &MetadataResponseTopic) -> &str {
    topic.name.as_ref().map_or("", |name| name.0.as_str())
}

fn list(client: &mut Client) -> Result<String, CommandError> {
    let mut response = metadata(client, None)?;
    response.topics.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    for topic in &response.topics {
        Refused::check(format!("cannot list topic '{}'", name_of(topic)), topic.error_code, None)?;
    }
    let names: Vec<&str> = response.topics.iter().map(name_of).collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let rows = response.topics.iter().map(|topic| {
        let internal = if topic.is_internal { "  internal" } else { "" };
        format!("{:width$}  partitions {}{internal}\n", name_of(topic), topic.partitions.len())
    });
    Ok(rows.collect())
}

fn describe(client: &mut Client, names: &[&str]) -> Result<String, CommandError> {
    let response = metadata(client, Some(names))?;
    let resources = names.iter().map(|name| {
        DescribeConfigsResource::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(StrBytes::from_string((*name).to_owned()))
            .with_configuration_keys(None)
    });
    let request = DescribeConfigsRequest::default().with_resources(resources.collect());
    let configs = client.call(request)?.results;
    let lines = response.topics.iter().map(|topic| {
        let name = name_of(topic);
        Refused::check(format!("cannot describe topic '{name}'"), topic.error_code, None)?;
        let configs = configs.iter().find(|result| result.resource_name.as_str() == name);
        if let Some(result) = configs {
            let what = format!("cannot describe the settings of topic '{name}'");
            Refused::check(what, result.error_code, result.error_message.as_ref())?;
        }
        Ok(describe_topic(topic, configs))
    });
    outcome(lines)
}

fn describe_topic(topic: &MetadataResponseTopic, configs: Option<&DescribeConfigsResult>) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "{}  id {}  partitions {}", name_of(topic), topic.topic_id, topic.partitions.len());
    for config in configs.into_iter().flat_map(|result| &result.configs) {
        if config.config_source == SOURCE_TOPIC {
            let value = config.value.as_ref().map_or("", |value| value.as_str());
            let _ = writeln!(out, "  {} = {value}", config.name);
        }
    }
    let mut partitions: Vec<_> = topic.partitions.iter().collect();
    partitions.sort_by_key(|partition| partition.partition_index);
    for partition in partitions {
        let nodes = |nodes: &[net::messages::BrokerId]| {
            nodes.iter().map(|node| node.0.to_string()).collect::<Vec<_>>().join(",")
        };
        let _ = writeln!(
            out,
            "  partition {}  leader {}  epoch {}  replicas {}  in sync {}",
            partition.partition_index,
            if partition.leader_id.0 < 0 { "none".to_owned() } else { partition.leader_id.0.to_string() },
            partition.leader_epoch,
            nodes(&partition.replica_nodes),
            nodes(&partition.isr_nodes)
        );
    }
    out
}

fn delete(client: &mut Client, names: &[&str]) -> Result<String, CommandError> {
    let request = DeleteTopicsRequest::default().with_timeout_ms(timeout_ms());
    let request = if client.version(ApiKey::DeleteTopics)? >= DELETE_BY_STATE_FROM {
        let state = |name: &&str| DeleteTopicState::default().with_name(Some(topic_name(name)));
        request.with_topics(names.iter().map(state).collect())
    } else {
        request.with_topic_names(names.iter().map(|name| topic_name(name)).collect())
    };
    let response = client.call(request)?;
    let lines = response.responses.iter().map(|topic| {
        let name = topic.name.as_ref().map_or("", |name| name.0.as_str());
        Refused::check(format!("cannot delete topic '{name}'"), topic.error_code, topic.error_message.as_ref())?;
        Ok(format!("deleted {name}\n"))
    });
    outcome(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::{
        Uuid,
        messages::{
            BrokerId, describe_configs_response::DescribeConfigsResourceResult,
            metadata_response::MetadataResponsePartition,
        },
    };

    #[test]
    fn a_topic_is_described_with_its_own_settings_and_partitions() {
        let partition = |index, leader| {
            MetadataResponsePartition::default()
                .with_partition_index(index)
                .with_leader_id(BrokerId(leader))
                .with_leader_epoch(3)
                .with_replica_nodes(vec![BrokerId(1), BrokerId(2)])
                .with_isr_nodes(vec![BrokerId(1)])
        };
        let topic = MetadataResponseTopic::default()
            .with_name(Some(topic_name("orders")))
            .with_topic_id(Uuid::from_u128(1))
            .with_partitions(vec![partition(1, -1), partition(0, 1)]);
        let config = |name: &'static str, source| {
            DescribeConfigsResourceResult::default()
                .with_name(StrBytes::from_static_str(name))
                .with_value(Some(StrBytes::from_static_str("5")))
                .with_config_source(source)
        };
        let configs =
            DescribeConfigsResult::default().with_configs(vec![config("retention.ms", 1), config("segment.ms", 5)]);
        assert_eq!(
            describe_topic(&topic, Some(&configs)),
            "orders  id 00000000-0000-0000-0000-000000000001  partitions 2\n\
             \x20 retention.ms = 5\n\
             \x20 partition 0  leader 1  epoch 3  replicas 1,2  in sync 1\n\
             \x20 partition 1  leader none  epoch 3  replicas 1,2  in sync 1\n"
        );
    }
}
