# Names: what the container may ask, what it gets, and what that opens, in every tier.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317

tier() { # TIER [UNLISTED]
  user mkdir -p "$config"
  printf 'dns:\n  tier: %s\n  unlisted: %s\n' "$1" "${2:-refuse}" | user tee "$config/config.yml" >/dev/null
}
asked() { # NAME: did it reach the lab's name server?
  inet grep -qE "^[^ ]+ [^ ]+ ([^ ]+\.)?$1 " "$(asked_log)"
}
asked_log() { echo "$E2E_LAB/run/dns.log"; }
forget_asked() { inet truncate -s 0 "$(asked_log)"; }
learned() { # CONTAINER: what names have opened
  shield rules "$1" | awk '/set learned_/ {in_set=1} in_set {print} /}/ {if (in_set && /^\t}/) in_set=0}'
}
# How often a container gets a page of a name whose address changes with every answer, at the first attempt.
first_attempts() { # CONTAINER TIMES
  timeout 120 "$E2E_LABCMD" "$E2E_MACHINE" podman exec "$1" sh -c "ok=0 n=0; while [ \$n -lt $2 ]; do n=\$((n+1)); wget -qO /dev/null http://rotate.test/ 2>/dev/null && ok=\$((ok+1)); done; echo \$ok"
}

# ---- what every tier with a name server does

suite() { # TIER
  shield setup
  tier "$1"
  profile p allowed.test rotate.test rebind.test metadata.test mixed.test deep.cname.test
  sleeper c p
  state c up
  equal "page of allowed.test" "$(page c http://allowed.test/)" yes
  equal "page behind five aliases" "$(page c http://deep.cname.test/)" yes
  forget_asked
  equal "page of other.test" "$(page c http://other.test/)" no
  equal "page of a name made up" "$(page c http://c2VjcmV0.tunnel.test/)" no
  if asked other.test || asked tunnel.test; then die "a name on no list reached the name server: $(inet cat "$(asked_log)")"; fi
  expect_blocked c tcp 203.0.113.11

  local name
  for name in rebind.test metadata.test; do
    equal "page of $name" "$(page c "http://$name/")" no
  done
  expect_blocked c tcp 10.99.0.10
  if learned c | grep -E '(^|[^0-9.])(10\.99|169\.254)'; then die "a private address was opened"; fi
  if [[ $1 == proxy ]]; then # dnsmasq drops an answer that has a private address as a whole
    equal "page of a name with a public and a private address" "$(page c http://mixed.test/)" yes
  fi

  shield allow c other.test
  equal "page of other.test when allowed" "$(page c http://other.test/)" yes
  expect_passes c tcp 203.0.113.11
  shield deny c other.test
  equal "page of other.test when denied" "$(page c http://other.test/)" no
  expect_blocked c tcp 203.0.113.11
  equal "page of allowed.test beside it" "$(page c http://allowed.test/)" yes

  shield allow c wild.test
  equal "page below an allowed name" "$(page c http://some.wild.test/)" yes
  shield deny c bad.wild.test
  equal "page of what is denied below it" "$(page c http://bad.wild.test/)" no
  equal "page beside what is denied" "$(page c http://good.wild.test/)" yes

  local said
  said=$(shield reset c)
  contains "reset" "$said" 203.0.113.10
  if learned c | grep -E '203\.0\.113\.'; then die "reset left something open"; fi
  expect_blocked c tcp 203.0.113.10
  equal "page of allowed.test at the first attempt after reset" "$(page c http://allowed.test/)" yes
  equal "page below an allowed name after reset" "$(page c http://some.wild.test/)" yes
  equal "page of other.test after reset" "$(page c http://other.test/)" no

  podman restart --time 0 c
  equal "page of wild.test after a restart" "$(page c http://some.wild.test/)" yes
  equal "page of bad.wild.test after a restart" "$(page c http://bad.wild.test/)" no
  equal "page of other.test after a restart" "$(page c http://other.test/)" no
}
test_names_proxy_tier() { suite proxy; }
test_names_dnsmasq_tier() { suite dnsmasq; }

