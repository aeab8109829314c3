# Questions: what is blocked is asked about once, and the answer is in the running container's firewall.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317

# ---- the terminal tool

clearance() { console clearance clearance-hub clearance; }
prompts() { # NAME TEXT: how many prompts there were
  grep -c "^\[[0-9]*\] BLOCKED .*$2" "$tmp/$1.out" || true
}
number() { # NAME TEXT: of the last prompt
  sed -nE "s/^\[([0-9]+)\] BLOCKED .*$2.*/\1/p" "$tmp/$1.out" | tail -n 1
}
asked_about() { # NAME TEXT
  within 20 prompted "$@" || die "no prompt about $2: $(cat "$tmp/$1.out" "$tmp/$1.err")"
}
prompted() { [[ $(prompts "$@") -gt 0 ]]; }
equal_page() { [[ $(page "$1" "$2") == "$3" ]]; }
supervisors() { root pgrep -f '^terok-box supervisor' || true; }
no_supervisors() { [[ -z $(supervisors) ]]; }
sockets() { # of ours that are left
  root find "/run/user/$(user id -u)/terok" -type s 2>/dev/null || true
}
no_sockets() { [[ -z $(sockets) ]]; }
with_dossier() { # NAME: as an orchestrator starts it
  local flags
  mapfile -t flags < <(prepared "$1" --profiles p)
  podman run -d "${flags[@]}" --annotation dossier.project=proj --annotation dossier.task=t1 --annotation dossier.name=fix "$image" sleep 600
}

# ---- the main job

test_blocked_name_and_address_are_asked_about_once() {
  shield setup
  profile p allowed.test
  clearance
  says clearance 'listening on per-container sockets'
  with_dossier c
  equal "page of other.test" "$(page c http://other.test/)" no
  equal "page of other.test again" "$(page c http://other.test/)" no
  equal "page of an address" "$(page c http://203.0.113.31/)" no
  equal "page of an address again" "$(page c http://203.0.113.31/)" no
  equal "page of allowed.test" "$(page c http://allowed.test/)" yes
  asked_about clearance other.test:53
  asked_about clearance 203.0.113.31:80
  sleep 1
  equal "prompts about the name" "$(prompts clearance other.test)" 1
  equal "prompts about the address" "$(prompts clearance 203.0.113.31)" 1
  equal "prompts" "$(prompts clearance '')" 2
  contains "prompt" "$(grep other.test "$tmp/clearance.out")" 'proj/t1 · fix'
  contains "prompt" "$(grep 203.0.113.31 "$tmp/clearance.out")" TCP

  enter clearance "a $(number clearance other.test)"
  says clearance 'Allowed: other.test'
  equal "page of other.test when allowed" "$(page c http://other.test/)" yes
  equal "page of the address, not answered yet" "$(page c http://203.0.113.31/)" no
  enter clearance "allow $(number clearance 203.0.113.31)"
  says clearance 'Allowed: 203.0.113.31'
  expect_passes c tcp 203.0.113.31
  enter clearance list
  says clearance 'no pending requests'
  enter clearance q
  within 20 ended "${consoles[clearance]}" || die "the terminal tool does not quit"
  wait "${consoles[clearance]}" || die "it quits with $?"
  equal "its stderr" "$(cat "$tmp/clearance.err")" ""
}
ended() { ! kill -0 "$1" 2>/dev/null; }

test_deny_holds_and_asks_no_more() {
  shield setup
  profile p allowed.test
  sleeper c p
  clearance
  equal "page of other.test" "$(page c http://other.test/)" no
  equal "page of an address" "$(page c http://203.0.113.31/)" no
  asked_about clearance other.test
  asked_about clearance 203.0.113.31
  enter clearance "d $(number clearance other.test)"
  says clearance 'Denied: other.test'
  enter clearance "deny $(number clearance 203.0.113.31)"
  says clearance 'Denied: 203.0.113.31'
  equal "page of other.test when denied" "$(page c http://other.test/)" no
  expect_blocked c tcp 203.0.113.31
  podman restart --time 0 c
  equal "page of other.test after a restart" "$(page c http://other.test/)" no
  expect_blocked c tcp 203.0.113.31
  equal "page of allowed.test" "$(page c http://allowed.test/)" yes
  equal "page of something else" "$(page c http://many.test/)" no
  asked_about clearance many.test # the tool found the hub of the second start
  equal "prompts about the name" "$(prompts clearance other.test)" 1
  equal "prompts about the address" "$(prompts clearance 203.0.113.31)" 1
  contains "audit" "$(shield logs --container c)" '"action": "denied"'
}

