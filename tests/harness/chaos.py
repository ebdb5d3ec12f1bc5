#!/usr/bin/env python3
"""Random faults over a training job in a lab of its own, with real containers and a real store; then: is all that was done
still there, once, and is everything well again?

    tests/harness/chaos.py [-n 50] [--seed 1] [--engine-restart] [--clock] [--json]

The seed gives the faults and their order, and the kind of job: an odd seed's job is a student's (no run name, no failure
allowed), an even seed's names its run and allows every failure. How far the lab is when a fault strikes differs from run to
run. Exit code 0 when nothing is wrong; else 1, and each thing that is wrong in a line of its own.
"""
import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from harness.lab import ROOT, Lab, docker, labd_binary, run, wait_for

JOB = ROOT / "tests/harness/chaos_job.py"
SERVICES = ["minio", "ray-head", "ray-driver", "ray-worker-0", "ray-worker-1", "jupyter", "front-door", "prometheus"]
WORKERS = ["ray-worker-0", "ray-worker-1"]
# A silent JupyterLab is said and left alone, for the sake of its kernels.
HANGING = [service for service in SERVICES if service != "jupyter"]
# Exit code of `labd status` when labd takes the connection and does not answer.
SILENT = 5
# After a fault: a crash-loop is tried once a minute, and a service that hangs is given its patience before that.
RECOVERS_WITHIN_S = 240
DISK = "48m"

# ---- which faults ----


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault. `seconds` is how long it lasts, 0 for what is over at once; `pause` what is waited before the next one,
    None for the lab's recovery."""

    kind: str
    target: str
    seconds: float
    pause: float | None

    def __str__(self):
        lasts = f" for {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.kind} {self.target}{lasts}"


# How often each kind is drawn, relative to the others.
WEIGHTS = {"kill": 6, "freeze": 3, "kill-labd": 3, "cut": 3, "store-away": 2, "disk-full": 2, "engine-restart": 2, "clock": 2}
# These need more than a lab: an engine that nobody else uses, and a labd built with the feature `test-clock`.
SPECIAL = {"engine-restart", "clock"}


def plan(seed, count, kinds=tuple(WEIGHTS)):
    """The faults of a seed: every kind once before any is drawn freely. Pure."""
    rng = random.Random(seed)
    kinds = [k for k in WEIGHTS if k in kinds]
    first = rng.sample(kinds, k=min(count, len(kinds)))
    drawn = first + rng.choices(kinds, weights=[WEIGHTS[k] for k in kinds], k=count - len(first))
    return [fault(kind, rng) for kind in drawn]


def fault(kind, rng):
    target, seconds = {
        "kill": lambda: (rng.choice(SERVICES), 0),
        "freeze": lambda: (rng.choice(HANGING), 0),
        "kill-labd": lambda: ("labd", 0),
        "cut": lambda: (rng.choice(WORKERS), rng.uniform(5, 20)),
        "store-away": lambda: ("minio", 20),
        "disk-full": lambda: ("data_dir", rng.uniform(5, 15)),
        "engine-restart": lambda: ("engine", 0),
        "clock": lambda: (rng.choice(["+3600", "-3600", "+3600", "-3600", "+40", "-40"]), 0),
    }[kind]()
    # Half of them strike a lab that is well, the others one that may not be yet; 0 is two at once.
    pause = rng.choice([None, None, None, 0, rng.uniform(0, 3), rng.uniform(3, 15)])
    return Fault(kind, target, round(seconds, 1), None if pause is None else round(pause, 1))


def style(seed):
    return "plain" if seed % 2 else "named"


# ---- the lab under test ----


class Systemd:
    """What labd.service asks of systemd: `labd run`, and again 1 s after its end."""

    def __init__(self, lab):
        self.lab, self.over, self.child = lab, threading.Event(), None
        self.thread = threading.Thread(target=self.keep, daemon=True)
        self.thread.start()

    def keep(self):
        env = {**os.environ, "LABD_CONFIG": str(self.lab.config), "LABD_SOCKET": str(self.lab.socket), "NO_COLOR": "1"}
        with open(self.lab.dir / "labd.log", "ab") as log:
            while not self.over.is_set():
                self.child = subprocess.Popen([labd_binary(), "run"], env=env, stdout=log, stderr=log)
                self.child.wait()
                self.over.wait(1)

    def stop(self):
        """Lets the daemon end: call before `labd down`."""
        self.over.set()


