"""A training job that survives everything: fits a line with numpy, one checkpoint per epoch in the S3 store.

    ray job submit --working-dir samples -- python train.py --name my-run

Kill a worker while it runs: it resumes from its last checkpoint. Start it again with the same --name: so does that.
"""
import argparse
import json
import os
import tempfile
import time

import numpy as np
import ray
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


def say(text):
    print(text, flush=True)  # at once, so that `ray job logs -f` is live


def train_loop(config):
    context = ray.train.get_context()
    first, weights = 1, np.zeros(2)

    checkpoint = ray.train.get_checkpoint()  # None on the very first start
    if checkpoint is None:
        say("starting fresh")
    else:
        with checkpoint.as_directory() as folder, open(os.path.join(folder, "state.json")) as f:
            state = json.load(f)
        first, weights = state["epoch"] + 1, np.array(state["weights"])
        say(f"resumed at epoch {first} from checkpoint {os.path.basename(checkpoint.path)}")

    # Data for y = 3x + 1 with noise; every worker sees its own part.
    rng = np.random.default_rng(context.get_world_rank())
    x = rng.uniform(-1, 1, 1000)
    y = 3 * x + 1 + rng.normal(0, 0.1, x.size)
    inputs = np.stack([x, np.ones_like(x)], axis=1)

    where = f"on {ray.util.get_node_ip_address()} gpu {os.environ.get('LABD_GPU_UUID', '?')}"
    for epoch in range(first, config["epochs"] + 1):
        time.sleep(config["seconds_per_epoch"])  # stands for real work on the GPU
        error = inputs @ weights - y
        weights = weights - 0.2 * inputs.T @ error / len(y)
        loss = float(np.mean(error**2))

        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if context.get_world_rank() == 0:  # one worker's copy is enough
                with open(os.path.join(folder, "state.json"), "w") as f:
                    json.dump({"epoch": epoch, "weights": weights.tolist()}, f)
                saved = Checkpoint.from_directory(folder)
            # Every worker must report; returns once the checkpoint is in the S3 store.
            ray.train.report({"epoch": epoch, "loss": loss}, checkpoint=saved)
        say(f"epoch {epoch}/{config['epochs']} loss {loss:.3f} {where}")


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--epochs", type=int, default=20)
    args.add_argument("--seconds-per-epoch", type=float, default=0.5)
    args.add_argument("--workers", type=int, default=1, help="how many GPUs to train on")
    args.add_argument("--name", default="sample", help="the run: the same name resumes, a new one starts fresh")
    args.add_argument("--storage", default="s3://ray", help="where checkpoints go")
    args = args.parse_args()

    trainer = DataParallelTrainer(
        train_loop,
        train_loop_config={"epochs": args.epochs, "seconds_per_epoch": args.seconds_per_epoch},
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=True),
        run_config=RunConfig(
            name=args.name,  # a run without a name of its own can never be resumed
            storage_path=args.storage,
            failure_config=FailureConfig(max_failures=-1),  # a worker that dies is replaced, as often as it takes
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    result = trainer.fit()
    say(f"done: {result.metrics or 'all epochs were trained before'}")


if __name__ == "__main__":
    main()
