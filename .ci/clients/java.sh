#!/bin/bash
# Apache Kafka's own tools against a broker: `write` fills it, `verify` reads everything back after a restart.
# usage: KAFKA_JARS=DIR java.sh HOST:PORT write|verify STATE_DIR
set -u
bootstrap=$1 phase=$2 state=$3
failed=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
tools=org.apache.kafka.tools

check() { # NAME COMMAND…
    local name=$1
    shift
    if "$@" >"$scratch/log" 2>&1; then
        echo "ok   java: $name"
    else
        echo "FAIL java: $name: $(grep -v SLF4J "$scratch/log" | head -c 600 | tr '\n' ' ')"
        failed=1
    fi
}

# JVMs that live a second each: the first compiler only, and no parallel collector.
run() { timeout 90 java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto -cp "$KAFKA_JARS/*" "$@"; }
topic() { run $tools.TopicCommand --bootstrap-server "$bootstrap" "$@"; }
expect() { # PATTERN COMMAND…: the command succeeds and prints the pattern.
    local pattern=$1
    shift
    "$@" >"$scratch/out" || { cat "$scratch/out"; return 1; }
    grep -E -q -- "$pattern" "$scratch/out" || { echo "no '$pattern' in:"; cat "$scratch/out"; return 1; }
}
refuse() { # PATTERN COMMAND…: the command fails and says the pattern.
    local pattern=$1
    shift
    "$@" >"$scratch/out" 2>&1 && { echo "the command was not rejected"; return 1; }
    grep -E -q -- "$pattern" "$scratch/out" || { echo "no '$pattern' in:"; cat "$scratch/out"; return 1; }
}
produce() {
    run $tools.ConsoleProducer --bootstrap-server "$bootstrap" --topic "java-$1" --compression-codec "$1" \
        --request-required-acks all <"$state/lines.txt"
}
consume() {
    local count
    count=$(wc -l <"$state/lines.txt")
    run $tools.consumer.ConsoleConsumer --bootstrap-server "$bootstrap" --topic "$1" --partition 0 --offset earliest \
        --max-messages "$count" --timeout-ms 30000 >"$scratch/got" && cmp "$scratch/got" "$state/lines.txt"
}
perf() {
    run $tools.ProducerPerformance --topic java-perf --num-records 20000 --record-size 1024 --throughput -1 \
        --producer-props "bootstrap.servers=$bootstrap" acks=all linger.ms=5
}
group() { # COUNT, read and committed by one member of the group
    run $tools.consumer.ConsoleConsumer --bootstrap-server "$bootstrap" --topic java-none --group java-group \
        --max-messages "$1" --timeout-ms 30000 --consumer-property auto.offset.reset=earliest \
        --consumer-property enable.auto.commit=true --consumer-property "max.poll.records=$1" >"$scratch/got"
}
group_is() { # FROM COUNT
    group "$2" && sed -n "$(($1 + 1)),$(($1 + $2))p" "$state/lines.txt" | cmp - "$scratch/got"
}
offset_is() { # TIME EXPECTED
    expect "^java-none:0:$2\$" run $tools.GetOffsetShell --bootstrap-server "$bootstrap" --topic java-none --time "$1"
}
alter() {
    run kafka.admin.ConfigCommand --bootstrap-server "$bootstrap" --alter --entity-type topics --entity-name java-keep \
        --add-config retention.ms=7200000
}
altered() {
    expect 'retention.ms=7200000' run kafka.admin.ConfigCommand --bootstrap-server "$bootstrap" --describe \
        --entity-type topics --entity-name java-keep
}
gone() {
    topic --list >"$scratch/out" && ! grep -q java-deleted "$scratch/out"
}

lines=$(wc -l <"$state/lines.txt")
if [ "$phase" = write ]; then
    for codec in none gzip snappy lz4 zstd; do
        check "TopicCommand --create: $codec" topic --create --topic "java-$codec" --partitions 1 --replication-factor 1
        check "ConsoleProducer: $codec" produce "$codec"
        check "ConsoleConsumer: $codec" consume "java-$codec"
    done
    check "TopicCommand --create with settings" topic --create --topic java-keep --partitions 2 --config retention.ms=3600000
    check "TopicCommand --create twice" refuse 'already exists' topic --create --topic java-keep --partitions 2
    check "TopicCommand --describe" expect 'PartitionCount: 2.*retention.ms=3600000' topic --describe --topic java-keep
    check "TopicCommand --alter --partitions" topic --alter --topic java-keep --partitions 5
    check "TopicCommand --describe after" expect 'PartitionCount: 5' topic --describe --topic java-keep
    check "ConfigCommand --alter" alter
    check "ConfigCommand --describe" altered
    check "TopicCommand --create to delete" topic --create --topic java-deleted --partitions 1
    check "TopicCommand --delete" topic --delete --topic java-deleted
    check "TopicCommand --list" gone
    check "GetOffsetShell latest" offset_is latest "$lines"
    check "GetOffsetShell earliest" offset_is earliest 0
    check "ProducerPerformance to a new topic" perf
    check "group of one member" group_is 0 100
else
    for codec in none gzip snappy lz4 zstd; do
        check "the same bytes after a restart: $codec" consume "java-$codec"
    done
    check "partitions and settings after a restart" expect 'PartitionCount: 5.*retention.ms=7200000' topic --describe --topic java-keep
    check "a deleted topic stays deleted" gone
    check "GetOffsetShell latest after a restart" offset_is latest "$lines"
    check "group continues at its committed offset" group_is 100 50
fi
exit $failed
