"""A training script as a student has it: nothing in it speaks of labd, of a run's name or of failures.

    ray job submit --working-dir samples -- python plain.py

It saves and loads checkpoints, as Ray Train's guide shows. That is enough: labd names the run after its job, and starts
the job again when it was lost to a dead worker, driver or head.
"""
import argparse
import json
import os
import tempfile
import time

import ray
import ray.train
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


def train_loop(config):
    first = 1
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder, open(os.path.join(folder, "state.json")) as file:
            first = json.load(file)["epoch"] + 1
        print(f"resumed at epoch {first} from checkpoint {os.path.basename(checkpoint.path)}", flush=True)
    else:
        print("starting fresh", flush=True)

    where = f"on {ray.util.get_node_ip_address()} gpu {os.environ.get('LABD_GPU_UUID', '?')}"
    for epoch in range(first, config["epochs"] + 1):
        time.sleep(config["seconds_per_epoch"])  # stands for real work on the GPU
        loss = 1 / epoch
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "state.json"), "w") as file:
                json.dump({"epoch": epoch, "loss": loss}, file)
            ray.train.report({"epoch": epoch, "loss": loss}, checkpoint=Checkpoint.from_directory(folder))
        print(f"epoch {epoch}/{config['epochs']} loss {loss:.3f} {where}", flush=True)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--epochs", type=int, default=20)
    args.add_argument("--seconds-per-epoch", type=float, default=0.5)
    args = args.parse_args()

    trainer = DataParallelTrainer(
        train_loop,
        train_loop_config={"epochs": args.epochs, "seconds_per_epoch": args.seconds_per_epoch},
        scaling_config=ScalingConfig(num_workers=1, use_gpu=True),
        run_config=RunConfig(storage_path="s3://ray"),
    )
    print(f"done: {trainer.fit().metrics or 'all epochs were trained before'}", flush=True)


if __name__ == "__main__":
    main()
