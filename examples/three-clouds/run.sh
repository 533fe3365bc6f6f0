#!/usr/bin/env bash
# Six programs that know nothing of Credence, and who three clouds say they are.
# Needs credence on the PATH, Go, Node.js and npm; leaves nothing behind but
# node_modules.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
cd "$here"

npm ci --silent --no-audit --no-fund
for cloud in aws gcp azure; do go build -o "$dir/$cloud" "./$cloud"; done
credence dev --data "$dir/dev" >"$dir/dev.log" 2>&1 &
for _ in $(seq 600); do [ -f "$dir/dev/dev.json" ] && break; sleep 0.1; done
[ -f "$dir/dev/dev.json" ] || { cat "$dir/dev.log" >&2; exit 1; }
field() { node -p "JSON.parse(require('fs').readFileSync('$dir/dev/dev.json')).$1"; }
SPIFFE_ENDPOINT_SOCKET=$(field workload_socket)
gcp=$(field sandbox.gcp.whoami_url) azure=$(field sandbox.azure.whoami_url)
AWS_ENDPOINT_URL_STS=$(field sandbox.aws.sts_url)
export SPIFFE_ENDPOINT_SOCKET AWS_ENDPOINT_URL_STS gcp azure dir

# Everything below runs in one exec, with credentials of four targets in reach.
credence exec --target aws-roles-anywhere,aws-web-identity,gcp,azure -- bash -euo pipefail -c '
say() { # what, whom it must be, and the program
  local what=$1 want=$2 got; shift 2
  got=$("$@") || { echo "$what: failed" >&2; exit 1; }
  printf "%-44s %s\n" "$what" "$got"
  case $got in "I am "*"$want"*) ;; *) echo "$what: not $want" >&2; exit 1;; esac
}
keys=$(dirname "$GOOGLE_APPLICATION_CREDENTIALS")
for program in "$dir/aws" "node --no-warnings aws.mjs"; do
  name=aws-sdk-go-v2; [ "$program" = "$dir/aws" ] || name=@aws-sdk/client-sts
  say "$name, container endpoint" demo-anywhere $program
  say "$name, credential_process" demo-web-identity env AWS_PROFILE=aws-web-identity $program
  say "$name, web identity token file" demo-web-identity env AWS_PROFILE=aws-web-identity.web $program
done
for program in "$dir/gcp" "node --no-warnings gcp.mjs"; do
  name=cloud.google.com/go/auth; [ "$program" = "$dir/gcp" ] || name=google-auth-library
  for file in gcp.json gcp.file.json gcp.executable.json; do
    say "$name, $file" demo@ env WHOAMI=$gcp GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES=1 GOOGLE_APPLICATION_CREDENTIALS="$keys/$file" $program
  done
done
say "azidentity, App Service endpoint" b3a9c7d5 env WHOAMI=$azure AZURE_TOKEN_CREDENTIALS=ManagedIdentityCredential "$dir/azure"
say "@azure/identity, App Service endpoint" b3a9c7d5 env WHOAMI=$azure AZURE_TOKEN_CREDENTIALS=ManagedIdentityCredential node --no-warnings azure.mjs
env | grep -E "^(AWS|AZURE|GOOGLE|IDENTITY)" | sed "s/=.*//" >"$dir/variables"
echo "$keys" >"$dir/keys"
'
if [ -e "$(cat "$dir/keys")" ]; then
  echo "exec left $(cat "$dir/keys")" >&2
  exit 1
fi
echo "nothing is left of: $(tr '\n' ' ' <"$dir/variables")"
