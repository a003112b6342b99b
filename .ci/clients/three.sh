# Shared by the scripts that run clients against three brokers; to be sourced with NAME set, the first word of what they print.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
MILLRACE=$(realpath "${1:-${CARGO_TARGET_DIR:-$root/target}/release/millrace}")
export MILLRACE
cache=${CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millrace-ci}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/millrace-cluster.XXXXXX")
passed=0 failed=0 skipped=0
base=
finish() {
    touch "$scratch/stop"
    [ $failed = 0 ] || for n in 1 2 3; do curl -s "127.0.0.1:$((base + 19 + n))/metrics" >"$scratch/metrics-$n"; done
    "$root/deploy/cluster/stop.sh" --data-dir "$scratch/data" >/dev/null 2>&1
    if [ "${KEEP_DATA:-}" ] && [ $failed -gt 0 ]; then
        echo "kept: $scratch"
    else
        rm -rf "$scratch"
    fi
}
trap finish EXIT
trap 'exit 130' INT TERM

cluster() { # start|status ARG…
    local script=$1
    shift
    "$root/deploy/cluster/$script.sh" --data-dir "$scratch/data" --kafka-port "$base" --peer-port $((base + 10)) \
        --admin-port $((base + 20)) "$@"
}
check() { # NAME COMMAND…
    local name=$1
    shift
    if "$@" >"$scratch/log" 2>&1; then
        echo "ok   $NAME: $name"
        passed=$((passed + 1))
    else
        echo "FAIL $NAME: $name: $(grep -v SLF4J "$scratch/log" | tail -c 600 | tr '\n' ' ')"
        failed=$((failed + 1))
    fi
}
skip() {
    echo "SKIP $NAME: $1"
    skipped=$((skipped + 1))
}
expect() { # PATTERN COMMAND…
    local pattern=$1
    shift
    "$@" >"$scratch/out" 2>&1 || { cat "$scratch/out"; return 1; }
    grep -E -q -- "$pattern" "$scratch/out" || { echo "no '$pattern' in:"; cat "$scratch/out"; return 1; }
}
refused() { ! "$@"; } # COMMAND…, which must fail
metric() { # BROKER NAME: the sum over its cores
    curl -s "127.0.0.1:$((base + 20 + $1 - 1))/metrics" | awk -v name="millrace_$2{" 'index($1, name) == 1 { n += $2 } END { print n + 0 }'
}
run() { timeout 90 java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto -cp "$cache/jars/*" "$@"; }
python() { timeout 90 "$cache/venv/bin/python" "$here/cluster.py" "$@"; }

# Ports below the system's own, and free at the moment.
for try in $(seq 20); do
    base=$((20000 + RANDOM % 10000))
    ss -ltn 2>/dev/null | grep -Eq ":($base|$((base + 1))|$((base + 2))|$((base + 10))|$((base + 11))|$((base + 12))|$((base + 20))|$((base + 21))|$((base + 22))) " || break
done

# Says how it went; the exit status is that of the script.
summary() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
}
