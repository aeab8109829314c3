# setup and uninstall.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317

tree() { # everything in the user's home but Podman's own storage: type, mode, owner, content
  root bash -c 'cd "$1" && find . -xdev \( -path ./.local/share/containers -o -path ./e2e -o -path ./.cache \) -prune -o -printf "%p %y %m %u %l\n" | sort
    find . -xdev \( -path ./.local/share/containers -o -path ./e2e -o -path ./.cache \) -prune -o -type f -print0 | sort -z | xargs -0r sha256sum' bash "$user_home"
}

test_setup_twice_uninstall_twice() {
  podman info >/dev/null
  local before once
  before=$(tree)
  shield setup
  once=$(tree)
  [[ $once != "$before" ]] || die "setup did nothing"
  shield setup
  equal "tree after the second setup" "$(tree)" "$once"
  shield uninstall
  equal "tree after uninstall" "$(tree)" "$before"
  shield uninstall
  equal "tree after the second uninstall" "$(tree)" "$before"
}

test_uninstall_keeps_the_operators_configuration() {
  user mkdir -p "$user_home/.config/containers/containers.conf.d"
  printf '[containers]\n# mine\nenv = ["A=b"]\n' | user tee "$user_home/.config/containers/containers.conf" >/dev/null
  printf '[engine]\nimage_parallel_copies = 3\n' | user tee "$user_home/.config/containers/containers.conf.d/50-mine.conf" >/dev/null
  local before
  before=$(tree)
  shield setup
  shield uninstall
  equal "tree after setup and uninstall" "$(tree)" "$before"
}

foreign_hook() { # DIRECTORY NAME: a hook of somebody else's that leaves a line at every start
  user mkdir -p "$user_home/e2e"
  printf '#!/bin/sh\ncat >/dev/null\necho ran >>%s/%s.ran\n' "$user_home/e2e" "$2" | root tee "$1/$2" >/dev/null
  root chmod 755 "$1/$2"
  printf '{"version":"1.0.0","hook":{"path":"%s"},"when":{"always":true},"stages":["createRuntime"]}' "$1/$2" | root tee "$1/$2.json" >/dev/null
}
ran() { # NAME → how often
  if user test -e "$user_home/e2e/$1.ran"; then user wc -l "$user_home/e2e/$1.ran" | cut -d' ' -f1; else echo 0; fi
}
teardown() {
  root rm -f /etc/containers/oci/hooks.d/theirs{,.json}
  root rmdir -p --ignore-fail-on-non-empty /etc/containers/oci/hooks.d 2>/dev/null || true
}

test_hook_directories_in_force_stay_in_force() {
  profile p 203.0.113.20
  user mkdir -p "$user_home/e2e/hooks" "$user_home/.config/containers"
  foreign_hook "$user_home/e2e/hooks" mine
  printf '[engine]\nhooks_dir = ["%s"]\n' "$user_home/e2e/hooks" | user tee "$user_home/.config/containers/containers.conf" >/dev/null
  podman run --rm "$image" true
  equal "own hook before setup" "$(ran mine)" 1
  shield setup
  podman run --rm "$image" true
  equal "own hook after setup, unshielded container" "$(ran mine)" 2
  sleeper c p
  equal "own hook after setup, shielded container" "$(ran mine)" 3
  expect_blocked c tcp 203.0.113.21
  expect_passes c tcp 203.0.113.20
  fails shield uninstall # c would be started without a firewall
  podman stop --time 0 c
  fails shield uninstall
  podman start c
  expect_blocked c tcp 203.0.113.21
  podman rm -f --time 0 c
  shield uninstall
  podman run --rm "$image" true
  equal "own hook after uninstall" "$(ran mine)" 5
}

test_system_hook_directory_stays_in_force() {
  profile p 203.0.113.20
  root mkdir -p /etc/containers/oci/hooks.d
  foreign_hook /etc/containers/oci/hooks.d theirs
  podman run --rm "$image" true
  local before
  before=$(ran theirs)
  shield setup
  podman run --rm "$image" true
  equal "system hook after setup" "$(ran theirs)" "$((before * 2))"
  sleeper c p
  equal "system hook, shielded container" "$(ran theirs)" "$((before * 3))"
  expect_blocked c tcp 203.0.113.21
  expect_passes c tcp 203.0.113.20
}

test_unshielded_containers_are_left_alone() {
  shield setup
  podman run -d --name bare "$image" sleep 600
  expect_passes bare tcp 203.0.113.21
  expect_passes bare icmp 203.0.113.21
  local pid
  pid=$(podman inspect -f '{{.State.Pid}}' bare)
  equal "tables in a container that asked for none" "$(root nsenter -t "$pid" -n nft list tables)" ""
}

test_check_environment_says_what_to_do() {
  local text
  text=$(shield check-environment)
  contains "check-environment before setup" "$text" "hooks=not-installed"
  contains "check-environment before setup" "$text" "terok-shield setup"
  shield setup
  text=$(shield check-environment)
  contains "check-environment after setup" "$text" "hooks=global"
  contains "check-environment after setup" "$text" "health=ok"
}
