"""A course of the shape that real ones have, from JupyterLab, with its packages by runtime.json and its scripts as they are."""
import re
import shutil

import pytest

from harness.lab import ROOT, docker, wait_for

HOME = "/workspace/course"


def submit(lab, job, *command, options=(), wait=False, check=True, timeout=240):
    """As in the course's instructions, in a terminal of JupyterLab."""
    shutil.copytree(ROOT / "samples/course", lab.data_dir / "workspace/course", dirs_exist_ok=True)
    flags = [] if wait else ["--no-wait"]
    return docker("exec", "-w", HOME, lab.container("jupyter"), "ray", "job", "submit", *flags, "--submission-id", job,
                  "--runtime-env", "runtime.json", *options, "--working-dir", ".", "--", *command, check=check, timeout=timeout)


def epochs(log):
    return [int(n) for n in re.findall(r"epoch (\d+)/\d+ loss", log)]


def accuracy(log):
    found = re.findall(r"^.*accuracy ([\d.]+)(?: with .*)?$", log, re.MULTILINE)
    assert found, log[-3000:]
    return float(found[-1])


def followed(lab, job, seconds=240):
    """The run of this job, as labd saw it train and end; the log."""
    wait_for(f"labd shows that {job} trains", lambda: lab.run(job, lambda run: run["status"] == "RUNNING"), seconds, every=0.3)
    log = lab.wait_job(job, seconds=seconds)
    return wait_for(f"labd shows that {job} is trained", lambda: lab.run(job, lambda run: run["status"] == "FINISHED"), 20, every=0.5), log


def test_lightning_alone_and_what_it_waits_for(course_lab):
    """The first submission: its packages are shown while they are installed."""
    lab = course_lab
    submit(lab, "alone", "python", "plain.py", "--epochs", "4", options=["--entrypoint-num-gpus", "1", "--entrypoint-num-cpus", "8"])
    shown = wait_for("the installation is shown", lambda: [i for i in lab.snapshot()["installs"] if i["job"] == "alone"], 90, every=0.3)
    assert shown[0]["node"].startswith("ray-worker-"), shown
    assert "alone" in lab.labd("status").stdout
    log = lab.wait_job("alone", seconds=300)
    assert epochs(log) == [1, 2, 3, 4] and accuracy(log) > 0.25
    assert len(re.findall("labd: simulated GPU: torch runs on the CPU", log)) == 1, log


def test_two_gpus_for_one_process_wait_with_a_reason_and_can_be_stopped(course_lab):
    lab = course_lab
    submit(lab, "greedy", "python", "plain.py", options=["--entrypoint-num-gpus", "2", "--entrypoint-num-cpus", "8"])
    demand = wait_for("labd says why", lambda: [d for d in lab.snapshot()["demands"] if d["infeasible"]], 60, every=0.5)[0]
    assert "2 GPU" in demand["asks_for"] and "1 GPU" in demand["node_has"], demand
    job = wait_for("labd says which job waits", lambda: (j := lab.job("greedy")) and j["waits_for"] and j, 30, every=0.5)
    assert job["status"] == "PENDING" and "2 GPU" in job["waits_for"], job
    assert "greedy" in lab.labd("status").stdout
    lab.stop_job("greedy")
    lab.wait_job("greedy", "STOPPED", 60)
    wait_for("nothing waits", lambda: not lab.snapshot()["demands"], 60, every=0.5)


def test_ray_train_on_one_gpu(course_lab):
    lab = course_lab
    submit(lab, "one", "python", "train.py", "--epochs", "5")
    run, log = followed(lab, "one")
    assert epochs(log) == [1, 2, 3, 4, 5] and accuracy(log) > 0.3
    assert "labd: simulated GPU: torch runs on the CPU" in log and "controller error" not in log
    assert run["submission_id"] == "one" and run["attempts"] == 1 and run["checkpoints"] == 5, run
    assert run["checkpoint"] and run["used_bytes"] > 5 << 20, run


def test_ray_train_on_two_gpus(course_lab):
    lab = course_lab
    submit(lab, "two", "python", "train.py", "--epochs", "3", "--workers", "2", "--batch-size", "16")
    run, log = followed(lab, "two")
    assert epochs(log) == [1, 2, 3] and run["attempts"] == 1
    assert "training worker group of size 2" in log and len(set(re.findall(r"world_rank=(\d)", log))) == 2, log


@pytest.mark.slow
def test_three_jobs_of_half_a_gpu_at_once(course_lab):
    lab, jobs = course_lab, ["third-1", "third-2", "third-3"]
    for job in jobs:
        submit(lab, job, "python", "train.py", "--epochs", "12", "--gpus", "0.5", "--cpus", "4")

    def all_train():
        status = {run["name"]: run["status"] for run in lab.snapshot()["runs"]}
        return all(status.get(job) == "RUNNING" for job in jobs)

    wait_for("all three train at once", all_train, 240, every=0.3)
    for job in jobs:
        log = lab.wait_job(job, seconds=240)
        assert epochs(log)[-1] == 12 and accuracy(log) > 0.4
    assert all(run["status"] == "FINISHED" for run in lab.snapshot()["runs"] if run["name"] in jobs)


@pytest.mark.slow
def test_a_worker_stopped_in_training_costs_an_epoch_and_no_job(course_lab):
    lab = course_lab
    submit(lab, "tough", "python", "train.py", "--epochs", "20", "--max-failures", "2")
    wait_for("it trains", lambda: lab.job("tough") and 3 in epochs(lab.logs("tough")), 240, every=0.3)
    worker, = wait_for("labd says where", lambda: lab.job("tough")["workers"], 30, every=0.3)
    # Its own 40 s would be enough for the rest of the training: Ray lets a node that is stopped finish what it can.
    docker("stop", "-t", "3", lab.container(worker), timeout=90)
    log = lab.wait_job("tough", seconds=300)
    assert lab.service(worker)["state"] == "held"
    resumed = re.search(r"resuming from checkpoint", log)
    assert resumed and set(epochs(log)) == set(range(1, 21)) and len(epochs(log)) <= 22, log[-3000:]
    assert accuracy(log) > 0.5
    run = wait_for("labd shows the run's end", lambda: lab.run("tough", lambda run: run["status"] == "FINISHED"), 20, every=0.5)
    assert run["attempts"] == 2, run
    lab.labd("start", worker)
    lab.wait_ready()


@pytest.mark.slow
def test_tune_with_asha_on_half_gpus(course_lab):
    lab = course_lab
    submit(lab, "search", "python", "tune.py", "--trials", "6", "--epochs", "4")
    log = lab.wait_job("search", seconds=300)
    trials = re.findall(r"rate [\d.]+ accuracy [\d.]+ after (\d+) epochs", log)
    assert len(trials) == 6 and max(map(int, trials)) == 4, trials
    assert min(map(int, trials)) < 4, f"ASHA stopped none early: {trials}"
    assert re.search(r"best rate [\d.]+ accuracy", log)
