#!/usr/bin/env python3
"""From SIGKILL of a GPU worker to the training loop running again: under labd, and under `docker run --restart always`
with Ray's defaults and the same images, in one run on the same machine. Another worker is free in both.

    bench/recovery.py [--rounds 5] [--json]
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from lab import ROOT, Lab, docker, wait_for  # noqa: E402

JOB = ROOT / "bench" / "job.py"
WHERE = ["--entrypoint-label-selector", '{"labd.role": "driver"}']


class Labd:
    """The lab as labd runs it."""

    name = "labd"

    def __init__(self):
        self.lab = Lab("labdbench", "198.18.242.0/24")
        self.lab.sweep()

    def start(self):
        self.lab.up()
        self.images = {i["name"]: i["reference"] for i in json.loads(self.lab.labd("images", "list", "--json").stdout)}
        self.token = self.lab.ray_token()
        self.url = next(l["url"] for l in self.lab.snapshot()["links"] if l["name"] == "Ray dashboard")

    def submit(self, job):
        target = self.lab.data_dir / "workspace" / "bench"
        target.mkdir(exist_ok=True)
        shutil.copy(JOB, target)
        self.lab.exec("jupyter", "ray", "job", "submit", "--no-wait", "--submission-id", job, *WHERE,
                      "--working-dir", "/workspace/bench", "--", "python", "job.py", job)

    def container(self, address):
        return self.lab.container(f"ray-worker-{int(address.rsplit('.', 1)[1]) - 20}")

    def stop(self):
        self.lab.down()


class Bare:
    """The same containers as one would start them by hand: restart policy `always`, Ray's own defaults."""

    name = "docker --restart always"
    subnet = "198.18.243"
    prefix = "labdbare"

    def __init__(self, images):
        self.images, self.token = images, None

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
        for i in (0, 1):
            self.run(f"worker-{i}", 20 + i, ray, *join, f"--node-ip-address={self.subnet}.{20 + i}", "--num-cpus=8", "--num-gpus=1")
        port = docker("port", f"{self.prefix}-head", "8265").stdout.strip().rsplit(":", 1)[1]
        self.url = f"http://127.0.0.1:{port}/"
        code = "import boto3; boto3.client('s3').create_bucket(Bucket='ray')"
        wait_for("the bucket", lambda: docker("exec", f"{self.prefix}-driver", "python", "-c", code, check=False).returncode == 0, 60, 1)
        wait_for("two workers", lambda: alive_workers(self) == 2, 90, 0.5)

    def submit(self, job):
        docker("exec", f"{self.prefix}-driver", "mkdir", "-p", "/bench")
        docker("cp", JOB, f"{self.prefix}-driver:/bench/job.py")
        docker("exec", f"{self.prefix}-driver", "ray", "job", "submit", f"--address=http://{self.subnet}.10:8265", "--no-wait",
               "--submission-id", job, *WHERE, "--working-dir", "/bench", "--", "python", "job.py", job)

    def container(self, address):
        return f"{self.prefix}-worker-{int(address.rsplit('.', 1)[1]) - 20}"

    def stop(self):
        ids = docker("ps", "-aq", "--filter", f"name={self.prefix}-").stdout.split()
        if ids:
            docker("rm", "-f", "-v", *ids, check=False)
        docker("network", "rm", self.prefix, check=False)


def get(cluster, path):
    headers = {"Authorization": f"Bearer {cluster.token}"} if cluster.token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(cluster.url.rstrip("/") + path, headers=headers), timeout=20) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def alive_workers(cluster):
    nodes = get(cluster, "/api/v0/nodes?detail=1")
    nodes = nodes["data"]["result"]["result"] if nodes and nodes.get("data") else []
    return len({n["node_ip"] for n in nodes if n["state"] == "ALIVE" and n["resources_total"].get("GPU")})


def steps(cluster, job):
    """(time, address) of each step so far, oldest first."""
    logs = (get(cluster, f"/api/jobs/{job}/logs") or {}).get("logs", "")
    return sorted((float(t), a) for t, a in re.findall(r"LOOP ([\d.]+) ([\d.]+)", logs))


def measure(cluster, rounds, say):
    times = []
    cluster.start()
    job = "bench"
    cluster.submit(job)
    for n in range(rounds):
        since = time.time()
        # Steady: some steps since, both workers in the cluster.
        wait_for("the run trains", lambda: [s for s in steps(cluster, job) if s[0] > since][5:], 180, 0.5)
        wait_for("both workers", lambda: alive_workers(cluster) == 2, 120, 0.5)
        address = steps(cluster, job)[-1][1]
        pid = json.loads(docker("inspect", cluster.container(address)).stdout)[0]["State"]["Pid"]
        killed = time.time()
        os.kill(pid, 9)

        def again():
            # Another process: the first step after the kill that is not the killed one's own.
            return [t for t, a in steps(cluster, job) if t > killed + 0.6]

        times.append(round(wait_for("training again", again, 180, 0.5)[0] - killed, 2))
        say(f"{cluster.name}: round {n + 1}: {times[-1]:.2f} s")
    return times


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--json", action="store_true")
    args = args.parse_args()
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    found = {}
    labd = Labd()
    try:
        found["labd"] = measure(labd, args.rounds, say)
    finally:
        labd.stop()
    bare = Bare(labd.images)
    try:
        found["bare"] = measure(bare, args.rounds, say)
    finally:
        bare.stop()
    medians = {name: statistics.median(times) for name, times in found.items()}
    ratio = round(medians["bare"] / medians["labd"], 2)
    if args.json:
        print(json.dumps({"seconds": found, "median": medians, "ratio": ratio}))
        return
    print(f"SIGKILL of a GPU worker to training again, median of {args.rounds}:")
    print(f"  labd                     {medians['labd']:6.2f} s")
    print(f"  docker --restart always  {medians['bare']:6.2f} s")
    print(f"  labd is {ratio} times faster")


main()
