"""Jobs people can follow and stop: a waiting client, ids used again, jobs that wait, what Ray could never begin."""
import json
import re
import subprocess

import pytest

from harness.jobs import door, ends, trains
from harness.lab import wait_for

PLAIN = ["python", "plain.py", "--epochs"]


class Client:
    """`ray job submit` as a person leaves it waiting in JupyterLab's terminal, and what it has said so far."""

    def __init__(self, lab, job, *command):
        lab.put_samples()
        self.said = lab.dir / f"{job}.said"
        with open(self.said, "wb") as said:
            self.process = subprocess.Popen(
                ["docker", "exec", lab.container("jupyter"), "ray", "job", "submit", "--submission-id", job,
                 "--working-dir", "/workspace/samples", "--", *command],
                stdout=said, stderr=subprocess.STDOUT)

    def text(self):
        return re.sub(r"\x1b\[[0-9;]*m", "", self.said.read_text(errors="replace"))

    def finish(self, seconds=180):
        return self.process.wait(timeout=seconds), self.text()


@pytest.mark.root
def test_a_waiting_client_goes_on_with_the_next_attempt_and_over_a_heads_restart(lab):
    lab.wait_ready()
    client = Client(lab, "waited", *PLAIN, "40")
    # The client's word, not Ray's: Ray passes a log on once a second, and what a killed node still had is gone with it.
    wait_for("the client shows the training", lambda: "epoch 3/40" in client.text(), 90, every=0.3)
    lab.sigkill("ray-driver")
    trains(lab, "waited-r1", 15)  # it resumes later than where the client was
    lab.sigkill("ray-head")
    code, text = client.finish()
    assert code == 0 and "Job 'waited' succeeded" in text and "Traceback" not in text, text[-3000:]
    assert "labd: waited was lost (ray-driver: " in text and "; waited-r1 continues\n" in text, text[-3000:]
    seen = [int(e) for e in re.findall(r"epoch (\d+)/40", text)]
    assert seen[0] == 1 and seen[-1] == 40, text
    resumed = text[text.index("waited-r1 continues"):]
    seen = [int(e) for e in re.findall(r"epoch (\d+)/40", resumed)]
    assert seen == sorted(set(seen)), f"nothing twice: {seen}"
    # The id that a person knows stands for the job.
    status, told = door(lab, "GET", "/api/jobs/waited")
    told = json.loads(told)
    assert status == 200 and (told["status"], told["submission_id"]) == ("SUCCEEDED", "waited"), told
    assert told["message"].startswith("waited-r1 continues waited"), told
    shown = lab.labd("jobs", "waited").stdout
    assert "SUCCEEDED as waited-r1" in shown and "ray job logs -f waited" in shown, shown
    assert all(len(line) <= 80 for line in shown.splitlines()), shown
    lab.wait_ready()


def test_an_own_error_ends_a_waiting_client_with_1(lab):
    lab.wait_ready()
    code, text = Client(lab, "own-error", "python", "-c", "raise SystemExit('no such data set')").finish(90)
    assert code == 1 and "Job 'own-error' failed" in text, text[-2000:]


def test_an_id_that_is_used_again_at_once_is_its_own_job(lab):
    """Its owner polls, deletes and submits again: neither is it called SUCCEEDED, nor is the old one run again."""
    lab.wait_ready()
    one = lambda command: door(lab, "POST", "/api/jobs/", json.dumps({"entrypoint": command, "submission_id": "again"}).encode())
    assert one("true")[0] == 200
    status = lambda: json.loads(door(lab, "GET", "/api/jobs/again")[1])["status"]
    wait_for("it succeeds", lambda: status() == "SUCCEEDED", 60)
    assert door(lab, "DELETE", "/api/jobs/again")[0] == 200
    assert one("sleep 600")[0] == 200
    wait_for("it runs", lambda: status() == "RUNNING", 60)
    assert lab.job("again")["status"] in ("PENDING", "RUNNING"), "not its namesake's"
    job = wait_for("labd sees it run", lambda: (found := lab.job("again"))["status"] == "RUNNING" and found, 30)
    assert job["outcome"] is None and "a new run, again.2" in job["note"], job
    told = json.loads(door(lab, "GET", "/api/jobs/again")[1])
    assert told["metadata"]["labd.run"] == "again.2"
    assert "is being stopped" in lab.labd("jobs", "stop", "again").stdout
    ends(lab, "again", "STOPPED")
    assert door(lab, "DELETE", "/api/jobs/again")[0] == 200
    wait_for("it is forgotten", lambda: lab.job("again") is None, 30)
    assert not [j for j in lab.snapshot()["jobs"] if j["submission_id"].startswith("again-r")]


def test_a_job_that_waits_for_resources_says_so_and_is_stopped(lab):
    lab.wait_ready()
    body = {"entrypoint": "true", "submission_id": "lr 0.01, waits for more than there is", "entrypoint_num_gpus": 9}
    job = body["submission_id"]
    assert door(lab, "POST", "/api/jobs/", json.dumps(body).encode())[0] == 200
    wait_for("it says why", lambda: "which no node has" in (lab.job(job)["waits_for"] or ""), 60)
    shown = lab.labd("status").stdout
    assert job in shown and "9 GPU, which no node has" in " ".join(shown.split()), shown
    assert all(len(line) <= 80 for line in shown.splitlines()), shown
    # `ray job stop` waits for the end itself.
    done = lab.exec("jupyter", "ray", "job", "stop", job.replace(" ", "%20"), timeout=40)
    assert "was stopped" in done.stdout + done.stderr
    wait_for("the ledger knows", lambda: lab.job(job)["outcome"] == "stopped", 20)
    path = "/api/jobs/" + job.replace(" ", "%20")
    told = json.loads(door(lab, "GET", path)[1])
    assert told["status"] == "STOPPED" and told["error_type"] is None, told
    done = lab.labd("jobs", "no-such-job", check=False)
    assert done.returncode == 6 and "no job" in done.stderr and len(done.stderr.splitlines()) == 1


def test_what_ray_could_never_begin_is_refused_at_once(lab):
    lab.wait_ready()
    before = len(lab.snapshot()["jobs"])
    for extra, code in [
        ({"submission_id": "a/b"}, 400), ({"submission_id": "x" * 300}, 400), ({"submission_id": "a\u202eb"}, 400),
        ({"runtime_env": {"env_vars": {"SECRET": "hunter2" * 30_000}}}, 400),
        ({"metadata": {"a": "b" * (1 << 20)}}, 413),
    ]:
        status, text = door(lab, "POST", "/api/jobs/", json.dumps({"entrypoint": "true", **extra}).encode())
        assert status == code and len(text.splitlines()) == 1 and "must" in text and "hunter2" not in text, text[:300]
    assert len(lab.snapshot()["jobs"]) == before
    # The largest that is taken does begin.
    body = {"entrypoint": "test ${#LARGE} = 100000", "submission_id": "large-environment",
            "runtime_env": {"env_vars": {"LARGE": "x" * 100_000}}, "metadata": {"a": "b" * 20_000}}
    assert door(lab, "POST", "/api/jobs/", json.dumps(body).encode())[0] == 200
    ends(lab, "large-environment")
