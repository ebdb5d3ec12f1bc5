"""A search for a good learning rate: two trials share one GPU, ASHA stops the bad ones early, and a lost search resumes.

    ray job submit --working-dir samples -- python tune.py

When its job was lost with its driver, labd runs this script again; `Tuner.restore` then continues where the S3 store says:
finished trials are not run again, the others resume from the checkpoints it knows of (Tune saves its state every 10 s). A new
search wants another --name.
"""
import argparse
import json
import os
import tempfile
import time

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler


def trial(config):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 1000)
    y = 3 * x + 1 + rng.normal(0, 0.1, x.size)
    inputs, weights, first = np.stack([x, np.ones_like(x)], axis=1), np.zeros(2), 1

    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder, open(os.path.join(folder, "state.json")) as file:
            state = json.load(file)
        first, weights = state["epoch"] + 1, np.array(state["weights"])
    print(f"trial {tune.get_context().get_trial_id()} begins at epoch {first}", flush=True)

    for epoch in range(first, config["epochs"] + 1):
        time.sleep(config["seconds_per_epoch"])  # stands for real work on the GPU
        error = inputs @ weights - y
        weights = weights - config["rate"] * inputs.T @ error / len(y)
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "state.json"), "w") as file:
                json.dump({"epoch": epoch, "weights": weights.tolist()}, file)
            tune.report({"loss": float(np.mean(error**2))}, checkpoint=tune.Checkpoint.from_directory(folder))


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--trials", type=int, default=6)
    args.add_argument("--epochs", type=int, default=16)
    args.add_argument("--seconds-per-epoch", type=float, default=0.1)
    args.add_argument("--name", default="sample-tune")
    args.add_argument("--storage", default="s3://ray")
    args = args.parse_args()

    trainable = tune.with_resources(trial, {"cpu": 1, "gpu": 0.5})  # half a GPU each
    space = {
        "rate": tune.loguniform(1e-3, 1.0),
        "epochs": args.epochs,
        "seconds_per_epoch": args.seconds_per_epoch,
    }
    path = f"{args.storage}/{args.name}"  # a search without a name of its own is never found again
    if tune.Tuner.can_restore(path):
        print(f"resuming the search of {path}", flush=True)
        tuner = tune.Tuner.restore(path, trainable, resume_errored=True, param_space=space)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=args.trials,
                scheduler=ASHAScheduler(max_t=args.epochs, grace_period=2, reduction_factor=2),
            ),
            run_config=tune.RunConfig(name=args.name, storage_path=args.storage, verbose=1),
        )
    results = tuner.fit()
    for r in results:
        n = r.metrics.get("training_iteration", 0)
        print(f"rate {r.config['rate']:.4f} loss {r.metrics.get('loss', float('nan')):.4f} after {n} epochs", flush=True)
    best = results.get_best_result()
    print(f"best rate {best.config['rate']:.4f} loss {best.metrics['loss']:.4f}", flush=True)


if __name__ == "__main__":
    main()
