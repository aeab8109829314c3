# Popups: a real session bus, X server and notification daemon, and a mouse that clicks on what is to be seen.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317

# ---- the desktop of the machine's user

declare -A running_pids # in the machine's own pid namespace
spawn() { # NAME CMD...: in the background as the user, until the test ends
  local name=$1
  shift
  user sh -c 'echo $$ >"$0"; exec "$@"' "$tmp/$name.pid" "$@" >"$tmp/$name.out" 2>"$tmp/$name.err" &
  within 20 test -s "$tmp/$name.pid" || die "$name does not start"
  running_pids[$name]=$(<"$tmp/$name.pid")
}
halt() { # NAME
  # Without "--" procps takes -123, a process group, for -1, which is everybody.
  root kill -9 -- "${running_pids[$1]}" 2>/dev/null || true
  unset "running_pids[$1]"
  rm -f "$tmp/$1.pid"
}
screen() { # an X server without a screen
  spawn x Xvfb -displayfd 1 -screen 0 1000x900x24 -nolisten tcp
  within 30 test -s "$tmp/x.out" || die "no X server: $(cat "$tmp/x.err")"
  display=:$(<"$tmp/x.out")
}
session_bus() {
  user rm -f "$runtime/bus"
  spawn bus dbus-daemon --session --nofork --nopidfile --address="unix:path=$runtime/bus"
  within 20 user test -S "$runtime/bus" || die "no session bus: $(cat "$tmp/bus.err")"
  spawn monitor dbus-monitor --session "interface='org.freedesktop.Notifications'"
  within 20 grep -q NameAcquired "$tmp/monitor.out" || die "no dbus-monitor: $(cat "$tmp/monitor.err")"
}
daemon() { # CMD...: one that shows notifications
  spawn daemon env DISPLAY="$display" NO_AT_BRIDGE=1 "$@"
  within 20 owned || die "nobody shows notifications: $(cat "$tmp/daemon.err")"
}
on_bus() { # NAME
  [[ $(user timeout 20 dbus-send --session --print-reply=literal --dest=org.freedesktop.DBus / \
    org.freedesktop.DBus.NameHasOwner "string:$1") == *true* ]]
}
owned() { on_bus org.freedesktop.Notifications; }
watched() { on_bus org.terok.ClearanceNotify; }
watcher() { # [NAME=VALUE...]
  spawn watch env DISPLAY="$display" "$@" terok-clearance-notify --watch
}
notification_daemon=/usr/lib/notification-daemon/notification-daemon
desktop() { # with the watcher
  runtime=/run/user/$(user id -u)
  screen
  session_bus
  daemon "$notification_daemon"
  watcher
}
teardown() {
  local name
  for name in "${!running_pids[@]}"; do halt "$name"; done
  user rm -f "/run/user/$(user id -u)/bus"
}

# ---- what is on the screen

