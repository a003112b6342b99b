//! Reads the layers of the configuration: the TOML file, the environment, the flags.
//! Lives on: the main thread, at start.

use std::{fs, path::Path};

use crate::config::{
    Config, ConfigError, Place, SETTINGS, Setting, Source, VARIABLE_PREFIX, errors::Meant, setting, value::nearest,
};

/// Kafka's settings that users may bring along, and the settings that replace them here.
const INSTEAD: &[(&str, &str)] = &[
    ("advertised.listeners", "advertised.kafka.addr"),
    ("broker.id", "node.id"),
    ("host.name", "kafka.addr"),
    ("listeners", "kafka.addr"),
    ("log.dir", "data.dir"),
    ("log.dirs", "data.dir"),
    ("port", "kafka.addr"),
];

/// Variables with our prefix that do not belong to the broker: those of this repository's scripts and tests …
const OTHER_VARIABLES: &[&str] = &["MILLRACE_CI_", "MILLRACE_CRASH_", "MILLRACE_BENCH_", "MILLRACE_CONFIG"];

/// … and those that Kubernetes sets for a service whose name begins with 'millrace'.
fn is_service_link(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.contains("_PORT_")
}

/// A value given by a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagValue {
    /// The setting's name, as given.
    pub name: String,
    pub value: String,
    /// The flag as the user wrote it, for error messages: `--kafka-addr`, `--set`.
    pub flag: String,
}

/// Combines the layers and checks the result.
pub fn load(
    file: Option<&Path>,
    variables: impl Iterator<Item = (String, String)>,
    flags: &[FlagValue],
) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    if let Some(path) = file {
        let failed = |source| ConfigError::File { path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(failed)?;
        read_toml(&mut config, &text, &path.display().to_string())?;
    }
    read_variables(&mut config, variables)?;
    for FlagValue { name, value, flag } in flags {
        let place = Place { source: Source::Flag, named: flag.clone() };
        config.set(find(name, &place)?, value, &place)?;
    }
    config.check()?;
    Ok(config)
}

fn find(name: &str, place: &Place) -> Result<&'static Setting, ConfigError> {
    setting(name).ok_or_else(|| {
        let instead = INSTEAD.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours);
        let near = || nearest(name, SETTINGS.iter().map(|setting| setting.name));
        let meant = instead.map(Meant::Replaced).or_else(|| near().map(Meant::Near)).unwrap_or(Meant::Unknown);
        ConfigError::UnknownSetting { name: name.to_owned(), place: place.clone(), meant }
    })
}

/// TOML treats dotted names as tables, so `log.retention.ms = 1` and `[log.retention]` with `ms = 1` are the same.
fn read_toml(config: &mut Config, text: &str, path: &str) -> Result<(), ConfigError> {
    let failed = |source| ConfigError::Toml { path: path.to_owned(), source: Box::new(source) };
    let table: toml::Table = text.parse().map_err(failed)?;
    let place = Place { source: Source::File, named: path.to_owned() };
    walk(config, "", &table, &place)
}

fn walk(config: &mut Config, prefix: &str, table: &toml::Table, place: &Place) -> Result<(), ConfigError> {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let text = match value {
            toml::Value::Table(inner) => {
                walk(config, &name, inner, place)?;
                continue;
            }
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(word) => word.to_string(),
            other => {
                find(&name, place)?;
                return Err(ConfigError::TomlType { name, place: place.clone(), found: other.type_str() });
            }
        };
        config.set(find(&name, place)?, &text, place)?;
    }
    Ok(())
}

