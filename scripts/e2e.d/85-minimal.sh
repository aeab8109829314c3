# A host that has Podman, what Podman needs, and our one file: no shell, nft, dnsmasq, Python, dbus or systemd.
# shellcheck shell=bash disable=SC2154

# What runs on the machine as root, with functions of the harness: ROOT LAB USER IMAGE PROGRAM.
# shellcheck disable=SC2016
minimal='
set -euo pipefail
new=$1 lab=$2 user=$3 image=$4 program=$5
uid=$(id -u "$user") gid=$(id -g "$user")
mkdir -p "$new"
mount -t tmpfs -o mode=755 none "$new"
mkdir -p "$new"/{usr/bin,usr/lib,usr/lib64,usr/sbin,etc,proc,sys,dev,run,tmp,home,var/tmp,var/lib,old} "$new/$lab"
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$new/$dir"; done
copy() { cp -a --parents "$@" "$new"; }
needs=(podman crun conmon newuidmap newgidmap fuse-overlayfs)
for name in pasta pasta.avx2 slirp4netns; do
  if command -v "$name" >/dev/null; then needs+=("$name"); fi
done
for name in "${needs[@]}"; do
  file=$(command -v "$name")
  cp -a --remove-destination "$(readlink -f "$file")" "$new/usr/bin/$name"
  { ldd "$file" 2>/dev/null || true; } | grep -o "/[^ ]*" | while read -r lib; do
    real=/usr/${lib#/usr}
    mkdir -p "$new/${real%/*}"
    cp -L "$lib" "$new/$real"
  done
done
for dir in /usr/libexec/podman /usr/lib/podman /usr/share/containers /etc/containers; do
  if [[ -e $dir ]]; then copy "$dir"; fi
done
copy /etc/passwd /etc/group /etc/subuid /etc/subgid
for file in /etc/resolv.conf /etc/hosts; do
  if [[ -e $file ]]; then cp -L "$file" "$new/etc/"; fi
done
cp "$program" "$new/usr/bin/terok-box"
ln -s terok-box "$new/usr/bin/terok-shield"
cp "$lab/share/busybox" "$new/busybox" # for one command
mkfifo "$new/end"
unshare --mount --propagation private bash -c "
  set -e
  mount --bind $new $new
  for dir in /proc /sys /dev /run /tmp /home $lab; do mount --rbind \$dir $new\$dir; done
  cd $new
  pivot_root . old
  cd /
  /busybox umount -l /old
  /busybox rm -r /busybox /old
  read -r _ </end" &
pid=$!
trap "kill $pid 2>/dev/null" EXIT
on() { # CMD...: there, as the user
  env -i HOME="/home/$user" USER="$user" XDG_RUNTIME_DIR="/run/user/$uid" PATH=/usr/bin \
    nsenter -t "$pid" -m -S "$uid" -G "$gid" -- "$@"
}
for i in $(seq 100); do [[ -e $new/busybox ]] || break; sleep 0.1; done
[[ ! -e $new/busybox ]] || die "it did not start"
for name in sh bash busybox python3 nft nsenter ip dig dnsmasq dbus-daemon systemctl; do
  [[ -z $(find "$new/usr" -name "$name") ]] || die "it has $name"
done
podman() { on podman "$@"; }
shield() { on terok-shield "$@"; }
shield setup
shield run demo --profiles p -- -d "$image" sleep 600
equal "state" "$(shield status demo)" up
equal "page of the profile" "$(page demo http://allowed.test/)" yes
equal "page of another name" "$(page demo http://other.test/)" no
# Somebody who types what the question is answered with once he sees it.
mkfifo "$new/typed"
shield simple-clearance demo <"$new/typed" >"$new/seen" 2>&1 &
exec 8>"$new/typed"
seen() { # TEXT
  within 20 grep -q "$1" "$new/seen" || die "nothing about \"$1\" on the terminal: $(cat "$new/seen")"
}
seen "BLOCKED.*other.test"
echo "a 1" >&8
seen "allowed other.test"
echo q >&8
exec 8>&-
equal "page of the allowed name" "$(page demo http://other.test/)" yes
shield deny demo other.test
equal "page of the denied name" "$(page demo http://other.test/)" no
shield quarantine demo
equal "page in quarantine" "$(page demo http://allowed.test/)" no
equal "state" "$(shield status demo)" quarantine
podman rm -f --time 0 demo
echo "it is enough"
'

test_minimal_host() {
  profile p allowed.test
  local said
  said=$(root unshare --mount --propagation private bash -c "$(declare -f note die equal within page); $minimal" minimal "$tmp/root" "$E2E_LAB" op "$image" "$E2E_LAB/bin/terok-box")
  contains "what it says" "$said" "it is enough"
}
