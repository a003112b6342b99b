//! Settings that can be changed while brokers run, for all of them or for one. A value in the cluster's metadata
//! overrides the one that a broker was started with.
//! Pure. The names are also names of the broker's settings ([`crate::config`]), which define the allowed values.

use consensus::{metadata::ClusterConfig, plane::Acks};

use crate::config::{Config, ConfigSource, Described, RuntimeSettingError, Setting, setting, setting_type};

/// How the broker acknowledges metadata writes that do not choose it themselves.
const METADATA_ACKS: &str = "metadata.acks";
/// The number of brokers that vote on the metadata.
const METADATA_VOTERS: &str = "metadata.voters";

/// Settings that can be changed at run time. The second value says whether a single broker may have a value of its
/// own.
const DYNAMIC: &[(&str, bool)] = &[(METADATA_ACKS, true), (METADATA_VOTERS, false)];

/// Whether the setting can be changed at run time.
pub fn is_dynamic(name: &str) -> bool {
    DYNAMIC.iter().any(|(dynamic, _)| *dynamic == name)
}

fn row(name: &str) -> &'static Setting {
    setting(name).expect("a test finds every dynamic setting among the broker's")
}

/// Checks whether the setting may be changed for `node` (`None`: for all brokers).
pub fn check_name(node: Option<i32>, name: &str) -> Result<(), RuntimeSettingError> {
    match DYNAMIC.iter().find(|(dynamic, _)| *dynamic == name) {
        Some((_, per_broker)) if node.is_none() || *per_broker => Ok(()),
        Some((name, _)) => Err(RuntimeSettingError::WholeCluster { name }),
        None => Err(match setting(name) {
            Some(Setting { name, .. }) => RuntimeSettingError::ReadOnly { name },
            None => {
                let known: Vec<&str> = DYNAMIC.iter().map(|(name, _)| *name).collect();
                RuntimeSettingError::Unknown { name: name.to_owned(), known: known.join(", ") }
            }
        }),
    }
}

/// Checks a value, and returns it in normal form.
pub fn check_value(name: &str, value: &str) -> Result<String, RuntimeSettingError> {
    let row = row(name);
    let refuse = |why| RuntimeSettingError::Value { name: row.name, value: value.to_owned(), why };
    row.kind.normalise(value).map_err(refuse)
}

/// All values of a dynamic setting on a node with their sources. The first is in force.
fn layers(name: &'static str, node: i32, cluster: &ClusterConfig, config: &Config) -> Vec<(String, ConfigSource)> {
    let own = cluster.get(Some(node), name).map(|value| (value.to_owned(), ConfigSource::DynamicBroker));
    let all = cluster.get(None, name).map(|value| (value.to_owned(), ConfigSource::DynamicDefaultBroker));
    let started = config.value(name).map(|value| (value, config.config_source(name)));
    own.into_iter().chain(all).chain(started).collect()
}

/// All settings of a broker, for DescribeConfigs.
pub fn describe(node: i32, cluster: &ClusterConfig, config: &Config) -> Vec<Described> {
    let mut rows = config.describe();
    for (name, _) in DYNAMIC {
        let layers = layers(name, node, cluster, config);
        let at = rows.iter().position(|row| row.name == *name);
        let Some((value, source)) = layers.first().cloned() else { continue };
        let described = Described { read_only: false, ..described(row(name), value, source, &layers) };
        match at {
            Some(at) => rows[at] = described,
            None => rows.push(described),
        }
    }
    rows
}

/// The settings that are set for all brokers, for DescribeConfigs of the broker with the empty name.
pub fn describe_all(cluster: &ClusterConfig) -> Vec<Described> {
    let set = DYNAMIC.iter().filter_map(|(name, _)| {
        let value = cluster.get(None, name)?.to_owned();
        let layers = [(value.clone(), ConfigSource::DynamicDefaultBroker)];
        Some(described(row(name), value, ConfigSource::DynamicDefaultBroker, &layers))
    });
    set.collect()
}

fn described(
    row: &'static Setting,
    value: String,
    source: ConfigSource,
    layers: &[(String, ConfigSource)],
) -> Described {
    let mut synonyms: Vec<_> = layers.iter().map(|(value, source)| (row.name, value.clone(), *source as i8)).collect();
    if layers.last().is_some_and(|(_, source)| *source == ConfigSource::StaticBroker) && !row.default.is_empty() {
        synonyms.push((row.name, row.default.to_owned(), ConfigSource::Default as i8));
    }
    Described {
        name: row.name,
        value,
        source: source as i8,
        config_type: setting_type::of(row.name, row.kind),
        read_only: false,
        doc: row.doc(),
        synonyms,
    }
}

