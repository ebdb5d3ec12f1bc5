#!/usr/bin/env python3
"""From SIGKILL to work going on: under labd, and under `docker run --restart always` with Ray's defaults and the same
images, in one run on the same machine.

    bench/recovery.py [--faults worker,only-worker,driver,head,labd] [--rounds N] [--json]

    worker       the GPU worker that trains, another one is free: to the next step of training
    only-worker  the same where there is no other
    driver       the node that runs the job's driver (with plain Docker: the head, as Ray does by default): to the next step
    head         to the head answering again; and how many steps of training were done twice
    labd         labd itself: to its snapshot showing everything ready, no container touched

What has not happened after two minutes is called never, and not waited for again.
"""
import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from harness.lab import ROOT, Lab, docker, kill_first_process, labd_binary, wait_for

JOB = ROOT / "bench" / "job.py"
WHERE = ["--entrypoint-label-selector", '{"labd.role": "driver"}']
FAULTS = {"worker": 5, "only-worker": 3, "driver": 3, "head": 3, "labd": 3}
NEVER_S = 120
# How long all workers must have been there before the next fault: a node that has just started is still busy with that.
SETTLED_S = 20
# A spread beyond this makes a median a poor summary.
WIDE = 1.5


class Labd:
    """The lab as labd runs it."""

    name = "labd"

    def __init__(self, gpus):
        self.gpus = gpus
        self.lab = Lab("labdbench", "198.18.246.0/24", gpus=gpus)
        self.lab.sweep()

    def start(self):
        self.lab.up()
        self.images = {i["name"]: i["reference"] for i in json.loads(self.lab.labd("images", "list", "--json").stdout)}
        self.token = self.lab.ray_token()
        self.url = self.lab.link("Ray dashboard")

    def submit(self, job, where):
        target = self.lab.data_dir / "workspace" / "bench"
        target.mkdir(exist_ok=True)
        shutil.copy(JOB, target)
        self.lab.exec("jupyter", "ray", "job", "submit", "--no-wait", "--submission-id", job, *where,
                      "--working-dir", "/workspace/bench", "--", "python", "job.py", job)

    def container(self, role):
        """Of `head`, `driver`, or the worker with this index."""
        return self.lab.container(f"ray-{role}" if isinstance(role, str) else f"ray-worker-{role}")

    driver_is_on = "driver"
    selector = WHERE

    def stop(self):
        self.lab.down()


class Bare:
    """The same containers as one would start them by hand: restart policy `always`, Ray's own defaults."""

    name = "docker --restart always"
    subnet = "198.18.243"
    prefix = "labdbare"

    # Where Ray puts a job's driver unless it is told otherwise.
    driver_is_on = "head"
    selector = []

    def __init__(self, images, gpus):
        self.images, self.gpus, self.token = images, gpus, None

    def run(self, name, host, image, *command, options=()):
        s3 = {"AWS_ENDPOINT_URL": f"http://{self.subnet}.12:9000", "AWS_ACCESS_KEY_ID": "bench-access",
              "AWS_SECRET_ACCESS_KEY": "bench-secret-key", "AWS_DEFAULT_REGION": "us-east-1",
              "MINIO_ROOT_USER": "bench-access", "MINIO_ROOT_PASSWORD": "bench-secret-key", "RAY_AUTH_MODE": "disabled"}
        env = [f"--env={k}={v}" for k, v in s3.items()]
        docker("run", "-d", "--init", "--restart", "always", "--name", f"{self.prefix}-{name}", "--hostname", name,
               "--network", self.prefix, "--ip", f"{self.subnet}.{host}", "--shm-size=1g", *env, *options, image, *command)

    def start(self):
        docker("network", "create", "--subnet", f"{self.subnet}.0/24", self.prefix)
        ray, common = self.images["ray"], ["--block", "--disable-usage-stats", "--object-store-memory=200000000"]
        self.run("minio", 12, self.images["minio"], "server", "/data")
        self.run("head", 10, ray, "ray", "start", "--head", f"--node-ip-address={self.subnet}.10", "--port=6379",
                 "--dashboard-host=0.0.0.0", "--num-cpus=0", "--num-gpus=0", *common, options=["-p", "127.0.0.1::8265"])
        join = ["ray", "start", f"--address={self.subnet}.10:6379", *common]
        self.run("driver", 11, ray, *join, f"--node-ip-address={self.subnet}.11", "--labels=labd.role=driver", "--num-cpus=4", "--num-gpus=0")
        for i in range(self.gpus):
            self.run(f"worker-{i}", 20 + i, ray, *join, f"--node-ip-address={self.subnet}.{20 + i}", "--num-cpus=8", "--num-gpus=1")
        port = docker("port", f"{self.prefix}-head", "8265").stdout.strip().rsplit(":", 1)[1]
        self.url = f"http://127.0.0.1:{port}/"
        code = "import boto3; boto3.client('s3').create_bucket(Bucket='ray')"
        wait_for("the bucket", lambda: docker("exec", f"{self.prefix}-driver", "python", "-c", code, check=False).returncode == 0, 60, 1)
        wait_for("the workers", lambda: alive_workers(self) == self.gpus, 90, 0.5)

    def submit(self, job, where):
        docker("exec", f"{self.prefix}-driver", "mkdir", "-p", "/bench")
        docker("cp", JOB, f"{self.prefix}-driver:/bench/job.py")
        docker("exec", f"{self.prefix}-driver", "ray", "job", "submit", f"--address=http://{self.subnet}.10:8265", "--no-wait",
               "--submission-id", job, *where, "--working-dir", "/bench", "--", "python", "job.py", job)

    def container(self, role):
        return f"{self.prefix}-{role}" if isinstance(role, str) else f"{self.prefix}-worker-{role}"

    def stop(self):
        ids = docker("ps", "-aq", "--filter", f"name={self.prefix}-").stdout.split()
        if ids:
            docker("rm", "-f", "-v", *ids, check=False)
        docker("network", "rm", self.prefix, check=False)


