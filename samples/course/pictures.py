"""What the scripts of the course share: the pictures, and the network that learns to tell them apart."""
import os

import lightning as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


def loader(part, batch_size):
    """The pictures of one part, `training` or `validation`, in batches."""
    folder = os.path.join(os.environ.get("PICTURES_DIR", "pictures"), part)
    steps = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)]
    if part == "training":
        steps.insert(0, transforms.RandomVerticalFlip())
    return DataLoader(ImageFolder(folder, transforms.Compose(steps)), batch_size, shuffle=part == "training")


def block(channels_in, channels_out, stride):
    """A convolution and what goes with it."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


class Classifier(L.LightningModule):
    """A convolutional network with one million parameters: 4 MB in memory, and 12 MB in a checkpoint (Adam keeps two more
    numbers for each)."""

    def __init__(self, rate=1e-3, dropout=0.2, kinds=4):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(
            block(3, 32, 2), block(32, 64, 2), block(64, 128, 2), block(128, 256, 2), block(256, 256, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(256, kinds),
        )

    def forward(self, pictures):
        return self.model(pictures)

    def training_step(self, batch, _):
        pictures, kinds = batch
        loss = cross_entropy(self(pictures), kinds)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        pictures, kinds = batch
        guesses = self(pictures)
        # Over all workers, each of which sees its own part.
        self.log("val_loss", cross_entropy(guesses, kinds), sync_dist=True)
        self.log("val_accuracy", (guesses.argmax(dim=1) == kinds).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.rate)


class EpochLine(L.Callback):
    """One line an epoch, as the log of a job is read."""

    def on_train_epoch_end(self, trainer, _):
        shown = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.is_global_zero:
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} loss {shown['train_loss']:.3f} "
                  f"accuracy {shown['val_accuracy']:.3f}", flush=True)
