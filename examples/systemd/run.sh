#!/usr/bin/env bash
# The units are what systemd understands, and leave the agent little to misuse.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command -v systemd-analyze >/dev/null || { echo "skipped: no systemd-analyze here"; exit 0; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
# What it starts need not be installed here; that it can be run is asked too.
for unit in "$here"/credence-agent*; do
  sed "s#/usr/local/bin/credence-agent#$(command -v true)#" "$unit" >"$dir/$(basename "$unit")"
done
said=$(systemd-analyze verify "$dir"/*.service "$dir"/*.socket 2>&1) || { echo "$said"; exit 1; }
if grep -F "$dir" <<<"$said"; then exit 1; fi # it warns of what it doesn't know
systemd-analyze security --offline=yes --threshold=20 --no-pager "$dir/credence-agent.service" | tail -n 1
