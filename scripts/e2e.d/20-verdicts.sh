# allow and deny on containers that run.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317

test_deny_wins_over_allow() {
  shield setup
  profile p 203.0.113.0/24 2001:db8:113::/64
  sleeper c p
  expect_passes c tcp 203.0.113.31
  expect_passes c tcp 2001:db8:113::31
  shield deny c 203.0.113.31
  shield deny c 2001:db8:113::31
  expect_blocked c tcp 203.0.113.31
  expect_blocked c udp 203.0.113.31
  expect_blocked c icmp 203.0.113.31
  expect_blocked c tcp 2001:db8:113::31
  expect_passes c tcp 203.0.113.32
  shield down c
  expect_blocked c tcp 203.0.113.31
  expect_passes c tcp 203.0.113.32
  shield down c --all
  expect_blocked c tcp 203.0.113.31
  shield up c
  expect_blocked c tcp 203.0.113.31
}

test_deny_takes_back_an_allow() {
  shield setup
  profile p 203.0.113.20
  sleeper c p
  equal "allow says" "$(shield allow c 203.0.113.31)" "Allowed 203.0.113.31 -> 203.0.113.31 for c"
  expect_passes c tcp 203.0.113.31
  equal "deny says" "$(shield deny c 203.0.113.31)" "Denied 203.0.113.31 (203.0.113.31) for c"
  expect_blocked c tcp 203.0.113.31
  shield allow c 203.0.113.31
  expect_passes c tcp 203.0.113.31
}

test_deny_cuts_a_live_tcp_flow() {
  shield setup
  profile p 203.0.113.20 203.0.113.21
  launch c p "$image" sh -c "$(dialogue 203.0.113.20)"
  launch other p "$image" sh -c "$(dialogue 203.0.113.21)"
  growing "$tmp/c.out" || die "the dialogue does not run"
  growing "$tmp/other.out" || die "the other dialogue does not run"
  shield deny c 203.0.113.20
  within 20 standing "$tmp/c.out" || die "the dialogue goes on after deny"
  growing "$tmp/other.out" || die "deny stopped another container"
  expect_blocked c tcp 203.0.113.20
}

# Nothing but acknowledgements leaves the container here: a filter on the way out alone lets it go on.
test_deny_cuts_a_live_download() {
  shield setup
  profile p 203.0.113.20
  launch c p "$image" sh -c "$(download 203.0.113.20)"
  growing "$tmp/c.out" || die "the download does not run"
  shield deny c 203.0.113.20
  within 20 standing "$tmp/c.out" || die "the download goes on after deny"
}

test_one_containers_verdicts_leave_others_alone() {
  shield setup
  profile p 203.0.113.20
  sleeper one p
  sleeper two p
  shield allow one 203.0.113.41
  expect_passes one tcp 203.0.113.41
  expect_blocked two tcp 203.0.113.41
  shield deny one 203.0.113.20
  expect_blocked one tcp 203.0.113.20
  expect_passes two tcp 203.0.113.20
  shield down one
  state one down
  state two up
  expect_blocked two tcp 203.0.113.42
  shield quarantine two
  expect_passes one tcp 203.0.113.42
}

rules() { # CONTAINER: without what was counted
  shield rules "$1" | sed -E 's/packets [0-9]+ bytes [0-9]+//'
}
test_bad_targets_change_nothing() {
  shield setup
  profile p 203.0.113.20
  sleeper c p
  local before target
  before=$(rules c)
  for target in 203.0.113.300 203.0.113.021 fe80::1%tap0 '203.0.113.0/33' '-1' '' http://203.0.113.21/ '203.0.113.21 203.0.113.22' 'no such' single; do
    fails shield allow c "$target"
    fails shield deny c "$target"
  done
  equal "rules after bad targets" "$(rules c)" "$before"
  expect_blocked c tcp 203.0.113.21
  expect_passes c tcp 203.0.113.20
}

# From inside, with this program alone; what the firewall says is told from what the other end says.
test_probe_sees_the_firewall() {
  local said
  shield setup
  profile p 203.0.113.20
  seen_from_inside() { # HOST
    shield run probe --profiles p -- --rm -v "$E2E_LAB/bin/terok-box:/terok-box:ro" "$image" /terok-box shield-probe "$@"
  }
  said=$(seen_from_inside 203.0.113.21)
  contains "a host that is blocked" "$said" '"result": "icmp-error", "icmp_type": 3, "icmp_code": 13, "icmp_code_name": "admin-prohibited"'
  said=$(seen_from_inside 203.0.113.20 9)
  contains "a port where nobody listens" "$said" '"icmp_code_name": "port-unreachable"'
  said=$(seen_from_inside 203.0.113.20 53)
  contains "a port where somebody does" "$said" '"result": "open"'
}
