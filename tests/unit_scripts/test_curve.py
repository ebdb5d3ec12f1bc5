"""What tells labd of a run's reports, against a labd that is a few lines. No engine, no Ray needed."""
import asyncio
import http.server
import importlib.util
import itertools
import json
import math
import sys
import threading
import time
import types

import pytest

from harness.lab import ROOT

JOB = {"root": "food11", "submitted": "2026-11-30", "submission": "food11-r1", "attempt": 2}


@pytest.fixture
def module(monkeypatch):
    name = "ray.train.v2._internal.execution.callback"
    for end in range(1, len(name.split(".")) + 1):
        part = ".".join(name.split(".")[:end])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    for base in ("ControllerCallback", "ReportCallback", "WorkerGroupCallback"):
        setattr(sys.modules[name], base, type(base, (), {}))
    spec = importlib.util.spec_from_file_location("labd_curve", ROOT / "images/ray/labd_curve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Labd:
    """What labd's front door says: the posts it took, and answers as they are set."""

    def __init__(self):
        self.posts, self.times, self.heard = [], [], threading.Condition()
        self.status, self.name, self.stores = 200, 1, True
        labd = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                assert self.headers["Authorization"] == "Bearer t0ken"
                post = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with labd.heard:
                    status = labd.status
                    told = {"labd": labd.name, "stored": max([*labd.seqs(), 0]) if labd.stores else 0}
                    labd.times.append(time.monotonic())
                    if status == 200:
                        labd.posts.append(post)
                    labd.heard.notify_all()
                body = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/labd/reports"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def seqs(self):
        return [point["seq"] for post in self.posts for point in post["points"]]

    def until(self, what):
        with self.heard:
            assert self.heard.wait_for(lambda: what(self), 20), (self.posts, self.times)


@pytest.fixture
def labd(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    labd = Labd()
    yield labd
    labd.server.shutdown()
    labd.server.server_close()


def sender(module, labd, **settings):
    return module.Sender({**JOB, "run": "food11", "run_id": "0a"}, labd.url, **{"every": 0.05, **settings})


def test_a_run_is_told_with_its_worker_groups_and_with_numbers_only(module, labd, monkeypatch):
    monkeypatch.setattr(module, "POST_SECONDS", 0.05)
    curve = module.Curve(JOB, labd.url)
    curve.after_controller_start(types.SimpleNamespace(run_config=types.SimpleNamespace(name="food11"), run_id="0a"))
    worker = types.SimpleNamespace(metadata=types.SimpleNamespace(node_ip="198.18.1.20"))
    group = types.SimpleNamespace(get_workers=lambda: [worker, worker])
    curve.after_worker_group_training_start(group)
    tensor = types.SimpleNamespace(item=lambda: 3)
    metrics = {"loss": 0.5, "n": 7, " a \n b ": 1, "nan": math.nan, "inf": -math.inf, "tensor": tensor,
               "words": "1", "yes": True, "list": [1], "none": None}
    checkpoint = types.SimpleNamespace(path="ray/food11/checkpoint_1")
    curve.after_report(types.SimpleNamespace(metrics=metrics, checkpoint=checkpoint), [metrics])
    curve.after_worker_group_poll_status(types.SimpleNamespace(errors={3: ValueError("x"), 1: RuntimeError("a\nNCCL is gone\n")}))
    curve.before_worker_group_shutdown(group)
    curve.after_worker_group_training_start(group)
    curve.after_report(types.SimpleNamespace(metrics={f"m{n}": n for n in range(30)}, checkpoint=None), [])
    asyncio.run(curve.before_controller_shutdown())
    assert labd.posts[0]["root"] == "food11" and labd.posts[0]["run"] == "food11" and labd.posts[0]["attempt"] == 2
    points = [(dict(zip(post["names"], point["values"], strict=True)), point) for post in labd.posts for point in post["points"]]
    values, first = points[0]
    reported = {name: value for name, value in values.items() if name[0] != "m"}
    assert reported == {"loss": 0.5, "n": 7, "a b": 1, "nan": None, "inf": None, "tensor": 3}
    assert (first["group"], first["checkpoint"]) == (1, "checkpoint_1")
    values, second = points[1]
    assert second["group"] == 2 and second["checkpoint"] is None and len(values) == 16 and values["loss"] is None
    groups = {group["group"]: group for post in labd.posts for group in post["groups"]}
    assert groups[1]["why"] == "RuntimeError: NCCL is gone" and groups[1]["ended"] >= groups[1]["began"]
    assert groups[2]["ended"] is None and groups[2]["nodes"] == ["198.18.1.20"]


def test_posts_are_few_and_whatever_is_reported_meanwhile_comes_together(module, labd):
    told = sender(module, labd, every=0.3)
    for n in range(1000):
        told.report(1, {"loss": n}, None)
    labd.until(lambda labd: len(labd.seqs()) == 1000)
    assert labd.seqs() == list(range(1, 1001)) and len(labd.posts) <= 5
    assert all(b - a > 0.25 for a, b in itertools.pairwise(labd.times))


def test_a_labd_that_is_away_loses_nothing_that_fits_and_what_does_not_is_counted(module, labd):
    labd.status = 503
    told = sender(module, labd, kept=100)
    begun = time.monotonic()
    for n in range(150):
        told.report(1, {"loss": n}, None)
    assert time.monotonic() - begun < 1, "nobody waits for labd"
    labd.until(lambda labd: len(labd.times) >= 2)
    labd.status = 200
    labd.until(lambda labd: labd.seqs())
    assert labd.seqs() == list(range(51, 151)) and labd.posts[-1]["dropped"] == 50


def test_what_a_killed_labd_had_not_on_its_disk_is_posted_again(module, labd):
    labd.stores = False
    told = sender(module, labd)
    told.group_began(1, ["198.18.1.20"])
    told.report(1, {"loss": 1}, None)
    labd.until(lambda labd: labd.seqs() == [1])
    told.report(1, {"loss": 2}, None)
    labd.until(lambda labd: labd.seqs() == [1, 2])
    with labd.heard:
        labd.name, labd.posts = 2, []
    told.report(1, {"loss": 3}, None)
    labd.until(lambda labd: labd.seqs()[-3:] == [1, 2, 3])
    assert labd.posts[-1]["groups"][0]["group"] == 1
    # What is on its disk leaves the buffer.
    labd.stores = True
    told.report(1, {"loss": 4}, None)
    told.report(1, {"loss": 5}, None)
    labd.until(lambda labd: labd.seqs()[-1] == 5)
    told.report(1, {"loss": 6}, None)
    labd.until(lambda labd: labd.seqs()[-1] == 6)
    until = time.monotonic() + 20
    while [seq for seq, *_ in told.points][0] <= 4:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_labd_refuses_is_not_posted_forever(module, labd):
    labd.status = 400
    told = sender(module, labd)
    told.report(1, {"loss": 1}, None)
    labd.until(lambda labd: len(labd.times) == 1)
    labd.status = 200
    told.report(1, {"loss": 2}, None)
    labd.until(lambda labd: labd.posts)
    assert labd.seqs() == [2]


def test_nothing_that_ray_says_breaks_a_run_and_the_end_waits_for_two_seconds_at_most(module, labd):
    curve = module.Curve(JOB, "http://127.0.0.1:9/")
    for nonsense in (None, 7, types.SimpleNamespace(metrics=3, checkpoint=4)):
        curve.after_report(nonsense, None)
        curve.after_controller_start(nonsense)
        curve.after_worker_group_training_start(nonsense)
        curve.after_worker_group_poll_status(nonsense)
        curve.before_worker_group_shutdown(nonsense)
        curve.before_worker_group_abort(nonsense)
    curve.after_controller_start(types.SimpleNamespace(run_config=types.SimpleNamespace(name="a"), run_id="1"))
    curve.after_report(types.SimpleNamespace(metrics={"loss": 1}, checkpoint=None), [])
    begun = time.monotonic()
    asyncio.run(curve.before_controller_shutdown())
    assert time.monotonic() - begun < 4