class ChaosLab(Lab):
    """A lab whose data directory is a small file system of its own, where this machine lets us mount one."""

    def __init__(self, name, subnet):
        super().__init__(name, subnet, extra="[jobs]\nresubmissions = 1000\n[services.grafana]\nenabled = false\n")
        self.data_dir.mkdir()
        # The wall clock as labd sees it, a step in each line; the machine's own is left alone.
        self.clock = self.dir / "clock"
        os.environ["LABD_TEST_CLOCK"] = str(self.clock)
        mounted = run("mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0755", name, self.data_dir, check=False)
        self.small_disk = mounted.returncode == 0
        self.systemd = None

    def up(self, timeout=2400):
        self.systemd = self.systemd or Systemd(self)
        wait_for("labd answers", lambda: self.labd("status", "--json", check=False).returncode == 0, 30)
        return super().up(timeout)

    def down(self):
        if self.systemd:
            self.systemd.stop()
        try:
            super().down()
        finally:
            if self.small_disk:
                run("umount", "-l", self.data_dir, check=False)
            shutil.rmtree(self.dir, ignore_errors=True)

    def snapshot(self):
        """None while labd or its file system has no answer: chaos is why. A labd that lives and is silent is wrong."""
        done = self.labd("status", "--json", check=False, timeout=90)
        if done.returncode == SILENT:
            raise AssertionError(f"{done.stderr.strip()}; its threads: {threads(self.systemd.child.pid)}")
        return json.loads(done.stdout) if done.returncode == 0 else None


# ---- the faults themselves ----


def container(lab, service):
    """(id, pid of its first process); None while it does not run."""
    found = docker("inspect", "-f", "{{.Id}} {{.State.Running}} {{.State.Pid}}", lab.container(service), check=False).stdout.split()
    return (found[0], int(found[2])) if len(found) == 3 and found[1] == "true" else None


def pids(container_id):
    """By the host's count, the first process last: it must not see its children stop."""
    return [int(p) for p in reversed(docker("top", container_id, "-eo", "pid", check=False).stdout.split()[1:])]


def threads(pid):
    """Where each thread of a process stands in the kernel: what it waits for, if it does not answer."""
    found = []
    for task in sorted(pathlib.Path(f"/proc/{pid}/task").glob("*")):
        with contextlib.suppress(OSError):
            state = task.joinpath("stat").read_text().rpartition(")")[2].split()[0]
            found.append(f"{task.joinpath('comm').read_text().strip()} {state} {task.joinpath('wchan').read_text()}")
    return "; ".join(found) or "none, it has ended"


def tell(processes, number):
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def host_veth(pid):
    """The host's end of a container's network cable."""
    inside = run("nsenter", "-t", pid, "-n", "ip", "-o", "link", "show", "eth0", check=False).stdout
    index = re.search(r"eth0@if(\d+)", inside)
    outside = re.search(rf"^{index[1]}: ([^:@]+)", run("ip", "-o", "link").stdout, re.M) if index else None
    return outside[1] if outside else None


class Faults:
    """Does them. Each returns what undoes it after its seconds, or None; False where it had nothing to strike."""

    def __init__(self, lab):
        self.lab, self.struck = lab, {}

    def unnoticed(self):
        """Services that are still as they were struck: a frozen one reads ready until labd has found it out."""
        for service, struck in list(self.struck.items()):
            found = container(self.lab, service)
            if found and found != struck:
                del self.struck[service]
        return sorted(self.struck)

    def kill(self, fault):
        found = container(self.lab, fault.target)
        if found is None:
            return False
        tell([found[1]], signal.SIGKILL)
        self.struck[fault.target] = found

    def freeze(self, fault):
        found = container(self.lab, fault.target)
        if found is None:
            return False
        tell(pids(found[0]), signal.SIGSTOP)
        self.struck[fault.target] = found

    def kill_labd(self, _):
        child = self.lab.systemd.child
        if child is None or child.poll() is not None:
            return False
        child.kill()

    def cut(self, fault):
        found = container(self.lab, fault.target)
        cable = found and host_veth(found[1])
        if not cable:
            return False
        run("ip", "link", "set", cable, "down")
        # Gone with its container when labd makes that anew meanwhile.
        return lambda: run("ip", "link", "set", cable, "up", check=False)

    def store_away(self, _):
        found = container(self.lab, "minio")
        if found is None:
            return False
        stopped = pids(found[0])
        tell(stopped, signal.SIGSTOP)

        def back():
            # Only if it still is that container: pids are given to others.
            if container(self.lab, "minio") == found:
                tell([pid for pid in reversed(stopped) if pid in pids(found[0])], signal.SIGCONT)

        return back

    def disk_full(self, _):
        ballast = self.lab.data_dir / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                if file.write(bytes(1 << 20)) < 1 << 20:
                    file.write(bytes(4096))
        return lambda: ballast.unlink(missing_ok=True)

    def engine_restart(self, _):
        engine = ROOT / "scripts" / "engine.sh"
        if "started by this script" not in run(engine, "status", check=False).stdout:
            return False  # whose it is knows how to start it; we do not
        run(engine, "stop")
        run(engine, "start")

    def clock(self, fault):
        with open(self.lab.clock, "a") as clock:
            clock.write(f"{int(time.time() * 1000)} {int(fault.target) * 1000}\n")

    def do(self, fault):
        return getattr(self, fault.kind.replace("-", "_"))(fault)