x() { user env DISPLAY="$display" timeout 20 "$@"; }
popups() { # ids of the windows
  x xdotool search --onlyvisible --name '^Notification$' 2>/dev/null || true
}
count() { popups | wc -l; }
shown() { # TEXT: some notification had it
  grep -q -- "string \".*$1" "$tmp/monitor.out"
}
shows() { # TEXT
  within 30 shown "$1" || die "nothing on the screen about '$1': $(grep -c Notify "$tmp/monitor.out") notifications, $(cat "$tmp/watch.err")"
}
# The buttons of a window, as its picture tells: the words of its lowest line of text, "X Y" each from
# left to right, if that begins in the right half, where text does not. A word is dark, and further from
# the next than letters are from each other.
buttons() { # WINDOW
  x import -window "$1" -colorspace gray -depth 8 txt:- | awk -F'[,:() ]+' '
    NR == 1 { split($0, head, ": "); split(head[2], size, ","); w = size[1]; h = size[2]; next }
    { x = $1; y = $2; v = $3
      if (v < 110 && x > 12 && x < w - 12 && y > h / 2 && y < h - 8) { dark[y]++; at[y, x] = 1; if (y > last) last = y } }
    END {
      for (top = last; top > 0 && (dark[top] || dark[top - 1] || dark[top - 2]); top--);
      gap = 99
      for (x = 12; x < w; x++) {
        ink = 0
        for (y = top; y <= last; y++) if (at[y, x]) ink = 1
        if (ink) { if (gap > 9) { n++; from[n] = x } to[n] = x; gap = 0 } else gap++
      }
      if (from[1] > w / 2) for (i = 1; i <= n; i++) print int((from[i] + to[i]) / 2), int((top + last) / 2)
    }'
}
press() { # WINDOW NUMBER: the mouse goes to that button, counted from the left, and clicks
  local list place
  mapfile -t list < <(buttons "$1")
  ((${#list[@]} >= 2)) || return 0 # it has just gone
  place=${list[$2 - 1]}
  x xdotool mousemove --window "$1" "${place% *}" "${place#* }" sleep 0.3 click 1
}
pressable() { # ids of the windows with buttons
  local id
  for id in $(popups); do
    if [[ $(buttons "$id" | wc -l) -ge 2 ]]; then echo "$id"; fi
  done
}
one() { [[ $(pressable | wc -l) -eq 1 ]]; }
nothing_to_press() { [[ -z $(pressable) ]]; }
question() { # the only one
  within 30 one || die "$(count) popups, with buttons: $(pressable)"
  pressable
}
clicks() { grep -c 'member=ActionInvoked' "$tmp/monitor.out" || true; }
clicked() { (($(clicks) > $1)); }
click() { # NUMBER: on the only question, until its desktop says so
  local id before
  before=$(clicks)
  for _ in 1 2 3; do
    id=$(question)
    press "$id" "$1"
    if within 5 clicked "$before"; then return; fi
  done
  die "nothing comes of a click"
}
page_comes() { [[ $(page "$1" "$2") == yes ]]; }

# ---- the main job

op_click_on_allow() {
  shield setup
  profile p allowed.test
  desktop
  sleeper demo p
  equal "page of other.test" "$(page demo http://other.test/)" no
  shows 'Blocked: other.test:53'
  click 1
  within 30 page_comes demo http://other.test/ || die "not allowed: $(cat "$tmp/watch.err")"
  shows 'Allowed: other.test'
  equal "page of an address" "$(page demo http://203.0.113.31/)" no
  shows 'Blocked: 203.0.113.31:80'
  if [[ -n ${E2E_SCREENSHOT:-} ]]; then # for README
    x import -window "$(question)" -colors 64 png:- >"$E2E_SCREENSHOT"
  fi
  click 1
  within 30 passes_now demo 203.0.113.31 || die "not allowed: $(cat "$tmp/watch.err")"
  expect_passes demo tcp 203.0.113.31
  equal "page of a third target" "$(page demo http://203.0.113.32/)" no
}
passes_now() { [[ $(probe "$1" tcp "$2") == yes ]]; }

op_click_on_deny() {
  shield setup
  profile p allowed.test
  desktop
  sleeper demo p
  equal "page of allowed.test" "$(page demo http://allowed.test/)" yes
  equal "page of an address" "$(page demo http://203.0.113.31/)" no
  shows 'Blocked: 203.0.113.31:80'
  click 2
  shows 'Denied: 203.0.113.31'
  equal "page of the address" "$(page demo http://203.0.113.31/)" no
  expect_blocked demo tcp 203.0.113.31
  expect_passes demo tcp 203.0.113.10
  contains "audit" "$(shield logs --container demo)" '"action": "denied"'
  equal "popups about it" "$(grep -c 'string "Blocked: 203.0.113.31' "$tmp/monitor.out")" 1
}

op_answer_elsewhere_takes_the_buttons_away() {
  shield setup
  profile p allowed.test
  desktop
  sleeper demo p
  equal "page of an address" "$(page demo http://203.0.113.31/)" no
  shows 'Blocked: 203.0.113.31:80'
  question >/dev/null
  console terminal clearance-hub clearance
  says terminal '^\[1\] BLOCKED .*203.0.113.31'
  enter terminal 'a 1'
  shows 'Allowed: 203.0.113.31'
  expect_passes demo tcp 203.0.113.31
  within 30 nothing_to_press || die "$(count) popups with buttons"
}

# ---- desktops come and go

op_desktop_comes_later_and_again() {
  shield setup
  profile p allowed.test
  runtime=/run/user/$(user id -u)
  screen
  watcher
  sleeper demo p
  equal "page of an address" "$(page demo http://203.0.113.31/)" no
  sleep 1
  session_bus
  daemon "$notification_daemon"
  shows 'Blocked: 203.0.113.31:80'
  # It dies, and another one comes.
  halt daemon
  within 20 nobody_owns || die "the daemon lives"
  daemon "$notification_daemon"
  question >/dev/null
  # The bus dies, too.
  halt daemon
  halt monitor
  halt bus
  session_bus
  daemon "$notification_daemon"
  question >/dev/null
  click 1
  within 30 passes_now demo 203.0.113.31 || die "not allowed: $(cat "$tmp/watch.err")"
  expect_passes demo tcp 203.0.113.31
}
nobody_owns() { ! owned; }

op_second_watcher_ends() {
  desktop
  within 20 watched || die "the watcher is not on the bus: $(cat "$tmp/watch.err")"
  local said rc=0
  said=$(user terok-clearance-notify --watch 2>&1) || rc=$?
  equal "exit code" "$rc" 1
  contains "its message" "$said" "already"
  equal "notification" "$(user terok-clearance-notify TITLE 'a <b> & c')" 1
  shows 'TITLE'
  shows 'a &lt;b&gt; &amp; c'
}

op_no_desktop_is_no_error() {
  local said
  said=$(user terok-clearance-notify TITLE BODY --actions allow:Allow deny:Deny --wait 2>&1)
  equal "what it prints" "$said" 0
  said=$(user clearance-hub notify TITLE 2>&1)
  equal "what it prints" "$said" 0
}

# ---- another daemon, which has its actions in a menu

op_dunst() {
  shield setup
  profile p allowed.test
  runtime=/run/user/$(user id -u)
  screen
  session_bus
  user mkdir -p "$user_home/e2e"
  printf '#!/bin/sh\ngrep -m 1 "$(cat %s/choice)"\n' "$user_home/e2e" | user tee "$user_home/e2e/menu" >/dev/null
  user chmod 755 "$user_home/e2e/menu"
  printf '[global]\nwidth = 400\norigin = top-right\ndmenu = %s/e2e/menu\nmouse_left_click = context\nmouse_right_click = close_current\n' "$user_home" |
    user tee "$user_home/e2e/dunstrc" >/dev/null
  daemon dunst -conf "$user_home/e2e/dunstrc"
  watcher
  sleeper demo p
  local round target
  for round in Deny Allow; do
    echo "$round" | user tee "$user_home/e2e/choice" >/dev/null
    target=203.0.113.31
    if [[ $round == Allow ]]; then target=203.0.113.32; fi
    equal "page of $target" "$(page demo "http://$target/")" no
    shows "Blocked: $target:80"
    within 20 dunst_shown || die "dunst shows nothing"
    x xdotool search --onlyvisible --class '^Dunst$' mousemove --window %1 60 30 sleep 0.3 click 1
    shows "$(past "$round"): $target"
    x xdotool mousemove 500 700
    x dunstctl close-all
  done
  expect_blocked demo tcp 203.0.113.31
  expect_passes demo tcp 203.0.113.32
}
past() { if [[ $1 == Allow ]]; then echo Allowed; else echo Denied; fi; }
dunst_shown() { x xdotool search --onlyvisible --class '^Dunst$' >/dev/null 2>&1; }

# ---- many

op_scan_leaves_six_popups() {
  shield setup
  profile p allowed.test
  desktop
  sleeper demo p
  local most=0 n scan
  # One packet to each, within ten seconds.
  podman exec demo sh -c 'for i in $(seq 200); do (echo x | timeout 3 nc 198.51.100.$i 80 >/dev/null 2>&1) & sleep 0.04; done; wait' &
  scan=$!
  while kill -0 "$scan" 2>/dev/null; do
    n=$(count)
    ((n <= most)) || most=$n
    sleep 0.5
  done
  within 60 all_asked || die "questions on the desktop: $(own) and $(more), of 200"
  n=$(count)
  ((n <= 6 && most <= 6 && n >= 1)) || die "$n popups, at most $most"
  console terminal clearance-hub clearance
  within 30 all_listed || die "questions in the terminal: $(grep -c BLOCKED "$tmp/terminal.out"), of 200"
}
own() { grep -c 'string "Blocked: 198.51' "$tmp/monitor.out" || true; }
more() { sed -nE 's/.*string "([0-9]+) more blocked in .*/\1/p' "$tmp/monitor.out" | tail -n 1; }
all_asked() { (($(own) + $(more) == 200)); }
all_listed() { [[ $(grep -c 'BLOCKED .*198.51.100' "$tmp/terminal.out") -eq 200 ]]; }

op_list_opens_a_terminal() {
  shield setup
  profile p allowed.test
  runtime=/run/user/$(user id -u)
  screen
  session_bus
  daemon "$notification_daemon"
  user mkdir -p "$user_home/e2e"
  # It is called with -e CMD..., and nobody types.
  printf '#!/bin/sh\ncd %s/e2e\necho $$ >pid\n%s >kept.new\nmv kept.new kept\nshift\nsleep 600 | "$@" >said 2>&1\n' \
    "$user_home" "$kept" | user tee "$user_home/e2e/terminal" >/dev/null
  user chmod 755 "$user_home/e2e/terminal"
  watcher TERMINAL="$user_home/e2e/terminal"
  sleeper demo p
  podman exec demo sh -c 'for i in $(seq 20); do (echo x | timeout 3 nc 198.51.100.$i 80 >/dev/null 2>&1) & done; wait'
  shows '15 more blocked in '
  within 90 list_opens || die "no terminal: $(count) popups, $(cat "$tmp/watch.err")"
  running_pids[terminal]=-$(user cat "$user_home/e2e/pid") # with what it has started
  within 30 lists_many || die "the terminal shows $(user cat "$user_home/e2e/said")"
  # The terminal may do what its user may, and the program that asks may not.
  equal "what keeps the terminal" "$(user cat "$user_home/e2e/kept")" "$(user sh -c "$kept")"
  equal "what keeps the program" "$(root sed -nE 's/^(NoNewPrivs|Seccomp):\s+//p' "/proc/${running_pids[watch]}/status" | xargs)" "1 2"
  equal "openers" "$(openers | wc -l)" 1
  halt watch
  within 20 no_openers || die "it is left: $(openers)"
  user sh -c 'kill -0 "$0"' "$(user cat "$user_home/e2e/pid")" || die "the terminal is gone"
}
kept="grep -E '^(NoNewPrivs|Seccomp|Cap[A-Z][a-z]*):' /proc/self/status"
openers() { root pgrep -f '^terok-box terminal-opener' || true; }
no_openers() { [[ -z $(openers) ]]; }
lists_many() { (($(user grep -c 'BLOCKED .*198.51.100' "$user_home/e2e/said") >= 10)); }
# This daemon shows one notification after the other. The questions before the list's are answered: they
# have two buttons, and that has one.
list_opens() {
  local id place
  for id in $(popups); do
    place=$(buttons "$id")
    case $place in
      '') ;;
      *$'\n'*) press "$id" 2 ;;
      *) x xdotool mousemove --window "$id" "${place% *}" "${place#* }" sleep 0.3 click 1 ;;
    esac
  done
  within 2 user test -s "$user_home/e2e/kept"
}

# ---- set up

op_setup_desktop() {
  shield setup --desktop
  user test -s "$user_home/.config/autostart/terok-clearance-notify.desktop"
  contains "unit" "$(user cat "$user_home/.config/systemd/user/terok-clearance-notify.service")" 'terok-box" terok-clearance-notify --watch'
  runtime=/run/user/$(user id -u)
  screen
  session_bus
  daemon "$notification_daemon"
  # As a session does it.
  spawn watch env DISPLAY="$display" sh -c "exec $(user sed -n 's/^Exec=//p' "$user_home/.config/autostart/terok-clearance-notify.desktop")"
  profile p allowed.test
  sleeper demo p
  equal "page of an address" "$(page demo http://203.0.113.31/)" no
  shows 'Blocked: 203.0.113.31:80'
  shows 'terok-symbolic' # the icon is installed
  podman rm -f --time 0 demo
  shield uninstall
  fails user test -e "$user_home/.config/autostart/terok-clearance-notify.desktop"
  fails user test -e "$user_home/.local/share/icons/hicolor/symbolic/apps/terok-symbolic.svg"
}
