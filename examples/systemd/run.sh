#!/usr/bin/env bash
# The units are what systemd understands, and leave the agent little to misuse; the
# templates are the same with an instance's name in each path.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
plain() { sed -e 's/@%i//g' -e 's# %i:#:#' -e 's#/run/credence/%i/#/run/credence/#' -e 's#/etc/credence/%i/#/etc/credence/#' -e 's#credence/%i$#credence/agent#' "$1"; }
for unit in credence-agent.service credence-agent.socket credence-agent-admin.socket; do
  template=${unit/./@.}
  diff "$here/$unit" <(plain "$here/$template") || { echo "$template and $unit differ"; exit 1; }
done
command -v systemd-analyze >/dev/null || { echo "skipped: no systemd-analyze here"; exit 0; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
# What it starts need not be installed here; that it can be run is asked too.
for unit in "$here"/credence-*; do
  sed -E "s#/usr/local/bin/credence(-agent)?#$(command -v true)#" "$unit" >"$dir/$(basename "$unit")"
done
said=$(systemd-analyze verify "$dir"/*.service "$dir"/*.socket 2>&1) || { echo "$said"; exit 1; }
if grep -F "$dir" <<<"$said"; then exit 1; fi # it warns of what it doesn't know
for unit in credence-agent.service credence-agent@.service credence-broker.service; do
  systemd-analyze security --offline=yes --threshold=20 --no-pager "$dir/$unit" | tail -n 1
done
