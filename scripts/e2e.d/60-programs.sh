# Which programs are executed: Podman's and ours, nothing else.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317

traced() { # FILE CMD...: as user, with every new process and program written to FILE
  # root traces, so that set-user-id programs keep working
  local out=$1 uid
  shift
  uid=$(user id -u)
  root strace -f -qq -u op -e trace=execve,execveat,clone,clone3,fork,vfork -e signal=none -s 400 --pidns-translation -o "$out" \
    env -i -C "$user_home" HOME="$user_home" USER=op XDG_RUNTIME_DIR="/run/user/$uid" \
    PATH="$E2E_LAB/bin:/usr/local/bin:/usr/bin:/bin" "$@"
}
executed() { # FILE...: "PROGRAM -> PROGRAM it executed", once each
  local file
  for file in "$@"; do root cat "$file" | awk -f "$here/execs.awk"; done | sort | uniq -c | sed -E 's/^ *[0-9]+ //'
}

test_only_podman_and_ourselves_are_executed() {
  shield setup
  profile p 203.0.113.20 allowed.test
  podman info >/dev/null # its pause process is not started under the trace
  traced "$tmp/run.trace" terok-shield run c --profiles p -- "$image" /bb/busybox sleep 600 >"$tmp/c.out" 2>"$tmp/c.err" &
  within 60 started c $! || die "container c did not come up"
  local verb n=0
  for verb in 'allow c 203.0.113.21' 'deny c 203.0.113.21' 'allow c other.test' 'down c' 'down c --all' 'quarantine c' 'up c' \
    'status c' 'status' 'rules c' 'resolve c --force' 'logs' 'profiles' 'preview' 'check-environment' 'prepare d' '--version'; do
    n=$((n + 1))
    # shellcheck disable=SC2086
    traced "$tmp/$n.trace" terok-shield $verb >/dev/null || die "terok-shield $verb failed"
  done
  expect_blocked c tcp 203.0.113.22
  expect_passes c tcp 203.0.113.20
  traced "$tmp/stop.trace" podman stop --time 0 c
  traced "$tmp/start.trace" podman start c & # ends with the container
  within 60 running c || die "container c did not start again"
  state c up
  podman rm -f --time 0 c
  wait
  traced "$tmp/setup.trace" terok-shield setup
  traced "$tmp/uninstall.trace" terok-shield uninstall

  local all from to ours="^($E2E_LAB/bin|$data)/" foreign=()
  all=$(executed "$tmp"/*.trace)
  note "$all"
  contains "programs" "$all" "/usr/bin/env -> $E2E_LAB/bin/terok-shield"
  contains "programs" "$all" "$E2E_LAB/bin/terok-shield -> /usr/bin/podman"
  contains "programs" "$all" "/usr/bin/podman -> /usr/bin/conmon"
  contains "programs" "$all" "/usr/bin/crun -> "
  while read -r from _ to; do
    if [[ $from =~ $ours && ! $to =~ $ours && $to != /usr/bin/podman ]]; then foreign+=("$from -> $to"); fi
    case ${to##*/} in nft | nsenter | dig | dnsmasq | ip | iptables* | python*) foreign+=("$from -> $to") ;; esac
  done <<<"$all"
  equal "foreign programs" "${foreign[*]}" ""
  # The hook is ours and was run: at run, at the restart.
  local hook
  hook=$(grep -cE 'execve\("[^"]*", \["(nft-hook|terok-shield-hook)", "createRuntime"\]' "$tmp/run.trace" || true)
  equal "hooks at run" "$hook" 1
  hook=$(grep -cE 'execve\("[^"]*", \["(nft-hook|terok-shield-hook)", "createRuntime"\]' "$tmp/start.trace" || true)
  equal "hooks at restart" "$hook" 1
}

test_demo() {
  local out
  out=$(user demo)
  contains "the demo" "$out" 'terok-shield run terok-demo'
  contains "the demo" "$out" 'ms from exec to exit'
  contains "the demo" "$out" 'All as it must be.'
  fails podman container exists terok-demo
  fails podman image exists localhost/terok-demo
  contains "what is installed after the demo" "$(shield check-environment)" 'hooks=not-installed'
}

