#!/usr/bin/env bash
# Three brokers share a PostgreSQL; the agent has all three. One broker is killed,
# then the database goes away: what is granted goes on, and nobody is let in whom
# an operator shuts out. Leaves nothing behind.
set -euo pipefail
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin | tr ' ' :)
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../start.sh"
need postgres
need setpriv

part() { bash "$here/cluster.sh" "$dir" "$@" 2>>"$dir/$1${2:-}.log" & }
port() { sed -n "s/^$1 //p" "$dir/ports"; }
database() { # until it answers
  part database
  database=$!
  await "the database" test -s "$dir/ports"
  await "the database" pg_isready --quiet --host 127.0.0.1 --port "$(port database)"
}
at() { # one of the brokers
  CREDENCE_ADMIN=$dir/b$1/run/admin.sock "${@:2}"
}

database
brokers=()
for n in 1 2 3; do
  part broker $n
  brokers[n]=$!
  await "broker $n" test -S "$dir/b$n/run/admin.sock"
done
sed "s/uid: 0/uid: $me/" "$here/identities.yaml" | at 1 credence apply -f -

export CREDENCE_ADMIN=$dir/b1/run/admin.sock
agent "$(port b1)" "$(port b2)" "$(port b3)" </dev/null
credence svid x509
at 2 credence status

echo "-- broker 1 is killed"
{ kill -9 "${brokers[1]}" && wait "${brokers[1]}"; } 2>/dev/null || true
await "an SVID by another broker" credence svid x509 --ttl 11m
at 3 credence apply -f - <<YAML
kind: Identity
name: second
spiffe_id: /second
match: [{node.name: here, workload.unix.uid: $me}]
YAML
seen() { credence svid x509 2>&1 | grep -q /second; }
await "what broker 3 was told" seen

echo "-- the database is away"
kill -INT "$database"
wait "$database" || true
credence svid x509 --ttl 12m
if at 3 credence delete identity second; then
  echo "it changed what it cannot keep" >&2
  exit 1
fi

echo "-- it is back"
database
gone() { at 3 credence delete identity second; }
await "a change" gone
at 2 credence audit verify
