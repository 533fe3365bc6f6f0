# What the scripts in the directories below share, and source: a directory of
# their own, $dir, with a broker and an agent in it. When they end, it goes, with
# all that they started.
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
me=$(id -u)

need() { # a program, or the script has nothing to show here
  command -v "$1" >/dev/null || { echo "skipped: no $1 here"; exit 0; }
}
free() { # a port that nobody listens on, this one or the next
  local port
  for port in $(seq "$1" $(($1 + 200))); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}
await() { # until a command succeeds, what it is for first
  for _ in $(seq 400); do "${@:2}" >/dev/null 2>&1 && return; sleep 0.05; done
  echo "not seen: $1" >&2
  tail -n 20 "$dir"/*.log >&2
  return 1
}

broker() { # starts one that grants what stdin says, to services on localhost
  local agents
  agents=$(free 18443)
  credence broker init --trust-domain example.org --data "$dir/broker" >"$dir/broker.yaml"
  printf 'listen: {agents: "127.0.0.1:%s", spiffe: none}\ndns_suffixes: [localhost]\n' "$agents" >>"$dir/broker.yaml"
  credence broker run -c "$dir/broker.yaml" 2>"$dir/broker.log" &
  export CREDENCE_ADMIN=$dir/broker/run/admin.sock
  await "the broker" test -S "$CREDENCE_ADMIN"
  credence apply -f -
}
agent() { # starts one, node "here", with the outputs that stdin says; its brokers are the arguments, if any
  credence token create --node here | sed "s#/var/lib/credence/#$dir/#" >"$dir/agent.yaml"
  [ $# = 0 ] || sed -i "s#^broker:.*#broker: [$(printf '"127.0.0.1:%s",' "$@")]#" "$dir/agent.yaml"
  (umask 077; sed -n 's/^# *\(cjt_.*\)/\1/p' "$dir/agent.yaml" >"$dir/agent.token")
  cat >>"$dir/agent.yaml"
  credence validate "$dir/agent.yaml"
  credence agent run -c "$dir/agent.yaml" 2>"$dir/agent.log" &
  export SPIFFE_ENDPOINT_SOCKET=unix://$dir/agent/run/workload.sock
  export CREDENCE_AGENT_ADMIN=$dir/agent/run/admin.sock
  await "the agent" test -S "$dir/agent/run/workload.sock"
}
