#!/usr/bin/env bash
# Java reads the stores that the agent writes: a key with its chain, and roots.
# Needs credence, and keytool of any JDK or JRE; leaves nothing behind.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../start.sh"
need keytool

mkdir -m 755 "$dir/etc"
(umask 077; openssl rand -hex 16 >"$dir/etc/ledger.password")
broker < <(sed "s/uid: 0/uid: $me/" "$here/identities.yaml")
agent < <(sed "s#/run/ledger#$dir/ledger#; s#/etc/credence#$dir/etc#; s/uid: 0/uid: $me/" "$here/outputs.yaml")
await "the stores" test -e "$dir/ledger/key.p12"

list() { # what a store holds
  keytool -J-Duser.language=en -list -v -storetype PKCS12 -keystore "$dir/ledger/$1" -storepass:file "$dir/etc/ledger.password" >"$dir/listed"
  grep -E 'Entry type|chain length|Owner:|URIName:' "$dir/listed"
}
echo "-- key.p12"
list key.p12
grep -q 'Entry type: PrivateKeyEntry' "$dir/listed"
grep -q 'URIName: spiffe://example.org/ledger' "$dir/listed"
echo "-- trust.p12"
list trust.p12
grep -q 'Entry type: trustedCertEntry' "$dir/listed"
