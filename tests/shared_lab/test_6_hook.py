"""Tune in jobs: sweeps that resume, sweeps that begin again, and a trainer that Tune refuses."""
import json
import re

import pytest

from harness.lab import wait_for

# A sweep as many write it: named, in the S3 store, and begun again by each run of its script.
FORGETFUL = """
import time
from ray import tune
def trial(config):
    time.sleep(900)
trial = tune.with_resources(trial, {"cpu": 1})
tune.Tuner(trial, run_config=tune.RunConfig(name="forgetful", storage_path="s3://ray")).fit()
"""

# A trainer handed to a Tuner, as scripts for older Rays do.
REFUSED = """
from ray import tune
from ray.train import ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
tune.Tuner(DataParallelTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=1))).fit()
"""

# What Tune has saved of its trials: how many epochs each reported, and which have ended.
SAVED = """
import json, sys
from pyarrow import fs
store, path = fs.FileSystem.from_uri("s3://ray/" + sys.argv[1])
states = [f.path for f in store.get_file_info(fs.FileSelector(path)) if "/experiment_state-" in f.path]
with store.open_input_stream(max(states)) as file:
    trials = [json.loads(trial) for trial, _ in json.loads(file.read())["trial_data"]]
print(json.dumps({trial["trial_id"]: trial["status"] for trial in trials}))
"""


def saved(lab, name):
    done = lab.exec("jupyter", "python", "-c", SAVED, name, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def begun(lab, job):
    """Trial -> the epoch it began at."""
    return {trial: int(epoch) for trial, epoch in re.findall(r"trial (\w+) begins at epoch (\d+)", lab.logs(job))}


def note(lab, run):
    found = lab.run(run, lambda run: run["status"] == "RUNNING")
    return found and (found["note"] or "nothing")


@pytest.mark.root
@pytest.mark.slow
def test_a_lost_sweep_resumes_if_its_script_restores_it_and_status_tells_which_does_not(lab):
    lab.wait_ready()
    # Ray shows one of several like lines unless told otherwise.
    often = ["--runtime-env-json", json.dumps({"env_vars": {"TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_DEDUP_LOGS": "0"}})]
    lab.submit("sweep", "python", "tune.py", "--name", "sweep", "--trials", "8", "--epochs", "20", "--seconds-per-epoch", "0.5", options=often)
    lab.submit("forgetful", "python", "-c", FORGETFUL)
    wait_for("labd sees the sweep that would not resume", lambda: "would begin again" in (note(lab, "forgetful") or ""), 120, every=0.5)
    wait_for("labd sees the sweep that would", lambda: note(lab, "sweep") == "nothing", 90, every=0.5)
    assert "a Tune sweep that would begin again after a failure" in " ".join(lab.labd("status").stdout.split())

    ended = wait_for("a trial has ended", lambda: [t for t, status in saved(lab, "sweep").items() if status == "TERMINATED"], 90, every=0.5)
    lab.sigkill("ray-driver")
    wait_for("both are run again", lambda: lab.job("sweep-r1") and lab.job("forgetful-r1"), 60, every=0.3)
    again = wait_for("the other sweep began again", lambda: "again in attempt 2" in (note(lab, "forgetful") or "") and lab.logs("forgetful-r1"), 120, every=0.5)
    assert "labd: attempt 2 of this job begins its Tune sweep again" in again
    lab.stop_job("forgetful-r1")

    logs = lab.wait_job("sweep-r1", seconds=240)
    assert "resuming the search of s3://ray/sweep" in logs and "best rate" in logs
    assert len(re.findall(r"^rate .* epochs$", logs, re.M)) == 8, "the ended trials' results are among all"
    before, after = begun(lab, "sweep"), begun(lab, "sweep-r1")
    assert set(ended) <= set(before) and len(set(before) | set(after)) == 8
    assert not set(ended) & set(after), "no trial that had ended is run again"
    assert any(epoch > 1 for epoch in after.values()), "one that had not resumes from its checkpoint"
    run = wait_for("its end is seen", lambda: lab.run("sweep", lambda run: run["status"] == "FINISHED"), 90, every=0.5)
    assert (run["submission_id"], run["attempts"], run["note"]) == ("sweep-r1", 2, None)
    lab.wait_ready()


def test_a_trainer_handed_to_a_tuner_gets_a_hint_beside_rays_own_error(lab):
    lab.submit("refused", "python", "-c", REFUSED)
    logs = lab.wait_job("refused", "FAILED")
    assert "Improper 'run'" in logs
    assert logs.count("labd: Tuner(DataParallelTrainer(...)) does not work with Ray Train V2") == 1
    assert '"env_vars": {"RAY_TRAIN_V2_ENABLED": "0"}' in logs
