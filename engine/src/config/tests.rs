//! The table of settings agrees with itself, and layers, checks and descriptions follow it.

use super::*;
use std::collections::BTreeSet;

/// The defaults, except for these settings, as if a file had set them.
pub(crate) fn with(values: &[(&str, &str)]) -> Config {
    let mut config = Config::default();
    let place = Place { source: Source::File, named: "test".to_owned() };
    for (name, value) in values {
        config.set(setting(name).unwrap(), value, &place).unwrap();
    }
    config
}

#[test]
fn every_default_is_a_value_in_normal_form() {
    let config = Config::default();
    for setting in SETTINGS {
        if setting.default.is_empty() {
            assert_eq!(config.value(setting.name), None, "{}", setting.name);
        } else {
            assert_eq!(setting.kind.normalise(setting.default).as_deref(), Ok(setting.default), "{}", setting.name);
            assert_eq!(config.value(setting.name).as_deref(), Some(setting.default), "{}", setting.name);
        }
    }
    config.check().unwrap();
    config.check_cores(100).unwrap();
    let mut many = Config::default();
    many.fit_rings(512);
    many.check_cores(512).unwrap();
}

#[test]
fn names_flags_and_variables_are_unique() {
    let names: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.name).collect();
    let flags: BTreeSet<_> = SETTINGS.iter().filter_map(|setting| setting.flag).collect();
    let variables: BTreeSet<_> = SETTINGS.iter().map(Setting::variable).collect();
    assert_eq!(names.len(), SETTINGS.len());
    assert_eq!(flags.len(), SETTINGS.iter().filter(|setting| setting.flag.is_some()).count());
    assert_eq!(variables.len(), SETTINGS.len());
    for name in names {
        let prefix = format!("{name}.");
        let below: Vec<_> = SETTINGS.iter().filter(|other| other.name.starts_with(&prefix)).collect();
        // A TOML file that sets both must quote the longer name, as its doc says.
        let is_told = below.iter().all(|other| other.doc().contains("quote this name"));
        assert!(is_told, "{name} can't be a table too");
    }
}

/// A field's type must hold every value in its range. Then no value passes the range check and fails the
/// assignment.
#[test]
fn ranges_fit_their_types() {
    for setting in SETTINGS {
        if let Kind::Int { min, max, .. } | Kind::IntOrUnlimited { min, max, .. } = setting.kind {
            for edge in [min, max] {
                assert!(Config::default().assign(setting.name, &edge.to_string()).is_some(), "{}", setting.name);
            }
            assert!(matches!(setting.kind, Kind::IntOrUnlimited { .. }) || min >= 0);
        }
    }
}

#[test]
fn docs_are_sentences() {
    for setting in SETTINGS {
        assert!(setting.doc().ends_with('.') && !setting.doc().contains("  "), "{}", setting.name);
    }
}

#[test]
fn finer_units_go_first() {
    for (given, expected) in [
        (&[][..], 168 * 3_600_000),
        (&[("log.retention.hours", "1")], 3_600_000),
        (&[("log.retention.hours", "-1")], -1),
        (&[("log.retention.hours", "1"), ("log.retention.minutes", "3")], 180_000),
        (&[("log.retention.minutes", "-1")], -1),
        (&[("log.retention.minutes", "3"), ("log.retention.ms", "5")], 5),
        (&[("log.retention.ms", "-1")], -1),
    ] {
        assert_eq!(with(given).retention_ms(), expected, "{given:?}");
    }
    assert_eq!(with(&[("log.roll.hours", "2")]).roll_ms(), 7_200_000);
    assert_eq!(with(&[("log.roll.hours", "2"), ("log.roll.ms", "9")]).roll_ms(), 9);
    assert_eq!(with(&[("connections.max.idle.ms", "-1")]).connections_max_idle(), None);
    assert_eq!(Config::default().connections_max_idle(), Some(Duration::from_secs(600)));
}

#[test]
fn the_bound_address_is_advertised_unless_another_is_set() {
    let bound = "127.0.0.1:4711".parse().unwrap();
    assert_eq!(Config::default().advertised(bound), ("127.0.0.1".into(), 4711));
    let told = with(&[("advertised.kafka.addr", "kafka.example:9999")]);
    assert_eq!(told.advertised(bound), ("kafka.example".into(), 9999));
}

#[test]
fn the_ring_must_suffice_for_the_cores() {
    let config = with(&[("wal.ring.bytes", "16MiB")]);
    config.check_cores(3).unwrap();
    let refusal = config.check_cores(5).unwrap_err().to_string();
    let least = config.least_ring_bytes(5);
    assert!(refusal.contains("5 cores") && refusal.contains(&format!("at least {least}")), "{refusal}");
    let mut given = config;
    given.fit_rings(5);
    assert!(given.check_cores(5).is_err(), "what an operator has set is not raised");
    // Four batches of 4 MB plus their headers do not fit.
    let just_not = with(&[("wal.ring.bytes", "16MiB"), ("message.max.bytes", "4MiB")]);
    assert!(just_not.check_cores(1).is_err());
    let large = with(&[("wal.ring.bytes", "16MiB"), ("message.max.bytes", "8MiB")]);
    assert!(large.check_cores(1).unwrap_err().to_string().contains("message.max.bytes = 8388608"));
}

#[test]
fn a_lower_layer_never_overrides() {
    let mut config = Config::default();
    let place = |source| Place { source, named: "test".to_owned() };
    let row = setting("num.partitions").unwrap();
    config.set(row, "7", &place(Source::Flag)).unwrap();
    config.set(row, "5", &place(Source::File)).unwrap();
    assert_eq!((config.num_partitions, config.source("num.partitions")), (7, Source::Flag));
}

#[test]
fn clients_are_told_values_and_where_they_come_from() {
    let described = with(&[("num.partitions", "7")]).describe();
    let find = |name: &str| described.iter().find(|row| row.name == name);
    let changed = find("num.partitions").unwrap();
    assert_eq!((changed.value.as_str(), changed.source, changed.config_type), ("7", 4, 3));
    assert_eq!(changed.synonyms, [("num.partitions", "7".to_owned(), 4), ("num.partitions", "1".to_owned(), 5)]);
    let default = find("message.max.bytes").unwrap();
    assert_eq!(default.synonyms, [("message.max.bytes", "1048588".to_owned(), 5)]);
    assert_eq!((default.value.as_str(), default.source, default.read_only), ("1048588", 5, true));
    assert_eq!(find("log.retention.ms"), None);
}
