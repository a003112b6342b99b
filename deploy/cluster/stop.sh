#!/usr/bin/env bash
# Stops a cluster that start.sh started; see --help.
set -euo pipefail
# shellcheck source=common.sh
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/common.sh"

usage() {
  cat << END
Stops the brokers that start.sh started on a directory. Each broker drains and flushes before it ends.

Usage: stop.sh [--data-dir DIR] [--wait SECONDS]

  --data-dir DIR    the directory given to start.sh [default: $data_dir]
  --wait SECONDS    how long to wait until all brokers have ended [default: 30]

Example:
  stop.sh --data-dir /tmp/cluster
END
}

patience=30
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --wait) patience=${2:-} && shift 2 || fail "--wait needs a number of seconds; see --help" ;;
    *) common_option "$1" "${2:-}" && shift 2 ;;
  esac
done
case $patience in
  '' | *[!0-9]*) fail "--wait = '$patience': must be a number of seconds" ;;
esac
[ -d "$data_dir" ] || fail "there is no $data_dir; name the directory of start.sh with --data-dir"

stopping=()
for n in $(known_brokers); do
  if pid=$(pid_of "$n"); then
    kill "$pid"
    stopping+=("$n:$pid")
  else
    echo "broker $n is not running"
  fi
done
deadline=$((SECONDS + patience))
left=0
for one in ${stopping[@]+"${stopping[@]}"}; do
  n=${one%%:*}
  pid=${one#*:}
  while pid_of "$n" > /dev/null && [ "$SECONDS" -lt "$deadline" ]; do
    sleep 0.05
  done
  if pid_of "$n" > /dev/null; then
    echo "broker $n (process $pid) still runs after $patience s; see $data_dir/broker-$n.log" >&2
    left=1
  else
    echo "broker $n has stopped"
  fi
done
exit $left