# An orchestrator, which starts containers itself, with the Go API in place of the command line: nothing is written but
# below the directory that it names, and neither config.yml nor the user's profiles are looked at.
test_the_go_api() {
  shield setup
  profile p 203.0.113.31 # not the orchestrator's
  user mkdir -p "$user_home/e2e/profiles"
  printf '%s\n' 203.0.113.20 allowed.test | user tee "$user_home/e2e/profiles/p.txt" >/dev/null
  user tee "$config/config.yml" <<<'nonsense: true' >/dev/null
  local call=(user orchestrator "$user_home/e2e/state" "$user_home/e2e/profiles") flags before
  before=$(user find "$data" "$config" "$user_home/.local/state/terok" 2>/dev/null | sort)
  equal "check" "$("${call[@]}" check c)" "needs setup: false"
  mapfile -t flags < <("${call[@]}" prepare c p)
  podman create --name c "${flags[@]}" "$image" /bb/busybox sleep 600
  podman start c
  equal "state" "$("${call[@]}" state c)" "c up"
  expect_passes c tcp 203.0.113.20
  expect_blocked c tcp 203.0.113.31
  equal "a page of an allowed name" "$(page c http://allowed.test/)" yes
  equal "allow an address" "$("${call[@]}" allow c 203.0.113.31)" "c 203.0.113.31"
  expect_passes c tcp 203.0.113.31
  equal "a page of another name" "$(page c http://other.test/)" no
  "${call[@]}" allow c other.test
  equal "a page of that name, allowed" "$(page c http://other.test/)" yes
  equal "deny an address" "$("${call[@]}" deny c 203.0.113.20)" "c 203.0.113.20"
  expect_blocked c tcp 203.0.113.20
  "${call[@]}" down c
  expect_passes c tcp 203.0.113.77
  "${call[@]}" quarantine c
  equal "state in quarantine" "$("${call[@]}" state c)" "c quarantine"
  expect_blocked c tcp 203.0.113.31
  "${call[@]}" up c
  expect_passes c tcp 203.0.113.31
  contains "rules" "$("${call[@]}" rules c)" "203.0.113.31"
  podman restart --time 0 c
  expect_passes c tcp 203.0.113.31
  expect_blocked c tcp 203.0.113.20
  podman rm -f --time 0 c
  equal "state without the container" "$("${call[@]}" state c)" "c offline"
  equal "files elsewhere" "$(user find "$data" "$config" "$user_home/.local/state/terok" 2>/dev/null | sort)" "$before"
}

test_works_where_no_helper_program_is_installed() {
  local program path hidden=()
  : >"$E2E_LAB/share/absent"
  chmod 644 "$E2E_LAB/share/absent"
  for program in nft nsenter dig dnsmasq ip python3 perl iptables; do
    for path in /usr/bin /usr/sbin; do
      if root test -e "$path/$program"; then
        root mount --bind "$E2E_LAB/share/absent" "$(root readlink -f "$path/$program")"
        hidden+=("$(root readlink -f "$path/$program")")
      fi
    done
  done
  ((${#hidden[@]} >= 4)) || die "nothing to hide"
  fails user nsenter --version
  shield setup
  profile p 203.0.113.20 allowed.test
  sleeper c p
  expect_visible() { equal "tcp $1" "$(probe c tcp "$1")" "$2"; }
  expect_visible 203.0.113.20 yes
  equal "page of allowed.test" "$(podman exec c timeout 5 wget -qO- http://allowed.test/)" "inet ok"
  expect_visible 203.0.113.10 yes
  expect_visible 203.0.113.21 no
  shield allow c 203.0.113.21
  expect_visible 203.0.113.21 yes
  shield deny c 203.0.113.21
  expect_visible 203.0.113.21 no
  state c up
}
teardown() {
  root sh -c 'grep -F "/share/absent " /proc/self/mountinfo | cut -d" " -f5 | while read -r p; do umount "$p"; done'
}
