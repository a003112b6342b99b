# Sourced by bash scripts that need a broker: one at a time, on ports of the system's choice.
# Sets `broker` (its process id) and `bootstrap` (HOST:PORT of its Kafka address).

broker=

begin_broker() { # BINARY DIR [FLAG…]: data in DIR/data, output in DIR/broker.log; returns once its banner names the port
    local binary=$1 dir=$2 tries
    shift 2
    "$binary" serve --data-dir "$dir/data" --kafka-addr 127.0.0.1:0 --peer-addr 127.0.0.1:0 --admin-addr 127.0.0.1:0 \
        --set group.initial.rebalance.delay.ms=0 "$@" >"$dir/broker.log" 2>&1 &
    broker=$!
    for tries in $(seq 300); do
        bootstrap=$(sed -n -E 's/^.*kafka[^0-9]*(127\.0\.0\.1:[1-9][0-9]*).*$/\1/p' "$dir/broker.log" | head -n 1)
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
