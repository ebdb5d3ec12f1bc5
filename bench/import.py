#!/usr/bin/env python3
"""How long `import ray` takes in the Ray image, relative to bare `ray` in an empty venv of the same image.

A fresh worker process imports ray, so what slows this slows every recovery: JupyterLab in the same environment once made
it 2.4 times as long. Prints medians and ratios; needs the image (any lab that was up once) and a package index.

    bench/import.py [IMAGE]
"""
import json
import subprocess
import sys

# In one container, and in turns: whatever else the machine does, it does to all.
INSIDE = r"""
import json, statistics, subprocess, sys, time

subprocess.run([sys.executable, "-m", "venv", "/tmp/bare"], check=True)
version = subprocess.run(["/opt/ray/bin/ray", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
subprocess.run(["/tmp/bare/bin/pip", "install", "-q", "ray==" + version], check=True)
job = json.dumps({"metadata": {"labd.run": "bench", "job_submission_id": "bench"}})
cases = {
    "bare": (["/tmp/bare/bin/python", "-c", "import ray"], {}),
    "image": (["/opt/ray/bin/python", "-c", "import ray"], {}),
    "image, in a job that labd names": (["/opt/ray/bin/python", "-c", "import ray"], {"RAY_JOB_CONFIG_JSON_ENV_VAR": job}),
    "bare pass": (["/tmp/bare/bin/python", "-c", "pass"], {}),
    "image pass": (["/opt/ray/bin/python", "-c", "pass"], {}),
    "image pass, in a job that labd names": (["/opt/ray/bin/python", "-c", "pass"], {"RAY_JOB_CONFIG_JSON_ENV_VAR": job}),
}
times = {name: [] for name in cases}
for round in range(int(sys.argv[1]) + 1):
    for name, (argv, env) in cases.items():
        start = time.perf_counter()
        subprocess.run(argv, env={"PATH": "/usr/bin:/bin", **env}, check=True)
        if round:  # the first one fills caches
            times[name].append(time.perf_counter() - start)
print(json.dumps({name: statistics.median(all) for name, all in times.items()}))
"""


def newest_image():
    found = subprocess.run(["docker", "images", "-q", "labd/ray"], capture_output=True, text=True, check=True).stdout.split()
    if not found:
        sys.exit("import: no image labd/ray on this machine; `labd up` builds it")
    return found[0]


def main():
    image = sys.argv[1] if len(sys.argv) > 1 else newest_image()
    # The index may be on this machine's own network (PIP_INDEX_URL), hence the host's.
    argv = ["docker", "run", "--rm", "-i", "--network", "host", "-e", "PIP_INDEX_URL", image, "/opt/ray/bin/python", "-", "9"]
    done = subprocess.run(argv, input=INSIDE, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"import: {(done.stderr.strip().splitlines() or ['the container failed'])[-1]}")
    median = json.loads(done.stdout.splitlines()[-1])
    for name, seconds in median.items():
        bare = median["bare pass" if "pass" in name else "bare"]
        print(f"{name:40} {seconds:6.3f} s  {seconds / bare:5.2f} x bare")


if __name__ == "__main__":
    main()