def authorization(cluster):
    return {"Authorization": f"Bearer {cluster.token}"} if cluster.token else {}


def get(cluster, path):
    request = urllib.request.Request(cluster.url.rstrip("/") + path, headers=authorization(cluster))
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def alive_workers(cluster):
    nodes = get(cluster, "/api/v0/nodes?detail=1")
    nodes = nodes["data"]["result"]["result"] if nodes and nodes.get("data") else []
    return len({n["node_ip"] for n in nodes if n["state"] == "ALIVE" and n["resources_total"].get("GPU")})


def steps(cluster, job):
    """(time, address, number, attempt) of each step so far, oldest first, over all attempts of the job."""
    shown = get(cluster, "/api/jobs/") or []
    ids = [j["submission_id"] for j in shown if re.fullmatch(rf"{job}(-r\d+)?", j["submission_id"] or "")]
    found = set()
    for attempt in ids:
        logs = (get(cluster, f"/api/jobs/{attempt}/logs") or {}).get("logs", "")
        # A set: a container that is started again sends its old lines once more.
        found |= {(float(t), a, int(n), attempt) for t, a, n in re.findall(r"LOOP ([\d.]+) ([\d.]+) (\d+)", logs)}
    return sorted(found)


def steps_on_workers(cluster, job):
    """(time, number) of each step so far, as the workers themselves wrote it down."""
    found = set()
    for worker in range(cluster.gpus):
        written = docker("exec", cluster.container(worker), "cat", f"/tmp/{job}.steps", check=False).stdout
        found |= {(float(t), int(n)) for t, n in re.findall(r"LOOP ([\d.]+) [\d.]+ (\d+)", written)}
    return sorted(found)


def sigkill(name):
    assert kill_first_process(name), f"{name} does not run"
    return time.time()


def within(what, condition, every=0.5, seconds=NEVER_S):
    """What the condition became; None for never."""
    try:
        return wait_for(what, condition, seconds, every)
    except AssertionError:
        return None


def steady(cluster, job):
    """Some steps from now, and all workers in the cluster, for long enough to be at rest. The same for both sides."""
    since = time.time()
    wait_for("the run trains", lambda: [s for s in steps(cluster, job) if s[0] > since][5:], 180, 0.5)
    wait_for("all workers", lambda: alive_workers(cluster) == cluster.gpus, 180, 0.5)
    time.sleep(SETTLED_S)


def stop(cluster, job):
    request = urllib.request.Request(f"{cluster.url.rstrip('/')}/api/jobs/{job}/stop", method="POST", headers=authorization(cluster))
    with contextlib.suppress(OSError):  # it was lost
        urllib.request.urlopen(request, timeout=20).close()

    def over():
        shown = get(cluster, "/api/jobs/")
        live = [j for j in shown or [] if (j["submission_id"] or "").startswith(job) and j["status"] in ("PENDING", "RUNNING")]
        return shown is not None and not live

    within("the job has ended", over, seconds=60)


def rounds_of(cluster, fault, rounds, say, one):
    """What each round took, in seconds; ends with None where it never came."""
    times, extra = [], {}
    for n in range(1, rounds + 1):
        try:
            seconds, more = one(n)
        except AssertionError as error:
            # The round could not even begin: what the fault before it left is no cluster to measure.
            say(f"{cluster.name}: {fault} {n}/{rounds}: not measured: {error}")
            return {"seconds": times, **extra, "cut_short": str(error)}
        for key, value in more.items():
            extra.setdefault(key, []).append(value)
        times.append(seconds if seconds is None else round(seconds, 2))
        said = "never" if seconds is None else f"{seconds:.2f} s"
        say(f"{cluster.name}: {fault} {n}/{rounds}: {said}" + "".join(f", {k.replace('_', ' ')}: {v}" for k, v in more.items()))
        if seconds is None:
            break
    return {"seconds": times, **extra}


