"""Memory that runs out inside a container that lives on, what nodes report of packages, and what simulated GPUs show."""
import http.client
import json
import time

import pytest

from harness.lab import docker, wait_for

# Takes memory until the kernel ends it, as the first that it would choose: nothing of Ray's is killed in its place. What it
# waits for first keeps the kill apart from the start of Python.
HOG = "open('/proc/self/oom_score_adj', 'w').write('1000')\nkept = []\nwhile True: kept.append(bytearray(b'x') * (8 << 20))"


def memory_notices(lab, service):
    return [n["text"] for n in lab.snapshot()["notices"] if n["text"].startswith(f"{service}: out of memory")]


def hog(lab, service):
    done = lab.exec(service, "python3", "-c", HOG, check=False)
    assert done.returncode == 137, done


@pytest.mark.root
def test_memory_that_runs_out_in_a_living_container_is_told_with_the_setting_and_a_later_crash_is_not_blamed_on_it(lab):
    lab.wait_ready()
    before = lab.ids()["ray-driver"]
    hog(lab, "ray-driver")
    text, = wait_for("a notice", lambda: memory_notices(lab, "ray-driver"), 20)
    assert "once" in text and "`services.ray-driver.memory`" in text and "(now " in text
    assert lab.ids()["ray-driver"] == before and lab.service("ray-driver")["state"] == "ready", "it lives on"
    told = wait_for("an event", lambda: [e for e in lab.events("ray-driver", 20) if e["what"] == "oom-inside"], 20)
    assert "raise `services.ray-driver.memory`" in told[-1]["reason"] and "lives on" in told[-1]["reason"]
    incident = lab.snapshot()["incidents"][0]
    assert (incident["service"], incident["cause"]) == ("ray-driver", "oom-inside")
    # A second one, after the burst.
    burst = time.monotonic() + 4
    wait_for("the burst is over", lambda: time.monotonic() > burst, 10)
    hog(lab, "ray-driver")
    wait_for("it counts", lambda: any("2 times" in t for t in memory_notices(lab, "ray-driver")), 20)
    # The engine's flag says `out of memory` of whatever ends this container from now on.
    later = time.monotonic() + 6
    wait_for("the kill is long over", lambda: time.monotonic() > later, 10)
    known = lab.snapshot()["incidents"]
    lab.sigkill("ray-driver")

    def died_since():
        ends = [i for i in lab.snapshot()["incidents"] if i["service"] == "ray-driver" and i["cause"] != "oom-inside"]
        return [i for i in ends if i not in known]

    died = wait_for("an incident", died_since, 20)
    lab.wait_ready()
    assert died[0]["cause"] == "exit" and died[0]["why"] == "container exited 137 (SIGKILL)", died[0]
    # What was known outlives labd.
    lab.kill_daemon()
    lab.up()
    wait_for("it is still told", lambda: any("2 times" in t for t in memory_notices(lab, "ray-driver")), 20)


def test_a_job_whose_process_was_killed_for_memory_is_run_once_more_and_then_failed_by_its_own_error(lab):
    lab.wait_ready()
    lab.submit("hungry", "python", "-c", HOG)

    def over():
        jobs = [j for j in lab.snapshot()["jobs"] if "hungry" in (j["submission_id"], j["resubmission_of"])]
        jobs.sort(key=lambda j: j["attempt"])
        return jobs and jobs[-1]["outcome"] and not jobs[-1]["resubmitted_as"] and jobs

    first, second = wait_for("it is over", over, 120, 0.5)
    assert first["outcome"] == "lost" and "out of memory" in first["message"]
    assert second["outcome"] == "failed" and "out of memory" in second["message"]
    for job in (first, second):
        assert "services.ray-driver.memory" in job["message"], job
    lab.wait_ready()


def post(lab, report, token=True):
    url = lab.link("Ray dashboard")
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=60)
    headers = {"Authorization": f"Bearer {lab.ray_token()}"} if token else {}
    connection.request("POST", "/labd/installs", json.dumps(report), headers)
    return connection.getresponse().status


def test_an_installation_is_shown_while_it_is_reported(lab):
    lab.wait_ready()
    report = {"node": "ray-worker-0", "job": "food11", "key": "0a1b", "phase": "installing",
              "since_ms": int(time.time() * 1000) - 42 * 60_000, "bytes": 386 << 20, "packages": 37, "reason": None}
    assert post(lab, report, token=False) == 401
    assert post(lab, {**report, "reason": "x" * (16 << 10)}) == 413
    assert post(lab, report) == 204
    # From inside, as a node does it.
    code = ("import os, sys, urllib.request as u; r = u.Request('http://front-door:8265/labd/installs', sys.argv[1].encode(), "
            "{'Authorization': 'Bearer ' + os.environ['RAY_AUTH_TOKEN']}); print(u.urlopen(r).status)")
    inside = {**report, "node": "ray-worker-1", "job": "\x1b[2Jfood12", "phase": "failed", "reason": "no such\npackage"}
    assert lab.exec("ray-worker-1", "python3", "-c", code, json.dumps(inside)).stdout.strip() == "204"
    shown = lab.snapshot()["installs"]
    assert sorted((i["node"], i["job"], i["phase"], i["packages"]) for i in shown) == [
        ("ray-worker-0", "food11", "installing", 37), ("ray-worker-1", "[2Jfood12", "failed", 37)]
    status = " ".join(lab.labd("status").stdout.split())
    assert "food11: installing 37 packages on ray-worker-0 for 42 min" in status and "386 MiB" in status
    assert any("no such package" in e["reason"] for e in lab.events("ray-worker-1", 20) if e["what"] == "not-installed")
    wait_for("nobody reports it any more", lambda: "installing" not in [i["phase"] for i in lab.snapshot()["installs"]], 40, 0.5)


def test_a_simulated_gpu_shows_what_its_worker_does(lab):
    lab.wait_ready()

    def reading(gpu):
        return next(g["reading"] for g in lab.snapshot()["gpus"] if g["id"] == gpu)

    wait_for("an idle worker is idle", lambda: reading("SIM-1").get("utilisation_percent", 100) <= 25, 60, 0.5)
    busy = "import time; kept = bytearray(b'x') * (300 << 20); end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    idle = reading("SIM-1")["memory_used_bytes"]
    docker("exec", "-d", lab.container("ray-worker-1"), "python3", "-c", busy)
    wait_for("one that works shows it", lambda: reading("SIM-1").get("utilisation_percent", 0) >= 40, 30, 0.5)
    assert reading("SIM-1")["memory_used_bytes"] >= idle + (200 << 20)
    assert "temperature_c" not in reading("SIM-1") and "power_w" not in reading("SIM-1")
    lab.exec("ray-worker-1", "pkill", "-f", "kept = bytearray", check=False)
