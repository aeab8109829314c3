# shellcheck shell=bash
# An ordinary user allows addresses of a rootless container; see allow.go.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
name=bench-allow
clear() {
  podman rm --force --time 0 "$name" >/dev/null 2>&1 || true
  terok-shield uninstall >/dev/null 2>&1 || true
  rm -rf ~/.local/state/terok/shield/containers/"$name"
}
trap clear EXIT
clear
terok-shield setup >/dev/null
terok-shield run "$name" --profiles base -- -d local/bb sleep 600 >/dev/null
pid=$(podman inspect -f '{{.State.Pid}}' "$name")
took() { # NAME CMD...
  local what=$1 start=${EPOCHREALTIME/./}
  shift
  "$@" >/dev/null
  echo "$what $((${EPOCHREALTIME/./} - start))"
}
inside() { podman unshare nsenter --target "$pid" --net nft "$@"; }
for i in $(seq 1 40); do
  took ours terok-shield allow "$name" "203.0.114.$i"
  took nft inside add element inet terok_shield allow_v4 "{ 203.0.115.$i }"
  inside delete element inet terok_shield allow_v4 "{ 203.0.115.$i }" # which would not stand the next allow
done
