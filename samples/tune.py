"""A search for a good learning rate: two trials share one GPU, and ASHA stops the bad ones early.

    ray job submit --working-dir samples -- python tune.py
"""
import argparse
import time

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler


def trial(config):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 1000)
    y = 3 * x + 1 + rng.normal(0, 0.1, x.size)
    inputs, weights = np.stack([x, np.ones_like(x)], axis=1), np.zeros(2)
    for _ in range(config["epochs"]):
        time.sleep(0.1)  # stands for real work on the GPU
        error = inputs @ weights - y
        weights = weights - config["rate"] * inputs.T @ error / len(y)
        tune.report({"loss": float(np.mean(error**2))})


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--trials", type=int, default=6)
    args.add_argument("--epochs", type=int, default=16)
    args.add_argument("--name", default="sample-tune")
    args.add_argument("--storage", default="s3://ray")
    args = args.parse_args()

    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1, "gpu": 0.5}),  # half a GPU each
        param_space={"rate": tune.loguniform(1e-3, 1.0), "epochs": args.epochs},
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
