#!/usr/bin/env bash
# Installs what building and testing labd needs and this machine lacks: a C compiler, Rust, pytest. Root, Debian.
#   scripts/tools.sh build|test|dist
set -euo pipefail
die() { echo "tools: $*" >&2; exit 1; }

want=()
command -v cc >/dev/null || want+=(gcc libc6-dev)
command -v make >/dev/null || want+=(make)
if [[ ${1:-build} == test ]]; then
    python3 -c 'import pytest' 2>/dev/null || want+=(python3-pytest)
    command -v chromium >/dev/null || want+=(chromium)
fi
if [[ ${1:-build} == dist ]]; then
    command -v musl-gcc >/dev/null || want+=(musl-tools)
fi
# Linters and Zig come from PyPI.
if [[ ${1:-build} != build ]]; then
    python3 -c 'import ensurepip' 2>/dev/null || want+=(python3-venv)
fi
# The toolchain file asks for a version; rustup brings it, where Debian's own rustc is older.
if ! command -v cargo >/dev/null && [[ ! -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then want+=(rustup); fi
if ((${#want[@]})); then
    ((EUID == 0)) || die "missing ${want[*]}: run this as root once, or install them"
    command -v apt-get >/dev/null || die "missing ${want[*]}, and this is no Debian (no apt-get): install them yourself"
    echo "tools: installing ${want[*]}" >&2
    log=$(mktemp)
    if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${want[@]}"; } >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        die "could not install ${want[*]}; Rust comes from https://rustup.rs where Debian has no rustup package"
    fi
    rm -f "$log"
fi
if [[ ${1:-build} == test ]]; then
    cd "$(dirname "$0")/.."
    # shellcheck source=scripts/lib.sh
    . scripts/lib.sh
    from_pypi browser
    from_pypi openapi
fi