/// How a node acknowledges metadata writes that do not choose it themselves.
pub fn metadata_acks(node: i32, cluster: &ClusterConfig, config: &Config) -> Acks {
    match cluster.in_force(node, METADATA_ACKS).unwrap_or(&config.metadata_acks) {
        "leader" => Acks::Leader,
        _ => Acks::Quorum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::with as started_with;
    use consensus::metadata::{Command, Slice, View, slice_of_cluster};
    use types::RaftIndex;

    /// The settings in force after these changes: node, name, value.
    fn changed(changes: &[(Option<i32>, &str, Option<&str>)]) -> ClusterConfig {
        let (mut slice, mut view) = (Slice::new(slice_of_cluster()), View::default());
        for (at, (node, name, value)) in changes.iter().enumerate() {
            let changes = vec![((*name).to_owned(), value.map(str::to_owned))];
            let applied = slice.apply(&Command::UpdateClusterConfig { node: *node, changes });
            view.apply(RaftIndex::new(at as u64 + 1), &applied.deltas);
        }
        view.cluster_config().clone()
    }

    #[test]
    fn every_dynamic_setting_is_one_of_the_brokers() {
        for (name, _) in DYNAMIC {
            assert!(is_dynamic(name) && setting(name).is_some(), "{name}");
        }
        assert!(!is_dynamic("num.partitions"));
    }

    #[test]
    fn settings_are_described_as_they_are_in_force_with_their_source() {
        let all = (None, METADATA_ACKS, Some("leader"));
        let one = (Some(1), METADATA_ACKS, Some("quorum"));
        let file: &[(&str, &str)] = &[(METADATA_ACKS, "leader")];
        for (changes, started, value, sources) in [
            (&[][..], &[][..], "quorum", &[5][..]),
            (&[], file, "leader", &[4, 5]),
            (&[all], &[], "leader", &[3, 5]),
            (&[all, one], &[], "quorum", &[2, 3, 5]),
            (&[one], file, "quorum", &[2, 4, 5]),
            (&[all, one, (Some(1), METADATA_ACKS, None)], &[], "leader", &[3, 5]),
            (&[(Some(2), METADATA_ACKS, Some("leader"))], &[], "quorum", &[5]),
        ] {
            let (cluster, config) = (changed(changes), started_with(started));
            let rows = describe(1, &cluster, &config);
            assert_eq!(rows.iter().filter(|row| row.name == METADATA_ACKS).count(), 1);
            let row = rows.iter().find(|row| row.name == METADATA_ACKS).unwrap();
            let told: Vec<i8> = row.synonyms.iter().map(|(_, _, source)| *source).collect();
            assert_eq!((row.value.as_str(), row.source, &told[..]), (value, sources[0], sources), "{changes:?}");
            assert!(!row.read_only);
            let expected = if value == "leader" { Acks::Leader } else { Acks::Quorum };
            assert_eq!(metadata_acks(1, &cluster, &config), expected, "{changes:?}");
        }
    }

    #[test]
    fn other_settings_of_a_broker_are_told_as_it_was_started() {
        let config = started_with(&[("num.partitions", "7")]);
        let rows = describe(1, &ClusterConfig::default(), &config);
        let row = rows.iter().find(|row| row.name == "num.partitions").unwrap();
        assert_eq!((row.value.as_str(), row.source, row.read_only), ("7", 4, true));
        assert_eq!(rows.iter().find(|row| row.name == METADATA_VOTERS), None, "nobody has set it");
        let rows = describe(1, &changed(&[(None, METADATA_VOTERS, Some("5"))]), &config);
        let row = rows.iter().find(|row| row.name == METADATA_VOTERS).unwrap();
        assert_eq!((row.value.as_str(), row.source), ("5", 3));
    }

    #[test]
    fn the_broker_without_a_name_has_what_was_set_for_all() {
        let cluster = changed(&[(Some(1), METADATA_ACKS, Some("leader")), (None, METADATA_VOTERS, Some("5"))]);
        let told: Vec<_> = describe_all(&cluster).into_iter().map(|row| (row.name, row.value, row.source)).collect();
        assert_eq!(told, [(METADATA_VOTERS, "5".to_owned(), 3)]);
        assert_eq!(describe_all(&ClusterConfig::default()), []);
    }

    #[test]
    fn a_setting_that_cannot_be_changed_is_refused_by_name() {
        check_name(None, METADATA_ACKS).unwrap();
        check_name(Some(3), METADATA_ACKS).unwrap();
        check_name(None, METADATA_VOTERS).unwrap();
        for (node, name, words) in [
            (Some(3), METADATA_VOTERS, "'metadata.voters' applies to the whole cluster"),
            (None, "num.partitions", "'num.partitions' is read-only: it is read at start"),
            (
                Some(1),
                "no.such",
                "unknown setting 'no.such'; brokers accept at run time: metadata.acks, metadata.voters",
            ),
        ] {
            let refusal = check_name(node, name).unwrap_err().to_string();
            assert!(refusal.contains(words), "{refusal}");
        }
        assert_eq!(check_value(METADATA_ACKS, " LEADER ").as_deref(), Ok("leader"));
        assert!(
            check_value(METADATA_ACKS, "none").unwrap_err().to_string().contains("metadata.acks = 'none': it must be")
        );
        assert!(check_value(METADATA_VOTERS, "0").is_err());
    }
}