fn read_variables(config: &mut Config, variables: impl Iterator<Item = (String, String)>) -> Result<(), ConfigError> {
    for (name, value) in variables.filter(|(name, _)| name.starts_with(VARIABLE_PREFIX)) {
        let place = Place { source: Source::Variable, named: format!("environment variable {name}") };
        if let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == name) {
            config.set(setting, &value, &place)?;
        } else if !OTHER_VARIABLES.iter().any(|other| name.starts_with(other)) && !is_service_link(&name) {
            let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
            let meant = known.iter().map(|known| &known[VARIABLE_PREFIX.len()..]);
            let lower: Vec<String> = meant.map(|known| known.to_ascii_lowercase().replace('_', ".")).collect();
            let near = nearest(&name[VARIABLE_PREFIX.len()..], lower.iter().map(String::as_str));
            let near = near.map(|near| near.to_ascii_uppercase().replace('.', "_"));
            return Err(ConfigError::UnknownVariable { place, near });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(values: &[(&str, &str)]) -> Vec<FlagValue> {
        let flag = |(name, value): &(&str, &str)| FlagValue {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
            flag: "--set".to_owned(),
        };
        values.iter().map(flag).collect()
    }

    fn from(toml: &str, variables: &[(&str, &str)], given: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), toml).unwrap();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load(Some(file.path()), variables, &flags(given))
    }

    fn refusal(toml: &str, variables: &[(&str, &str)], given: &[(&str, &str)]) -> String {
        from(toml, variables, given).unwrap_err().to_string()
    }

    #[test]
    fn defaults_need_no_layer() {
        let config = load(None, std::iter::empty(), &[]).unwrap();
        assert_eq!(config.kafka_addr, "127.0.0.1:9092".parse().unwrap());
        assert_eq!(config.data_dir, Path::new("./millrace-data"));
        assert_eq!((config.num_partitions, config.node_id), (1, 1));
        assert_eq!(config.source("num.partitions"), Source::Default);
    }

    #[test]
    fn flags_go_before_variables_before_the_file() {
        let file = "num.partitions = 2\nnode.id = 2\nlog.retention.ms = 2\n";
        let variables = [("MILLRACE_NODE_ID", "3"), ("MILLRACE_LOG_RETENTION_MS", "3"), ("PATH", "/bin")];
        let config = from(file, &variables, &[("log.retention.ms", "4")]).unwrap();
        assert_eq!((config.num_partitions, config.node_id, config.log_retention_ms), (2, 3, Some(4)));
        assert_eq!(
            ["num.partitions", "node.id", "log.retention.ms"].map(|name| config.source(name)),
            [Source::File, Source::Variable, Source::Flag]
        );
    }

    #[test]
    fn toml_may_nest_as_it_likes() {
        let nested = "auto.create.topics.enable = false\n[log.retention]\nms = 5\ncheck.interval.ms = 7\n\
                      [log]\nfilter = \"debug\"\nsegment.bytes = \"1 MiB\"\n";
        let config = from(nested, &[], &[]).unwrap();
        assert!(!config.auto_create_topics_enable);
        assert_eq!(config.log_filter, "debug");
        assert_eq!((config.log_retention_ms, config.log_retention_check_interval_ms), (Some(5), 7));
        assert_eq!(config.log_segment_bytes, 1 << 20);
        let quoted = from("\"num.partitions\" = 9", &[], &[]).unwrap();
        assert_eq!(quoted.num_partitions, 9);
        // A value and a table cannot have the same name.
        let both = from("max.connections = 9\n\"max.connections.per.ip\" = 5", &[], &[]).unwrap();
        assert_eq!((both.max_connections, both.max_connections_per_ip()), (9, Some(5)));
    }

    #[test]
    fn variables_are_named_by_flag_or_setting() {
        let variables = [
            ("MILLRACE_LOG", "warn"),
            ("MILLRACE_DATA_DIR", "/d"),
            ("MILLRACE_KAFKA_ADDR", "127.0.0.1:0"),
            ("MILLRACE_SOCKET_REQUEST_MAX_BYTES", "2MiB"),
            // Not the broker's.
            ("MILLRACE_CRASH_ROUNDS", "20"),
            ("MILLRACE_SERVICE_HOST", "10.0.0.1"),
            ("MILLRACE_PORT", "tcp://10.0.0.1:9092"),
            ("MILLRACE_KAFKA_PORT_9092_TCP_ADDR", "10.0.0.1"),
        ];
        let config = from("", &variables, &[]).unwrap();
        assert_eq!((config.log_filter.as_str(), config.data_dir.as_path()), ("warn", Path::new("/d")));
        assert_eq!((config.kafka_addr.port(), config.socket_request_max_bytes), (0, 2 << 20));
    }

    #[test]
    fn no_variable_of_ours_passes_for_another_programs() {
        for setting in SETTINGS {
            let variable = setting.variable();
            assert!(!is_service_link(&variable), "{variable}");
            assert!(!OTHER_VARIABLES.iter().any(|other| variable.starts_with(other)), "{variable}");
        }
    }

    #[test]
    fn refusals_name_value_limit_and_remedy() {
        assert_eq!(
            refusal("", &[("MILLRACE_NUM_PARTITIONS", "0")], &[]),
            "num.partitions = '0' (environment variable MILLRACE_NUM_PARTITIONS): it must be 1 to 100000; change it, or \
             leave it out for the default, 1"
        );
        assert_eq!(
            refusal("", &[], &[("num.partition", "1")]),
            "unknown setting 'num.partition' (--set): did you mean 'num.partitions'? `millrace config` lists all settings"
        );
        assert_eq!(
            refusal("", &[], &[("listeners", "PLAINTEXT://:9092")]),
            "unknown setting 'listeners' (--set): use 'kafka.addr' here; `millrace config` lists all settings"
        );
        assert_eq!(
            refusal("", &[], &[("zookeeper.connect", "z:2181")]),
            "unknown setting 'zookeeper.connect' (--set): remove it; `millrace config` lists all settings"
        );
        assert_eq!(
            refusal("", &[("MILLRACE_NUM_PARTITION", "1")], &[]),
            "unknown environment variable MILLRACE_NUM_PARTITION: did you mean MILLRACE_NUM_PARTITIONS? `millrace config` \
             lists all settings"
        );
        assert!(refusal("", &[], &[("log.cleanup.policy", "compact")]).contains("it must be delete;"));
        assert!(refusal("", &[], &[("cores", "0-")]).contains("'0-' is neither a CPU number nor a range"));
    }

    #[test]
    fn a_wrong_line_of_the_file_is_refused_with_its_path() {
        for (toml, part) in [
            ("num.partitions = 0", "num.partitions = '0' (/"),
            ("num.partitions = 1.5", "a TOML float"),
            ("num.partitions = [1]", "a TOML array"),
            ("nmu.partitions = 1", "did you mean 'num.partitions'?"),
            ("[num]\npartitionz = 1", "unknown setting 'num.partitionz'"),
            ("num.partitions = ", "is not TOML"),
            ("num.partitions = 1\nnum.partitions = 2", "is not TOML"),
            ("num = 3", "unknown setting 'num'"),
            ("auto.create.topics.enable = \"maybe\"", "must be true or false"),
        ] {
            let refusal = refusal(toml, &[], &[]);
            assert!(refusal.contains(part), "{refusal}");
        }
        let missing = load(Some(Path::new("/no/such.toml")), std::iter::empty(), &[]).unwrap_err().to_string();
        assert!(missing.contains("cannot read the configuration file /no/such.toml"), "{missing}");
    }

    #[test]
    fn settings_are_held_against_each_other() {
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a str);
        let rows: &[Row<'_>] = &[
            (&[("message.max.bytes", "200000000")], "raise socket.request.max.bytes"),
            (&[("queued.max.request.bytes", "1048576")], "below the size of one request"),
            (&[("group.min.session.timeout.ms", "1800001")], "no session would be allowed"),
            (&[("kafka.addr", "0.0.0.0:9092")], "set advertised.kafka.addr"),
            (&[("peer.addr", "0.0.0.0:9291")], "set advertised.peer.addr"),
            (&[("seeds", "1@127.0.0.1:9999")], "list that address in seeds"),
            (&[("min.insync.replicas", "3")], "above default.replication.factor, 1"),
            (&[("admin.addr", "127.0.0.1:9092")], "kafka.addr uses that address already"),
        ];
        for (given, part) in rows {
            let refusal = refusal("", &[], given);
            assert!(refusal.contains(part), "{refusal}");
        }
        let told = [("kafka.addr", "0.0.0.0:0"), ("advertised.kafka.addr", "me:1"), ("admin.addr", "127.0.0.1:0")];
        from("", &[], &told).unwrap();
    }
}
