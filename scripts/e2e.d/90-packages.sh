# The package, on a system of its own: it is installed, used and removed, and nothing is left.
# shellcheck shell=bash disable=SC2154

# What runs there as root: DEB LAYER LAB USER IMAGE. Changes of the system go into LAYER.
# shellcheck disable=SC2016
inside='
set -euo pipefail
deb=$1 layer=$2 lab=$3 user=$4 image=$5
fail() { echo "FAILED: $*" >&2; exit 1; }
mkdir -p "$layer"
mount -t tmpfs none "$layer"
mkdir "$layer/new" "$layer/work" "$layer/root"
mount -t overlay none -o "lowerdir=/,upperdir=$layer/new,workdir=$layer/work" "$layer/root"
for dir in /proc /sys /dev /run /tmp /home "$lab"; do
  mount --rbind "$dir" "$layer/root$dir"
done
cd "$layer/root"
pivot_root . mnt
cd /
umount -l /mnt

uid=$(id -u "$user")
as_user() {
  setpriv --reuid "$user" --regid "$user" --init-groups \
    env -i -C "/home/$user" HOME="/home/$user" USER="$user" XDG_RUNTIME_DIR="/run/user/$uid" PATH=/usr/bin:/bin "$@"
}
page() { # URL: yes or no
  as_user podman exec demo sh -c "if timeout 6 wget -qO- $1 2>/dev/null | grep -q \"inet ok\"; then echo yes; else echo no; fi"
}
is() { # WHAT GOT WANT
  [[ $2 == "$3" ]] || fail "$1: got \"$2\", want \"$3\""
}
[[ ! -e /usr/bin/terok-shield ]] || fail "it is installed already"
dpkg -i "$deb" >&2
is "where it is" "$(as_user sh -c "command -v terok-shield")" /usr/bin/terok-shield
for file in /usr/share/bash-completion/completions/terok-shield /usr/lib/systemd/user/terok-clearance-hub.socket /usr/share/doc/terok-box/copyright; do
  [[ -s $file ]] || fail "there is no $file"
done
as_user terok-shield setup
as_user terok-shield run demo --profiles p -- -d "$image" sleep 600
is "state" "$(as_user terok-shield status demo)" up
is "page of the profile" "$(page http://allowed.test/)" yes
is "page of another name" "$(page http://other.test/)" no
as_user terok-shield allow demo other.test
is "page of the allowed name" "$(page http://other.test/)" yes
as_user terok-shield deny demo other.test
is "page of the denied name" "$(page http://other.test/)" no
# Removed too early: the hooks that the user set up are a copy, and the firewall is up all the same.
as_user podman stop --time 0 demo
dpkg -r terok-box >&2
[[ $(as_user sh -c "command -v terok-shield") == "" ]] || fail "it is still there"
as_user podman start demo
is "page of the profile without the package" "$(page http://allowed.test/)" yes
is "page of the denied name without the package" "$(page http://other.test/)" no
hooks=/home/$user/.local/share/terok/shield/hooks
is "state without the package" "$(as_user "$hooks/terok-box" terok-shield status demo)" up
as_user podman rm -f --time 0 demo
as_user "$hooks/terok-box" terok-shield uninstall
[[ ! -e $hooks ]] || fail "the hooks are left"
left=$(find "$layer/new" -mindepth 1 ! -type d -printf "/%P\n" | grep -vE "^/(var/lib/dpkg|var/log|var/cache|var/lib/apt|etc/ld.so.cache|usr/share/icons/hicolor/icon-theme.cache)" || true)
[[ -z $left ]] || fail "left behind: $left"
echo "removed without a trace"
'

test_package() {
  local deb said
  deb=$(ls "$here"/../../build/packages/terok-box_*_"$(dpkg --print-architecture)".deb)
  cp "$deb" "$tmp/terok-box.deb"
  profile p allowed.test
  said=$(root unshare --mount --propagation private bash -c "$inside" inside \
    "$tmp/terok-box.deb" "$tmp/layer" "$E2E_LAB" op "$image")
  contains "what it says" "$said" "removed without a trace"
}
