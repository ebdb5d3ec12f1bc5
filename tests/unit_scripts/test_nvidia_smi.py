"""nvidia-smi of a worker whose GPU is simulated. No engine needed."""
import subprocess

import pytest

from harness.lab import ROOT

FILE = ROOT / "images/run/nvidia-smi.sh"


def smi(*argv):
    return subprocess.run(["sh", FILE, *argv], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "LABD_GPU_UUID": "SIM-1"})


@pytest.mark.parametrize("option", ["-L", "--list-gpus"])
def test_it_lists_its_gpu_as_nvidia_does(option):
    done = smi(option)
    assert (done.returncode, done.stdout) == (0, "GPU 0: Simulated GPU (UUID: SIM-1)\n")


def test_its_table_says_that_it_is_simulated():
    done = smi()
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and "simulated" in lines[1] and "SIM-1" in done.stdout
    assert len({len(line) for line in lines}) == 1, "a table"


@pytest.mark.parametrize("argv", [["-q"], ["--query-gpu=name", "--format=csv"], ["-L", "-i", "0"]])
def test_what_it_cannot_say_is_an_error(argv):
    done = smi(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert "simulated" in done.stderr and argv[0] in done.stderr and done.stderr.count("\n") == 1
