#!/usr/bin/env bash
# Starts a cluster of brokers on this machine; see --help.
set -euo pipefail
# shellcheck source=common.sh
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/common.sh"

usage() {
  cat << END
Starts brokers 1 to N on loopback as one cluster, and waits until all of them serve. Running brokers stay as they are, and a broker
that is stopping is restarted. So a second start on the same directory starts the brokers that are down.

Usage: start.sh [--brokers N] [--data-dir DIR] [options] [-- BROKER OPTIONS]

  --brokers N       number of brokers, 1 to 15 [default: 3, or as many as were started on the directory before]
  --data-dir DIR    data, logs and pids: DIR/broker-N, DIR/broker-N.log, DIR/broker-N.pid [default: $data_dir];
                    DIR/cluster.secret authenticates brokers and tools; it is created if it is missing
  --kafka-port P    port for Kafka clients of broker 1; broker 2 uses the next port, and so on [default: $kafka_port]
  --peer-port P     the same for other brokers and tools [default: $peer_port]
  --admin-port P    the same for metrics and health [default: $admin_port]
  --wait SECONDS    how long to wait until all brokers serve [default: 30]

The brokers split the CPUs that this shell may use evenly; with fewer CPUs than brokers, they share them. The binary is MILLRACE
if that is set, else target/release/millrace of this source tree, else millrace on the PATH.

Examples:
  start.sh
  start.sh --brokers 5 --data-dir /tmp/cluster
  start.sh --data-dir /tmp/cluster -- --set metadata.acks=leader --log debug
END
}

brokers=
patience=30
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --brokers) brokers=${2:-} && shift 2 || fail "--brokers needs a number; see --help" ;;
    --wait) patience=${2:-} && shift 2 || fail "--wait needs a number of seconds; see --help" ;;
    --) shift && break ;;
    *) common_option "$1" "${2:-}" && shift 2 ;;
  esac
done

known=$(known_brokers | tail -n 1)
brokers=${brokers:-${known:-3}}
case $brokers in
  [1-9] | 1[0-5]) ;;
  *) fail "--brokers = '$brokers': must be 1 to 15" ;;
esac
case $patience in
  '' | *[!0-9]*) fail "--wait = '$patience': must be a number of seconds" ;;
esac

binary=${MILLRACE:-}
[ -n "$binary" ] || { [ -x "$here/../../target/release/millrace" ] && binary=$here/../../target/release/millrace; } \
  || binary=$(command -v millrace) \
  || fail "there is no binary; run 'cargo build --release' in the source tree, or set MILLRACE to its path"
[ -x "$binary" ] || fail "MILLRACE = '$binary': no such program"

mkdir -p "$data_dir" || fail "cannot create $data_dir; name another directory with --data-dir"
data_dir=$(cd "$data_dir" && pwd)

# By what the brokers, and tools (--data-dir $data_dir), know each other.
secret=$data_dir/cluster.secret
if [ ! -s "$secret" ]; then
  (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$secret.new") && mv "$secret.new" "$secret" \
    || fail "cannot write the cluster's secret to $secret"
fi

# The founders' list: it matters only to a broker that belongs to no cluster yet.
seeds=
for n in $(seq 1 "$brokers"); do
  seeds=$seeds${seeds:+,}$n@127.0.0.1:$((peer_port + n - 1))
done

# The CPUs of this shell, one a line.
cpus=()
list=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)
for range in ${list//,/ }; do
  for cpu in $(seq "${range%-*}" "${range#*-}"); do
    cpus+=("$cpu")
  done
done

# Broker $1's share of them.
cores_of() {
  local share=$((${#cpus[@]} / brokers)) first
  if [ "$share" -eq 0 ]; then
    echo "${cpus[$((($1 - 1) % ${#cpus[@]}))]}"
  else
    first=$((($1 - 1) * share))
    (IFS=, && echo "${cpus[*]:$first:$share}")
  fi
}

memory_mib=$(($(sed -n 's/^MemTotal:[[:space:]]*\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024 / 2 / brokers))

# Broker $1 is to find its three addresses free: it would end at once, and another's answers might be taken for its own.
check_ports() {
  local what port
  for what in kafka peer admin; do
    port=${what}_port
    port=$((${!port} + $1 - 1))
    ! is_taken "$port" || fail "broker $1: the address 127.0.0.1:$port is taken by another program; stop that program, or choose" \
      "other ports with --$what-port"
  done
}

launch() { # NUMBER
  check_ports "$1"
  nohup "$binary" serve --node-id "$1" --data-dir "$data_dir/broker-$1" --seeds "$seeds" \
    --kafka-addr "127.0.0.1:$((kafka_port + $1 - 1))" --peer-addr "127.0.0.1:$((peer_port + $1 - 1))" \
    --admin-addr "127.0.0.1:$((admin_port + $1 - 1))" --cluster-secret-file "$secret" --cores "$(cores_of "$1")" \
    "${memory[@]}" "${options[@]}" >> "$data_dir/broker-$1.log" 2>&1 < /dev/null &
  echo $! > "$data_dir/broker-$1.pid"
  launched+=" $1 "
}

options=("$@")
# A setting may be given once only, so the caller's budget takes the place of this one.
memory=(--set "memory.budget.bytes=${memory_mib}MiB")
[[ " $* " != *memory.budget.bytes* ]] || memory=()
launched=
deadline=$((SECONDS + patience))

# Waits for the end of a broker that has been told to stop.
until_stopped() { # NUMBER PID
  echo "broker $1 (process $2) is stopping; it will be restarted once it has ended"
  while pid_of "$1" > /dev/null; do
    [ "$SECONDS" -lt "$deadline" ] || fail "broker $1 (process $2) has not stopped after $patience s; see $data_dir/broker-$1.log"
    sleep 0.1
  done
}

for n in $(seq 1 "$brokers"); do
  if pid=$(pid_of "$n"); then
    if [ "$(phase_of "$n" "$pid")" != stopping ]; then
      echo "broker $n runs already (process $pid)"
      continue
    fi
    until_stopped "$n" "$pid"
  fi
  launch "$n"
done

for n in $(seq 1 "$brokers"); do
  until pid=$(pid_of "$n") && is_ready "$n" "$pid"; do
    if [ -z "$pid" ] && [[ $launched == *" $n "* ]]; then
      tail -n 20 "$data_dir/broker-$n.log" >&2
      fail "broker $n has ended; above is the end of $data_dir/broker-$n.log"
    fi
    # It was stopping when it was looked at first.
    [ -n "$pid" ] || launch "$n"
    if [ "$SECONDS" -ge "$deadline" ]; then
      tail -n 20 "$data_dir/broker-$n.log" >&2
      fail "broker $n does not serve after $patience s; above is the end of $data_dir/broker-$n.log"
    fi
    sleep 0.1
  done
  [[ $launched == *" $n "* ]] || continue
  echo "broker $n serves: kafka 127.0.0.1:$((kafka_port + n - 1)), peers 127.0.0.1:$((peer_port + n - 1))," \
    "admin 127.0.0.1:$((admin_port + n - 1)), CPUs $(cores_of "$n"), process $pid"
done
