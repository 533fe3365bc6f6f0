#!/usr/bin/env bash
# One part of a small cluster on this machine, in the foreground:
#
#   cluster.sh DIR database    PostgreSQL, made in DIR at the first start
#   cluster.sh DIR standby     a streaming replica of it
#   cluster.sh DIR broker N    broker N of those that share the database
#   cluster.sh DIR promote     have the standby take writes
#
# DIR is one directory for all; DIR/ports tells who listens where. Needs credence,
# and PostgreSQL 15 or later, on the PATH or where Debian has it.
set -euo pipefail
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin | tr ' ' :)
dir=$1 part=$2 n=${3:-}
cd "$dir"

if [ ! -e ports ]; then # name and port of each, two for a broker
  next=${FIRST_PORT:-24643}
  for name in database standby b1 b1-spiffe b2 b2-spiffe b3 b3-spiffe; do
    while (exec 3<>"/dev/tcp/127.0.0.1/$next") 2>/dev/null; do next=$((next + 1)); done
    echo "$name $next"
    next=$((next + 1))
  done >ports.new
  mv ports.new ports
fi
port() { sed -n "s/^$1 //p" ports; }

as=() # PostgreSQL runs as nobody's root
if [ "$(id -u)" = 0 ]; then
  as=(setpriv --reuid "$(id -u nobody)" --regid "$(id -g nobody)" --clear-groups)
  chmod 711 "$dir"
fi
home() { # makes a directory that PostgreSQL owns
  mkdir -p "$1"
  chmod 700 "$1"
  [ "$(id -u)" != 0 ] || chown nobody "$1"
}
serve() { # the database in a directory, at a port
  exec "${as[@]}" postgres -D "$dir/$1" -p "$2" -k '' -c listen_addresses=127.0.0.1 -c max_connections=200 -c log_checkpoints=off
}

case $part in
database)
  if [ ! -e database/PG_VERSION ]; then
    home database
    # Whoever is on this machine is let in. In production each broker shows who it
    # is, and the server too: sslmode=verify-full, a client certificate or PGPASSFILE.
    "${as[@]}" initdb --pgdata "$dir/database" --username credence --auth trust --encoding UTF8 --locale C.UTF-8 >/dev/null
  fi
  serve database "$(port database)"
  ;;
standby)
  if [ ! -e standby/PG_VERSION ]; then
    home standby
    "${as[@]}" pg_basebackup --pgdata "$dir/standby" --write-recovery-conf --checkpoint fast \
      --dbname "host=127.0.0.1 port=$(port database) user=credence application_name=standby"
  fi
  serve standby "$(port standby)"
  ;;
promote)
  "${as[@]}" pg_ctl promote --pgdata "$dir/standby" --wait >/dev/null
  ;;
broker)
  if [ ! -e kek ]; then # the same on every broker, and in none's data directory
    (umask 077; head -c 32 /dev/urandom >"kek.$n")
    ln "kek.$n" kek 2>/dev/null || true # another broker's may be there by now
    rm "kek.$n"
  fi
  cat >"b$n.yaml" <<YAML
trust_domain: example.org
name: b$n
data: $dir/b$n
store: postgres://credence@127.0.0.1:$(port database),127.0.0.1:$(port standby)/postgres
keys: {disk: {kek_file: $dir/kek}}
issuer: https://id.example.org
listen: {agents: "127.0.0.1:$(port "b$n")", spiffe: "127.0.0.1:$(port "b$n-spiffe")"}
${BROKER_YAML:-}
YAML
  exec credence broker run -c "b$n.yaml"
  ;;
*)
  sed -n 's/^#   //p' "$0" >&2
  exit 2
  ;;
esac
