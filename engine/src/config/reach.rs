//! Checks that other brokers can reach this one: compares its peer address with the address that other brokers get.
//! Pure.

use std::net::IpAddr;

use crate::config::{
    Config, Conflict,
    value::{HostPort, Seeds},
};

/// Rejects addresses at which no other broker would find this one.
pub fn check(config: &Config) -> Result<(), Conflict> {
    let advertised = match &config.advertised_peer_addr {
        Some(advertised) => advertised.clone(),
        None if config.peer_addr.ip().is_unspecified() => {
            return Err(Conflict::HiddenFromBrokers { addr: config.peer_addr });
        }
        None => HostPort { host: config.peer_addr.ip().to_string(), port: config.peer_addr.port() },
    };
    let own = config.seeds.iter().flat_map(Seeds::iter).find(|(node, _)| *node == config.node_id);
    match own {
        Some((node, seed)) if differ(seed, &advertised) => {
            Err(Conflict::OwnSeed { node: *node, seed: seed.clone(), advertised })
        }
        _ => Ok(()),
    }
}

/// Whether two addresses surely differ. A name may stand for any host, and port 0 for any port.
fn differ(a: &HostPort, b: &HostPort) -> bool {
    let ports = a.port != b.port && a.port != 0 && b.port != 0;
    let hosts = match (a.host.parse::<IpAddr>(), b.host.parse::<IpAddr>()) {
        (Ok(a), Ok(b)) => a.to_canonical() != b.to_canonical(),
        _ => false,
    };
    ports || hosts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Place, Source, setting};

    fn with(values: &[(&str, &str)]) -> Config {
        let mut config = Config::default();
        let place = Place { source: Source::Flag, named: "test".to_owned() };
        for (name, value) in values {
            config.set(setting(name).unwrap(), value, &place).unwrap();
        }
        config
    }

    #[test]
    fn the_own_seed_is_where_other_brokers_are_told() {
        for values in [
            &[][..],
            &[("seeds", "1@127.0.0.1:9291,2@127.0.0.1:9292")],
            // A broker that only joins a cluster.
            &[("seeds", "2@127.0.0.1:9999")],
            &[("seeds", "1@broker-1:9291"), ("peer.addr", "10.0.0.1:9291")],
            &[("seeds", "1@10.0.0.1:9291"), ("peer.addr", "10.0.0.1:0")],
            &[("seeds", "1@10.0.0.1:7000"), ("peer.addr", "0.0.0.0:9291"), ("advertised.peer.addr", "10.0.0.1:7000")],
            &[("seeds", "1@[::ffff:10.0.0.1]:9291"), ("peer.addr", "10.0.0.1:9291")],
        ] {
            check(&with(values)).unwrap();
        }
        for (values, words) in [
            (&[("seeds", "1@127.0.0.1:24999")][..], "at 127.0.0.1:24999, but it advertises 127.0.0.1:9291"),
            (&[("seeds", "1@10.0.0.1:9291,2@b:1")], "list that address in seeds, or set advertised.peer.addr"),
            (&[("seeds", "1@me:7000"), ("advertised.peer.addr", "me:7001")], "advertises me:7001"),
            (&[("peer.addr", "0.0.0.0:9291")], "peer.addr = 0.0.0.0:9291: other brokers can't connect"),
            (&[("peer.addr", "[::]:9291")], "set advertised.peer.addr"),
        ] {
            let refusal = check(&with(values)).unwrap_err().to_string();
            assert!(refusal.contains(words), "{refusal}");
        }
    }
}
