"""A small PyTorch model, trained as Ray's guide shows: TorchTrainer, one checkpoint per epoch, and it resumes.

    ray job submit --working-dir samples -- python torch_train.py

It needs torch in the Ray image (`[images.build]` in labd.toml) or in the job's runtime_env. The same script runs on one GPU,
on several (--workers), on half a GPU (--gpus 0.5) and on a simulated GPU, where torch runs on the CPU.
"""
import argparse
import os
import tempfile
import time

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch.utils.data import DataLoader, TensorDataset


def data():
    """Points in a square; the label says whether a point is inside a circle."""
    points = torch.rand(2048, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return TensorDataset(points, (points.square().sum(1) < 0.5).long())


def train_loop(config):
    loader = ray.train.torch.prepare_data_loader(DataLoader(data(), batch_size=128, shuffle=True))
    model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    model = ray.train.torch.prepare_model(model)
    plain = getattr(model, "module", model)  # without the wrapper that several workers get
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rank, device = ray.train.get_context().get_world_rank(), ray.train.torch.get_device()

    first = 1
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        print("starting fresh", flush=True)
    else:
        with checkpoint.as_directory() as folder:
            state = torch.load(os.path.join(folder, "state.pt"), map_location=device)
        plain.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1
        print(f"resumed at epoch {first} from checkpoint {os.path.basename(checkpoint.path)}", flush=True)

    where = f"on {ray.util.get_node_ip_address()} gpu {os.environ.get('LABD_GPU_UUID', '?')} device {device}"
    for epoch in range(first, config["epochs"] + 1):
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        time.sleep(config["seconds_per_epoch"])  # stands for real work on the GPU
        total = right = 0
        for points, labels in loader:
            outputs = model(points)
            loss = torch.nn.functional.cross_entropy(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += len(labels)
            right += int((outputs.argmax(1) == labels).sum())
        metrics = {"epoch": epoch, "loss": loss.item(), "accuracy": right / total}

        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if rank == 0:  # one worker's copy is enough
                state = {"epoch": epoch, "model": plain.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state, os.path.join(folder, "state.pt"))
                saved = Checkpoint.from_directory(folder)
            # Every worker must report; returns once the checkpoint is in the S3 store.
            ray.train.report(metrics, checkpoint=saved)
        print(f"epoch {epoch}/{config['epochs']} accuracy {metrics['accuracy']:.3f} {where}", flush=True)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--epochs", type=int, default=20)
    args.add_argument("--seconds-per-epoch", type=float, default=0.5)
    args.add_argument("--workers", type=int, default=1, help="how many processes train together")
    args.add_argument("--gpus", type=float, default=1, help="GPUs for each of them, such as 0.5")
    args.add_argument("--name", help="the run; without one, labd names it after its job")
    args.add_argument("--storage", default="s3://ray", help="where checkpoints go")
    args = args.parse_args()

    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"epochs": args.epochs, "seconds_per_epoch": args.seconds_per_epoch},
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=True, resources_per_worker={"GPU": args.gpus, "CPU": 1}),
        run_config=RunConfig(
            name=args.name,
            storage_path=args.storage,
            failure_config=FailureConfig(max_failures=-1),  # a worker that dies is replaced, as often as it takes
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    print(f"done: {trainer.fit().metrics or 'all epochs were trained before'}", flush=True)


if __name__ == "__main__":
    main()
