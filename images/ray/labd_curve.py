"""What a run reports to Ray Train, told to labd: a job's training curve.

labd's hook adds a `Curve` to the callbacks of a job's runs, in the slot that Ray keeps for `RAY_TRAIN_CALLBACKS`; nothing in
the script asks for it. In the run's controller it hears each report and each worker group that begins or ends, and puts that
into a buffer; a thread posts what is new to labd's front door, at most once a second. Reports stay in the buffer until labd
says that they are on its disk, so that a labd that is away, or is killed, loses nothing that fits. Training never waits for any
of it, nor fails by it: what does not fit is dropped and counted. Only at the end of a run are the last reports waited for, for
two seconds at most.

Numbers only, of the worker of rank 0, and at most 16 names.
"""
import collections
import contextlib
import json
import math
import numbers
import os
import threading
import time

from ray.train.v2._internal.execution.callback import ControllerCallback, ReportCallback, WorkerGroupCallback

FRONT_DOOR = "http://front-door:8265/labd/reports"
POST_SECONDS = 1.0
AWAY_SECONDS = 10.0  # the longest pause while labd does not answer
ANSWER_SECONDS = 5.0
LAST_WORDS_SECONDS = 2.0
KEPT = 4000  # reports that labd has not on its disk: as many as it keeps of a whole run, and some MB
AT_ONCE = 400  # reports in one post
GROUPS = 64  # worker groups that are remembered
METRICS, NAME = 16, 64  # as in src/training/report.rs
WHY = 300


class Curve(ControllerCallback, ReportCallback, WorkerGroupCallback):
    """`job` says whose run it is: root, submitted, submission, attempt. Made in the driver and sent to the controller."""

    def __init__(self, job, url=FRONT_DOOR):
        self.job, self.url = job, url
        self.sender = None
        self.group = 0

    def after_controller_start(self, train_run_context):
        with contextlib.suppress(Exception):
            run = {"run": str(train_run_context.run_config.name), "run_id": str(train_run_context.run_id)}
            self.sender = Sender({**self.job, **run}, self.url)

    def after_worker_group_training_start(self, worker_group):
        with contextlib.suppress(Exception):
            self.group += 1
            nodes = set()
            with contextlib.suppress(Exception):
                nodes = {str(worker.metadata.node_ip) for worker in worker_group.get_workers()}
            self.sender.group_began(self.group, nodes)

    def after_worker_group_poll_status(self, worker_group_status):
        with contextlib.suppress(Exception):
            if errors := worker_group_status.errors:
                self.sender.group_ended(self.group, essence(errors[min(errors)]))

    def before_worker_group_shutdown(self, worker_group):
        self.group_is_over()

    def before_worker_group_abort(self, worker_group_context):
        self.group_is_over()

    def group_is_over(self):
        with contextlib.suppress(Exception):
            self.sender.group_ended(self.group, None)

    def after_report(self, training_report, metrics):
        with contextlib.suppress(Exception):
            self.sender.report(self.group, training_report.metrics, checkpoint_name(training_report.checkpoint))

    async def before_controller_shutdown(self):
        import asyncio

        with contextlib.suppress(Exception):
            self.sender.hurry()
            until = time.monotonic() + LAST_WORDS_SECONDS
            while not self.sender.is_posted() and time.monotonic() < until:
                await asyncio.sleep(0.02)


