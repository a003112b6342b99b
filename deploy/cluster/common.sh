# Shared by start.sh, stop.sh and status.sh: where a local cluster's brokers are. Sourced, not run.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data_dir=./millrace-cluster
kafka_port=9092
peer_port=9291
admin_port=9644

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# An option of all three scripts and its value: common_option --data-dir DIR
common_option() {
  [ -n "${2:-}" ] || fail "$1 needs a value; see --help"
  case $1 in
    --data-dir) data_dir=$2 ;;
    --kafka-port) kafka_port=$(port "$1" "$2") || exit 1 ;;
    --peer-port) peer_port=$(port "$1" "$2") || exit 1 ;;
    --admin-port) admin_port=$(port "$1" "$2") || exit 1 ;;
    *) fail "unknown option $1; see --help" ;;
  esac
}

port() {
  case $2 in
    '' | *[!0-9]*) fail "$1 = '$2': must be a port, 1 to 65500" ;;
  esac
  { [ "$2" -ge 1 ] && [ "$2" -le 65500 ]; } || fail "$1 = '$2': must be a port, 1 to 65500"
  echo "$2"
}

# The process of broker $1 if it runs, and is a broker on that directory: a pid may have gone to somebody else.
pid_of() {
  local pid
  pid=$(cat "$data_dir/broker-$1.pid" 2>/dev/null) || return 1
  [ -r "/proc/$pid/cmdline" ] || return 1
  tr '\0' '\n' < "/proc/$pid/cmdline" | grep -qxF -- "$(cd "$data_dir" && pwd)/broker-$1" || return 1
  # One that has ended and was not waited for is none.
  ! grep -q '^State:[[:space:]]*Z' "/proc/$pid/status" 2>/dev/null || return 1
  echo "$pid"
}

# The numbers of all brokers that were ever started on the directory, in order.
known_brokers() {
  local file
  for file in "$data_dir"/broker-*.pid; do
    [ -e "$file" ] || continue
    file=${file##*/broker-}
    echo "${file%.pid}"
  done | sort -n
}

# One page of broker $1's admin port: page N PATH
page() {
  local connection body line
  exec {connection}<> "/dev/tcp/127.0.0.1/$((admin_port + $1 - 1))" || return 1
  printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$2" >&"$connection"
  # Another program may have the port, and say nothing.
  body=$(timeout 5 cat <&"$connection")
  exec {connection}>&-
  line=${body%%$'\r\n'*}
  printf '%s\n' "${body#*$'\r\n\r\n'}"
  [[ $line == *' 200 '* ]]
}

# A number, word or null of a JSON page: field NAME
field() {
  sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",}]*\)"\{0,1\}.*/\1/p' | head -n 1
}

# Whether broker $1, process $2, is starting, ready or stopping. Fails if that very process does not answer: another one may have
# its port.
phase_of() {
  local status
  status=$(page "$1" /status 2> /dev/null) || return 1
  [ "$(printf '%s\n' "$status" | field pid)" = "$2" ] || return 1
  printf '%s\n' "$status" | field phase
}

# Whether broker $1, process $2, serves.
is_ready() {
  [ "$(phase_of "$1" "$2")" = ready ]
}

# Whether a program listens on port $1.
is_taken() {
  (exec {connection}<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null
}
