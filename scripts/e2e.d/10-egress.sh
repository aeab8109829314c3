# What leaves a container, and what does not.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317

blocked_until_allowed() { # KIND BLOCKED ALLOWED-BY-PROFILE
  shield setup
  profile p "$3"
  sleeper c p
  expect_blocked c "$1" "$2"
  expect_passes c "$1" "$3"
  shield allow c "$2"
  expect_passes c "$1" "$2"
}

test_v4_tcp_blocked_until_allowed() { blocked_until_allowed tcp 203.0.113.21 203.0.113.20; }
test_v4_udp_blocked_until_allowed() { blocked_until_allowed udp 203.0.113.21 203.0.113.20; }
test_v4_icmp_blocked_until_allowed() { blocked_until_allowed icmp 203.0.113.21 203.0.113.20; }
test_v6_tcp_blocked_until_allowed() { blocked_until_allowed tcp 2001:db8:113::21 2001:db8:113::20; }
test_v6_udp_blocked_until_allowed() { blocked_until_allowed udp 2001:db8:113::21 2001:db8:113::20; }
# slirp4netns carries no ICMPv6 echo.
d13_v6_icmp_blocked_until_allowed() { blocked_until_allowed icmp 2001:db8:113::21 2001:db8:113::20; }

test_profile_network_lets_all_of_it_pass_and_nothing_beside() {
  shield setup
  profile p 203.0.113.32/28 2001:db8:113::20:0/112
  sleeper c p
  expect_passes c tcp 203.0.113.32
  expect_passes c tcp 203.0.113.47
  expect_blocked c tcp 203.0.113.31
  expect_blocked c tcp 203.0.113.48
  expect_passes c tcp 2001:db8:113::20:ffff
  expect_blocked c tcp 2001:db8:113::21:0
}

test_profile_name_is_resolved() {
  shield setup
  profile p allowed.test alias.test
  sleeper c p
  equal "page of allowed.test" "$(podman exec c timeout 5 wget -qO- http://allowed.test/)" "inet ok"
  equal "page of alias.test" "$(podman exec c timeout 5 wget -qO- http://alias.test/)" "inet ok"
  expect_passes c tcp 2001:db8:113::10
  fails podman exec c timeout 5 wget -qO- http://other.test/
  expect_blocked c tcp 203.0.113.11
  shield allow c other.test
  equal "page of other.test" "$(podman exec c timeout 5 wget -qO- http://other.test/)" "inet ok"
}

test_private_ranges_blocked() {
  shield setup
  profile p 203.0.113.20
  sleeper c p
  local address
  for address in 10.99.0.10 172.31.99.10 192.168.99.10 fd99::10; do
    expect_blocked c tcp "$address"
  done
  shield down c --all
  for address in 10.99.0.10 172.31.99.10 192.168.99.10 fd99::10; do
    expect_passes c tcp "$address"
  done
}

test_loopback_port_of_host_only_when_configured() {
  shield setup
  profile p 203.0.113.20
  serve 8098
  serve 8099
  sleeper closed p
  equal "port 8099 without configuration" "$(host_port closed 8099)" no
  printf 'loopback_ports: [8099]\n' | user tee "$config/config.yml" >/dev/null
  sleeper open p
  equal "port 8099 when configured" "$(host_port open 8099)" yes
  equal "port 8098 beside it" "$(host_port open 8098)" no
  equal "port 8099 of the older container" "$(host_port closed 8099)" no
  shield down open --all
  equal "port 8098 when everything is open" "$(host_port open 8098)" yes
}
serve() { # PORT: an echo on the machine, until the test ends
  root sh -c 'echo $$ >"$1/served.$2"; shift 2; exec "$@"' sh "$tmp" "$1" \
    "$E2E_LAB/share/busybox" nc -ll -p "$1" -e "$E2E_LAB/share/busybox" cat &
}
teardown() {
  local file
  for file in "$tmp"/served.*; do
    if [[ -e $file ]]; then root kill "$(cat "$file")"; fi
  done
}
host_port() { # CONTAINER PORT
  podman exec "$1" sh -c "if echo marco | timeout 4 nc -w 3 host.containers.internal $2 2>/dev/null | grep -q marco; then echo yes; else echo no; fi"
}
