#!/usr/bin/env python3
"""What labd itself costs: the size of the file, its resident memory, and its share of one core.

    bench/footprint.py [--gpus 16] [--seconds 60] [--ray] [--json]

A daemon with simulated GPUs and an engine that answers. Every service is held (`labd stop`) so that nothing runs but labd:
what is measured is watching the engine, the machine and the GPUs, and telling one reader each change, as an open page has it. With --ray the whole lab runs meanwhile, its probes of the services and of Ray included.

A core that is woken from sleep is slow at first, in a virtual machine many times as slow: beside labd's share is that of a
process which does nothing but wake once a second, in the same time. Quote both.

Where the memory is: `code` and `data` are pages of the file, which all of labd's processes share and the kernel may drop;
`heap` is everything else. The targets are 16 MB and 0.25 % of a core. Exits 1 when one is missed.
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from harness.lab import Lab, labd_binary, wait_for

MB = 1_000_000
RESIDENT_MB, CORE_PERCENT = 16, 0.25


def status(pid, field):
    """A field of /proc/PID/status, in bytes."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {field} of process {pid}")


def places(pid):
    """Resident bytes of the process by where they are: code and data of files, and the heap, which is no file's."""
    found = {"code": 0, "data": 0, "heap": 0}
    place = None
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        field, *rest = line.split()
        if not field.endswith(":"):
            # A mapping: addresses, rights, offset, device, inode and, of a file, its path.
            place = "code" if "x" in rest[0] else "data"
        elif field in ("Rss:", "Anonymous:"):
            size = int(rest[0]) * 1024
            found["heap" if field == "Anonymous:" else place] += size
            # Its anonymous pages are among a mapping's resident ones: those that were written to.
            found[place] -= size if field == "Anonymous:" else 0
    return found


def cpu_seconds(pid):
    """User and system time of the process, all its threads, without its children."""
    # The name in parentheses may contain blanks.
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def held(lab):
    """Holds every service, as a person would by hand, and waits until nothing runs."""
    names = [s["name"] for s in lab.snapshot()["services"]]
    for name in names:
        lab.labd("stop", name, check=False)
    wait_for("nothing runs", lambda: not [s for s in lab.snapshot()["services"] if s["state"] not in ("held", "off", "unavailable")], 180, 1)


def reader(lab):
    """Reads the snapshot as it changes, like an open page."""
    client = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'GET /api/v1/stream HTTP/1.1\\r\\nHost: labd\\r\\n\\r\\n')\nwhile s.recv(65536): pass"
    return subprocess.Popen([sys.executable, "-c", client, lab.socket])


def sleeper():
    """A process that wakes once a second and does nothing."""
    return subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(1)"])


def measure(lab, seconds, idle):
    pid = lab.pid()
    # What the start took is no part of what running takes.
    time.sleep(10)
    began, cpu, idled = time.monotonic(), cpu_seconds(pid), cpu_seconds(idle.pid)
    resident = []
    while time.monotonic() - began < seconds:
        time.sleep(1)
        resident.append(status(pid, "VmRSS"))
    passed = time.monotonic() - began
    share, floor = (cpu_seconds(pid) - cpu) / passed, (cpu_seconds(idle.pid) - idled) / passed
    where = {f"{place}_mb": size / MB for place, size in places(pid).items()}
    return {"resident_mb": max(resident) / MB, **where, "core_percent": share * 100, "sleeper_core_percent": floor * 100}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--ray", action="store_true", help="the whole lab runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    lab = Lab("labdfoot", "198.18.231.0/24", gpus=args.gpus)
    lab.sweep()
    daemon = page = idle = None
    try:
        if args.ray:
            lab.up()
        else:
            env = {**os.environ, "LABD_CONFIG": str(lab.config), "LABD_SOCKET": str(lab.socket)}
            with open(lab.dir / "log", "w") as log:
                daemon = subprocess.Popen([labd_binary(), "run"], env=env, stdout=log, stderr=log)
            wait_for("the daemon", lambda: lab.labd("status", "--json", check=False).returncode == 0, 30)
            wait_for("its services", lambda: lab.snapshot()["services"], 30)
            held(lab)
        page, idle = reader(lab), sleeper()
        found = measure(lab, args.seconds, idle)
        assert page.poll() is None, "the reader was sent away"
    finally:
        for beside in filter(None, (page, idle)):
            beside.kill()
            beside.wait()
        lab.down()
        if daemon:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(30)
    found["file_mb"] = pathlib.Path(labd_binary()).stat().st_size / MB
    found["gpus"], found["services"] = args.gpus, "run" if args.ray else "held"
    if args.json:
        print(json.dumps(found))
    else:
        print(f"labd with {args.gpus} simulated GPUs, services {found['services']}, over {args.seconds} s ({labd_binary()}):")
        print(f"  file       {found['file_mb']:6.1f} MB")
        print(f"  resident   {found['resident_mb']:6.1f} MB (at most {RESIDENT_MB}): code {found['code_mb']:.1f}, data {found['data_mb']:.1f}, heap {found['heap_mb']:.1f}")
        print(f"  CPU        {found['core_percent']:6.2f} % of a core (at most {CORE_PERCENT})")
        print(f"  sleeper    {found['sleeper_core_percent']:6.2f} % of a core, for waking once a second")
    sys.exit(found["resident_mb"] > RESIDENT_MB or found["core_percent"] > CORE_PERCENT)


if __name__ == "__main__":
    main()
