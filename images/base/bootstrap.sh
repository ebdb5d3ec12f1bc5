#!/usr/bin/env bash
# What `docker pull debian:trixie-slim` would give, from a Debian mirror: a root filesystem as a tar on stdout.
#   bootstrap.sh | docker import --change 'CMD ["bash"]' - labd-dev/base
# DEBIAN_MIRROR replaces the host's own mirror. Installs nothing on the host; messages go to stderr.
set -euo pipefail

SUITE=trixie

say() { printf 'bootstrap: %s\n' "$*" >&2; }
die() { printf 'bootstrap: error: %s\n' "$*" >&2; exit 1; }
# Whatever else fails is named as well: the last line is what labd shows.
set -E
trap 'printf "bootstrap: error: %s failed\n" "$BASH_COMMAND" >&2' ERR

# The mirror is the entry with a Debian suite name: other vendors' entries come first in name order, and "first URI
# found" would hit them. A suite must match whole, since vendors use names like cloud-sdk-bookworm.
find_mirror() {
    local dir=${LABD_APT_DIR:-/etc/apt} f
    for f in "$dir"/sources.list "$dir"/sources.list.d/*.list "$dir"/sources.list.d/*.sources; do
        if [ -r "$f" ]; then cat "$f"; printf '\n\n'; fi
    done | awk '
        function is_debian(s) {
            return s ~ /^(buster|bullseye|bookworm|trixie|forky|sid|stable|oldstable|testing|unstable)(-updates|-backports)?$/
        }
        function flush_stanza(   i, n, w, ok, u) {
            n = split(suites, w, /[ \t]+/); ok = 0
            for (i = 1; i <= n; i++) if (is_debian(w[i])) ok = 1
            split(uris, u, /[ \t]+/)
            if (ok && !disabled && types ~ /(^|[ \t])deb([ \t]|$)/ && u[1] ~ /^https?:/ && !found) { found = 1; print u[1] }
            uris = suites = types = key = ""; disabled = 0
        }
        { sub(/\r$/, "") }
        /^[ \t]*#/ { next }
        /^[ \t]*$/ { flush_stanza(); next }
        /^deb[ \t]/ {
            flush_stanza()
            line = $0; sub(/\[[^]]*\][ \t]*/, "", line)          # options such as [signed-by=...]
            split(line, w, /[ \t]+/)
            if (is_debian(w[3]) && w[2] ~ /^https?:/ && !found) { found = 1; print w[2] }
            next
        }
        /^[ \t]/ {                                               # continuation of a deb822 field
            v = $0; sub(/^[ \t]+/, "", v)
            if (key == "uris") uris = (uris == "" ? v : uris " " v)
            if (key == "suites") suites = (suites == "" ? v : suites " " v)
            next
        }
        /^[A-Za-z-]+:/ {
            key = tolower(substr($0, 1, index($0, ":") - 1)); v = substr($0, index($0, ":") + 1); gsub(/^[ \t]+|[ \t]+$/, "", v)
            if (key == "uris") uris = v
            if (key == "suites") suites = v
            if (key == "types") types = v
            if (key == "enabled" && tolower(v) == "no") disabled = 1
        }
        END { flush_stanza() }'
}

mirror=${DEBIAN_MIRROR:-$(find_mirror)}
[ -n "$mirror" ] || die "no entry under /etc/apt carries a Debian suite; set DEBIAN_MIRROR=http://..."
if [ "${1:-}" = --print-mirror ]; then
    printf '%s\n' "$mirror"
    exit 0
fi

[ "$(id -u)" = 0 ] || die "debootstrap needs root"
PATH=$PATH:/usr/sbin:/sbin
command -v debootstrap >/dev/null || die "debootstrap is missing; install it with: apt-get install debootstrap"
[ ! -t 1 ] || die "stdout is a terminal; pipe it into docker import"

# Not /tmp: many machines, all with Debian 13, keep that in memory and without device nodes.
work=$(mktemp -d "${TMPDIR:-/var/tmp}/labd-bootstrap.XXXXXX")
root=$work/root

# debootstrap mounts proc and sys in there; removing the tree with them mounted would be a disaster, hence the last check.
unmount_all() {
    local m
    awk -v r="$root/" '{ gsub(/\\040/, " ", $5) } index($5, r) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while IFS= read -r m; do
        umount "$m" 2>/dev/null || umount -l "$m" || true
    done
    ! awk -v r="$root/" 'index($5, r) == 1 { bad = 1 } END { exit !bad }' /proc/self/mountinfo
}
cleanup() {
    if unmount_all; then rm -rf --one-file-system "$work"; else say "$root still has mounts, not removed"; fi
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

say "debootstrap $SUITE from $mirror"
debootstrap --variant=minbase "$SUITE" "$root" "$mirror" >"$work/log" 2>&1 || {
    tail -n 15 "$work/log" >&2
    if [ -r "$root/debootstrap/debootstrap.log" ]; then tail -n 5 "$root/debootstrap/debootstrap.log" >&2; fi
    why=$(grep -h '^E: ' "$work/log" | tail -n 1) || why="E: see the lines before"
    die "debootstrap failed: ${why#E: }"
}
unmount_all || die "cannot unmount what debootstrap mounted under $root"

# Security updates and point-release updates from the same mirror, for builds on this base.
cat >"$root/etc/apt/sources.list" <<END
deb $mirror $SUITE main
deb $mirror $SUITE-updates main
END
# As the official slim images do: no caches, no documentation (copyright files stay), nothing kept by apt later.
cat >"$root/etc/dpkg/dpkg.cfg.d/slim" <<END
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
END
cat >"$root/etc/apt/apt.conf.d/slim" <<'END'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Acquire::Languages "none";
END
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # packages start no services during a build
chmod 755 "$root/usr/sbin/policy-rc.d"
find "$root/usr/share/doc" -type f ! -name copyright -delete
find "$root/usr/share/doc" -depth -type d -empty -delete
find "$root/usr/share/doc" -xtype l -delete
rm -rf "$root"/usr/share/{man,info,lintian,locale}/* "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* \
    "$root"/var/cache/debconf/*-old "$root"/var/log/*.log "$root"/var/log/apt/* "$root"/debootstrap
# The host's name and resolver are none of the image's business; the engine mounts its own.
rm -f "$root/etc/hostname" "$root/etc/resolv.conf"

say "writing tar"
tar --numeric-owner --one-file-system -C "$root" -cf - .
say "done"