def essence(error):
    """The line of an error that says what happened: the last one, as Ray's own list of runs has it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[-1].split()) if lines else ""
    name = type(error).__name__
    return (text if name.startswith("Ray") or name.startswith("Actor") else f"{name}: {text}")[:WHY] or name


def checkpoint_name(checkpoint):
    return os.path.basename(str(checkpoint.path).rstrip("/")) if checkpoint is not None else None


def number_of(value):
    """A finite number, None for one that is not, and ValueError for what is no number at all."""
    if isinstance(value, (bool, str, bytes)):
        raise ValueError
    if not isinstance(value, numbers.Real):
        value = value.item()  # of NumPy or Torch, and of one element
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError
    value = float(value)
    return value if math.isfinite(value) else None


def now_ms():
    return int(time.time() * 1000)


class Sender:
    """What labd has not on its disk, and the thread that posts it."""

    def __init__(self, run, url, every=POST_SECONDS, kept=KEPT):
        self.run, self.url, self.every, self.kept = run, url, every, kept
        self.lock = threading.Lock()
        self.names = []
        self.points = collections.deque()  # (number, time, group, checkpoint, values)
        self.groups = {}
        self.unposted = set()  # numbers of groups
        self.seq = self.posted = self.stored = self.dropped = 0
        self.labd = None
        self.news, self.hurried = threading.Event(), threading.Event()
        self.thread = None

    # ---- in Ray's thread: nothing here waits ----

    def report(self, group, metrics, checkpoint):
        values = {}
        for name, value in (metrics or {}).items():
            name = " ".join(str(name).split())[:NAME].strip()
            with contextlib.suppress(Exception):
                if name:
                    values[name] = number_of(value)
        with self.lock:
            for name in values:
                if name not in self.names and len(self.names) < METRICS:
                    self.names.append(name)
            self.seq += 1
            self.points.append((self.seq, now_ms(), group, checkpoint, [values.get(name) for name in self.names]))
            if len(self.points) > self.kept and self.points.popleft()[0] > self.posted:
                self.dropped += 1
        self.tell()

    def group_began(self, number, nodes):
        with self.lock:
            nodes = sorted(nodes)[:GROUPS]
            self.groups[number] = {"group": number, "began": now_ms(), "ended": None, "why": None, "nodes": nodes}
            self.unposted.add(number)
            for old in sorted(self.groups)[:-GROUPS]:
                del self.groups[old]
                self.unposted.discard(old)
        self.tell()

    def group_ended(self, number, why):
        with self.lock:
            group = self.groups.get(number)
            if group is None or group["ended"] is not None:
                return
            self.groups[number] = {**group, "ended": now_ms(), "why": why}
            self.unposted.add(number)
        self.tell()

    def tell(self):
        self.news.set()
        if self.thread is None:
            self.thread = threading.Thread(target=self.post_all, name="labd-curve", daemon=True)
            self.thread.start()

    def hurry(self):
        """Posts what is left without the pause between two posts."""
        self.hurried.set()

    def is_posted(self):
        with self.lock:
            return not self.unposted and self.posted >= self.seq

    # ---- in the thread ----

    def post_all(self):
        missed = 0
        while True:
            self.news.wait()
            self.news.clear()
            while (batch := self.batch()) is not None:
                missed = 0 if self.post(batch) else missed + 1
                self.pause(min(self.every * 2**min(missed, 10), AWAY_SECONDS) if missed else self.every)

    def pause(self, seconds):
        if not self.hurried.wait(seconds):
            return
        time.sleep(min(seconds, 0.05))  # at the end: at once, and not without a breath where labd is away

    def batch(self):
        """What is to be posted now; None where nothing is."""
        with self.lock:
            points = [point for point in self.points if point[0] > self.posted][:AT_ONCE]
            groups = [self.groups[number] for number in sorted(self.unposted)]
            if not points and not groups:
                return None
            width = len(self.names)
            fields = ("seq", "at", "group", "checkpoint", "values")
            rows = [dict(zip(fields, (*point, values + [None] * (width - len(values))))) for *point, values in points]
            return {**self.run, "names": list(self.names), "points": rows, "groups": groups, "dropped": self.dropped}

    def post(self, batch):
        status, told = send(self.url, batch)
        if status is None or status >= 500 or status in (401, 408, 429):
            with self.lock:
                # What was not stored may be gone with the labd that took it.
                self.posted = self.stored
            return False
        with self.lock:
            self.posted = max([self.posted, *(point["seq"] for point in batch["points"])])
            for group in batch["groups"]:
                if self.groups.get(group["group"]) == group:
                    self.unposted.discard(group["group"])
            if status != 200:
                return True  # labd does not take it, whoever posts it how often
            self.stored = max(self.stored, told.get("stored") or 0)
            if self.labd not in (None, told.get("labd")):
                self.posted = self.stored
                self.unposted.update(self.groups)
            self.labd = told.get("labd")
            while self.points and self.points[0][0] <= self.stored:
                self.points.popleft()
        return True


def send(url, words):
    """The answer's status and content; None where there was none."""
    import urllib.error
    import urllib.request

    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('RAY_AUTH_TOKEN', '')}"}
        request = urllib.request.Request(url, json.dumps(words, allow_nan=False).encode(), headers)
        # A proxy for packages is none for the lab's own names.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=ANSWER_SECONDS) as answer:
            told = json.loads(answer.read(4096) or b"{}")
            return answer.status, told if isinstance(told, dict) else {}
    except urllib.error.HTTPError as error:
        return error.code, {}
    except Exception:
        return None, {}
