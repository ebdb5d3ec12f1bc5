"""A run that says when it trains: `LOOP <seconds since 1970> <node address>` once per step, a checkpoint each time."""
import json
import os
import sys
import tempfile
import time

import ray
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


def loop(_):
    step, address = 0, ray.util.get_node_ip_address()
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            step = json.load(open(os.path.join(folder, "step.json")))
    while True:
        print(f"LOOP {time.time():.3f} {address} {step}", flush=True)
        time.sleep(0.5)
        step += 1
        with tempfile.TemporaryDirectory() as folder:
            json.dump(step, open(os.path.join(folder, "step.json"), "w"))
            ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(folder))


DataParallelTrainer(
    loop,
    scaling_config=ScalingConfig(num_workers=1, use_gpu=True),
    run_config=RunConfig(
        name=sys.argv[1],
        storage_path="s3://ray",
        failure_config=FailureConfig(max_failures=-1),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    ),
).fit()