# ---- what must be true all the time ----


class Watch:
    """Looks at the job's attempts, its driver processes and its run's newest checkpoint, and remembers what must not be."""

    def __init__(self, lab, job):
        self.lab, self.job = lab, job
        self.problems, self.newest, self.drivers = [], None, set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.keep, daemon=True)

    def keep(self):
        while not self.over.wait(1):
            try:
                if snapshot := self.lab.snapshot():
                    self.see(snapshot)
                self.count_drivers()
            except (AssertionError, OSError, subprocess.SubprocessError, ValueError):
                pass  # the engine or labd is being tormented; the next look counts

    def wrong(self, text):
        if text not in self.problems:
            self.problems.append(text)

    def see(self, snapshot):
        running = [j["submission_id"] for j in attempts(snapshot, self.job) if j["status"] == "RUNNING" and not j["outcome"]]
        if len(running) > 1:
            self.wrong(f"the ledger shows attempts running at once: {', '.join(running)}")
        found = run_of(snapshot, self.job)
        if found is None or found["looked_at"] is None:
            return
        name = found["checkpoint"] and found["checkpoint"]["name"]
        if self.newest and (name or "") < self.newest:
            self.wrong(f"the newest checkpoint went back from {self.newest} to {name}")
        self.newest = max(self.newest or "", name or "") or None

    def count_drivers(self):
        """Driver processes that live; two in two looks are two at once, not one that makes place for the next."""
        live = set()
        for service in ("ray-driver", "ray-head"):
            top = docker("top", self.lab.container(service), "-eo", "pid,stat,args", check=False).stdout
            live |= {line.split()[0] for line in top.splitlines()
                     if re.match(rf"\s*\d+ [^ZT]\S* +\S*python\S* +chaos_job\.py {self.job} ", line)}
        both = self.drivers & live
        if len(both) > 1:
            self.wrong(f"{len(both)} drivers of the job ran at once")
        self.drivers = live


def attempts(snapshot, job):
    found = [j for j in snapshot["jobs"] if job in (j["submission_id"], j["resubmission_of"])]
    return sorted(found, key=lambda j: j["attempt"] or 0)


def run_of(snapshot, job):
    found = [r for r in snapshot["runs"] if r["name"].rpartition("/")[2] == job]
    return found[0] if found else None


def unready(snapshot):
    return {s["name"]: s["state"] for s in snapshot["services"] if s["state"] not in ("ready", "off")}


# ---- the whole ----


def s3(lab, code, *argv):
    """Runs `code` with a boto3 client `s3` inside the Jupyter container: the store as a user reaches it."""
    return lab.exec("jupyter", "/opt/ray/bin/python", "-c", "import boto3, json, sys\ns3 = boto3.client('s3')\n" + code, *argv).stdout


STATE = """
found = {}
for page in s3.get_paginator('list_objects_v2').paginate(Bucket='ray', Prefix=sys.argv[1] + '/'):
    for o in page.get('Contents', []):
        parts = o['Key'].split('/')
        if parts[-1] == 'state.json':
            found[parts[-2]] = o['Key']
name = max(found)
state = json.loads(s3.get_object(Bucket='ray', Key=found[name])['Body'].read())
print(json.dumps({'checkpoint': name, 'state': state}))
"""


# What Ray itself has: which nodes, and who holds the GPUs.
ASK_RAY = (
    ("ray", "status", "-v"),
    ("ray", "list", "placement-groups", "--detail"),
    ("ray", "list", "actors", "--filter", "state!=DEAD", "--detail"),
)


