#!/bin/bash
# The Debian packages: built, judged by lintian, installed, removed and purged on a copy of this machine (an overlay that is
# thrown away). As root, like dpkg itself.
#   test_debian.sh SOURCE_DIR
set -euo pipefail
source=$1
if [ "${2:-}" != inside ]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
    "$source/scripts/package-debian" "$out"
    lintian --allow-root --fail-on error "$out"/*.deb || { echo "FAILED: lintian finds errors"; exit 1; }
    unshare --mount --propagation private "$0" "$out" inside
    exit
fi

failed=0 checked=0
check() { # check WHAT COMMAND...
    checked=$((checked + 1))
    "${@:2}" >/dev/null 2>&1 || { failed=$((failed + 1)); echo "FAILED: $1"; }
}
absent() { ! [ -e "$root/$1" ]; }
inside() { chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"; }

work=$(mktemp -d)
mount -t tmpfs none "$work"
mkdir "$work/upper" "$work/work" "$work/root"
root=$work/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$root"
for dir in proc dev; do mount --rbind "/$dir" "$root/$dir"; done
mkdir -p "$root/packages"
cp "$source"/*.deb "$root/packages" # here SOURCE_DIR is where the packages are
before=$(inside getent passwd | wc -l)

inside sh -c 'dpkg -i /packages/alluvium_*.deb /packages/liballuvium*.deb' >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
check "the program to run" inside alluvium --version
check "the user alluvium, who cannot log in" sh -c "chroot $root getent passwd alluvium | grep -q nologin"
check "the user alluvium-subscriber" inside getent passwd alluvium-subscriber
check "the settings file to be a conffile" sh -c "chroot $root dpkg-query -W -f '\${Conffiles}' alluvium | grep -q /etc/alluvium/alluvium.conf"
check "the settings file to be accepted" inside alluvium coordinator --config /etc/alluvium/alluvium.conf --show-settings
for unit in alluvium-coordinator alluvium-subscriber alluvium-worker@1; do
    check "$unit not to be enabled" sh -c "[ \"\$(chroot $root systemctl is-enabled $unit)\" = disabled ]"
    check "$unit to be valid" inside systemd-analyze verify --man=no "$unit.service"
done
check "a man page" inside man -w alluvium-push
check "pkg-config to know the library" inside pkg-config --exists alluvium

inside sh -c 'mkdir -p /var/lib/alluvium/line && echo "# mine" >>/etc/alluvium/alluvium.conf && echo data >/var/lib/alluvium/line/line.json'
mkdir "$root/later" # the next version, with other defaults
for package in "$root"/packages/*.deb; do
    dpkg-deb -R "$package" "$work/next"
    sed -i 's/^Version: .*/&+later/; s/(= [^)]*/&+later/' "$work/next/DEBIAN/control"
    [ ! -e "$work/next/etc/alluvium/alluvium.conf" ] || echo "# of the next version" >>"$work/next/etc/alluvium/alluvium.conf"
    dpkg-deb -b "$work/next" "$root/later/" >/dev/null
    rm -r "$work/next"
done
inside sh -c 'dpkg --force-confdef --force-confold -i /later/*.deb' >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
check "the next version to be installed" sh -c "chroot $root dpkg-query -W -f '\${Version}' alluvium | grep -q +later"
check "changed settings to outlive an upgrade" sh -c "grep -q mine $root/etc/alluvium/alluvium.conf && ! grep -q 'next version' $root/etc/alluvium/alluvium.conf"
check "a line to outlive an upgrade" [ -e "$root/var/lib/alluvium/line/line.json" ]
check "the upgraded program to run" inside alluvium --version
check "the upgraded unit to be valid" inside systemd-analyze verify --man=no alluvium-coordinator.service

inside dpkg -r liballuvium-dev liballuvium0 alluvium >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
check "the program to be gone" absent usr/bin/alluvium
check "the units to be gone" absent lib/systemd/system/alluvium-coordinator.service
check "changed settings to outlive removal" grep -q mine "$root/etc/alluvium/alluvium.conf"
inside dpkg -P alluvium >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
check "settings to be gone with purge" absent etc/alluvium
check "a line to outlive purge" [ -e "$root/var/lib/alluvium/line/line.json" ]
check "purge to say what it keeps" grep -q 'kept.*/var/lib/alluvium' "$work/log"

inside rm -r /var/lib/alluvium
inside sh -c 'dpkg -i /packages/alluvium_*.deb' >/dev/null 2>&1
inside dpkg -P alluvium >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
check "users without data to be gone with purge" [ "$(inside getent passwd | wc -l)" = "$before" ]
left=$(cd "$work/upper" && find . -iname '*alluvium*' ! -path './packages*' ! -path './later*' ! -type c ! -path './tmp/*' ! -path './work/*' | head)
check "nothing to be left: $left" [ -z "$left" ]
echo "$checked checks, $failed failed"
[ $failed = 0 ]
