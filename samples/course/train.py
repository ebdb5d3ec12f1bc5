"""The pictures, by Ray Train and Lightning: on one GPU, on two, on half of one; and on, when a worker dies.

    ray job submit --runtime-env runtime.json --working-dir . -- python train.py
    ... python train.py --workers 2
    ... python train.py --gpus 0.5 --cpus 4
    ... python train.py --max-failures 2
"""
import argparse
import os

import lightning as L
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, RayTrainReportCallback, prepare_trainer
from ray.train.torch import TorchTrainer

from pictures import Classifier, EpochLine, loader


def train_loop(config):
    trainer = prepare_trainer(L.Trainer(
        max_epochs=config["epochs"],
        accelerator="auto",
        devices="auto",
        strategy=RayDDPStrategy(),
        plugins=[RayLightningEnvironment()],
        callbacks=[EpochLine(), RayTrainReportCallback()],  # its metrics and a checkpoint, once an epoch
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    ))
    data = loader("training", config["batch_size"]), loader("validation", config["batch_size"])

    checkpoint = ray.train.get_checkpoint()  # None at the very first start
    if checkpoint is None:
        print("starting fresh", flush=True)
        trainer.fit(Classifier(), *data)
        return
    with checkpoint.as_directory() as folder:
        print(f"resuming from {os.path.basename(checkpoint.path)}", flush=True)
        trainer.fit(Classifier(), *data, ckpt_path=os.path.join(folder, RayTrainReportCallback.CHECKPOINT_NAME))


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--epochs", type=int, default=8)
    args.add_argument("--batch-size", type=int, default=32)
    args.add_argument("--workers", type=int, default=1)
    args.add_argument("--gpus", type=float, default=1, help="of each worker")
    args.add_argument("--cpus", type=float, default=8, help="of each worker")
    args.add_argument("--max-failures", type=int, default=0, help="how many deaths of workers the run survives")
    args = args.parse_args()

    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"epochs": args.epochs, "batch_size": args.batch_size},
        scaling_config=ScalingConfig(
            num_workers=args.workers,
            use_gpu=True,
            resources_per_worker={"GPU": args.gpus, "CPU": args.cpus},
        ),
        run_config=RunConfig(storage_path="s3://ray", failure_config=FailureConfig(max_failures=args.max_failures)),
    )
    result = trainer.fit()
    print(f"accuracy {result.metrics['val_accuracy']:.3f} with {result.checkpoint.path}", flush=True)


if __name__ == "__main__":
    main()
