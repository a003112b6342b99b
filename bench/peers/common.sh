# Shared by kafka.sh and etcd.sh: one or three processes on a directory, started and stopped together. Sourced, not run.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
patience=90

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# start|stop and the options of both scripts: sets command, dir, port, count, cpus, flush, until
parse() {
  command=${1:-}
  dir= port= count=1 cpus= flush= until=
  case $command in
    start | stop) shift ;;
    --help | -h) usage && exit 0 ;;
    *) fail "'$command': must be start or stop; see --help" ;;
  esac
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) usage && exit 0 ;;
      --flush) flush=yes && shift ;;
      --dir | --port | --brokers | --cpus | --until)
        [ -n "${2:-}" ] || fail "$1 needs a value; see --help"
        case $1 in
          --dir) dir=$2 ;;
          --port) port=$2 ;;
          --brokers) count=$2 ;;
          --cpus) cpus=$2 ;;
          --until) until=$2 ;;
        esac
        shift 2
        ;;
      *) fail "unknown option $1; see --help" ;;
    esac
  done
  [ -n "$dir" ] || fail "--dir is missing; see --help"
  case $count in
    1 | 3) ;;
    *) fail "--brokers = '$count': must be 1 or 3" ;;
  esac
  if [ "$command" = start ]; then
    case $port in
      '' | *[!0-9]*) fail "--port = '$port': must be a port, 1024 to 65500" ;;
    esac
    { [ "$port" -ge 1024 ] && [ "$port" -le 65500 ]; } || fail "--port = '$port': must be a port, 1024 to 65500"
    [ -z "$until" ] || kill -0 "$until" 2> /dev/null || fail "--until = '$until': there is no such process"
    mkdir -p "$dir" || fail "cannot create $dir; name another directory with --dir"
  fi
  [ -d "$dir" ] || fail "there is no $dir; name the directory of start with --dir"
  dir=$(cd "$dir" && pwd)
}

# Leaves a process behind that stops all once that of --until has ended, however it ended.
stop_after_until() {
  [ -n "$until" ] || return 0
  setsid nohup bash -c 'tail --pid="$1" -f /dev/null; [ ! -d "$3" ] || exec "$2" stop --dir "$3"' \
    until "$until" "$here/$(basename "$0")" "$dir" > /dev/null 2>&1 < /dev/null &
}

# Runs a program in the background, on the CPUs that were named: spawn N PROGRAM…
spawn() {
  local n=$1
  shift
  [ -z "$cpus" ] || set -- taskset -c "$cpus" "$@"
  nohup "$@" > "$dir/$n.log" 2>&1 < /dev/null &
  echo $! > "$dir/$n.pid"
}

listens() { # PORT
  (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null
}

# Waits until process N's port answers.
await() { # N PORT
  local give_up=$((SECONDS + patience))
  until listens "$2"; do
    if ! kill -0 "$(cat "$dir/$1.pid")" 2> /dev/null || [ "$SECONDS" -ge "$give_up" ]; then
      tail -n 20 "$dir/$1.log" >&2
      fail "process $1 does not serve; above is the end of $dir/$1.log"
    fi
    sleep 0.2
  done
}

# The process of a pid file, if it still is what was started there.
ours() { # PID-FILE
  local pid
  pid=$(cat "$1") || return 1
  { tr '\0' '\n' < "/proc/$pid/cmdline"; } 2> /dev/null | grep -qF -- "$dir" && echo "$pid"
}

stop_all() {
  local file pid give_up=$((SECONDS + 15))
  for file in "$dir"/*.pid; do
    [ -e "$file" ] && pid=$(ours "$file") && kill "$pid"
  done
  for file in "$dir"/*.pid; do
    while [ -e "$file" ] && pid=$(ours "$file"); do
      [ "$SECONDS" -lt "$give_up" ] || kill -9 "$pid"
      sleep 0.2
    done
    rm -f "$file"
  done
  return 0
}
