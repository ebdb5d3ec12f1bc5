#!/usr/bin/env python3
"""A course's job, whose worker is SIGKILLed: to its next step of training, under labd and under `docker run --restart always`
with Ray's defaults and the same images, in one run on the same machine.

    bench/course.py [--faults worker,only-worker] [--rounds N] [--json]

The job is a TorchTrainer with Lightning (samples/course), with the course's `{"pip": "requirements.txt"}`. Its last line is JSON:

    labd_seconds        labd: median of the rounds
    bare_seconds        plain Docker: its fastest round. Its containers have labd's image but not labd's volume for packages,
                        nor what labd adds to Ray's agent and processes: packages are installed as Ray does it
    ratio               the one above by the first
    baked_seconds       labd, with the packages in the image (`[images.build] packages`): median
    second_node_share   a second node's first use of an environment, by the time that the first node took: of one of 6 requirements
                        and some 50 packages. Of the course's own, which are 6 packages where Debian's torch is in the image,
                        it is `small_share`: there most of both is the start of a worker process

They are those of the fault HEADLINE; `faults` holds each:

    worker       another GPU's worker is free
    only-worker  there is no other: the job waits until this one is back, with its packages
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import sys
import time

import recovery
from harness.lab import ROOT, Lab, build_settings, docker, run, wait_for
from recovery import NEVER_S, alive_workers, get, rounds_of, sigkill, steps, stop, within

GPUS = {"worker": 2, "only-worker": 1}
# Environments that nodes use one after the other, each new to the machine.
COURSES, LARGE = "requirements.txt", "large.txt"
LARGE_PACKAGES = ["boto3", "s3fs", "lightning", "scikit-learn", "matplotlib", "transformers"]
HEADLINE = "worker"
ROUNDS = 3
COURSE = ROOT / "samples" / "course"
# What a first installation may take on a slow line.
INSTALL_S = 1200


def packages():
    return COURSE.joinpath("requirements.txt").read_text().split()


def fill(folder):
    """What a job is submitted with: the course's network, few pictures, the scripts of this bench."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (COURSE / "pictures.py", COURSE / "requirements.txt", ROOT / "bench/course_job.py", ROOT / "bench/course_nodes.py"):
        shutil.copy(file, folder)
    (folder / LARGE).write_text("\n".join(LARGE_PACKAGES) + "\n")
    (folder / "runtime.json").write_text(json.dumps({"pip": "requirements.txt"}))
    run(sys.executable, COURSE / "make_pictures.py", folder / "pictures", "--training", "16", "--validation", "4")


class Labd(recovery.Labd):
    """A lab with Debian's torch and, where they are baked, the course's packages in its image."""

    def __init__(self, gpus, baked=False):
        self.gpus, self.name = gpus, "labd, baked" if baked else "labd"
        build = f'{build_settings()}\ntorch = "debian"\n'
        if baked:
            build += f"packages = {json.dumps(packages())}\n"
        self.lab = Lab("labdcbench", "198.18.174.0/24", gpus=gpus, build=build)
        self.lab.sweep()

    def submit(self, job, script="course_job.py", argument=None, environment=True):
        fill(self.lab.data_dir / "workspace" / "bench")
        docker("exec", "-w", "/workspace/bench", self.lab.container("jupyter"), "ray", "job", "submit", "--no-wait", "--submission-id", job,
               *recovery.WHERE, *(["--runtime-env", "runtime.json"] if environment else []), "--working-dir", ".", "--",
               "python", script, argument or job)


class Bare(recovery.Bare):
    """The same image by hand, and none of what labd makes of it."""

    prefix = "labdcbare"
    subnet = "198.18.175"

    def run(self, name, host, image, *command, options=()):
        # Torch on simulated GPUs is the same for both; the rest is off: Ray's own plugins install, and Ray's own limits hold.
        env = {"LABD_SIMULATED_GPUS": "1", "RAY_RUNTIME_ENV_PLUGINS": "[]", "RAY_RUNTIME_ENV_PIP_CACHE_SIZE_GB": "10", "LABD_WARM": "0"}
        env |= {name: os.environ[name] for name in ("PIP_INDEX_URL", "http_proxy", "https_proxy", "no_proxy") if os.environ.get(name)}
        super().run(name, host, image, *command, options=(*options, *(f"--env={k}={v}" for k, v in env.items())))

    def submit(self, job):
        home = f"{self.prefix}-driver"
        folder = pathlib.Path("/tmp") / f"{self.prefix}-{os.getpid()}"
        fill(folder)
        docker("exec", home, "rm", "-rf", "/bench")
        docker("cp", folder, f"{home}:/bench")
        shutil.rmtree(folder)
        docker("exec", "-w", "/bench", home, "ray", "job", "submit", f"--address=http://{self.subnet}.10:8265", "--no-wait",
               "--submission-id", job, *recovery.WHERE, "--runtime-env", "runtime.json", "--working-dir", ".", "--",
               "python", "course_job.py", job)


def steady(cluster, job, seconds):
    since = time.time()
    try:
        wait_for("the run trains", lambda: [s for s in steps(cluster, job) if s[0] > since][8:], seconds, 1)
        wait_for("all workers", lambda: alive_workers(cluster) == cluster.gpus, 180, 1)
        time.sleep(recovery.SETTLED_S)
    except AssertionError as error:
        said = [(get(cluster, f"/api/jobs/{j['submission_id']}/logs") or {}).get("logs", "") for j in get(cluster, "/api/jobs/") or []]
        raise AssertionError(f"{error}\n" + "\n".join("".join(said).splitlines()[-30:])) from None


