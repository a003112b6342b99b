#!/usr/bin/env bash
# Starts or stops Apache Kafka in KRaft mode, as a peer to measure beside; see --help.
set -euo pipefail
# shellcheck source=common.sh
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/common.sh"

usage() {
  cat << END
Starts one or three brokers of Apache Kafka in KRaft mode on loopback, and waits until they serve. Each process is a broker and a
controller. Maven downloads the jars once into \${KAFKA_JARS:-~/.cache/millrace-bench/kafka}. Needs Java 17 and Maven.

Usage: kafka.sh start --dir DIR --port P [--brokers 1|3] [--cpus LIST] [--until PID] [--flush]
       kafka.sh stop --dir DIR

  --dir DIR        data, logs and pids
  --port P         port for clients of broker 1; broker 2 uses the next, and so on; controllers use the ports 100 above
  --brokers N      number of brokers, 1 or 3 [default: 1]
  --cpus LIST      CPUs that each of them may use: 0 or 0,2 [default: all]
  --until PID      stop all when this process ends
  --flush          flush.messages=1: Kafka syncs each batch before it acknowledges it; by default it does not
  HEAP=512m        in the environment: the heap of each [default: 1g]

The last line of output is the address of broker 1.

Example:
  kafka.sh start --dir /tmp/kafka --port 19092 --flush && millrace-bench produce --bootstrap 127.0.0.1:19092
END
}

parse "$@"
if [ "$command" = stop ]; then
  stop_all
  exit
fi

for tool in java mvn; do
  command -v "$tool" > /dev/null || fail "there is no $tool; on Debian: apt-get install default-jre-headless maven"
done
jars=${KAFKA_JARS:-${XDG_CACHE_HOME:-$HOME/.cache}/millrace-bench/kafka}
if ! cmp -s "$here/pom.xml" "$jars/pom.xml"; then
  rm -rf "$jars"
  mkdir -p "$jars"
  mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$jars" >&2 ||
    fail "Maven could not fetch Kafka's jars; the reason is above"
  cp "$here/pom.xml" "$jars/pom.xml"
fi

voters=
for n in $(seq 1 "$count"); do
  voters=$voters${voters:+,}$n@127.0.0.1:$((port + 100 + n - 1))
done
stop_after_until
cluster=$(printf 'millrace-bench00' | base64 | tr '+/' '-_' | tr -d '=')
for n in $(seq 1 "$count"); do
  mkdir -p "$dir/$n"
  cat > "$dir/$n/server.properties" << END
process.roles=broker,controller
node.id=$n
controller.quorum.voters=$voters
listeners=PLAINTEXT://127.0.0.1:$((port + n - 1)),CONTROLLER://127.0.0.1:$((port + 100 + n - 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$((port + n - 1))
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$dir/$n/data
offsets.topic.replication.factor=$count
transaction.state.log.replication.factor=$count
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=$count
group.initial.rebalance.delay.ms=0
END
  [ -z "$flush" ] || echo log.flush.interval.messages=1 >> "$dir/$n/server.properties"
  java -cp "$jars/*" kafka.tools.StorageTool format --ignore-formatted -t "$cluster" -c "$dir/$n/server.properties" \
    > "$dir/$n.log" 2>&1 || { tail -n 20 "$dir/$n.log" >&2 && fail "cannot format the storage of broker $n; the end of its log is above"; }
  heap=${HEAP:-1g}
  spawn "$n" java "-Xms$heap" "-Xmx$heap" -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35 \
    -Djava.awt.headless=true -cp "$jars/*" kafka.Kafka "$dir/$n/server.properties"
done
for n in $(seq 1 "$count"); do
  await "$n" $((port + n - 1))
done
echo "127.0.0.1:$port"
