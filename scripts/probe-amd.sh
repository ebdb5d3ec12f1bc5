#!/usr/bin/env bash
# Builds labd's probe for AMD's GPUs as it is shipped, and copies it to OUT: dynamic, for a glibc of 2.17 or later, and needing
# `librocm_smi64.so` by exactly that name. Neither ROCm nor libclang are needed, nor root. Needs cargo, gcc and python3 with venv;
# zig (which links it) and cargo-zigbuild come from PyPI into target/tools/venv, once.
#   scripts/probe-amd.sh OUT
set -euo pipefail

GLIBC=2.17
TARGET=x86_64-unknown-linux-gnu

[[ ${1:-} ]] || { echo "usage: scripts/probe-amd.sh OUT" >&2; exit 1; }
out=$(realpath -m "$1")
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
command -v cargo >/dev/null || die "no cargo: run scripts/tools.sh build"
command -v cc >/dev/null || die "no C compiler: run scripts/tools.sh build"

from_pypi zig

# From its own folder: there lies the `.cargo/config.toml` that it needs.
cd crates/labd-probe-amd
step "build the probe" cargo zigbuild --locked --release --target "$TARGET.$GLIBC"
cd ../..
built=target/probe-amd/$TARGET/release/labd-probe-amd

# What the machine it will run on must have; a build that asks for more is noticed here, not in a lab.
needs=$(readelf -dV "$built") || die "cannot read $built; install binutils"
grep -q 'NEEDED.*\[librocm_smi64\.so\]' <<<"$needs" || die "$built does not need librocm_smi64.so by that name"
if grep 'NEEDED' <<<"$needs" | grep -vE '\[(librocm_smi64\.so|lib(c|m|dl|rt|pthread)\.so\.[0-9]|ld-linux-x86-64\.so\.2)\]' >&2; then
    die "$built needs libraries (above) that not every machine has"
fi
newest=$(grep -o 'GLIBC_[0-9.]*' <<<"$needs" | sed 's/GLIBC_//' | sort -V | tail -n 1)
[[ $(printf '%s\n' "$newest" "$GLIBC" | sort -V | tail -n 1) == "$GLIBC" ]] || die "$built needs glibc $newest, not $GLIBC"

mkdir -p "$(dirname "$out")"
install -m 755 "$built" "$out"
