"""The course's run of Ray Train and Lightning that says when it trains: `LOOP <seconds since 1970> <node address> <step>` once
per step, a checkpoint once per epoch, without end."""
import os
import sys
import time

import lightning as L
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, RayTrainReportCallback, prepare_trainer
from ray.train.torch import TorchTrainer

import pictures
from pictures import Classifier, loader


class Marks(L.Callback):
    address = None

    def on_train_batch_end(self, trainer, *_):
        self.address = self.address or ray.util.get_node_ip_address()
        print(f"LOOP {time.time():.3f} {self.address} {trainer.global_step}", flush=True)
        time.sleep(0.3)  # what is measured is the way back, not this machine's CPU


def loop(_):
    # Ray Train has changed the directory.
    os.environ["PICTURES_DIR"] = os.path.join(os.path.dirname(os.path.abspath(pictures.__file__)), "pictures")
    trainer = prepare_trainer(L.Trainer(
        max_epochs=-1, accelerator="auto", devices="auto", strategy=RayDDPStrategy(), plugins=[RayLightningEnvironment()],
        callbacks=[Marks(), RayTrainReportCallback()], logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    ))
    data = loader("training", 16), loader("validation", 16)
    if (checkpoint := ray.train.get_checkpoint()) is None:
        trainer.fit(Classifier(), *data)
        return
    with checkpoint.as_directory() as folder:
        trainer.fit(Classifier(), *data, ckpt_path=os.path.join(folder, RayTrainReportCallback.CHECKPOINT_NAME))


TorchTrainer(
    loop,
    scaling_config=ScalingConfig(num_workers=1, use_gpu=True),
    run_config=RunConfig(
        name=sys.argv[1],
        storage_path="s3://ray",
        failure_config=FailureConfig(max_failures=-1),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    ),
).fit()