def worker(cluster, fault, rounds, say):
    job = f"bench-{fault}"
    cluster.submit(job, WHERE)

    def one(_):
        steady(cluster, job)
        address = steps(cluster, job)[-1][1]
        killed = sigkill(cluster.container(int(address.rsplit(".", 1)[1]) - 20))
        # Another process: the first step after the kill that is not the killed one's own.
        found = within("training again", lambda: [s for s in steps(cluster, job) if s[0] > killed + 0.6])
        return found and found[0][0] - killed, {"stages": stages(cluster, job, killed, found[0][0]) if found else None}

    try:
        return rounds_of(cluster, fault, rounds, say, one)
    finally:
        stop(cluster, job)


STAGES = ("noticed", "asked for again", "worker process", "training function", "restored", "first step")


def stages(cluster, job, killed, trained):
    """Seconds from one stage of a recovery to the next, as far as they are known: labd noticed the death (and told the GCS);
    Ray Train asked for a new worker group; its worker process was there (forked or begun); the training function ran; the
    checkpoint was restored; the first step."""
    at = {"first step": trained}
    if isinstance(cluster, Labd):
        seen = [i["noticed_at"] for i in cluster.lab.snapshot()["incidents"]]
        seen = [t for t in (datetime.datetime.fromisoformat(text).timestamp() for text in seen) if t > killed - 0.1]
        at["noticed"] = min(seen, default=None)
    runs = (get(cluster, "/api/train/v2/runs/v1") or {}).get("train_runs", [])
    groups = [a["start_time_ns"] / 1e9 for r in runs if r["name"] == job for a in r["attempts"] if a["start_time_ns"] / 1e9 > killed]
    at["asked for again"] = min(groups, default=None)
    logs = (get(cluster, f"/api/jobs/{job}/logs") or {}).get("logs", "")
    begun = [[float(t) for t in found] for found in re.findall(r"BEGAN ([\d.]+) ([\d.]+) ([\d.]+)", logs)]
    if after := [b for b in begun if b[1] > killed]:
        at |= zip(STAGES[2:5], min(after), strict=True)
    told, last = {}, killed
    for name in STAGES:
        if at.get(name) is not None:
            # A process that waited was there before it was needed.
            told[name] = round(max(0, at[name] - last), 2)
            last = max(last, at[name])
    return told


def driver(cluster, fault, rounds, say):
    job = f"bench-{fault}"
    cluster.submit(job, cluster.selector)

    def one(_):
        steady(cluster, job)
        known = {s[3] for s in steps(cluster, job)}
        killed = sigkill(cluster.container(cluster.driver_is_on))
        # A driver that died is another attempt; its name may be that of before where nobody gives it a new one.
        found = within("training again", lambda: [s for s in steps(cluster, job) if s[3] not in known or s[0] > killed + 5])
        return found and found[0][0] - killed, {}

    try:
        return rounds_of(cluster, fault, rounds, say, one)
    finally:
        stop(cluster, job)


def head(cluster, fault, rounds, say):
    def one(n):
        job = f"bench-{fault}{n}"
        wait_for("all workers", lambda: alive_workers(cluster) == cluster.gpus, 180, 0.5)
        cluster.submit(job, cluster.selector)
        steady(cluster, job)
        killed = sigkill(cluster.container("head"))
        serves = within("the head answers", lambda: get(cluster, "/api/jobs/") is not None and time.time(), 0.05)

        def goes_on():
            known = any(j["submission_id"] == job for j in get(cluster, "/api/jobs/") or [])
            return known and [t for t, _ in steps_on_workers(cluster, job) if t > (serves or killed) + 2][3:]

        trains = within("it trains on", goes_on, seconds=60)
        done = [number for _, number in steps_on_workers(cluster, job)]
        repeated = len(done) - len(set(done)) if trains else "job lost"
        stop(cluster, job)
        return serves and serves - killed, {"steps_repeated": repeated}

    return rounds_of(cluster, fault, rounds, say, one)


