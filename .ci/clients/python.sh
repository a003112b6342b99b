# The Python clients in $cache/venv, for scripts that need them. Sourced with cache and scratch (a directory for logs) set.

clients_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

retry() { # COMMAND…: three tries, for what comes from a registry
    local try
    for try in 1 2 3; do
        "$@" >"$scratch/install.log" 2>&1 && return 0
        echo "     try $try failed: $*"
        [ "$try" -lt 3 ] && sleep $((try * 5))
    done
    tail -n 5 "$scratch/install.log" | sed 's/^/     /'
    return 1
}

have_python() {
    command -v python3 >/dev/null || return
    [ -x "$cache/venv/bin/python" ] || retry python3 -m venv "$cache/venv" || { rm -rf "$cache/venv"; return 1; }
    cmp -s "$clients_dir/requirements.txt" "$cache/venv/requirements.txt" && return
    retry "$cache/venv/bin/pip" install -q --disable-pip-version-check -r "$clients_dir/requirements.txt" &&
        cp "$clients_dir/requirements.txt" "$cache/venv/requirements.txt"
}
