#!/bin/bash
# kcat against a broker: `write` fills it, `verify` reads everything back after a restart.
# usage: kcat.sh HOST:PORT write|verify STATE_DIR
set -u
bootstrap=$1 phase=$2 state=$3
failed=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

check() { # NAME COMMAND…
    local name=$1
    shift
    if "$@" 2>"$scratch/error"; then
        echo "ok   kcat: $name"
    else
        echo "FAIL kcat: $name: $(head -c 400 "$scratch/error" | tr '\n' ' ')"
        failed=1
    fi
}

kcat_() { timeout 60 kcat -b "$bootstrap" "$@"; }
produce() { kcat_ -P -t "kcat-$1" -p 0 -z "$1" -X acks=all -X enable.idempotence=true -l "$state/lines.txt"; }
consume() {
    kcat_ -C -q -t "kcat-$1" -p 0 -o beginning -e >"$scratch/got" && cmp "$scratch/got" "$state/lines.txt" >&2
}
keys() { # Keys, headers, null and empty values, as kcat prints them.
    printf 'a|1\nb|\n|3\n' | kcat_ -P -t kcat-keys -p 0 -K '|' -Z -H name=value -X acks=all
}
keys_back() {
    kcat_ -C -q -t kcat-keys -p 0 -o beginning -e -Z -f '%o %k %s %h\n' >"$scratch/got" || return
    printf '0 a 1 name=value\n1 b NULL name=value\n2 NULL 3 name=value\n' | diff - "$scratch/got" >&2
}
tail_of() { # The last record only.
    [ "$(kcat_ -C -q -t kcat-none -p 0 -o -1 -e)" = "$(tail -n 1 "$state/lines.txt")" ]
}
offsets() {
    [ "$(kcat_ -Q -t kcat-none:0:-2)" = "kcat-none [0] offset 0" ] &&
        [ "$(kcat_ -Q -t kcat-none:0:-1)" = "kcat-none [0] offset $(wc -l <"$state/lines.txt")" ]
}
group() { # FROM COUNT
    kcat_ -G kcat-group -q -c "$2" -X auto.offset.reset=earliest -f '%o\n' kcat-none >"$scratch/got" || return
    seq "$1" $(($1 + $2 - 1)) | diff - "$scratch/got" >&2
}

if [ "$phase" = write ]; then
    for codec in none gzip snappy lz4 zstd; do
        check "auto-create, produce: $codec" produce "$codec"
        check "consume: $codec" consume "$codec"
    done
    check "auto-create, produce keys, headers, null values" keys
    check "consume keys, headers, null values" keys_back
    check "the last record" tail_of
    check "first and last offset" offsets
    check "group of one member" group 0 100
else
    for codec in none gzip snappy lz4 zstd; do
        check "the same bytes after a restart: $codec" consume "$codec"
    done
    check "keys, headers, null values after a restart" keys_back
    check "first and last offset after a restart" offsets
    check "group continues at its committed offset" group 100 50
fi
exit $failed
