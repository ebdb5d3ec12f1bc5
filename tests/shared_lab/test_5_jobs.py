"""Jobs come through labd's front door, and what is lost to infrastructure is run again."""
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import urllib.error
import urllib.request

import pytest

from harness.jobs import door, ends, epochs, trains
from harness.lab import docker, wait_for

pytestmark = pytest.mark.root

PLAIN = ["python", "plain.py", "--epochs"]


def test_an_unmodified_script_resumes_when_its_worker_is_killed(lab):
    """No run name, no failure allowed: Ray calls it a user's error."""
    lab.wait_ready()
    lab.submit("plain", *PLAIN, "24")
    trains(lab, "plain", 5)
    lab.sigkill(lab.worker_of("plain"))
    first, second = ends(lab, "plain")
    assert first["outcome"] == "lost" and first["resubmitted_as"] == second["submission_id"] == "plain-r1"
    assert "container exited 137 (SIGKILL)" in first["message"]
    assert re.search(r"resumed at epoch ([5-9]|1\d|2[0-4])\b", lab.logs("plain-r1"))
    assert set(epochs(lab, "plain")) == set(range(1, 25))
    text = lab.labd("status").stdout
    assert "resubmitted as plain-r1" in " ".join(text.split())
    assert any("plain: lost" in e["reason"] for e in lab.events() if e["kind"] == "job")
    lab.wait_ready()


@pytest.mark.slow
def test_a_worker_that_is_restarted_by_hand_takes_no_run_along(lab):
    """Ray lets it train on for 30 s, then elsewhere: by its own rule, also where no failure is allowed."""
    lab.wait_ready()
    lab.submit("moved", *PLAIN, "90")
    trains(lab, "moved", 4)
    worker = lab.worker_of("moved")
    lab.labd("restart", worker)
    wait_for("it is stopped", lambda: lab.service(worker)["state"] == "stopping", 20)
    all_of_it = ends(lab, "moved")
    assert set(epochs(lab, "moved")) == set(range(1, 91)) and len(all_of_it) <= 2
    assert "resumed at epoch" in lab.logs(all_of_it[-1]["submission_id"])
    lab.wait_ready()
    told = lambda words: any(words in e["reason"] for e in lab.events(worker, 20) if e["kind"] == "incident")
    for words in ("restarted by hand; running again after", f"after {worker} was restarted by hand"):
        wait_for(words, lambda words=words: told(words), 10, 0.5)


def test_a_hurried_docker_stop_is_not_the_scripts_error(lab):
    """Ray has no time to move the run and calls it failed; the worker stays stopped, and nothing has died."""
    lab.wait_ready()
    lab.submit("hurried", *PLAIN, "30")
    trains(lab, "hurried", 4)
    worker = lab.worker_of("hurried")
    before = lab.snapshot()["incidents"]
    docker("stop", "--time", "1", lab.container(worker))
    first, second = ends(lab, "hurried")
    assert first["outcome"] == "lost" and f"{worker}: stopped by hand (docker stop)" in first["message"]
    assert "resumed at epoch" in lab.logs(second["submission_id"]) and set(epochs(lab, "hurried")) == set(range(1, 31))
    assert lab.service(worker)["state"] == "held" and lab.snapshot()["incidents"] == before
    lab.labd("start", worker)
    lab.wait_ready()


def test_a_killed_driver_node_costs_no_more_than_the_last_step(lab):
    lab.wait_ready()
    lab.submit("driverless", *PLAIN, "24")
    trains(lab, "driverless", 4)
    lab.sigkill("ray-driver")
    first, second = ends(lab, "driverless")
    assert first["outcome"] == "lost" and "ray-driver" in first["message"]
    assert "resumed at epoch" in lab.logs(second["submission_id"])
    assert set(epochs(lab, "driverless")) == set(range(1, 25))
    lab.wait_ready()


