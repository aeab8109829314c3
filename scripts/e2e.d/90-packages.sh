# The package, on a system of its own: it is installed, used and removed, and nothing is left.
# shellcheck shell=bash disable=SC2154

# What runs there as root, with functions of the harness: DEB LAYER LAB USER IMAGE. Changes of the system go into LAYER.
# shellcheck disable=SC2016
inside='
set -euo pipefail
deb=$1 layer=$2 lab=$3 user=$4 image=$5
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
podman() { as_user podman "$@"; }
shield() { as_user terok-shield "$@"; }
[[ ! -e /usr/bin/terok-shield ]] || die "it is installed already"
dpkg -i "$deb" >&2
equal "where it is" "$(as_user sh -c "command -v terok-shield")" /usr/bin/terok-shield
for file in /usr/share/bash-completion/completions/terok-shield /usr/lib/systemd/user/terok-clearance-hub.socket /usr/share/doc/terok-box/copyright; do
  [[ -s $file ]] || die "there is no $file"
done
shield setup
shield run demo --profiles p -- -d "$image" sleep 600
equal "state" "$(shield status demo)" up
equal "page of the profile" "$(page demo http://allowed.test/)" yes
equal "page of another name" "$(page demo http://other.test/)" no
shield allow demo other.test
equal "page of the allowed name" "$(page demo http://other.test/)" yes
shield deny demo other.test
equal "page of the denied name" "$(page demo http://other.test/)" no
# Removed too early: the hooks that the user set up are a copy, and the firewall is up all the same.
podman stop --time 0 demo
dpkg -r terok-box >&2
[[ $(as_user sh -c "command -v terok-shield") == "" ]] || die "it is still there"
podman start demo
equal "page of the profile without the package" "$(page demo http://allowed.test/)" yes
equal "page of the denied name without the package" "$(page demo http://other.test/)" no
hooks=/home/$user/.local/share/terok/shield/hooks
equal "state without the package" "$(as_user "$hooks/terok-box" terok-shield status demo)" up
podman rm -f --time 0 demo
as_user "$hooks/terok-box" terok-shield uninstall
[[ ! -e $hooks ]] || die "the hooks are left"
left=$(find "$layer/new" -mindepth 1 ! -type d -printf "/%P\n" | grep -vE "^/(var/lib/dpkg|var/log|var/cache|var/lib/apt|etc/ld.so.cache|usr/share/icons/hicolor/icon-theme.cache)" || true)
[[ -z $left ]] || die "left behind: $left"
echo "removed without a trace"
'

test_package() {
  local deb said
  deb=$(ls "$here"/../../build/packages/terok-box_*_"$(dpkg --print-architecture)".deb)
  cp "$deb" "$tmp/terok-box.deb"
  profile p allowed.test
  said=$(root unshare --mount --propagation private bash -c "$(declare -f note die equal page); $inside" inside \
    "$tmp/terok-box.deb" "$tmp/layer" "$E2E_LAB" op "$image")
  contains "what it says" "$said" "removed without a trace"
}