class Chaos:
    def __init__(self, seed, count, kinds, say, name="labdchaos", subnet="198.18.248.0/24"):
        self.seed, self.count, self.kinds, self.say = seed, count, kinds, say
        self.job = f"chaos-{seed}"
        self.lab = ChaosLab(name, subnet)
        self.faults = Faults(self.lab)
        self.done, self.problems, self.undo = [], [], []

    def run(self):
        """The verdict, as --json prints it."""
        self.began = time.monotonic()
        verdict = {"seed": self.seed, "job": style(self.seed)}
        try:
            self.lab.sweep()
            self.lab.up()
            if not self.lab.small_disk:
                self.say("left out: disk-full, since a small file system could not be mounted here (run as root)")
                self.kinds = [k for k in self.kinds if k != "disk-full"]
            self.submit()
            watch = Watch(self.lab, self.job)
            watch.thread.start()
            try:
                self.torment(plan(self.seed, self.count, self.kinds))
                verdict |= self.finish(watch)
            except AssertionError as error:
                self.problems.append(str(error))
            watch.over.set()
            watch.thread.join(60)
            self.problems += watch.problems
            if self.problems:
                self.tell_more()
        finally:
            self.lab.down()
        seconds = round(time.monotonic() - self.began, 1)
        return verdict | {"seconds": seconds, "faults": self.done, "problems": self.problems, "ok": not self.problems}

    def at(self):
        return round(time.monotonic() - self.began, 1)

    def submit(self):
        target = self.lab.data_dir / "workspace" / "chaos"
        target.mkdir(parents=True)
        shutil.copy(JOB, target)
        self.lab.exec("jupyter", "ray", "job", "submit", "--no-wait", "--submission-id", self.job, "--working-dir", "/workspace/chaos",
                      "--", "python", "chaos_job.py", self.job, style(self.seed))
        self.progress("", 90)

    def newest(self):
        found = run_of(self.lab.snapshot() or {"runs": []}, self.job)
        return (found and found["checkpoint"] and found["checkpoint"]["name"]) or ""

    def progress(self, since, seconds):
        """Waits for a checkpoint newer than `since`."""
        wait_for("the job trains", lambda: self.newest() > since, seconds, every=0.5)

    def well(self):
        """Waits until everything is ready, and returns that snapshot."""
        last = {}

        def all_ready():
            snapshot = self.lab.snapshot()
            last.update(services=unready(snapshot) if snapshot else "labd does not answer")
            if same := self.faults.unnoticed():
                last.update(services=f"{', '.join(same)}: killed or frozen, and not started again")
            return not last["services"] and snapshot

        try:
            return wait_for("all services ready", all_ready, RECOVERS_WITHIN_S, every=0.5)
        except AssertionError:
            raise AssertionError(f"not well again within {RECOVERS_WITHIN_S} s: {last['services']}") from None

    def recovered(self):
        """Waits until everything is ready and the job trains; how long that took, in seconds."""
        began = time.monotonic()
        self.well()
        try:
            self.progress(self.newest(), RECOVERS_WITHIN_S)
        except AssertionError:
            shown = attempts(self.lab.snapshot() or {"jobs": []}, self.job)
            last = shown[-1] if shown else None
            raise AssertionError(f"all services are ready, but the job does not train: {last}") from None
        return round(time.monotonic() - began, 1)

    def torment(self, faults):
        for number, fault in enumerate(faults, 1):
            record = {"number": number, "at": self.at(), "fault": str(fault)}
            self.done.append(record)
            self.say(f"{record['at']:7.1f} s  {number}/{len(faults)}  {fault}")
            undo = self.faults.do(fault)
            if undo is False:
                record["struck"] = False
                self.say("           nothing there to strike")
            elif undo:
                timer = threading.Timer(fault.seconds, undo)
                timer.start()
                self.undo.append(timer)
            if fault.pause is None or number == len(faults):
                self.end_faults()
                record["recovered_after"] = self.recovered()
                self.say(f"           well again, and trains, after {record['recovered_after']} s more")
            else:
                time.sleep(fault.pause)  # the fault's own part: chosen by the seed

    def end_faults(self):
        for timer in self.undo:
            timer.join()
        self.undo.clear()

    def finish(self, watch):
        """Names the last step, waits for the job's end, and reads what is there."""
        reached = json.loads(s3(self.lab, STATE, self.job))["state"]["steps"][-1]
        last = reached + 5
        s3(self.lab, "s3.put_object(Bucket='ray', Key=f'chaos/{sys.argv[1]}.last', Body=sys.argv[2].encode())", self.job, str(last))

        def ended():
            shown = attempts(self.lab.snapshot() or {"jobs": []}, self.job)
            return shown if shown and shown[-1]["outcome"] and not shown[-1]["resubmitted_as"] else None

        shown = wait_for("the job ends", ended, 120, every=0.5)
        if shown[-1]["outcome"] != "succeeded":
            self.problems.append(f"the job's last attempt did not succeed: {shown[-1]}")
        found = json.loads(s3(self.lab, STATE, self.job))
        self.problems += wrong_state(found["state"], last)
        if watch.newest and found["checkpoint"] < watch.newest:
            self.problems.append(f"the newest checkpoint is {found['checkpoint']}, and was {watch.newest}")
        snapshot = self.well()
        orphans = sorted(set(self.lab.ids()) - {s["name"] for s in snapshot["services"]})
        if orphans:
            self.problems.append(f"containers that are not in the plan: {', '.join(orphans)}")
        return {"steps": last, "starts": len(found["state"]["starts"]), "attempts": len(shown)}

    def tell_more(self):
        """What a person needs to find the cause: the lab is gone afterwards."""
        for what, argv in (("status", ["status"]), ("events", ["events", "-n", "60"])):
            self.say(f"--- labd {what} ---\n{self.lab.labd(*argv, check=False).stdout}")
        snapshot = self.lab.snapshot()
        for attempt in attempts(snapshot, self.job)[-2:] if snapshot else []:
            self.say(f"--- {attempt} ---")
            with contextlib.suppress(Exception):
                self.say(self.lab.logs(attempt["submission_id"])[-3000:])
        for argv in ASK_RAY:
            with contextlib.suppress(Exception):
                self.say(f"--- {' '.join(argv)} ---\n{self.lab.exec('ray-driver', *argv, check=False).stdout[-6000:]}")