def test_a_killed_head_costs_no_step_at_all(lab):
    lab.wait_ready()
    lab.submit("headless", "python", "train.py", "--name", "headless", "--epochs", "30", "--seconds-per-epoch", "0.3")
    trains(lab, "headless", 4)
    lab.sigkill("ray-head")
    only, = ends(lab, "headless")
    assert only["outcome"] == "succeeded"
    # What a worker prints while the head is away is lost, what it prints later is not.
    seen = epochs(lab, "headless")
    assert seen == sorted(set(seen)) and seen[-1] == 30, f"no step twice: {seen}"
    assert "resumed" not in lab.logs("headless")


# Has an actor on each GPU say whether the uploaded files are there, once it is told to go on.
LATER = """
import os, time, ray
ray.init(log_to_driver=False)
@ray.remote(num_gpus=1)
class Worker:
    def has_files(self):
        return os.path.exists("train.py")
print("waits")
while not os.path.exists("/tmp/go-on"):
    time.sleep(0.2)
workers = [Worker.remote() for _ in range(2)]
print("found", ray.get([worker.has_files.remote() for worker in workers]))
"""


def test_uploaded_files_stay_until_the_last_job_that_uses_them_has_ended_also_when_the_head_died(lab):
    """Ray forgets who uses them when its head dies, and would delete them with the first job that ends."""
    lab.wait_ready()
    lab.submit("later", "python", "-uc", LATER)
    lab.submit("brief", "sh", "-c", "echo waits; while ! test -e /tmp/end; do sleep 0.2; done; python -c 'import ray; ray.init()'")
    for job in ("later", "brief"):
        wait_for("it waits", lambda job=job: (j := lab.job(job)) and j["status"] == "RUNNING" and "waits\n" in lab.logs(job), 60)
    lab.crash("ray-head")
    lab.wait_ready()
    # Ray counts this one as the only one that uses the files.
    lab.exec("ray-driver", "touch", "/tmp/end")
    lab.wait_job("brief")
    lab.crash("ray-worker-0")
    lab.crash("ray-worker-1")
    lab.exec("ray-driver", "touch", "/tmp/go-on")
    only, = ends(lab, "later")
    assert only["outcome"] == "succeeded" and "found [True, True]" in lab.logs("later")


def test_a_power_cut_is_survived_unattended(lab):
    lab.wait_ready()
    lab.submit("unplugged", *PLAIN, "24")
    trains(lab, "unplugged", 4)
    pids = [lab.inspect(service)["State"]["Pid"] for service in lab.ids()]
    lab.kill_daemon()
    # 0 is an ended container's, and a signal to it would be one to ourselves.
    for pid in filter(None, pids):
        os.kill(pid, signal.SIGKILL)
    lab.up()
    *_, last = ends(lab, "unplugged")
    assert last["attempt"] == 2 and "resumed at epoch" in lab.logs(last["submission_id"])
    assert set(epochs(lab, "unplugged")) >= {1, 2, 3, 24}
    lab.wait_ready()


@pytest.mark.slow
def test_a_lab_that_goes_down_takes_no_job_along(lab):
    lab.wait_ready()
    lab.submit("paused", *PLAIN, "16")
    trains(lab, "paused", 4)
    lab.labd("down", timeout=180)
    assert not lab.ids()
    lab.up()
    *_, last = ends(lab, "paused")
    assert last["attempt"] == 2 and "resumed at epoch" in lab.logs(last["submission_id"])
    lab.wait_ready()


def test_a_scripts_own_error_is_its_own(lab):
    lab.wait_ready()
    lab.submit("broken", "python", "-c", "raise SystemExit('no such data set')")
    only, = ends(lab, "broken", "FAILED")
    assert only["outcome"] == "failed" and ("exited 1" in only["message"] or "supervisor" in only["message"])  # Ray misses quick ends


def test_what_must_not_be_repeated_is_not(lab):
    lab.wait_ready()
    lab.submit("once", *PLAIN, "30", options=["--metadata-json", json.dumps({"labd.retry": "never"})])
    trains(lab, "once", 3)
    lab.sigkill(lab.worker_of("once"))
    only, = ends(lab, "once", "FAILED")
    assert only["outcome"] == "lost" and "labd.retry" in only["message"]
    lab.wait_ready()


