#!/usr/bin/env bash
# A broker and an agent on one machine, an identity, an SVID, and a denial with
# its reason. Needs credence on the PATH; leaves nothing behind.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
cd "$dir"

free() { # a port that nobody listens on
  local port
  for port in $(seq "$1" $(($1 + 200))); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}
until_there() { # wait for a socket
  for _ in $(seq 200); do [ -S "$1" ] && return; sleep 0.05; done
  echo "no socket at $1" >&2
  return 1
}

agents=$(free 18443)
spiffe=$(free $((agents + 1)))
credence broker init --trust-domain example.org --data "$dir/broker" >broker.yaml
printf 'listen: {agents: "127.0.0.1:%s", spiffe: "127.0.0.1:%s"}\n' "$agents" "$spiffe" >>broker.yaml
credence validate broker.yaml
credence broker run -c broker.yaml 2>broker.log &
export CREDENCE_ADMIN=$dir/broker/run/admin.sock
until_there "$CREDENCE_ADMIN"

credence token create --node here | sed "s#/var/lib/credence/#$dir/#" >agent.yaml
(umask 077; sed -n 's/^# *\(cjt_.*\)/\1/p' agent.yaml >agent.token)
credence validate agent.yaml
credence agent run -c agent.yaml 2>agent.log &
export SPIFFE_ENDPOINT_SOCKET=unix://$dir/agent/run/workload.sock
export CREDENCE_AGENT_ADMIN=$dir/agent/run/admin.sock
until_there "$dir/agent/run/workload.sock"

sed "s/uid: 0/uid: $(id -u)/" "$here/identities.yaml" | credence apply -f -
credence svid x509 --out svid
openssl verify -x509_strict -CAfile svid/svid_bundle.pem -untrusted svid/svid.pem svid/svid.pem
if command -v grpc-health-probe >/dev/null; then
  grpc-health-probe -addr "$SPIFFE_ENDPOINT_SOCKET" -connect-timeout 10s -rpc-timeout 10s
fi
credence node list

credence apply -f - <<DENY
kind: Deny
name: incident-1
match: [{node.name: here}]
reason: an example
DENY
if credence svid x509; then
  echo "the Deny did not hold" >&2
  exit 1
fi
credence explain --pid $$ || true
credence delete deny incident-1
credence svid x509
credence audit tail -n 5
credence audit verify --data broker