def wrong_state(state, last):
    """What is wrong with the last checkpoint's state, one line each. Pure."""
    wrong, counts = [], collections.Counter(state["steps"])
    if twice := sorted(s for s, n in counts.items() if n > 1):
        wrong.append(f"steps done more than once: {twice}")
    if missing := sorted(set(range(1, last + 1)) - set(counts)):
        wrong.append(f"steps that are missing: {missing}")
    if beyond := sorted(s for s in counts if not 1 <= s <= last):
        wrong.append(f"steps that nobody asked for: {beyond}")
    sources = [s["from"] or "" for s in state["starts"]]
    if back := [(a, b) for a, b in itertools.pairwise(sources) if b < a]:
        wrong.append(f"a start went back from {back[0][0]} to {back[0][1]}")
    return wrong


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("-n", type=int, default=50, help="how many faults (default: 50)")
    args.add_argument("--seed", type=int, default=None, help="default: another one each time")
    args.add_argument("--engine-restart", action="store_true", help="restart the engine, too: only where nobody else uses it")
    args.add_argument("--clock", action="store_true", help="set labd's wall clock, too: for a labd that was built with the feature "
                      "test-clock")
    args.add_argument("--only", help="only these kinds of faults, with commas between them: " + ", ".join(WEIGHTS))
    args.add_argument("--json", action="store_true")
    args = args.parse_args()
    seed = random.randrange(1 << 31) if args.seed is None else args.seed
    left_out = SPECIAL - ({"engine-restart"} if args.engine_restart else set()) - ({"clock"} if args.clock else set())
    kinds = args.only.split(",") if args.only else [k for k in WEIGHTS if k not in left_out]
    if unknown := set(kinds) - set(WEIGHTS):
        sys.exit(f"chaos: no such fault: {', '.join(sorted(unknown))}; there are {', '.join(WEIGHTS)}")
    if "clock" in kinds and b"LABD_TEST_CLOCK" not in pathlib.Path(labd_binary()).read_bytes():
        sys.exit(f"chaos: {labd_binary()} was built without the feature `test-clock`, so --clock does nothing; `make chaos` builds one "
                 "with it")
    say = lambda line: print(line, file=sys.stderr if args.json else sys.stdout, flush=True)
    # Ended by a supervisor of tests: the lab is taken down all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say(f"seed {seed}: {args.n} faults, a {style(seed)} job")
    verdict = Chaos(seed, args.n, kinds, say).run()
    if args.json:
        print(json.dumps(verdict))
    elif verdict["ok"]:
        print(f"fine: {verdict['steps']} steps, each once; {verdict['starts']} starts of the loop in {verdict['attempts']} attempts of "
              f"the job; {verdict['seconds']:.0f} s")
    else:
        print(*(f"WRONG: {problem}" for problem in verdict["problems"]), f"again: tests/harness/chaos.py -n {args.n} --seed {seed}", sep="\n")
    sys.exit(0 if verdict["ok"] else 1)


if __name__ == "__main__":
    main()
