#!/usr/bin/env python3
"""A busy node is not a dead one: every core is loaded with more work than it can do, inside the workers and the driver node,
for some minutes. No service may leave `ready`, no container may be restarted, and Ray must keep every node.

    bench/busy.py [--minutes 10] [--per-core 3] [--json]
"""
import argparse
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from harness.lab import Lab, docker

# Ends by itself: nothing has to be killed afterwards.
BURN = "import os, time\nfor _ in range({n}): os.fork() or exec('t = time.time() + {s}\\nwhile time.time() < t: pass\\nos._exit(0)')\nfor _ in range({n}): os.wait()"


def nodes(lab):
    found = lab.api("/api/v0/nodes?detail=1")["data"]["result"]["result"]
    return {n["node_id"] for n in found if n["state"] == "ALIVE"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--per-core", type=int, default=3, help="busy processes per core, over all containers")
    parser.add_argument("--subnet", default="198.18.244.0/24")
    parser.add_argument("--name", default="labdbusy")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    lab = Lab(args.name, args.subnet)
    lab.sweep()
    try:
        lab.up()
        ids, alive = lab.ids(), nodes(lab)
        burning = ["ray-driver", "ray-worker-0", "ray-worker-1"]
        cores, seconds = os.cpu_count(), args.minutes * 60
        each = -(-cores * args.per_core // len(burning))
        begun = time.time()
        for service in burning:
            docker("exec", "-d", lab.container(service), "python3", "-c", BURN.format(n=each, s=seconds))
        left, slowest, highest = [], 0.0, 0.0
        while time.time() < begun + seconds:
            asked = time.time()
            snapshot = lab.snapshot()
            slowest = max(slowest, time.time() - asked)
            highest = max(highest, snapshot["node"]["load_1m"])
            left += [(round(asked - begun), s["name"], s["state"], s["last_reason"]) for s in snapshot["services"]
                     if s["name"] in ids and s["state"] != "ready"]
            time.sleep(1)
        result = {
            "minutes": args.minutes, "cores": cores, "busy_processes": each * len(burning), "highest_load_1m": highest,
            "left_ready": left, "incidents": lab.snapshot()["incidents"], "restarted": lab.ids() != ids,
            "nodes_lost": len(alive - nodes(lab)), "slowest_status_s": round(slowest, 2),
        }
    finally:
        lab.down()
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{result['busy_processes']} busy processes on {cores} cores for {args.minutes:g} min, load {highest:.1f}: "
              f"{len(left)} looks found a service that was not ready, {len(result['incidents'])} incidents, "
              f"{result['nodes_lost']} nodes lost; the slowest `labd status` took {result['slowest_status_s']} s")
        for line in left[:10]:
            print("  ", *line)
    bad = left or result["incidents"] or result["restarted"] or result["nodes_lost"]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
