#!/usr/bin/env bash
# Debian's own ROCm SMI, header and library, unpacked with the libc that it needs into DIR: labd's probe is tested against it.
# Nothing is installed. Needs apt-get, dpkg-deb and a Debian mirror (DEBIAN_MIRROR); no root.
#   scripts/rocm-smi.sh DIR [SUITE]
set -euo pipefail
die() { echo "rocm-smi: $*" >&2; exit 1; }

[[ ${1:-} ]] || die "usage: scripts/rocm-smi.sh DIR [SUITE]"
suite=${2:-trixie}
mkdir -p "$1"
dir=$(cd "$1" && pwd)
[[ -e $dir/complete ]] && exit 0
for tool in apt-get dpkg-deb; do command -v $tool >/dev/null || die "no $tool here: this needs a Debian"; done
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -e $keys ]] || die "no $keys: install debian-archive-keyring"

# The one place that knows how to find this machine's mirror is the base image's script, which is embedded and stands alone.
eval "$(sed -n '/^find_mirror()/,/^}/p' "$(dirname "$0")/../images/base/bootstrap.sh")"
mirror=${DEBIAN_MIRROR:-$(find_mirror)}
mirror=${mirror:-http://deb.debian.org/debian}

# An apt of its own: this machine's lists and packages are neither read nor changed.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,archives}/partial
echo "deb [arch=amd64 signed-by=$keys] $mirror $suite main" >"$work/sources"
touch "$work/status"
own=(-q -o Dir::Etc::SourceList="$work/sources" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$work/lists"
    -o Dir::State::status="$work/status" -o Dir::Cache="$work" -o Dir::Cache::Archives="$work/archives" -o APT::Architecture=amd64
    -o APT::Architectures::=amd64 -o APT::Sandbox::User=root -o Acquire::Languages=none -o APT::Update::Error-Mode=any -o Debug::NoLocking=1
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
apt() { apt-get "${own[@]}" "$@" >"$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; return 1; }; }
apt update || die "cannot read $suite of $mirror; DEBIAN_MIRROR names another mirror"
apt install -y --download-only --no-install-recommends librocm-smi-dev || die "cannot fetch librocm-smi-dev of $suite from $mirror"
for deb in "$work"/archives/*.deb; do dpkg-deb -x "$deb" "$dir" || die "cannot unpack $(basename "$deb")"; done
ls "$dir"/usr/lib/*/librocm_smi64.so* >/dev/null 2>&1 || die "$suite's packages have no librocm_smi64.so"
touch "$dir/complete"