test_names_static_tier() {
  shield setup
  tier static
  profile p allowed.test rebind.test metadata.test
  sleeper c p
  equal "page of allowed.test" "$(page c http://allowed.test/)" yes
  equal "page of other.test" "$(page c http://other.test/)" no
  equal "page of rebind.test" "$(page c http://rebind.test/)" no
  expect_blocked c tcp 10.99.0.10
  shield allow c other.test
  equal "page of other.test when allowed" "$(page c http://other.test/)" yes
  shield deny c other.test
  equal "page of other.test when denied" "$(page c http://other.test/)" no
  contains "reset" "$(shield reset c)" 203.0.113.10
  equal "page of allowed.test after reset" "$(page c http://allowed.test/)" yes
  equal "page of other.test after reset" "$(page c http://other.test/)" no
  podman restart --time 0 c
  equal "page of allowed.test after a restart" "$(page c http://allowed.test/)" yes
  equal "page of other.test after a restart" "$(page c http://other.test/)" no
}

# ---- first attempts

test_first_attempt_of_a_name_that_rotates() {
  shield setup
  profile p rotate.test
  sleeper c p
  equal "pages at the first attempt" "$(first_attempts c 1000)" 1000
}

test_first_attempt_dnsmasq() {
  shield setup
  tier dnsmasq
  profile p rotate.test
  sleeper c p
  equal "pages at the first attempt" "$(first_attempts c 300)" 300
}

# Without any network of Podman's: only a cable to the lab's internet that the container knows nothing of.
cabled() { # NAME: starts it with --network none and connects it
  local flags pid here_n
  mapfile -t flags < <(prepared "$1" --profiles p)
  local kept=() skip=false flag
  for flag in "${flags[@]}"; do
    if $skip; then
      skip=false
      continue
    fi
    case $flag in
      --network | --add-host) skip=true ;;
      *) kept+=("$flag") ;;
    esac
  done
  podman run -d --network none "${kept[@]}" "$image" sleep 600
  pid=$(podman inspect -f '{{.State.Pid}}' "$1")
  here_n=$(root ip -4 -o addr show eth0 | sed -nE 's/.* inet ([0-9.]+)\/.*/\1/p')
  root ip link add cable type veth peer name eth0 netns "$pid"
  root ip addr add 192.0.2.1/30 dev cable
  root ip link set cable up
  root nsenter -t "$pid" -n sh -c 'ip link set lo up; ip addr add 192.0.2.2/30 dev eth0; ip link set eth0 up; ip route add default via 192.0.2.1'
  inet ip route replace 192.0.2.0/30 via "$here_n"
}
test_first_attempt_with_network_none() {
  shield setup
  profile p rotate.test allowed.test
  cabled c
  equal "pages at the first attempt" "$(first_attempts c 1000)" 1000
  equal "page of other.test" "$(page c http://other.test/)" no
  equal "page of allowed.test" "$(page c http://allowed.test/)" yes
  # Nothing of DNS itself leaves the container.
  expect_blocked c udp 203.0.113.53
  expect_passes c tcp 203.0.113.10
}

# ---- what is denied stops

test_deny_of_a_name_cuts_a_download() {
  shield setup
  profile p allowed.test other.test
  launch c p "$image" sh -c "$(download allowed.test)"
  launch other p "$image" sh -c "$(download allowed.test)"
  growing "$tmp/c.out" || die "the download does not run"
  growing "$tmp/other.out" || die "the other download does not run"
  equal "page of other.test" "$(page c http://other.test/)" yes
  shield deny c allowed.test
  within 20 standing "$tmp/c.out" || die "the download goes on after deny"
  growing "$tmp/other.out" || die "deny stopped another container"
  equal "page of other.test" "$(page c http://other.test/)" yes
  equal "page of allowed.test" "$(page c http://allowed.test/)" no
}

test_reset_cuts_a_download() {
  shield setup
  profile p allowed.test other.test
  launch c p "$image" sh -c "$(download allowed.test)"
  launch other p "$image" sh -c "$(download allowed.test)"
  growing "$tmp/c.out" || die "the download does not run"
  growing "$tmp/other.out" || die "the other download does not run"
  shield reset c
  within 5 standing "$tmp/c.out" || die "the download goes on after reset"
  growing "$tmp/other.out" || die "reset stopped another container"
  equal "page of allowed.test" "$(page c http://allowed.test/)" yes
  podman stop --time 0 c
  fails shield reset c
}

