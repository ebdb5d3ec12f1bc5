# What scripts share. Sourced with the repository as working directory; `$me` is the script's name, for what it says.
# shellcheck shell=bash
me=$(basename "$0" .sh)
tools=$PWD/target/tools
export PATH=$tools/venv/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH

die() { echo "$me: $*" >&2; exit 1; }

# step WORDS COMMAND...: shows what the command printed only when it fails.
step() {
    local what=$1 log=$tools/$me.log; shift
    mkdir -p "$tools"
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; die "could not $what (see above)"; }
}

# from_pypi LIST: what scripts/LIST.txt pins is in target/tools/venv, which is on PATH.
from_pypi() {
    local lock
    mkdir -p "$tools"
    # Two scripts may run at once.
    exec {lock}>"$tools/venv.lock"
    flock "$lock"
    fetch_from_pypi "$1"
    exec {lock}>&-
}

fetch_from_pypi() {
    local list=scripts/$1.txt venv=$tools/venv
    cmp -s "$list" "$venv/$1.txt" && return
    echo "$me: fetching what $list pins from PyPI into target/tools/venv" >&2
    [[ -x $venv/bin/pip ]] || step "make $venv; install python3-venv" python3 -m venv "$venv"
    step "install $list from PyPI" "$venv/bin/pip" install -q -r "$list"
    cp "$list" "$venv/$1.txt"
}
