//! The secret that authenticates the brokers and tools of a cluster to each other on the peer port. Selects the
//! secret that this broker uses. Lives on: the main thread, at start.

use std::{net::SocketAddr, path::Path};

use net::peer::auth::{self as peer_auth, SECRET_BYTES_MIN, SECRET_FILE, Secret};

use crate::config::{Config, value::Seeds};

/// How to make a secret by hand.
const HOW: &str = "`head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > FILE` makes one";

/// Why this broker has no secret for its peer port.
#[derive(Debug, thiserror::Error)]
pub enum ClusterSecretError {
    #[error(
        "peer.addr = {addr}: anyone who reaches it could read and change everything, because this broker has no cluster \
         secret; {}",
        remedy()
    )]
    Exposed { addr: SocketAddr },
    #[error("seeds names broker {node}, but this broker has no secret to share with it; {}", remedy())]
    NotShared { node: i32 },
    #[error("{0} (cluster.secret.file)")]
    File(#[from] peer_auth::SecretError),
}

fn remedy() -> String {
    format!(
        "set cluster.secret.file (--cluster-secret-file) to a file of {SECRET_BYTES_MIN} bytes or more that all \
         brokers and tools of the cluster share ({HOW}), or set peer.allow.insecure=true if nobody else can reach \
         that port"
    )
}

/// Checks that the settings say how to authenticate others on the peer port.
pub fn check(config: &Config) -> Result<(), ClusterSecretError> {
    if config.cluster_secret_file.is_some() || config.peer_allow_insecure {
        return Ok(());
    }
    let addr = config.peer_addr;
    if !addr.ip().is_loopback() {
        return Err(ClusterSecretError::Exposed { addr });
    }
    match others(config).next() {
        Some(node) => Err(ClusterSecretError::NotShared { node }),
        None => Ok(()),
    }
}

/// The other brokers among the seeds.
fn others(config: &Config) -> impl Iterator<Item = i32> {
    let nodes = config.seeds.as_ref().map(Seeds::nodes).unwrap_or_default();
    let own = config.node_id;
    nodes.into_iter().filter(move |node| *node != own)
}

/// The secret in force; `None`: nobody needs one. A broker without other seeds makes its own at its first start.
pub fn load(config: &Config) -> Result<Option<Secret>, ClusterSecretError> {
    check(config)?;
    if let Some(file) = &config.cluster_secret_file {
        warn_of_readers(file);
        return Ok(Some(Secret::read(file)?));
    }
    if config.peer_allow_insecure {
        tracing::warn!(
            addr = %config.peer_addr,
            "peer.allow.insecure: anyone who reaches the peer port can read and change everything in this cluster"
        );
        return Ok(None);
    }
    let file = config.data_dir.join(SECRET_FILE);
    warn_of_readers(&file);
    Ok(Some(Secret::read_or_make(&file)?))
}

fn warn_of_readers(file: &Path) {
    if peer_auth::is_readable_by_all(file) {
        tracing::warn!(file = %file.display(), "all users of this machine can read the cluster's secret; chmod 600 it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(peer_addr: &str, seeds: Option<&str>) -> Config {
        let mut config = Config::default();
        config.peer_addr = peer_addr.parse().unwrap();
        config.seeds = seeds.map(|seeds| seeds.parse().unwrap());
        config
    }

    #[test]
    fn an_address_that_others_can_reach_needs_a_secret() {
        let two = Some("1@127.0.0.1:9291,2@127.0.0.1:9292");
        for (addr, seeds, named) in [
            ("10.0.0.1:9291", None, Some("peer.addr = 10.0.0.1:9291")),
            ("0.0.0.0:9291", None, Some("peer.addr = 0.0.0.0:9291")),
            ("[::]:9291", Some("1@h:1"), Some("peer.addr = [::]:9291")),
            ("127.0.0.1:9291", two, Some("seeds names broker 2")),
            ("127.0.0.1:9291", None, None),
            ("[::1]:9291", Some("1@127.0.0.1:9291"), None),
        ] {
            let mut config = config(addr, seeds);
            let refused = check(&config).err().map(|error| error.to_string());
            match named {
                None => assert_eq!(refused, None),
                Some(named) => {
                    let refused = refused.unwrap();
                    for part in [named, "cluster.secret.file", "head -c 32", "peer.allow.insecure=true"] {
                        assert!(refused.contains(part), "{refused}");
                    }
                }
            }
            config.peer_allow_insecure = true;
            check(&config).unwrap();
            config.peer_allow_insecure = false;
            config.cluster_secret_file = Some("/no/such".into());
            check(&config).unwrap();
            assert!(load(&config).unwrap_err().to_string().contains("/no/such"));
        }
    }

    #[test]
    fn a_broker_alone_makes_its_own_secret_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config("127.0.0.1:9291", None);
        config.data_dir = dir.path().to_owned();
        let made = load(&config).unwrap();
        assert!(made.is_some());
        assert_eq!(load(&config).unwrap(), made);
        // Another broker of the cluster gets a copy of the secret.
        config.cluster_secret_file = Some(dir.path().join(SECRET_FILE));
        config.seeds = Some("1@127.0.0.1:1,2@127.0.0.1:2".parse().unwrap());
        assert_eq!(load(&config).unwrap(), made);
        config.cluster_secret_file = None;
        config.peer_allow_insecure = true;
        assert_eq!(load(&config).unwrap(), None);
    }
}