def labd_itself(cluster, fault, rounds, say):
    lab = cluster.lab
    env = {**os.environ, "LABD_CONFIG": str(lab.config), "LABD_SOCKET": str(lab.socket)}

    def one(_):
        lab.wait_ready()
        before = lab.ids()
        lab.kill_daemon()
        began = time.time()  # systemd would start it 1 s later
        with open(lab.dir / "labd.log", "ab") as log:
            subprocess.Popen([labd_binary(), "run"], env=env, stdout=log, stderr=log, start_new_session=True)

        def adopted():
            done = lab.labd("status", "--json", check=False)
            shown = json.loads(done.stdout)["services"] if done.returncode == 0 else []
            return shown and all(s["state"] in ("ready", "off", "unavailable") for s in shown) and time.time()

        ready = within("everything adopted", adopted, 0.05)
        if not ready:
            say("\n".join((lab.dir / "labd.log").read_text(errors="replace").splitlines()[-15:]))
        return ready and ready - began, {"containers_touched": sum(lab.ids().get(n) != i for n, i in before.items())}

    return rounds_of(cluster, fault, rounds, say, one)


HOW = {"worker": worker, "only-worker": worker, "driver": driver, "head": head, "labd": labd_itself}


def measure(make, faults, rounds, say):
    """One cluster with two GPUs and one with a single GPU, as the faults need them."""
    found = {}
    for gpus, kinds in ((2, [f for f in faults if f != "only-worker"]), (1, [f for f in faults if f == "only-worker"])):
        if not kinds:
            continue
        cluster = make(gpus)
        try:
            cluster.start()
            for number, kind in enumerate(kinds):
                if number and broken(found[kinds[number - 1]]):
                    cluster.stop()
                    cluster = make(gpus)
                    cluster.start()
                found[kind] = HOW[kind](cluster, kind, rounds or FAULTS[kind], say)
        finally:
            cluster.stop()
    return found, cluster


def broken(result):
    """Whether a fault left a cluster that no other fault can be measured on."""
    return None in result["seconds"] or "cut_short" in result or "job lost" in result.get("steps_repeated", [])


def summary(result):
    """With median, min and max; None where it never came in some round."""
    times = result["seconds"]
    whole = bool(times) and None not in times
    return result | {"median": statistics.median(times) if whole else None, "min": min(times) if whole else None,
                     "max": max(times) if whole else None}


def cell(result):
    if result is None:
        return "-"
    if not result["seconds"]:
        return "not measured"
    if result["median"] is None:
        return f"never ({NEVER_S} s)"
    return f"{result['median']:.2f} s ({result['min']:.2f} to {result['max']:.2f})"


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--faults", default=",".join(FAULTS), help="with commas between them (default: all)")
    args.add_argument("--rounds", type=int, help="of each fault (default: 5 of worker, 3 of the others)")
    args.add_argument("--json", action="store_true")
    args = args.parse_args()
    faults = [f for f in FAULTS if f in args.faults.split(",")]
    if unknown := set(args.faults.split(",")) - set(FAULTS):
        sys.exit(f"recovery: no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    # Ended by a timeout: what it started is removed all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say = lambda line: print(line, file=sys.stderr, flush=True)
    labd, lab = measure(Labd, faults, args.rounds, say)
    plain = [f for f in faults if f != "labd"]
    bare = measure(lambda gpus: Bare(lab.images, gpus), plain, args.rounds, say)[0] if plain else {}
    rows = {}
    for fault in faults:
        ours, theirs = summary(labd[fault]), summary(bare[fault]) if fault in bare else None
        both = theirs and ours["median"] and theirs["median"]
        rows[fault] = {"labd": ours, "bare": theirs, "ratio": round(theirs["median"] / ours["median"], 2) if both else None}
    if args.json:
        print(json.dumps({"faults": rows}))
        return
    print(f"{'SIGKILL of':12} {'labd':28} {'docker --restart always':28} ratio")
    for fault, row in rows.items():
        print(f"{fault:12} {cell(row['labd']):28} {cell(row['bare']):28} {row['ratio'] or '-'}")
    print("Median (least to most): head to its answer, labd to everything adopted, the others to training again.")
    for fault, row in rows.items():
        for who in ("labd", "bare"):
            result = row[who] or {}
            if "steps_repeated" in result:
                print(f"{fault}, {who}: steps repeated per round: {', '.join(map(str, result['steps_repeated']))}")
            for name in STAGES if result.get("stages") else ():
                if took := [one[name] for one in result["stages"] if one and name in one]:
                    print(f"{fault}, {who}: to {name:18} {statistics.median(took):6.2f} s ({min(took):.2f} to {max(took):.2f})")
            if "containers_touched" in result:
                print(f"{fault}, {who}: containers touched per round: {', '.join(map(str, result['containers_touched']))}")
            if "cut_short" in result:
                print(f"{fault}, {who}: cut short after {len(result['seconds'])} rounds: {result['cut_short']}")
            if result.get("median") and result["max"] > WIDE * result["min"]:
                print(f"{fault}, {who}: wide spread, the median says little: {', '.join(f'{t:.1f}' for t in result['seconds'])}")


if __name__ == "__main__":
    main()
