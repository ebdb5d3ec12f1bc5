#!/usr/bin/env bash
# Builds labd's probe for AMD's GPUs as it is shipped, and copies it to OUT: dynamic, for a glibc of 2.17 or later, and needing
# `librocm_smi64.so` by exactly that name. Neither ROCm nor libclang are needed, nor root. Needs cargo, gcc and python3 with venv;
# zig (which links it) and cargo-zigbuild come from PyPI into target/tools/venv, once.
#   scripts/probe-amd.sh OUT
set -euo pipefail
die() { echo "probe-amd: $*" >&2; exit 1; }

GLIBC=2.17
TARGET=x86_64-unknown-linux-gnu
TOOLS=(ziglang cargo-zigbuild)

[[ ${1:-} ]] || die "usage: scripts/probe-amd.sh OUT"
out=$(realpath -m "$1")
cd "$(dirname "$0")/.."
export PATH=$PWD/target/tools/venv/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
command -v cargo >/dev/null || die "no cargo: run scripts/tools.sh build"
command -v cc >/dev/null || die "no C compiler: run scripts/tools.sh build"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# step WORDS COMMAND...: shows what the command printed only when it fails.
step() {
    local what=$1; shift
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; die "could not $what (see above)"; }
}

venv=target/tools/venv
if ! { [[ -x $venv/bin/cargo-zigbuild ]] && "$venv/bin/python" -c 'import ziglang' 2>/dev/null; }; then
    echo "probe-amd: fetching ${TOOLS[*]} from PyPI into $venv" >&2
    [[ -x $venv/bin/python ]] || step "make $venv; install python3-venv" python3 -m venv "$venv"
    step "install ${TOOLS[*]} from PyPI" "$venv/bin/pip" install -q "${TOOLS[@]}"
fi

# From its own folder: there lies the `.cargo/config.toml` that it needs.
cd src/gpu/amd
step "build the probe" cargo zigbuild --locked --release --target "$TARGET.$GLIBC"
cd ../../..
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
