#!/usr/bin/env bash
# PostgreSQL takes its certificate, its roots and a CRL from the agent's files,
# and is told when they change; psql is let in by its SVID, as the role that it
# may be. Needs credence, and PostgreSQL 15 or later; leaves nothing behind.
set -euo pipefail
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin | tr ' ' :)
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../start.sh"
need postgres
need psql

# PostgreSQL runs as nobody's root.
as=() owner=$me
if [ "$me" = 0 ]; then
  owner=$(id -u nobody)
  as=(setpriv --reuid "$owner" --regid "$(id -g nobody)" --clear-groups)
  chmod 711 "$dir"
fi
port=$(free 18643)
mkdir -m 755 "$dir/db"
mkdir -m 700 "$dir/db/data"
chown "$owner" "$dir/db/data"
(cd / && "${as[@]}" initdb --pgdata "$dir/db/data" --username admin --auth reject --no-sync >/dev/null)

broker < <(sed "s/uid: 70/uid: $owner/; s/uid: 0/uid: $me/" "$here/identities.yaml")
agent < <(sed "s#/run/db#$dir/db#; s/uid: 70/uid: $owner/; s/uid: 0/uid: $me/" "$here/outputs.yaml")
for output in tls shop batch; do
  await "the files of $output" test -e "$dir/db/$output/svid.pem"
done

sed "s#/run/db#$dir/db#" "$here/postgresql.conf" >>"$dir/db/data/postgresql.conf"
cp "$here/pg_hba.conf" "$here/pg_ident.conf" "$dir/db/data/"
cat >"$dir/roles.sql" <<'SQL'
CREATE ROLE shop LOGIN;
CREATE ROLE owner LOGIN;
SQL
(cd / && "${as[@]}" postgres --single -D "$dir/db/data" -c log_checkpoints=off postgres <"$dir/roles.sql" >/dev/null)
(cd / && exec "${as[@]}" postgres -D "$dir/db/data" -p "$port" -k '' -c fsync=off) 2>"$dir/postgres.log" &
await "PostgreSQL" pg_isready --host localhost --port "$port"

ask() { # as a role, with the certificate of a directory, on the certificate that the server shows
  PGSSLCERT=$dir/db/$2/svid.pem PGSSLKEY=$dir/db/$2/svid_key.pem PGSSLROOTCERT=$dir/db/shop/svid_bundle.pem \
    PGSSLMODE=verify-full psql --no-psqlrc --quiet --tuples-only --no-align \
    --host localhost --port "$port" --username "$1" --dbname postgres \
    --command "select 'role ' || current_user || ' by ' || client_dn || ' of serial ' || client_serial from pg_stat_ssl where pid = pg_backend_pid()"
}
as_shop() { ask shop shop >"$dir/answer" 2>&1; }
kept_out() { ! ask shop "$1" >"$dir/answer" 2>&1; }
refused() { # a role to the certificate of a directory
  if ask "$1" "$2" >"$dir/answer" 2>&1; then
    echo "$2 was given the role $1" >&2
    exit 1
  fi
  echo "$2 is refused the role $1: $(grep -E --only-matching '(FATAL|SSL error): .*' "$dir/answer")"
}
serial() { # of the certificate that PostgreSQL serves
  openssl s_client -starttls postgres -connect "localhost:$port" </dev/null 2>/dev/null | openssl x509 -noout -serial
}
another() { # it serves another than it did
  now=$(serial) && [ "$now" != "$before" ]
}

ask shop shop
refused owner shop
refused shop batch
refused shop nobody

echo "-- the issuing CA is replaced: all is signed anew"
before=$(serial)
cp -rL "$dir/db/shop" "$dir/db/stolen"
credence ca replace issuing --reason 'an example' >/dev/null
await "the new certificate, served" another
echo "PostgreSQL served $before, and now $now"
await "shop with its new SVID" as_shop
cat "$dir/answer"
await "shop's old SVID kept out" kept_out stolen
refused shop stolen
