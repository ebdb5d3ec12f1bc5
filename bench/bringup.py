#!/usr/bin/env python3
"""From nothing but images to all Ray nodes ALIVE: `labd up`, and the very same containers created and started bare and in
parallel through the engine's API. When a node joined is the GCS's own word.

    bench/bringup.py [--rounds 3] [--json]
"""
import argparse
import http.client
import json
import pathlib
import socket
import statistics
import sys
import threading
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from harness.lab import Lab, docker, wait_for

BARE = "labdbare"


class Engine(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/run/docker.sock")


def ask(method, path, body=None):
    engine = Engine("localhost", timeout=120)
    engine.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
    answer = engine.getresponse()
    text = answer.read()
    assert answer.status < 400, (path, answer.status, text[:300])
    return json.loads(text) if text else None


def joined(url, token, since):
    """Seconds from `since` until the last of the four nodes had joined, or None."""
    request = urllib.request.Request(url + "/api/v0/nodes?detail=1", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    starts = [n["start_time_ms"] / 1000 for n in nodes if n["state"] == "ALIVE" and n["start_time_ms"] / 1000 >= since]
    return max(starts) - since if len(starts) == 4 else None


def labd_round(lab):
    begun = time.time()
    lab.up()
    token, url = lab.ray_token(), lab.link("Ray dashboard").rstrip("/")
    return wait_for("four nodes", lambda: joined(url, token, begun), 120, 0.2)


def bare_round(containers, subnet, token):
    """The containers as labd had made them, without labd."""
    docker("network", "create", "--subnet", subnet, BARE)
    try:
        begun = time.time()

        def start(name, c):
            body = {**c["Config"], "HostConfig": {**c["HostConfig"], "NetworkMode": BARE},
                    "NetworkingConfig": {"EndpointsConfig": {BARE: {"IPAMConfig": c["NetworkSettings"]["Networks"]["labdbench"]["IPAMConfig"]}}}}
            body["Labels"] = {}
            made = ask("POST", f"/containers/create?name={BARE}-{name}", body)["Id"]
            ask("POST", f"/containers/{made}/start")

        threads = [threading.Thread(target=start, args=item) for item in containers.items()]
        [t.start() for t in threads]
        [t.join() for t in threads]
        url = "http://" + docker("port", f"{BARE}-ray-head", "8265").stdout.split()[0]
        return wait_for("four nodes", lambda: joined(url, token, begun), 120, 0.2)
    finally:
        ids = docker("ps", "-aq", "--filter", f"name={BARE}-").stdout.split()
        if ids:
            docker("rm", "-f", *ids, check=False)
        docker("network", "rm", BARE, check=False)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--json", action="store_true")
    args = args.parse_args()
    lab = Lab("labdbench", "198.18.242.0/24")
    lab.sweep()
    found = {"labd": [], "bare": []}
    try:
        lab.up()  # builds images that are missing; not counted
        token = lab.ray_token()
        # Prometheus is left out on both sides' behalf: its files are not part of what `inspect` tells.
        names = [n for n in lab.ids() if n != "prometheus"]
        containers = {n: lab.inspect(n) for n in names}
        for n in range(args.rounds):
            lab.labd("down", timeout=180)
            found["bare"].append(round(bare_round(containers, "198.18.242.0/24", token), 2))
            found["labd"].append(round(labd_round(lab), 2))
            print(f"round {n + 1}: labd {found['labd'][-1]} s, bare {found['bare'][-1]} s", file=sys.stderr, flush=True)
    finally:
        lab.down()
    medians = {name: statistics.median(times) for name, times in found.items()}
    ratio = round(medians["labd"] / medians["bare"], 2)
    if args.json:
        print(json.dumps({"seconds": found, "median": medians, "ratio": ratio}))
        return
    print(f"Nothing to four Ray nodes ALIVE, median of {args.rounds}:")
    print(f"  labd up           {medians['labd']:6.2f} s")
    print(f"  bare, in parallel {medians['bare']:6.2f} s")
    print(f"  labd takes {ratio} times as long")


main()
