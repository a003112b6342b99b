#!/usr/bin/env bash
# Shows how a cluster is that start.sh started; see --help.
set -euo pipefail
# shellcheck source=common.sh
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/common.sh"

usage() {
  cat << END
Shows the brokers that start.sh started on a directory, and their roles in the cluster. The exit status is 1 if a broker does not
serve.

Usage: status.sh [--data-dir DIR] [--kafka-port P] [--peer-port P] [--admin-port P]

  --data-dir DIR    the directory given to start.sh [default: $data_dir]; the ports must be the same too

Example:
  status.sh --data-dir /tmp/cluster
END
}

while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    *) common_option "$1" "${2:-}" && shift 2 ;;
  esac
done
[ -d "$data_dir" ] || fail "there is no $data_dir; name the directory of start.sh with --data-dir"
[ -n "$(known_brokers)" ] || fail "no broker was ever started on $data_dir"

down=0
row='%-7s %-8s %-9s %-16s %-16s %-16s %-9s %s\n'
# shellcheck disable=SC2059
printf "$row" broker process state kafka peers admin metadata term
for n in $(known_brokers); do
  state=down
  role=-
  term=-
  if pid=$(pid_of "$n"); then
    state=$(phase_of "$n" "$pid") || state=starting
    if [ "$state" = ready ]; then
      state=serving
      status=$(page "$n" /status || true)
      role=follower
      [ "$(printf '%s\n' "$status" | field metadata_leads)" != 1 ] || role=leader
      term=$(printf '%s\n' "$status" | field metadata_term)
    fi
  else
    pid=-
  fi
  [ "$state" = serving ] || down=1
  # shellcheck disable=SC2059
  printf "$row" "$n" "$pid" "$state" "127.0.0.1:$((kafka_port + n - 1))" "127.0.0.1:$((peer_port + n - 1))" \
    "127.0.0.1:$((admin_port + n - 1))" "$role" "${term:--}"
done
exit $down
