#!/usr/bin/env python3
"""The page under load: 500 clients that look on at once while a worker is killed, and one that has stopped reading.

    bench/page.py [--clients N] [--seconds S] [--json]

What a user would run instead is the same lab with nobody looking on: its recovery is measured in the same run. Its last line of
JSON has

    p99_ms           of GET /api/v1/snapshot while all clients look on
    clients_mb       resident memory of labd that they take, 10 s after they came
    grown_mb         by how much that has grown at the end of the load
    recovery_ratio   a killed worker's way back to ready while they look on, by the same with nobody there
    stalled_dropped  whether the client that stopped reading was disconnected
"""
import argparse
import datetime
import json
import pathlib
import resource
import select
import socket
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
import footprint
from footprint import MB
from harness.lab import Lab, wait_for

LAB, SUBNET = "labdpagebench", "198.18.176.0/24"
# Of each worker one with nobody there and one under load: who fails five times in 10 min is tried once a minute only.
WORKERS = ("ray-worker-0", "ray-worker-1")
# labd drops who reads nothing for 30 s.
STALLED_S = 90
# Time in which all of them have heard the lab as a whole and its first changes.
SETTLED_S = 10


def resident_mb(pid):
    return footprint.status(pid, "VmRSS") / MB


def get(address, path):
    """A connection on which `path` was asked for."""
    client = socket.create_connection(address)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost:{address[1]}\r\nConnection: close\r\n\r\n".encode())
    return client


def asked_ms(address):
    began = time.perf_counter()
    with get(address, "/api/v1/snapshot") as client:
        answer = b""
        while more := client.recv(1 << 16):
            answer += more
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    return (time.perf_counter() - began) * 1000


def recovery_s(lab, worker, meanwhile):
    """From a worker's SIGKILL to its being ready again, by labd's own record."""
    before = {i["died_at"] for i in lab.snapshot()["incidents"]}
    lab.sigkill(worker)
    deadline = time.time() + 120
    while time.time() < deadline:
        meanwhile(0.5)
        new = [i for i in lab.snapshot()["incidents"] if i["died_at"] not in before and i["ready_at"]]
        if new:
            died, ready = (datetime.datetime.fromisoformat(new[0][key]) for key in ("died_at", "ready_at"))
            return (ready - died).total_seconds()
    raise AssertionError("the worker did not come back")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", action="store_true", help="nothing but the last line")
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, args.clients + 256)), hard))
    say = (lambda *_: None) if args.json else (lambda *words: print(*words, flush=True))
    lab = Lab(LAB, SUBNET)
    lab.base = lab.base.replace("[http]\n", '[http]\nanonymous = "viewer"\n')
    lab.write()
    with lab.running():
        lab.wait_ready("ray-head", "ray-worker-0", "ray-worker-1")
        address = ("127.0.0.1", int(lab.link("status page").rstrip("/").rsplit(":", 1)[1]))
        pid = lab.pid()
        quiet = [recovery_s(lab, worker, time.sleep) for worker in WORKERS]
        say(f"nobody looks on: ready again after {', '.join(f'{s:.2f}' for s in quiet)} s")
        before, clients = resident_mb(pid), []
        for _ in range(args.clients):
            client = get(address, "/api/v1/stream?deltas=true")
            client.setblocking(False)
            clients.append(client)
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        stalled.connect(address)
        stalled.sendall(f"GET /api/v1/stream HTTP/1.1\r\nHost: localhost:{address[1]}\r\n\r\n".encode())
        poll = select.poll()
        by_fd = {client.fileno(): client for client in clients}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        heard = 0
        times = []

        def read(seconds):
            nonlocal heard
            until = time.time() + seconds
            while (left := until - time.time()) > 0:
                for fd, _ in poll.poll(left * 1000):
                    data = by_fd[fd].recv(1 << 16)
                    assert data, "a client that reads was dropped"
                    heard += len(data)

        read(SETTLED_S)
        took = resident_mb(pid)
        ends = time.time() + args.seconds
        loaded = []
        while time.time() < ends or len(loaded) < len(WORKERS):
            if len(loaded) < len(WORKERS):
                loaded.append(recovery_s(lab, WORKERS[len(loaded)], read))
            for _ in range(20):
                times.append(asked_ms(address))
                read(0.02)
        grown = resident_mb(pid) - took
        wait_for("the stalled client's end", lambda: read(0.5) or closed(stalled), STALLED_S, 0)
        last = {
            "clients": args.clients,
            "p99_ms": round(statistics.quantiles(times, n=100)[98], 2),
            "median_ms": round(statistics.median(times), 2),
            "clients_mb": round(took - before, 2),
            "grown_mb": round(grown, 2),
            "resident_mb": round(resident_mb(pid), 2),
            "heard_mb": round(heard / MB, 1),
            "recovery_s": round(statistics.median(loaded), 2),
            "quiet_s": round(statistics.median(quiet), 2),
            "recovery_ratio": round(statistics.median(loaded) / statistics.median(quiet), 2),
            "stalled_dropped": True,
        }
        say(f"{args.clients} look on: ready again after {', '.join(f'{s:.2f}' for s in loaded)} s; {len(times)} requests")
        for client in [*clients, stalled]:
            client.close()
    print(json.dumps(last))


def closed(client):
    """Whether labd has closed this connection, of which nobody reads."""
    mine = f"{client.getsockname()[1]:04X}"
    rows = [line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # The server's end: its peer's port is ours; 01 is ESTABLISHED.
    return not any(row[2].endswith(f":{mine}") and row[3] == "01" for row in rows)


if __name__ == "__main__":
    main()
