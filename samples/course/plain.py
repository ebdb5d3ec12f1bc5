"""The pictures, by Lightning alone: no Ray in it. Ray only finds it a place with a GPU.

    ray job submit --runtime-env runtime.json --entrypoint-num-gpus 1 --entrypoint-num-cpus 8 --working-dir . -- python plain.py
"""
import argparse

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from pictures import Classifier, EpochLine, loader


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--epochs", type=int, default=8)
    args = args.parse_args()

    best = ModelCheckpoint(dirpath="checkpoints", monitor="val_loss", mode="min")
    trainer = L.Trainer(
        max_epochs=args.epochs,
        accelerator="auto",
        devices="auto",
        callbacks=[best, EarlyStopping(monitor="val_loss", patience=5), EpochLine()],
        logger=False,
        enable_progress_bar=False,
    )
    model, validation = Classifier(), loader("validation", 32)
    trainer.fit(model, loader("training", 32), validation)

    result, = trainer.validate(model, validation, ckpt_path=best.best_model_path, verbose=False)
    print(f"accuracy {result['val_accuracy']:.3f} with {best.best_model_path}", flush=True)


if __name__ == "__main__":
    main()
