#!/usr/bin/env bash
# Makes dist/labd: one static file with the GPU probes inside. Debian on x86-64; root only where something must be installed.
#
# labd itself is linked with musl, not with a static glibc: glibc's resolver loads what /etc/nsswitch.conf names from the host
# (libnss_mdns4_minimal on a plain Debian desktop, and with it the host's own libc, of another version), musl's loads nothing.
# The probes are dynamic, since they load vendors' libraries, and are linked for a glibc that every distribution since 2014 has.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

GLIBC=2.17
PROBE_TARGET=x86_64-unknown-linux-gnu
LABD_TARGET=x86_64-unknown-linux-musl
probes=$PWD/target/dist/probes

[[ $(uname -sm) == "Linux x86_64" ]] || die "labd is built on Linux on x86-64 only, and this is $(uname -sm)"
scripts/tools.sh dist

from_pypi zig
if [[ ! -d $(rustc --print sysroot)/lib/rustlib/$LABD_TARGET ]]; then
    step "install Rust's library for $LABD_TARGET" rustup target add "$LABD_TARGET"
fi

mkdir -p "$probes/embed"
rm -f "$probes"/labd-probe-*.new
if [[ -e crates/labd-probe-nvidia/Cargo.toml ]]; then
    echo "dist: the NVIDIA probe" >&2
    (cd crates/labd-probe-nvidia && step "build the NVIDIA probe" \
        cargo zigbuild --locked --release --target "$PROBE_TARGET.$GLIBC" --target-dir "$probes/build")
    install -m 755 "$probes/build/$PROBE_TARGET/release/labd-probe-nvidia" "$probes/labd-probe-nvidia.new"
fi
if [[ -x scripts/probe-amd.sh ]]; then
    echo "dist: the AMD probe" >&2
    scripts/probe-amd.sh "$probes/labd-probe-amd.new"
fi

# Only what changed is put in place, since labd is built anew after that; what is no longer built must not stay.
for name in labd-probe-nvidia labd-probe-amd; do
    if [[ ! -e $probes/$name.new ]]; then rm -f "$probes/embed/$name"; continue; fi
    cmp -s "$probes/$name.new" "$probes/embed/$name" || cp "$probes/$name.new" "$probes/embed/$name"
done

echo "dist: labd" >&2
LABD_PROBES=$probes/embed step "build labd" cargo build --locked --release --bin labd --target "$LABD_TARGET" --target-dir target/dist
mkdir -p dist
install -m 755 "target/dist/$LABD_TARGET/release/labd" dist/labd
shopt -s nullglob
inside=("$probes"/embed/*)
inside=("${inside[@]##*/}")
echo "dist: dist/labd, $(($(stat -c %s dist/labd) / 1000000)) MB; inside: ${inside[*]:-no probe}" >&2
