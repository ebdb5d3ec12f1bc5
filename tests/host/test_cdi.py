"""With an engine that hands in devices by CDI name: each container gets its one device and no other."""
import os
import subprocess

import pytest

from harness import engine26
from harness.lab import ROOT, docker

pytestmark = [pytest.mark.engine, pytest.mark.root]

# Two "GPUs", which are device nodes that every machine has. The second specification knows its device by index alone.
SPECIFICATIONS = {
    "nvidia.yaml": """
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: GPU-aaaa
  containerEdits: {deviceNodes: [{path: /dev/fuse}]}
- name: GPU-bbbb
  containerEdits: {deviceNodes: [{path: /dev/net/tun}]}
- name: all
  containerEdits: {deviceNodes: [{path: /dev/fuse}, {path: /dev/net/tun}]}
""",
    "broken.json": "{",
}
DEVICES = {"GPU-aaaa": "/dev/fuse", "GPU-bbbb": "/dev/net/tun"}
LOOK = 'for d in /dev/fuse /dev/net/tun; do if [ -e "$d" ]; then true <"$d" && echo "$d"; fi; done'


@pytest.fixture(scope="module")
def engine():
    if why := engine26.cannot():
        pytest.skip(why)
    with engine26.engine(SPECIFICATIONS) as engine:
        yield engine


@pytest.fixture(scope="module")
def image(engine):
    images = docker("images", "labd/base", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    if not images:
        pytest.skip("needs an image that labd built: labd images build")
    return engine.load(images[0])


def test_a_name_gives_its_device_and_no_other(engine, image):
    for name, device in DEVICES.items():
        seen = engine.docker("run", "--rm", "--network=none", "--device", f"nvidia.com/gpu={name}", image, "sh", "-c", LOOK)
        assert seen.stdout.split() == [device], seen.stderr


def test_an_unknown_name_is_refused(engine, image):
    refused = engine.docker("run", "--rm", "--network=none", "--device", "nvidia.com/gpu=GPU-cccc", image, "true", check=False)
    assert refused.returncode != 0 and "unresolvable CDI devices nvidia.com/gpu=GPU-cccc" in refused.stderr


def test_labd_gives_each_worker_its_own_device(engine, image):
    """labd's own way from an inventory to a running container: `tests/devices.rs`."""
    env = {**os.environ, "LABD_TEST_ENGINE": str(engine.socket), "LABD_TEST_ROOT": str(engine.system), "LABD_TEST_IMAGE": image}
    done = subprocess.run(["cargo", "test", "--quiet", "--test", "devices", "--", "--ignored", "--exact", "cdi"],
                          cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