def worker(cluster, fault, rounds, say):
    job = f"course-{fault}"
    cluster.submit(job)

    def one(n):
        steady(cluster, job, INSTALL_S if n == 1 else 300)
        address = steps(cluster, job)[-1][1]
        killed = sigkill(cluster.container(int(address.rsplit(".", 1)[1]) - 20))
        # Another process: the killed one says nothing more, and what it said last is older.
        found = within("training again", lambda: [s for s in steps(cluster, job) if s[0] > killed + 0.6], seconds=3 * NEVER_S)
        return found and found[0][0] - killed, {"elsewhere": found[0][1] != address} if found else {}

    try:
        return rounds_of(cluster, fault, rounds, say, one)
    finally:
        stop(cluster, job)


def second_node(cluster, say):
    """What the nodes took for environments that are new to this machine, the first node first: in a lab that has come up, not
    while its nodes still import what their workers will need."""
    for n in range(cluster.gpus):
        worker = cluster.lab.container(f"ray-worker-{n}")
        wait_for("the node is warm", lambda worker=worker: docker("exec", worker, "test", "-S", "/run/labd-warm.sock", check=False).returncode == 0, 180, 1)
    return {which: nodes_with(cluster, which, say) for which in (COURSES, LARGE)}


def nodes_with(cluster, which, say):
    job = f"course-nodes-{pathlib.Path(which).stem}"
    cluster.submit(job, "course_nodes.py", which, environment=False)

    def logs():
        said = (get(cluster, f"/api/jobs/{job}/logs") or {}).get("logs", "")
        found = [float(s) for s in re.findall(r"NODE ([\d.]+)", said)]
        status = (get(cluster, f"/api/jobs/{job}") or {}).get("status")
        assert status not in ("FAILED", "STOPPED"), said[-2000:]
        return found if len(found) == cluster.gpus else None

    seconds = wait_for("both nodes ran it", logs, INSTALL_S, 1)
    say(f"{cluster.name}: first use of {which}: {', '.join(f'{s:.2f} s' for s in seconds)}")
    return seconds


def measure(make, faults, rounds, say, first=None):
    """Each fault in a cluster of its own; `first` is asked of the first one with two GPUs, before anything else is."""
    found, extra, cluster = {}, None, None
    for fault in faults:
        cluster = make(GPUS[fault])
        try:
            cluster.start()
            if first and extra is None and cluster.gpus == 2:
                extra = first(cluster, say)
            found[fault] = worker(cluster, fault, rounds, say)
        finally:
            cluster.stop()
    return found, extra, cluster


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--faults", default=",".join(GPUS), help="with commas between them (default: both)")
    args.add_argument("--sides", default="labd,bare,baked", help="with commas between them (default: all three)")
    args.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each fault (default: {ROUNDS})")
    args.add_argument("--json", action="store_true", help="nothing but the last line")
    args = args.parse_args()
    faults, sides = args.faults.split(","), args.sides.split(",")
    if unknown := set(faults) - set(GPUS):
        sys.exit(f"course: no such fault: {', '.join(sorted(unknown))}; there are {', '.join(GPUS)}")
    if "labd" not in sides:
        sys.exit("course: --sides must have labd, whose images the others use")
    # Ended by a timeout: what it started is removed all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say = lambda line: print(line, file=sys.stderr, flush=True)

    labd, nodes, lab = measure(Labd, faults, args.rounds, say, second_node)
    bare = measure(lambda gpus: Bare(lab.images, gpus), faults, args.rounds, say)[0] if "bare" in sides else {}
    baked = measure(lambda gpus: Labd(gpus, baked=True), faults, args.rounds, say)[0] if "baked" in sides else {}

    def middle(result):
        times = (result or {}).get("seconds")
        return round(statistics.median(times), 2) if times and None not in times else None

    rows = {}
    for fault in faults:
        ours, theirs = middle(labd[fault]), [t for t in (bare.get(fault) or {}).get("seconds", []) if t is not None]
        rows[fault] = {
            "labd_seconds": ours,
            "bare_seconds": min(theirs) if theirs else None,
            "ratio": round(min(theirs) / ours, 2) if theirs and ours else None,
            "baked_seconds": middle(baked.get(fault)),
            "rounds": {"labd": labd[fault], "bare": bare.get(fault), "baked": baked.get(fault)},
        }
    if not args.json:
        shown = lambda seconds: "-" if seconds is None else f"{seconds:.2f} s"
        print(f"{'SIGKILL of':12} {'labd':10} {'plain, fastest':15} {'ratio':6} labd, baked")
        for fault, row in rows.items():
            print(f"{fault:12} {shown(row['labd_seconds']):10} {shown(row['bare_seconds']):15} {row['ratio'] or '-':<6} {shown(row['baked_seconds'])}")
        for which, seconds in (nodes or {}).items():
            print(f"first use of {which}: {shown(seconds[0])}, on a second node {shown(seconds[1])}")
    headline = rows[HEADLINE if HEADLINE in rows else faults[0]]
    last = {key: value for key, value in headline.items() if key != "rounds"}
    for key, which in (("second_node_share", LARGE), ("small_share", COURSES)):
        last[key] = round(nodes[which][1] / nodes[which][0], 3) if nodes else None
    print(json.dumps(last | {"node_seconds": nodes, "faults": rows}))


if __name__ == "__main__":
    main()
