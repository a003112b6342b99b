#!/usr/bin/env bash
# Starts or stops etcd, as a peer to measure metadata beside; see --help.
set -euo pipefail
# shellcheck source=common.sh
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/common.sh"

usage() {
  cat << END
Starts one or three members of etcd on loopback and waits until they serve. Needs the program etcd; on Debian: apt-get install
etcd-server.

Usage: etcd.sh start --dir DIR --port P [--brokers 1|3] [--cpus LIST] [--until PID]
       etcd.sh stop --dir DIR

  --dir DIR        data, logs and pids
  --port P         port for clients of member 1; member 2 uses the next, and so on; peers use the ports 100 above
  --brokers N      number of members, 1 or 3 [default: 1]
  --cpus LIST      CPUs that each of them may use: 0 or 0,2 [default: all]
  --until PID      stop all when this process ends

The last line of output is the address of member 1.

Example:
  etcd.sh start --dir /tmp/etcd --port 12379 --brokers 3 && millrace-bench etcd --bootstrap 127.0.0.1:12379
END
}

parse "$@"
if [ "$command" = stop ]; then
  stop_all
  exit
fi
command -v etcd > /dev/null || fail "there is no etcd; on Debian: apt-get install etcd-server"
[ -z "$flush" ] || fail "--flush is for Kafka only: etcd always syncs before it answers"

members=
for n in $(seq 1 "$count"); do
  members=$members${members:+,}m$n=http://127.0.0.1:$((port + 100 + n - 1))
done
stop_after_until
for n in $(seq 1 "$count"); do
  client=http://127.0.0.1:$((port + n - 1)) peer=http://127.0.0.1:$((port + 100 + n - 1))
  spawn "$n" etcd --name "m$n" --data-dir "$dir/$n" --listen-client-urls "$client" --advertise-client-urls "$client" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "$members" \
    --initial-cluster-state new --logger zap --log-level warn
done
# A member that listens has joined its cluster.
for n in $(seq 1 "$count"); do
  await "$n" $((port + n - 1))
done
echo "127.0.0.1:$port"
