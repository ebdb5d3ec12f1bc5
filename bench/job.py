"""A run that says when it trains: `LOOP <seconds since 1970> <node address> <step>` once per step, a checkpoint each time; and once
at its beginning `BEGAN <its worker process> <this function> <checkpoint restored>`, each in seconds since 1970.

It says so in its log and in /tmp of its worker: the way of a log to its reader leads through the head, and may take a minute
to be found again after the head's crash.
"""
import json
import os
import pathlib
import sys
import tempfile
import time

import ray
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


def born():
    """When the kernel made this process."""
    ticks = int(pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    up = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def loop(_):
    began = time.time()
    step, address, name = 0, ray.util.get_node_ip_address(), ray.train.get_context().get_experiment_name()
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            step = json.loads(pathlib.Path(folder, "step.json").read_text())
    print(f"BEGAN {born():.3f} {began:.3f} {time.time():.3f}", flush=True)
    while True:
        line = f"LOOP {time.time():.3f} {address} {step}"
        print(line, flush=True)
        with open(f"/tmp/{name}.steps", "a") as file:
            print(line, file=file)
        time.sleep(0.5)
        step += 1
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "step.json").write_text(json.dumps(step))
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
