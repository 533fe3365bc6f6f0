#!/usr/bin/env bash
# What the broker is to hold is right, and kubectl makes of the patch what it says.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
credence validate "$here/policy.yaml"
for file in credence-agent kubelet; do # the ConfigMap's agent.yaml
  sed -n '/^  agent.yaml: |$/,/^---$/s/^    //p' "$here/$file.yaml" >"$dir/$file.yaml"
  credence validate "$dir/$file.yaml"
done
sed -n '/^  broker.yaml: |$/,/^---$/s/^    //p' "$here/credence-broker.yaml" >"$dir/broker.yaml"
credence validate "$dir/broker.yaml" "$here/policy.yaml"
command -v kubectl >/dev/null || { echo "skipped: no kubectl here"; exit 0; }
sed -n '/^kind: DaemonSet$/,$p' "$here/credence-agent.yaml" | sed '1i apiVersion: apps/v1' >"$dir/daemonset.yaml"
kubectl patch --local -f "$dir/daemonset.yaml" --patch-file "$here/kubelet-patch.yaml" -o yaml >"$dir/patched.yaml"
for line in 'hostNetwork: true' 'host: 127.0.0.1' 'path: /live' 'mountPath: /run/credence' 'mountPath: /etc/kubelet/kubelet.crt'; do
  grep -qE -- "^ *-? ?$line\$" "$dir/patched.yaml" || { echo "kubectl patch lost $line"; exit 1; }
done
