#!/usr/bin/env bash
# A NATS server takes its certificate and roots from the agent's files, and knows
# its users by the SPIFFE IDs of their SVIDs; clients have theirs from the
# Workload API. Needs credence, nats-server, and Go; leaves nothing behind.
set -euo pipefail
PATH=$PATH:/usr/sbin
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../start.sh"
need nats-server
need go

port=$(free 14222)
mkdir -m 755 "$dir/nats"
(cd "$here" && go build -o "$dir/nats/orders" .)
cp "$dir/nats/orders" "$dir/nats/billing"
cp "$dir/nats/orders" "$dir/nats/batch"
broker < <(sed "s#/run/nats#$dir/nats#; s/uid: 0/uid: $me/" "$here/identities.yaml")
agent < <(sed "s#/run/nats#$dir/nats#; s/uid: 0/uid: $me/" "$here/outputs.yaml")
await "the server's files" test -e "$dir/nats/tls/svid.pem"

sed "s#/run/nats#$dir/nats#; s#127.0.0.1:4222#127.0.0.1:$port#" "$here/nats.conf" >"$dir/nats.conf"
nats-server -c "$dir/nats.conf" 2>"$dir/nats.log" &
await "the NATS server" test -s "$dir/nats/nats.pid"

as() { # a client, as one of the workloads
  "$dir/nats/$1" --server "localhost:$port" "${@:2}"
}
subscribe() { # billing, until a message has come
  as billing --subscribe 'orders.>' >"$dir/got" 2>"$dir/billing.log" &
  waits=$!
  await "billing's subscription" grep -q subscribed "$dir/got"
}
deliver() { # a text, from orders to billing
  as orders --publish orders.new "$1"
  wait "$waits"
  echo "billing is told: $(tail -n 1 "$dir/got")"
}
refused() { # what a client must not be given
  if as "$@" >"$dir/answer" 2>&1; then
    echo "$* was not refused" >&2
    exit 1
  fi
  echo "$1 is refused: $(cat "$dir/answer")"
}
another() { # the server shows another certificate than it did
  now=$(as orders) && [ "$now" != "$before" ]
}

subscribe
deliver "order 1"
refused orders --subscribe 'orders.>'
refused billing --publish orders.new "order 2"
refused batch --publish orders.new "order 3"

echo "-- the issuing CA is replaced: all is signed anew"
before=$(as orders)
subscribe
credence ca replace issuing --reason 'an example' >/dev/null
await "the new certificate, served" another
echo "the server showed $before, and now $now"
echo "billing was subscribed before that, and still is"
deliver "order 4"
