#!/usr/bin/env bash
# What an Envoy with envoy.yaml gets from an agent, asked for as Envoy asks, and
# mTLS with it; then a Deny. Needs credence on the PATH, and Go; leaves nothing
# behind.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$dir"' EXIT

(cd "$here" && go build -o "$dir/ask" .)
credence dev --data "$dir/dev" >"$dir/dev.log" 2>&1 &
for _ in $(seq 600); do [ -f "$dir/dev/dev.json" ] && break; sleep 0.1; done
[ -f "$dir/dev/dev.json" ] || { cat "$dir/dev.log" >&2; exit 1; }
"$dir/ask" --config "$here/envoy.yaml" --dev "$dir/dev/dev.json"

admin=$(sed -n 's/^  "admin_socket": "\(.*\)",\{0,1\}$/\1/p' "$dir/dev/dev.json")
CREDENCE_ADMIN=$admin credence apply -f - <<'DENY'
kind: Deny
name: incident-1
match: [{node.name: dev}]
reason: an example
DENY
if "$dir/ask" --config "$here/envoy.yaml" --dev "$dir/dev/dev.json" 2>"$dir/denied.log"; then
  echo "the Deny did not hold" >&2
  exit 1
fi
cat "$dir/denied.log"
grep -q PermissionDenied "$dir/denied.log"
