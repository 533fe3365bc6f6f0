#!/usr/bin/env bash
# nginx takes its certificate, its roots and a CRL from the agent's files, and
# is told when they change; a workload of its trust domain is let in, one with
# another identity and one without any are not. Needs credence, nginx and curl;
# leaves nothing behind.
set -euo pipefail
PATH=$PATH:/usr/sbin
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../start.sh"
need nginx
need curl

port=$(free 18543)
mkdir -m 755 "$dir/web"
broker < <(sed "s/uid: 0/uid: $me/" "$here/identities.yaml")
agent < <(sed "s#/run/web#$dir/web#; s/uid: 0/uid: $me/" "$here/outputs.yaml")
for output in tls shop batch; do
  await "the files of $output" test -e "$dir/web/$output/svid.pem"
done

sed "s#/run/web#$dir/web#; s#127.0.0.1:8443#127.0.0.1:$port#" "$here/nginx.conf" >"$dir/nginx.conf"
nginx -e stderr -c "$dir/nginx.conf" -g 'daemon off;' 2>"$dir/nginx.log" &
await "nginx" test -s "$dir/web/nginx.pid"

get() { # what nginx answers to the certificate of a directory, or to none
  local with=()
  [ "$1" = none ] || with=(--cert "$dir/web/$1/svid.pem" --key "$dir/web/$1/svid_key.pem")
  curl --silent --max-time 10 --output "$dir/answer" --write-out '%{http_code}' \
    --cacert "$dir/web/shop/svid_bundle.pem" "${with[@]}" "https://localhost:$port/"
}
answers() { # that, when it is as said
  [ "$(get "$1")" = "$2" ]
}
serial() { # of the certificate that nginx serves
  openssl s_client -connect "localhost:$port" </dev/null 2>/dev/null | openssl x509 -noout -serial
}
another() { # it serves another than it did
  now=$(serial) && [ "$now" != "$before" ]
}

answers shop 200
echo "shop is told: $(cat "$dir/answer")"
answers batch 403
echo "batch is refused: 403"
answers none 400
echo "somebody without an SVID is refused: 400"

echo "-- the issuing CA is replaced: all is signed anew"
before=$(serial)
cp -rL "$dir/web/shop" "$dir/web/stolen"
credence ca replace issuing --reason 'an example' >/dev/null
await "the new certificate, served" another
echo "nginx served $before, and now $now"
await "shop with its new SVID" answers shop 200
echo "shop is told: $(cat "$dir/answer")"
await "shop's old SVID refused" answers stolen 400
echo "shop's old SVID is refused: 400, by the CRL"
