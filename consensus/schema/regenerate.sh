#!/usr/bin/env bash
# Regenerates src/generated/ from schema/*.fbs with the flatc that matches the runtime crate `flatbuffers`.
#
#   schema/regenerate.sh           writes the generated code
#   schema/regenerate.sh --check   exits 1 if the committed code differs
#
# Exits 77 if there is no flatc here. Building it takes minutes, once.
#
# flatc comes from the crate flatc-fork, which builds it with cmake and a C++ compiler. It stays outside the workspace, so
# that building Millrace needs neither; FLATC_DIR (default: a folder below the user's cache) keeps it from run to run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version='=0.6.0'
flatc_dir=${FLATC_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/millrace-flatc}

mkdir -p "$flatc_dir/src"
cat > "$flatc_dir/Cargo.toml" <<EOF
[package]
name = "flatc-path"
version = "0.0.0"
edition = "2024"

[dependencies]
flatc-fork = "$version"

[workspace]
EOF
echo 'fn main() { println!("{}", flatc_fork::flatc().display()); }' > "$flatc_dir/src/main.rs"
if ! flatc=$(cd "$flatc_dir" && CARGO_TARGET_DIR="$flatc_dir/target" cargo run --quiet --release); then
  echo "no flatc: the crate flatc-fork $version cannot be had or built (it needs cmake and a C++ compiler); see above" >&2
  exit 77
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$flatc" --rust --filename-suffix "" -o "$out" "$here"/*.fbs
generated="$here/../src/generated"
if [ "${1:-}" = --check ]; then
  diff -ru "$generated" "$out" || { echo "generated code differs: run consensus/schema/regenerate.sh" >&2; exit 1; }
else
  mkdir -p "$generated"
  cp "$out"/*.rs "$generated/"
fi
