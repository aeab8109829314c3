# up, down, down --all and quarantine under a transfer that runs.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317

test_states_under_a_running_transfer() {
  shield setup
  profile p 203.0.113.20 203.0.113.23
  launch c p "$image" sh -c "$(download 203.0.113.20)"
  growing "$tmp/c.out" || die "the transfer does not run"
  state c up
  expect_blocked c tcp 203.0.113.22

  equal "down says" "$(shield down c)" "Shield down for c"
  state c down
  growing "$tmp/c.out" || die "down stopped the transfer"
  expect_passes c tcp 203.0.113.22
  expect_passes c udp 203.0.113.22
  expect_blocked c tcp 10.99.0.10

  equal "down --all says" "$(shield down c --all)" "Shield down for c (all traffic)"
  state c disengaged
  growing "$tmp/c.out" || die "down --all stopped the transfer"
  expect_passes c tcp 10.99.0.10

  equal "up says" "$(shield up c)" "Shield up for c"
  state c up
  growing "$tmp/c.out" || die "up stopped the transfer"
  expect_blocked c tcp 203.0.113.22
  expect_blocked c tcp 10.99.0.10
  expect_passes c tcp 203.0.113.23

  equal "quarantine says" "$(shield quarantine c)" "Shield QUARANTINED for c — all traffic dropped"
  state c quarantine
  within 20 standing "$tmp/c.out" || die "the transfer goes on in quarantine"
  expect_blocked c tcp 203.0.113.23
  expect_blocked c udp 203.0.113.23
  expect_blocked c icmp 203.0.113.23

  shield up c
  state c up
  expect_passes c tcp 203.0.113.23
  expect_blocked c tcp 203.0.113.22
}

test_states_v6() {
  shield setup
  profile p 2001:db8:113::20
  sleeper c p
  expect_blocked c tcp 2001:db8:113::22
  shield down c
  expect_passes c tcp 2001:db8:113::22
  expect_blocked c tcp fd99::10
  shield down c --all
  expect_passes c tcp fd99::10
  shield quarantine c
  expect_blocked c tcp 2001:db8:113::20
  shield up c
  expect_passes c tcp 2001:db8:113::20
  expect_blocked c tcp 2001:db8:113::22
}

test_state_of_a_container_that_does_not_run() {
  shield setup
  profile p 203.0.113.20
  sleeper c p
  podman stop --time 0 c
  state c offline
  local verb
  for verb in up down quarantine; do fails shield "$verb" c; done
  fails shield allow c 203.0.113.21
  podman start c
  state c up
}

test_foreign_hands_on_the_table_are_seen() {
  shield setup
  profile p 203.0.113.20
  sleeper c p
  state c up
  expect_blocked c tcp 203.0.113.22
  local pid
  pid=$(podman inspect -f '{{.State.Pid}}' c)
  root nsenter -t "$pid" -n nft insert rule inet terok_shield output ip daddr 203.0.113.22 accept
  expect_passes c tcp 203.0.113.22
  state c error
  shield up c
  state c up
  expect_blocked c tcp 203.0.113.22
}