# Where a container's own loopback is not that of its network namespace (krun).
test_listens_where_a_virtual_machine_sees_it() {
  shield setup
  profile p allowed.test
  local flags
  mapfile -t flags < <(prepared c --profiles p --runtime krun)
  podman run -d "${flags[@]}" "$image" sleep 600
  contains "resolv.conf" "$(podman exec c cat /etc/resolv.conf)" 169.254.1.3
  equal "page of allowed.test" "$(page c http://allowed.test/)" yes
  equal "page of other.test" "$(page c http://other.test/)" no
}

# ---- refusals

test_refusal_is_said() {
  shield setup
  profile p allowed.test
  sleeper c p
  local said
  said=$(podman exec c nslookup -type=a other.test 2>&1 || true)
  contains "nslookup" "$said" REFUSED
  said=$(podman exec c nslookup -type=a allowed.test 2>&1)
  contains "nslookup" "$said" 203.0.113.10
}

test_unlisted_names_may_be_resolved() {
  shield setup
  tier proxy resolve
  profile p allowed.test
  sleeper c p
  contains "nslookup" "$(podman exec c nslookup -type=a other.test 2>&1)" 203.0.113.11
  equal "page of other.test" "$(page c http://other.test/)" no
  expect_blocked c tcp 203.0.113.11
  shield deny c other.test
  contains "nslookup" "$(podman exec c nslookup -type=a other.test 2>&1 || true)" REFUSED
}

test_down_resolves_everything() {
  shield setup
  profile p allowed.test
  sleeper c p
  equal "page of other.test" "$(page c http://other.test/)" no
  shield down c
  equal "page of other.test when down" "$(page c http://other.test/)" yes
  shield up c
  equal "page of other.test when up again" "$(page c http://other.test/)" no
  equal "page of allowed.test" "$(page c http://allowed.test/)" yes
  shield quarantine c
  equal "page of allowed.test in quarantine" "$(page c http://allowed.test/)" no
  shield up c
  equal "page of allowed.test after quarantine" "$(page c http://allowed.test/)" yes
}

# ---- accidents

resolvers() { root pgrep -f '^terok-box dns-proxy' || true; }
test_killed_resolver_closes_and_comes_back() {
  shield setup
  profile p allowed.test rotate.test
  sleeper c p
  equal "page of allowed.test" "$(page c http://allowed.test/)" yes
  local pid round
  for round in 1 2 3 4 5; do
    for pid in $(resolvers | head -n 1); do root kill -9 "$pid"; done
    within 20 equal_page c http://rotate.test/ || die "names do not come back after kill $round"
    for pid in $(resolvers | tail -n 1); do root kill -9 "$pid"; done
    within 20 equal_page c http://rotate.test/ || die "names do not come back after the other kill $round"
  done
  # Both at once: closed for good, nothing opens.
  # shellcheck disable=SC2046
  root kill -STOP $(resolvers) # or one could replace the other before its own end
  # shellcheck disable=SC2046
  root kill -9 $(resolvers)
  equal "page of rotate.test without a resolver" "$(page c http://rotate.test/)" no
  expect_blocked c tcp 203.0.113.11
  state c up
  podman restart --time 0 c
  equal "page of rotate.test after a restart" "$(page c http://rotate.test/)" yes
}
equal_page() { [[ $(page "$1" "$2") == yes ]]; }

test_flood_of_questions_leaves_others_alone() {
  shield setup
  profile p allowed.test rotate.test
  sleeper c p
  sleeper other p
  local pid before after
  pid=$(podman inspect -f '{{.State.Pid}}' c)
  seq 1 200000 | sed 's/.*/n&.flood.test A/' | root tee "$tmp/flood" >/dev/null
  root nsenter -t "$pid" -n timeout 12 dnsperf -s 127.0.0.1 -d "$tmp/flood" -Q 10000 -l 8 >"$tmp/dnsperf" 2>&1 &
  sleep 1
  equal "pages of the other container" "$(first_attempts other 100)" 100
  equal "pages of the same container" "$(first_attempts c 20)" 20
  wait $! || true
  note "$(cat "$tmp/dnsperf")"
  if asked flood.test; then die "the flood reached the name server"; fi
  local kb
  for pid in $(resolvers); do
    kb=$(root sed -n 's/^Pss: *\([0-9]*\) kB/\1/p' "/proc/$pid/smaps_rollup")
    note "resolver $pid: $kb kB"
    ((kb < 60000)) || die "the resolver has $kb kB"
  done
}

