#!/usr/bin/env bash
# A request from a program of one trust domain to one of another, neither of
# which knows TLS: ghostunnel has SVIDs for both. Needs credence on the PATH;
# leaves nothing behind.
set -euo pipefail
for tool in ghostunnel curl python3; do
  command -v "$tool" >/dev/null || { echo "skipped: no $tool here"; exit 0; }
done
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$dir"' EXIT

free() { # a port that nobody listens on
  local port
  for port in $(seq "$1" $(($1 + 200))); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}
socket() { # of one side of dev: -e the peer, -v not the peer
  sed -n 's/^ *"workload_socket": "\(.*\)",\{0,1\}$/\1/p' "$dir/dev/dev.json" | grep "$1" /peer/
}

credence dev --data "$dir/dev" >"$dir/dev.log" 2>&1 &
for _ in $(seq 600); do [ -f "$dir/dev/dev.json" ] && break; sleep 0.1; done
[ -f "$dir/dev/dev.json" ] || { cat "$dir/dev.log" >&2; exit 1; }

service=$(free 18080)
tunnel=$(free $((service + 1)))
near=$(free $((tunnel + 1)))
mkdir "$dir/www"
echo "hello over mTLS" >"$dir/www/hello"
python3 -m http.server --bind 127.0.0.1 --directory "$dir/www" "$service" >/dev/null 2>&1 &
ghostunnel server --use-workload-api-addr "$(socket -v)" \
  --listen "localhost:$tunnel" --target "localhost:$service" --allow-uri spiffe://partner.example/demo/partner >"$dir/server.log" 2>&1 &
ghostunnel client --use-workload-api-addr "$(socket -e)" \
  --listen "localhost:$near" --target "localhost:$tunnel" --verify-uri spiffe://dev.example/demo/workload >"$dir/client.log" 2>&1 &
curl --silent --show-error --fail --retry 50 --retry-delay 1 --retry-all-errors --retry-max-time 30 "http://localhost:$near/hello" ||
  { cat "$dir/server.log" "$dir/client.log" >&2; exit 1; }
if curl --silent --insecure --max-time 5 "https://localhost:$tunnel/hello"; then
  echo "somebody without an SVID was let in" >&2
  exit 1
fi