def test_submissions_are_kept_while_the_head_is_away(lab):
    lab.wait_ready()
    lab.labd("stop", "ray-head")
    wait_for("held", lambda: lab.service("ray-head")["state"] == "held", 60)
    # A read is told when to come again.
    url = lab.link("Ray dashboard")
    request = urllib.request.Request(url + "api/jobs/", headers={"Authorization": f"Bearer {lab.ray_token()}"})
    try:
        urllib.request.urlopen(request, timeout=20)
        raise AssertionError("answered")
    except urllib.error.HTTPError as e:
        assert e.code == 503 and int(e.headers["Retry-After"]) > 0 and b"labd" in e.read()
    # A submission is taken, its code included.
    lab.submit("patient", "python", "train.py", "--name", "patient", "--epochs", "2", "--seconds-per-epoch", "0.1")
    assert lab.job("patient")["status"] == "PENDING" and "kept" in lab.job("patient")["message"]
    lab.kill_daemon()
    lab.up()  # it ends: what waits for a held service is not waited for
    for node in ("ray-driver", "ray-worker-0"):
        row = lab.service(node)
        assert row["state"] == "waiting" and "ray-head" in row["last_reason"], row
    lab.labd("start", "ray-head")
    ends(lab, "patient")
    assert "epoch 2/2" in lab.logs("patient")
    lab.wait_ready()


def test_bad_submissions_are_answered_as_ray_answers_them(lab):
    lab.wait_ready()
    head = lab.inspect("ray-head")["NetworkSettings"]["Ports"]["8265/tcp"][0]["HostPort"]
    for body in (b"{", b"[]", b"{}", b'{"entrypoint": 7}', b'{"entrypoint": "true", "surprise": 1}'):
        status, text = door(lab, "POST", "/api/jobs/", body, {"Content-Type": "application/json"})
        connection = http.client.HTTPConnection("127.0.0.1", int(head), timeout=60)
        connection.request("POST", "/api/jobs/", body, {"Content-Type": "application/json", "Authorization": f"Bearer {lab.ray_token()}"})
        answer = connection.getresponse()
        assert (status, text.splitlines()[-1:]) == (answer.status, answer.read().decode().splitlines()[-1:]), body
        assert status >= 400
    before = len(lab.snapshot()["jobs"])
    status, _ = door(lab, "POST", "/api/jobs/", b'{"entrypoint": "true"}', token=False)
    assert status == 401 and len(lab.snapshot()["jobs"]) == before, "a stranger's is not recorded"
    # The same id twice.
    one = json.dumps({"entrypoint": "true", "submission_id": "twice"}).encode()
    assert door(lab, "POST", "/api/jobs/", one)[0] == 200
    status, text = door(lab, "POST", "/api/jobs/", one)
    assert status == 500 and "already exists" in text


def test_a_large_upload_does_not_grow_labd(lab):
    lab.wait_ready()
    rss = lambda: int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{lab.pid()}/status").read_text())[1])
    before = rss()

    class Zeros:
        left = 2 << 30

        def read(self, n):
            n = min(n, self.left)
            self.left -= n
            return bytes(n)

    with contextlib.suppress(OSError):  # Ray refuses it before it is whole
        door(lab, "PUT", "/api/packages/gcs/_ray_pkg_large.zip", Zeros(), {"Content-Length": str(2 << 30)})
    assert rss() - before < 64 << 10, "KiB"
    wait_for("what Ray refuses is not kept", lambda: not list((lab.data_dir / "packages").glob("*large*")), 20)
    lab.wait_ready()


def test_the_attempt_that_runs_is_the_one_that_is_stopped(lab):
    lab.wait_ready()
    lab.submit("stopped", *PLAIN, "200")
    trains(lab, "stopped", 3)
    lab.sigkill("ray-driver")
    wait_for("it runs again", lambda: (j := lab.job("stopped-r1")) and j["status"] == "RUNNING", 60, every=0.3)
    lab.stop_job("stopped")
    *_, last = ends(lab, "stopped", "STOPPED")
    assert (last["submission_id"], last["outcome"]) == ("stopped-r1", "stopped")
    lab.wait_ready()
