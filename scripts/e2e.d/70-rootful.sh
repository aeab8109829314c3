# Root's own Podman, on a bridge.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317

# The rest of the harness then speaks to root's Podman.
as_root_user() {
  user() { root "$@"; }
  user_home=$(root sh -c 'echo $HOME')
  config=$user_home/.config/terok/shield
  root podman image exists "$image" || root podman import -q --change 'CMD ["sh"]' "$E2E_LAB/share/bb.tar" "$image"
  root podman rm --all --force --time 0
}
teardown() {
  root podman rm --all --force --time 0
  root terok-shield uninstall
  root rm -rf /var/lib/terok "$(root sh -c 'echo $HOME')"/.config "$(root sh -c 'echo $HOME')"/.local
}

test_rootful_bridge() {
  as_root_user
  podman run -d --name bare "$image" sleep 600
  expect_passes bare tcp 203.0.113.21
  shield setup
  profile p 203.0.113.20 allowed.test
  sleeper c p
  state c up
  expect_passes c tcp 203.0.113.20
  equal "page of allowed.test" "$(podman exec c timeout 5 wget -qO- http://allowed.test/)" "inet ok"
  fails podman exec c timeout 5 wget -qO- http://other.test/
  expect_passes c tcp 203.0.113.10
  expect_blocked c tcp 203.0.113.21
  expect_blocked c udp 203.0.113.21
  expect_blocked c icmp 203.0.113.21
  shield allow c 203.0.113.21
  expect_passes c tcp 203.0.113.21
  expect_passes c udp 203.0.113.21
  expect_passes c icmp 203.0.113.21
  shield deny c 203.0.113.21
  expect_blocked c tcp 203.0.113.21
  shield down c
  expect_passes c tcp 203.0.113.22
  shield quarantine c
  expect_blocked c tcp 203.0.113.20
  shield up c
  podman restart --time 0 c
  state c up
  expect_passes c tcp 203.0.113.20
  expect_blocked c tcp 203.0.113.22
}
