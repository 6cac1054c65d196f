#!/bin/sh
# Removes what differs between two builds of the same packages, and what a sandbox brings itself.
# Called with the root directory when mmdebstrap is done; SOURCE_DATE_EPOCH is set.
set -eu
root=$1

find "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/var/tmp" \
    -xdev -mindepth 1 -delete
find "$root/var/log" "$root/var/cache/apt" "$root/var/cache/ldconfig" -xdev -type f -delete
find "$root/var/lib/apt/lists" -xdev -mindepth 1 -delete
rm -f "$root"/etc/*- "$root"/var/lib/dpkg/*-old "$root"/var/cache/debconf/*-old
for file in etc/machine-id etc/resolv.conf; do
    rm -f "$root/$file"
    : > "$root/$file"
done
echo sandbox > "$root/etc/hostname"
printf '127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"
find "$root" -xdev -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
