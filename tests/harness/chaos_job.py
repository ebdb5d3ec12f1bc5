"""The job that tests/harness/chaos.py torments: its checkpoint holds every step done, and where each start of the loop began.

It trains until the S3 object `chaos/<job>.last` says which step is the last one.

    python chaos_job.py <job> named    # its run has a name, and every failure is allowed
    python chaos_job.py <job> plain    # as a student has it: no name, no failure allowed
"""
import json
import os
import sys
import tempfile
import time

import boto3
import botocore
import ray.train
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

SECONDS_PER_STEP = 0.5


def last_step(store, job):
    """The number of the last step, once somebody has said it; a store that does not answer has not."""
    try:
        return int(store.get_object(Bucket="ray", Key=f"chaos/{job}.last")["Body"].read())
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
        return None


def loop(config):
    patience = botocore.config.Config(connect_timeout=1, read_timeout=2, retries={"max_attempts": 1})
    store = boto3.client("s3", config=patience)
    state, source = {"steps": [], "starts": []}, None
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        source = os.path.basename(checkpoint.path)
        with checkpoint.as_directory() as folder, open(os.path.join(folder, "state.json")) as file:
            state = json.load(file)
    step = state["steps"][-1] if state["steps"] else 0
    state["starts"].append({"at": round(time.time(), 1), "after_step": step, "from": source})
    print(f"start {len(state['starts'])} after step {step} from {source}", flush=True)
    while (last := last_step(store, config["job"])) is None or step < last:
        time.sleep(SECONDS_PER_STEP)  # stands for real work on the GPU
        step += 1
        state["steps"].append(step)
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "state.json"), "w") as file:
                json.dump(state, file)
            ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(folder))
        print(f"step {step}", flush=True)


def main():
    job, style = sys.argv[1:]
    named = {"name": job, "failure_config": FailureConfig(max_failures=-1)} if style == "named" else {}
    DataParallelTrainer(
        loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=1, use_gpu=True),
        run_config=RunConfig(storage_path="s3://ray", **named),
    ).fit()


if __name__ == "__main__":
    main()