# ---- what people see

test_watch_and_harvest() {
  shield setup
  profile p allowed.test
  sleeper c p
  shield watch c >"$tmp/watch.out" 2>"$tmp/watch.err" &
  local job=$!
  sleep 1
  page c http://other.test/
  probe c tcp 203.0.113.77
  within 20 grep -q '"action":"blocked_query".*"domain":"other.test"' "$tmp/watch.out" || die "watch does not show the name: $(cat "$tmp/watch.out" "$tmp/watch.err")"
  within 20 grep -q '"action":"queued_connection".*"dest":"203.0.113.77"' "$tmp/watch.out" || die "watch does not show the packet: $(cat "$tmp/watch.out" "$tmp/watch.err")"
  podman rm -f --time 0 c
  within 20 ended "$job" || die "watch goes on after the container"
}
ended() { ! kill -0 "$1" 2>/dev/null; }

test_harvest_makes_a_profile() {
  shield setup
  profile p allowed.test
  sleeper c p
  page c http://other.test/
  page c http://many.test/
  podman stop --time 0 c
  within 20 harvested other.test || die "harvest: $(shield harvest c)"
  user sh -c "terok-shield harvest c --profile >'$config/profiles/q.txt'"
  sleeper d q
  equal "page of other.test" "$(page d http://other.test/)" yes
  equal "page of many.test" "$(page d http://many.test/)" yes
  equal "page of allowed.test" "$(page d http://allowed.test/)" no
}
harvested() { [[ $(shield harvest c) == *$1* ]]; }

# ---- containers that share a network

sharing() { # NAME FLAG...: a prepared container in the network of another one
  local name=$1 flags kept=() skip=false flag
  shift
  mapfile -t flags < <(prepared "$name" --profiles p)
  for flag in "${flags[@]}"; do
    if $skip; then
      skip=false
      continue
    fi
    case $flag in
      --network | --add-host) skip=true ;;
      *) kept+=("$flag") ;;
    esac
  done
  podman run -d "$@" "${kept[@]}" "$image" sleep 600
}
test_two_containers_share_a_network() {
  shield setup
  profile p allowed.test
  sleeper one p
  shield allow one 203.0.113.31
  sharing two --network container:one
  equal "resolvers" "$(resolvers | wc -l)" 2
  equal "page of allowed.test" "$(page two http://allowed.test/)" yes
  equal "page of other.test" "$(page two http://other.test/)" no
  expect_passes two tcp 203.0.113.31
  expect_blocked two tcp 203.0.113.32
  shield allow two other.test
  equal "page of other.test in one" "$(page one http://other.test/)" yes
  equal "page of other.test in two" "$(page two http://other.test/)" yes
  shield deny two 203.0.113.31
  expect_blocked one tcp 203.0.113.31
  podman rm -f --time 0 two
  equal "page of allowed.test" "$(page one http://allowed.test/)" yes
  podman rm -f --time 0 one
  within 20 no_resolvers || die "resolvers left: $(resolvers)"
}
test_pod_ends_with_its_last_container() {
  shield setup
  profile p allowed.test
  podman pod create --name pod --infra-image "$image" --infra-command 'sleep 600'
  sharing one --pod pod
  sharing two --pod pod
  equal "page of allowed.test in one" "$(page one http://allowed.test/)" yes
  equal "page of allowed.test in two" "$(page two http://allowed.test/)" yes
  equal "resolvers" "$(resolvers | wc -l)" 2
  podman stop --time 0 one
  equal "page of allowed.test after the first has gone" "$(page two http://allowed.test/)" yes
  equal "page of other.test" "$(page two http://other.test/)" no
  podman start one
  equal "page of allowed.test in one again" "$(page one http://allowed.test/)" yes
  podman pod rm -f --time 0 pod
  within 20 no_resolvers || die "resolvers left: $(resolvers)"
}
no_resolvers() { [[ -z $(resolvers) ]]; }
teardown() {
  podman pod rm --all --force --time 0 >/dev/null 2>&1 || true
  inet ip route del 192.0.2.0/30 2>/dev/null || true
}
