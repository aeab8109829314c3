# Starts, restarts, and starts that must not happen.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317

marking() { # arguments of run for a workload that leaves a line in DIRECTORY/marker at each start
  args=(-v "$tmp/$1:/mark" "$image" sh -c 'echo started >>/mark/marker; sleep 600')
  user mkdir -p "$tmp/$1"
}
starts() { # DIRECTORY → how often the workload was started
  if [[ -e $tmp/$1/marker ]]; then wc -l <"$tmp/$1/marker"; else echo 0; fi
}

test_restart_keeps_shield_and_verdicts() {
  shield setup
  profile p 203.0.113.20 203.0.113.31
  sleeper c p
  shield allow c 203.0.113.41
  shield allow c 2001:db8:113::41
  shield deny c 203.0.113.31
  local round
  for round in 1 2; do
    podman stop --time 0 c
    podman start c
    state c up
    expect_passes c tcp 203.0.113.20
    expect_passes c tcp 203.0.113.41
    expect_passes c tcp 2001:db8:113::41
    expect_blocked c tcp 203.0.113.31
    expect_blocked c tcp 203.0.113.42
  done
  podman restart --time 0 c
  state c up
  expect_blocked c tcp 203.0.113.42
  expect_passes c tcp 203.0.113.41
}

test_restart_ends_down() {
  shield setup
  profile p 203.0.113.20
  sleeper c p
  shield down c --all
  expect_passes c tcp 203.0.113.42
  podman restart --time 0 c
  state c up
  expect_blocked c tcp 203.0.113.42
}

test_hook_failure_keeps_container_from_starting() {
  shield setup
  profile p 203.0.113.20
  marking c
  launch c p "${args[@]}"
  within 20 marked c 1 || die "the workload did not start"
  podman stop --time 0 c
  local sd=$state/containers/c
  user cp "$sd/ruleset.nft" "$sd/ruleset.good"
  local bad
  for bad in 'table inet terok_shield { chain output { type filter hook output priority filter; policy accept; } }' 'rubbish' ''; do
    printf '%s\n' "$bad" | user tee "$sd/ruleset.nft" >/dev/null
    fails podman start c
    fails running c
    equal "starts of the workload" "$(starts c)" 1
  done
  user rm "$sd/ruleset.nft"
  fails podman start c
  equal "starts of the workload" "$(starts c)" 1
  [[ $(user cat "$sd/hook-error.log") ]] || die "hook-error.log is empty"
  user cp "$sd/ruleset.good" "$sd/ruleset.nft"
  podman start c
  within 20 marked c 2 || die "the workload does not start with the good ruleset either"
  state c up
}
marked() { [[ $(starts "$1") == "$2" ]]; }

test_opened_ruleset_keeps_container_from_starting() {
  shield setup
  profile p 203.0.113.20
  sleeper c p
  podman stop --time 0 c
  local sd=$state/containers/c
  user cp "$sd/ruleset.nft" "$sd/ruleset.good"
  contains "ruleset" "$(user cat "$sd/ruleset.nft")" "policy drop"
  user sed -i 's/policy drop/policy accept/' "$sd/ruleset.nft"
  fails podman start c
  user cp "$sd/ruleset.good" "$sd/ruleset.nft"
  user sed -i '0,/oifname "lo" accept/s//accept/' "$sd/ruleset.nft"
  fails podman start c
  user cp "$sd/ruleset.good" "$sd/ruleset.nft"
  podman start c
  expect_blocked c tcp 203.0.113.21
  expect_passes c tcp 203.0.113.20
}

test_run_refuses_without_a_working_hook() {
  shield setup
  profile p 203.0.113.20
  local descriptor replacement
  descriptor=$(user grep -rlE '"createRuntime"' "$user_home/.local/share" --include='terok-shield-createRuntime.json')
  [[ $descriptor ]] || die "setup wrote no descriptor"
  user cp "$descriptor" "$tmp/good.json"
  for replacement in /nonexistent/nft-hook /bin/true; do
    user sed -i -E "s#\"path\": \"[^\"]*\"#\"path\": \"$replacement\"#" "$descriptor"
    contains "descriptor" "$(user cat "$descriptor")" "\"$replacement\""
    marking c
    fails shield run c --profiles p -- "${args[@]}"
    fails podman container exists c
    equal "starts of the workload with hook $replacement" "$(starts c)" 0
    # What makes that necessary: Podman itself starts it, open.
    podman run -d --name bare --annotation terok.shield.profiles=p "$image" sleep 600
    expect_passes bare tcp 203.0.113.21
    podman rm -f --time 0 bare
  done
  user cp "$tmp/good.json" "$descriptor"
  marking c
  launch c p "${args[@]}"
  within 20 marked c 1 || die "the workload did not start with the hook either"
  expect_blocked c tcp 203.0.113.21
}

test_run_refuses_without_setup() {
  profile p 203.0.113.20
  marking c
  fails shield run c --profiles p -- "${args[@]}"
  fails podman container exists c
  equal "starts of the workload" "$(starts c)" 0
  shield setup
  launch c p "${args[@]}"
  within 20 marked c 1 || die "the workload did not start after setup either"
}

test_run_refuses_flags_that_would_undo_it() {
  shield setup
  profile p 203.0.113.20
  local flags
  for flags in '--network host' '--net=host' '--privileged' '--cap-add NET_ADMIN' '--annotation terok.shield.version=1' \
    '--pod new:x' '--userns host' '--hooks-dir /tmp' '--dns 203.0.113.53' '--sysctl net.ipv4.ip_forward=1'; do
    # shellcheck disable=SC2086
    fails shield run c --profiles p -- $flags "$image" sleep 600
    fails podman container exists c
  done
  launch c p "$image" sh -c 'echo --privileged --network host; sleep 600'
  within 20 grep -q privileged "$tmp/c.out" || die "arguments after the image were not left alone"
}

test_run_passes_streams_and_exit_code() {
  shield setup
  profile p 203.0.113.20
  local rc=0
  shield run c --profiles p -- "$image" sh -c 'echo out; echo err >&2; exit 37' >"$tmp/c.out" 2>"$tmp/c.err" || rc=$?
  equal "exit code" "$rc" 37
  equal "stdout" "$(cat "$tmp/c.out")" out
  contains "stderr" "$(cat "$tmp/c.err")" err
}

test_other_state_root() {
  shield setup
  profile p 203.0.113.20
  user mkdir -p "$user_home/e2e/states"
  shield --state-dir "$user_home/e2e/states" run c --profiles p -- "$image" sleep 600 >"$tmp/c.out" 2>"$tmp/c.err" &
  within 30 started c $! || die "container c did not come up"
  user test -f "$user_home/e2e/states/containers/c/ruleset.nft" || die "the state is not where it was asked for"
  state c up
  expect_blocked c tcp 203.0.113.21
  shield allow c 203.0.113.21
  expect_passes c tcp 203.0.113.21
}

processes() { # all that runs on the machine, without the two that Podman keeps for its user
  root ps -eo args= | grep -vE '^(ps -eo args=|.*nsenter|.*setpriv|catatonit -P|/usr/bin/catatonit -P|podman$)' | sort || true
}
test_nothing_runs_after_the_container_is_gone() {
  shield setup
  profile p 203.0.113.20
  podman info >/dev/null
  local before
  before=$(processes)
  sleeper c p
  shield allow c 203.0.113.21
  contains "processes while it runs" "$(processes)" "sleep 600"
  podman rm -f --time 0 c
  within 20 same_processes "$before" || die "left over: $(diff <(echo "$before") <(processes))"
}
same_processes() { [[ $(processes) == "$1" ]]; }
