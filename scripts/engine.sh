#!/usr/bin/env bash
# A container engine for building and testing labd on a machine that has none (or none running).
#
#   scripts/engine.sh start    does nothing when an engine answers; else installs Debian's and starts it
#   scripts/engine.sh stop     stops only the engine that this script started by hand
#   scripts/engine.sh status   exit 0 and one line when an engine answers, else exit 1
#
# The address ranges are 198.18.0.0/15 (RFC 2544): lab and campus networks live in the private ranges.
set -euo pipefail

BIP=${LABD_ENGINE_BIP:-198.18.0.1/24}
POOL=${LABD_ENGINE_POOL:-base=198.19.0.0/16,size=24}
LOG=/var/log/labd-dev-engine.log
PIDFILE=/run/labd-dev-engine.pid
WAIT_S=${LABD_ENGINE_WAIT_S:-60}

die() { echo "engine: $*" >&2; exit 1; }
say() { echo "engine: $*" >&2; }

answers() { command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1; }

# The pid that we wrote, if it is still a dockerd (pids are reused).
own_pid() {
    local pid
    [[ -r $PIDFILE ]] && pid=$(<"$PIDFILE") && [[ $pid =~ ^[0-9]+$ ]] || return 1
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) == dockerd ]] || return 1
    echo "$pid"
}

# wait_until SECONDS COMMAND...: polls a condition, fails after the deadline.
wait_until() {
    local deadline=$((SECONDS + $1)); shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

last_log() { [[ -r $LOG ]] && { say "last lines of $LOG:"; tail -n 15 "$LOG" >&2; }; return 0; }

install_missing() {
    local want=()
    command -v dockerd >/dev/null || want+=(docker.io)
    command -v iptables >/dev/null || want+=(iptables)
    command -v debootstrap >/dev/null || want+=(debootstrap)
    [[ -s /etc/ssl/certs/ca-certificates.crt ]] || want+=(ca-certificates)
    ((${#want[@]})) || return 0
    command -v apt-get >/dev/null || die "missing ${want[*]}, and this is no Debian (no apt-get): install a container engine yourself"
    say "installing ${want[*]}"
    local out
    out=$(mktemp)
    if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${want[@]}"; } >"$out" 2>&1; then
        tail -n 15 "$out" >&2; rm -f "$out"
        die "could not install ${want[*]} (apt-get, see above)"
    fi
    rm -f "$out"
}

gone() { ! own_pid >/dev/null; }
ready_or_dead() { answers || gone; }

start_by_hand() {
    say "starting dockerd (log: $LOG)"
    # A pid file that a killed engine left behind keeps the next one from starting.
    local stale=/run/docker.pid
    if [[ -r $stale && $(cat "/proc/$(<"$stale")/comm" 2>/dev/null) != dockerd ]]; then rm -f "$stale"; fi
    : >"$LOG"
    setsid nohup dockerd --bip "$BIP" --default-address-pool "$POOL" >>"$LOG" 2>&1 </dev/null &
    local pid=$!
    echo "$pid" >"$PIDFILE"
    # Until exec, the child is still called setsid, nohup or bash.
    wait_until 5 own_pid >/dev/null || { last_log; die "dockerd does not start"; }
    if ! wait_until "$WAIT_S" ready_or_dead; then last_log; die "dockerd did not answer within $WAIT_S s"; fi
    if ! answers; then
        last_log
        die "dockerd cannot run here (it needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN, cgroups and iptables)"
    fi
}

case ${1:-} in
start)
    if answers; then
        # The base image is bootstrapped where no image registry answers.
        if ((EUID == 0)); then install_missing; fi
        exit 0
    fi
    ((EUID == 0)) || die "no container engine answers, and starting one needs root: run this as root, or have an engine started (docker info)"
    install_missing
    if [[ -d /run/systemd/system ]]; then
        systemctl start docker || die "systemctl start docker failed: see journalctl -u docker"
        wait_until "$WAIT_S" answers || die "docker.service runs but does not answer: see journalctl -u docker"
    elif own_pid >/dev/null; then
        wait_until "$WAIT_S" answers || { last_log; die "the engine started earlier does not answer"; }
    else
        start_by_hand
    fi
    say "ready: docker $(docker version --format '{{.Server.Version}}')"
    ;;
stop)
    pid=$(own_pid) || { rm -f "$PIDFILE"; say "not started by this script, nothing to stop"; exit 0; }
    ((EUID == 0)) || die "stopping the engine needs root"
    say "stopping dockerd ($pid)"
    kill -TERM "$pid"
    wait_until "$WAIT_S" gone || die "dockerd ($pid) is still there after $WAIT_S s"
    rm -f "$PIDFILE"
    ;;
status)
    answers || { echo "engine: not running"; exit 1; }
    pid=$(own_pid) && how="started by this script, pid $pid" || how="not ours"
    echo "engine: docker $(docker version --format '{{.Server.Version}}') ($how)"
    ;;
*)
    echo "usage: scripts/engine.sh start|stop|status" >&2
    exit 2
    ;;
esac
