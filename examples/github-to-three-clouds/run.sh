#!/usr/bin/env bash
# A job of GitHub's gets credentials of three clouds, and has no secret: on one
# machine, without GitHub and without an account. Needs credence on the PATH, Go and
# Node.js; leaves nothing behind.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/../start.sh"
need node
cd "$here"

# Stand-ins for what is yours, or the clouds': the issuer, and a broker with a
# sandbox of the clouds.
go build -o "$dir/github" . && go build -o "$dir/" ../three-clouds/aws ../three-clouds/gcp ../three-clouds/azure
"$dir/github" "$dir" &
credence dev --data "$dir/dev" >"$dir/dev.log" 2>&1 &
await "GitHub" test -f "$dir/url"
await "the broker" test -f "$dir/dev/dev.json"
field() { node -p "JSON.parse(require('fs').readFileSync('$dir/dev/dev.json')).$1"; }
CREDENCE_ADMIN=$(field admin_socket) AWS_ENDPOINT_URL_STS=$(field sandbox.aws.sts_url)
gcp=$(field sandbox.gcp.whoami_url) azure=$(field sandbox.azure.whoami_url)
export CREDENCE_ADMIN AWS_ENDPOINT_URL_STS gcp azure dir

# What an operator does once: who may join, and what it is then. The stand-in's keys
# are said here, as GitHub's are fetched; the clouds of the sandbox know one workload.
credence join setup github --repository acme/checkout --environment production --name checkout \
  --target aws-web-identity,gcp,azure --out "$dir/setup"
sed -e "s#^github: {}#github: {jwks: '$(cat "$dir/jwks.json")'}#" -e "s#/ci/checkout#/demo/workload#" "$dir/setup/policy.yaml" | credence apply -f -

# What the job does: an agent for one command.
job() { # of a repository
  SSL_CERT_FILE=$dir/ca.pem ACTIONS_ID_TOKEN_REQUEST_URL=$(cat "$dir/url") ACTIONS_ID_TOKEN_REQUEST_TOKEN="job of $1" \
    credence agent run -c "$dir/setup/credence-agent.yaml" -- \
    credence exec --target aws-web-identity,gcp,azure -- bash -euo pipefail -c '
    say() { # what, whom it must be, and the program
      local got; got=$("${@:3}")
      printf "%-6s %s\n" "$1" "$got"
      case $got in "I am "*"$2"*) ;; *) echo "$1: not $2" >&2; exit 1;; esac
    }
    say AWS demo-web-identity "$dir/aws"
    say GCP demo@ env WHOAMI="$gcp" "$dir/gcp"
    say Azure b3a9c7d5 env WHOAMI="$azure" AZURE_TOKEN_CREDENTIALS=ManagedIdentityCredential "$dir/azure"
  '
}
job acme/checkout 2>"$dir/job.log" || { cat "$dir/job.log" >&2; exit 1; }
if job evil/checkout >"$dir/evil.log" 2>&1; then
  echo "a job of another repository got in" >&2
  exit 1
fi
echo "a job of another repository: $(tail -n 1 "$dir/evil.log")"
credence node list | grep repo-acme-checkout
