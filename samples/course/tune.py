"""A search for good settings: trials of half a GPU, and ASHA stops the bad ones early.

    ray job submit --runtime-env runtime.json --working-dir . -- python tune.py

Tune runs a function here. Handing it a TorchTrainer, `Tuner(trainer)`, is how it was done until Ray 2.42; later versions do
that only with {"env_vars": {"RAY_TRAIN_V2_ENABLED": "0"}} in runtime.json.
"""
import argparse

import lightning as L
from ray import tune
from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback
from ray.tune.schedulers import ASHAScheduler

from pictures import Classifier, loader


def trial(config):
    trainer = L.Trainer(
        max_epochs=config["epochs"],
        accelerator="auto",
        devices="auto",
        callbacks=[TuneReportCheckpointCallback({"val_accuracy": "val_accuracy", "val_loss": "val_loss"}, on="validation_end")],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    data = loader("training", config["batch_size"]), loader("validation", config["batch_size"])
    trainer.fit(Classifier(config["rate"], config["dropout"]), *data)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--trials", type=int, default=16)
    args.add_argument("--epochs", type=int, default=8)
    args.add_argument("--gpus", type=float, default=0.5, help="of each trial")
    args.add_argument("--cpus", type=float, default=4, help="of each trial")
    args = args.parse_args()

    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": args.cpus, "gpu": args.gpus}),
        param_space={
            "rate": tune.loguniform(1e-5, 1e-1),
            "dropout": tune.uniform(0.1, 0.6),
            "batch_size": tune.choice([16, 32]),
            "epochs": args.epochs,
        },
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            num_samples=args.trials,
            scheduler=ASHAScheduler(max_t=args.epochs, grace_period=1, reduction_factor=2),
        ),
        run_config=tune.RunConfig(storage_path="s3://ray", verbose=1),
    )
    results = tuner.fit()
    for result in results:
        epochs = result.metrics.get("training_iteration", 0)
        print(f"rate {result.config['rate']:.5f} accuracy {result.metrics.get('val_accuracy', 0):.3f} after {epochs} epochs")
    best = results.get_best_result()
    print(f"best rate {best.config['rate']:.5f} accuracy {best.metrics['val_accuracy']:.3f}", flush=True)


if __name__ == "__main__":
    main()
