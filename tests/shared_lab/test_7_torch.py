"""Ray Train's Torch on simulated GPUs: scripts as they are written for one GPU, followed truly by a head of any kind."""
import pytest

from harness.lab import wait_for

SAYS = "labd: simulated GPU: torch runs on the CPU (gloo)"

# As many write it: the accelerator by name, the first GPU by number, half precision.
LIGHTNING = """
import torch, lightning.pytorch as pl
from torch.utils.data import DataLoader, TensorDataset
class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
points = torch.rand(64, 2)
data = DataLoader(TensorDataset(points, (points[:, 0] > points[:, 1]).long()), batch_size=16)
options = dict(max_epochs=1, enable_checkpointing=False, enable_progress_bar=False, logger=False)
for choice in (dict(accelerator="auto"), dict(accelerator="gpu", devices=[0]), dict(accelerator="gpu", devices=-1)):
    trainer = pl.Trainer(**choice, **options)
    trainer.fit(Model(), data)
    print("trained on", trainer.strategy.root_device, flush=True)
"""


@pytest.mark.root
def test_a_torch_run_is_followed_from_its_start_to_its_end_and_resumes(course_lab):
    lab = course_lab
    lab.wait_ready()
    lab.submit("circle", "python", "torch_train.py", "--epochs", "12", "--seconds-per-epoch", "0.5")
    wait_for("it trains", lambda: lab.job("circle") and "epoch 4/" in lab.logs("circle"), 180, every=0.3)
    wait_for("labd says so", lambda: lab.run("circle", lambda run: run["status"] == "RUNNING"), 30, every=0.3)
    lab.sigkill(lab.worker_of("circle"))
    logs = lab.wait_job("circle", seconds=240)
    assert "resumed at epoch" in logs and "device cpu" in logs and "controller error" not in logs
    assert logs.count(SAYS) == 1, "once, though two groups of workers trained"
    wait_for("its end is seen", lambda: lab.run("circle", lambda run: run["status"] == "FINISHED"), 60, every=0.5)
    lab.wait_ready()


@pytest.mark.parametrize("name, options", [("pair", ["--workers", "2"]), ("halves", ["--workers", "3", "--gpus", "0.5"])])
def test_several_workers_and_parts_of_a_gpu(course_lab, name, options):
    lab = course_lab
    lab.wait_ready()
    lab.submit(name, "python", "torch_train.py", "--epochs", "3", "--seconds-per-epoch", "0.1", *options)
    logs = lab.wait_job(name, seconds=240)
    assert "epoch 3/3" in logs and logs.count(SAYS) == 1
    wait_for("its end is seen", lambda: lab.run(name, lambda run: run["status"] == "FINISHED"), 60, every=0.5)


def test_a_plain_lightning_script_that_asks_for_a_gpu(course_lab):
    lab = course_lab
    lab.wait_ready()
    lab.submit("asks", "python", "-c", LIGHTNING, options=["--entrypoint-num-gpus", "1", "--runtime-env-json", '{"pip": ["lightning"]}'])
    logs = lab.wait_job("asks", seconds=180)
    assert logs.count("trained on cpu") == 3 and logs.count(SAYS) == 1
