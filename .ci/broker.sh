# Sourced by bash scripts that need a broker: one at a time, on ports of the system's choice.
# Sets `broker` (its process id), `bootstrap` (HOST:PORT of its Kafka address) and `broker_log` (its output, one file per life).

broker=
broker_log=/dev/null
lives=0

begin_broker() { # BINARY DIR [FLAG…]: data in DIR/data, output in DIR/broker-N.log; returns once its banner names the port
    local binary=$1 dir=$2 tries
    shift 2
    lives=$((lives + 1))
    broker_log=$dir/broker-$lives.log
    : >"$broker_log"
    # Groups need not wait for a second member; the data set's timestamps are older than the default retention.
    "$binary" serve --data-dir "$dir/data" --kafka-addr 127.0.0.1:0 --peer-addr 127.0.0.1:0 --admin-addr 127.0.0.1:0 \
        --set group.initial.rebalance.delay.ms=0 --set log.retention.ms=-1 "$@" >"$broker_log" 2>&1 &
    broker=$!
    for tries in $(seq 300); do
        bootstrap=$(sed -n -E 's/^.*kafka[^0-9]*(127\.0\.0\.1:[1-9][0-9]*).*$/\1/p' "$broker_log" | head -n 1)
        [ -n "$bootstrap" ] && return 0
        kill -0 "$broker" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

end_broker() { # SIGTERM; returns the broker's exit status, or that of SIGKILL if it takes longer than 30 s
    local pid=$broker waiter status
    kill -TERM "$pid"
    (sleep 30 && kill -9 "$pid") >/dev/null 2>&1 &
    waiter=$!
    wait "$pid"
    status=$?
    broker=
    kill "$waiter" 2>/dev/null
    return "$status"
}

kill_broker() {
    [ -z "$broker" ] || kill -9 "$broker" 2>/dev/null
    broker=
}