test_question_outlives_its_supervisor() {
  shield setup
  profile p allowed.test
  sleeper c p
  clearance
  equal "page of an address" "$(page c http://203.0.113.31/)" no
  asked_about clearance 203.0.113.31
  local pid round n
  n=$(number clearance 203.0.113.31)
  for round in 1 2 3; do
    for pid in $(root pgrep -f '^terok-box supervisor serve'); do root kill -9 "$pid"; done
    within 20 one_more "$pid" || die "the supervisor does not come back"
  done
  for pid in $(root pgrep -f '^terok-box supervisor keep'); do root kill -9 "$pid"; done
  within 20 two_supervisors || die "the keeper does not come back: $(supervisors)"
  sleep 1 # the tool has found it
  enter clearance "a $n"
  says clearance 'Allowed: 203.0.113.31'
  expect_passes c tcp 203.0.113.31
  equal "prompts" "$(prompts clearance 203.0.113.31)" 1
}
one_more() { # PID: that is gone, and another is there
  local now
  now=$(root pgrep -f '^terok-box supervisor serve') && [[ $now != *"$1"* ]] && shield_lives
}
shield_lives() { [[ $(sockets) == */clearance/* ]]; }
two_supervisors() { [[ $(supervisors | wc -l) -eq 2 ]]; }

test_late_terminal_gets_what_is_pending() {
  shield setup
  profile p allowed.test
  sleeper c p
  equal "page of an address" "$(page c http://203.0.113.31/)" no
  equal "page of a name" "$(page c http://other.test/)" no
  sleep 1
  clearance
  asked_about clearance 203.0.113.31
  asked_about clearance other.test
  # Two at once: the one sees what the other answered.
  console second clearance-hub clearance
  asked_about second 203.0.113.31
  enter second "a $(number second 203.0.113.31)"
  says second 'Allowed: 203.0.113.31'
  says clearance 'Allowed: 203.0.113.31'
  expect_passes c tcp 203.0.113.31
}

test_simple_clearance() {
  shield setup
  profile p allowed.test
  sleeper c p
  console simple terok-shield simple-clearance c
  says simple 'Watching for blocked connections'
  equal "page of an address" "$(page c http://203.0.113.31/)" no
  within 20 grep -q '203.0.113.31' "$tmp/simple.out" || die "no prompt: $(cat "$tmp/simple.out" "$tmp/simple.err")"
  enter simple a
  within 20 passes_now c 203.0.113.31 || die "not allowed: $(cat "$tmp/simple.out" "$tmp/simple.err")"
  expect_passes c tcp 203.0.113.31
  # Without our hub: it reads by itself.
  local pid
  for pid in $(supervisors); do root kill -STOP "$pid"; done
  for pid in $(supervisors); do root kill -9 "$pid"; done
  closed simple
  within 20 ended "${consoles[simple]}" || die "it does not end with its input"
  console alone terok-shield simple-clearance c
  says alone 'Watching for blocked connections'
  sleep 1
  equal "page of an address" "$(page c http://203.0.113.32/)" no
  within 20 grep -q '203.0.113.32' "$tmp/alone.out" || die "no prompt: $(cat "$tmp/alone.out" "$tmp/alone.err")"
  equal "page of a name" "$(page c http://other.test/)" no
  within 20 grep -q 'other.test' "$tmp/alone.out" || die "no prompt for a name: $(cat "$tmp/alone.out" "$tmp/alone.err")"
  enter alone a
  enter alone a
  within 20 passes_now c 203.0.113.32 || die "not allowed: $(cat "$tmp/alone.out" "$tmp/alone.err")"
  within 20 equal_page c http://other.test/ yes || die "the name is not allowed: $(cat "$tmp/alone.out" "$tmp/alone.err")"
}
passes_now() { [[ $(probe "$1" tcp "$2") == yes ]]; }

# ---- over ssh: a socket that somebody forwards

op_forwarded_hub() {
  shield setup
  profile p allowed.test
  sleeper c p
  local id rt
  id=$(podman inspect -f '{{.Id}}' c)
  rt=/run/user/$(user id -u)
  user socat "UNIX-LISTEN:$user_home/e2e.sock,fork,mode=600" "UNIX-CONNECT:$rt/terok/clearance/${id:0:12}.sock" &
  within 20 user test -S "$user_home/e2e.sock"
  console remote clearance-hub clearance --hub "$user_home/e2e.sock"
  equal "page of an address" "$(page c http://203.0.113.31/)" no
  asked_about remote 203.0.113.31
  enter remote "a $(number remote 203.0.113.31)"
  says remote 'Allowed: 203.0.113.31'
  expect_passes c tcp 203.0.113.31
}

# ---- states

test_down_takes_questions_back() {
  shield setup
  profile p allowed.test
  sleeper c p
  clearance
  equal "page of an address" "$(page c http://203.0.113.31/)" no
  asked_about clearance 203.0.113.31
  shield down c
  says clearance 'Shield down'
  enter clearance list
  says clearance 'no pending requests'
  expect_passes c tcp 203.0.113.31
  shield up c
  says clearance 'Shield up'
  equal "page of another address" "$(page c http://203.0.113.32/)" no
  asked_about clearance 203.0.113.32
  shield quarantine c
  equal "page of an address in quarantine" "$(page c http://203.0.113.33/)" no
  sleep 1
  equal "prompts in quarantine" "$(prompts clearance 203.0.113.33)" 0
}

test_scan_asks_within_bounds() {
  shield setup
  profile p allowed.test
  sleeper c p
  sleeper other p
  clearance
  podman exec c sh -c 'for j in 1 2 3 4; do for i in $(seq 1 250); do (echo x | nc -w 1 198.51.$j.$i 80 >/dev/null 2>&1) & [ $((i % 50)) != 0 ] || wait; done; done' &
  local started=$SECONDS
  sleep 2
  equal "page of a name in the other container" "$(page other http://other.test/)" no
  asked_about clearance other.test
  wait $! || true
  local n
  n=$(prompts clearance 198.51.)
  note "$n prompts"
  ((n >= 100 && n <= 200 + 2 * (SECONDS - started + 1))) || die "$n prompts about a scan of 1000 addresses in $((SECONDS - started)) s"
}

# ---- nothing is left

test_nothing_is_left_after_a_hundred_starts() {
  shield setup
  profile p allowed.test
  local round=0 flags
  mapfile -t flags < <(prepared c --profiles p)
  podman create "${flags[@]}" "$image" sleep 600
  while ((round < ${E2E_CYCLES:-100})); do
    round=$((round + 1))
    podman start c >/dev/null
    if ((round % 10 == 1)); then
      equal "supervisors in round $round" "$(supervisors | wc -l)" 2
      equal "page of an address" "$(page c http://203.0.113.31/)" no
    fi
    podman stop --time 0 c >/dev/null
  done
  within 2 no_supervisors || die "supervisors left: $(root ps -ef | grep terok-box)"
  within 1 no_sockets || die "sockets left: $(sockets)"
  equal "processes of ours" "$(root pgrep -f '^terok-box' || true)" ""
}

# ---- a client that nobody here wrote

d13_varlinkctl() {
  shield setup
  profile p allowed.test
  sleeper c p
  local id rt socket interface
  id=$(podman inspect -f '{{.Id}}' c)
  rt=/run/user/$(user id -u)/terok
  while read -r socket interface; do
    contains "interfaces of $socket" "$(user varlinkctl list-interfaces "unix:$rt/$socket/${id:0:12}.sock")" "$interface"
    contains "description of $interface" "$(user varlinkctl introspect "unix:$rt/$socket/${id:0:12}.sock" "$interface")" "interface $interface"
    contains "info of $socket" "$(user varlinkctl info "unix:$rt/$socket/${id:0:12}.sock")" terok
  done <<'TEXT'
clearance org.terok.Clearance1
verdict org.terok.ClearanceVerdict1
control org.terok.ShieldControl1
dns org.terok.ShieldDns1
TEXT
  local hub=unix:$rt/clearance/${id:0:12}.sock
  user timeout 60 varlinkctl call --more --json=short "$hub" org.terok.Clearance1.Subscribe '{}' >"$tmp/subscribed.out" 2>"$tmp/subscribed.err" &
  equal "page of an address" "$(page c http://203.0.113.31/)" no
  within 20 grep -q connection_blocked "$tmp/subscribed.out" || die "no event: $(cat "$tmp/subscribed.out" "$tmp/subscribed.err")"
  local request
  request=$(sed -nE 's/.*"request_id":"([^"]+)".*"dest":"203.0.113.31".*/\1/p' "$tmp/subscribed.out" | head -n 1)
  contains "verdict" "$(user varlinkctl call --json=short "$hub" org.terok.Clearance1.Verdict \
    "{\"container\":\"${id:0:12}\",\"request_id\":\"$request\",\"dest\":\"203.0.113.31\",\"action\":\"allow\"}")" '"ok":true'
  expect_passes c tcp 203.0.113.31
  within 20 grep -q verdict_applied "$tmp/subscribed.out" || die "the verdict was not announced: $(cat "$tmp/subscribed.out")"
  fails user varlinkctl call "$hub" org.terok.Clearance1.Verdict '{"container":"x","request_id":"nope","dest":"y","action":"allow"}'
}

teardown() {
  root pkill -f "^socat UNIX-LISTEN:$user_home/e2e.sock" || true
  user rm -f "$user_home/e2e.sock"
}
