"""A GPU that is taken away inside a running container, as `systemctl daemon-reload` does it, is seen there.

No GPU can be taken away here: harmless device nodes play it, and the control group's rule that allows one of them is withdrawn.
"""
import json
import os
import pathlib
import stat
import subprocess

import pytest

from harness.lab import ROOT, Lab, docker, sweep, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.root]


def test_a_device_that_is_taken_away_is_missed_inside():
    if os.geteuid() != 0 or not pathlib.Path("/sys/fs/cgroup/devices/docker").is_dir():
        pytest.skip("needs root and the devices controller of cgroup v1: version 2 has no file to take a device away with")
    images = docker("images", "labd/base", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    if not images:
        pytest.skip("needs an image that labd built: labd images build")
    name = "a_device_that_is_taken_away_is_missed_inside"
    try:
        done = subprocess.run(["cargo", "test", "--quiet", "--test", "devices", "--", "--ignored", "--exact", name],
                              cwd=ROOT, env={**os.environ, "LABD_TEST_IMAGE": images[0]}, capture_output=True, text=True, timeout=900)
    finally:
        # A Rust test that panics cleans nothing up, and its network would be in the way of the next one.
        sweep("labdtest-devices")
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def machine_with_an_mi100(tmp_path):
    """The files of a kernel with one AMD GPU, and this machine's device nodes for it: a tunnel and FUSE play the GPU."""
    root, nodes = tmp_path / "root", {"/dev/kfd": (10, 200), "/dev/dri/renderD129": (10, 229)}
    if any(os.path.lexists(path) for path in nodes):
        pytest.skip("this machine has an AMD GPU of its own")
    for line in (ROOT / "crates/labd-gpu/src/kernel/trees/mi100-bmc.tree").read_text().splitlines():
        if line.startswith("#"):
            continue
        path, text = line.split("\t")
        path = root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text[3:])
        else:
            path.write_text(text.replace("\\n", "\n"))
    had_dri = os.path.isdir("/dev/dri")
    os.makedirs("/dev/dri", exist_ok=True)
    try:
        for path, (major, minor) in nodes.items():
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
        yield root
    finally:
        for path in nodes:
            pathlib.Path(path).unlink(missing_ok=True)
        if not had_dri:
            os.rmdir("/dev/dri")


def test_a_worker_whose_gpu_is_gone_inside_is_recreated(machine_with_an_mi100, monkeypatch):
    rules = pathlib.Path("/sys/fs/cgroup/devices/docker")
    if os.geteuid() != 0 or not rules.is_dir():
        pytest.skip("needs root and the devices controller of cgroup v1")
    lab = Lab("labdgone", "198.18.224.0/24", extra="[services.prometheus]\nenabled = false\n[services.grafana]\nenabled = false\n")
    # The image for simulated GPUs, which has no vendor's libraries: nothing computes here.
    ray = next(i["reference"] for i in json.loads(lab.labd("images", "list", "--json").stdout) if i["name"] == "ray")
    lab.base = lab.base.replace("simulate = 2\n", "") + f'[images]\nray = "{ray}"\n'
    lab.write(lab.extra)
    monkeypatch.setenv("LABD_SYS_ROOT", str(machine_with_an_mi100))
    try:
        lab.up()
        (gpu,) = lab.snapshot()["gpus"]
        assert (gpu["vendor"], gpu["worker"], gpu["state"]) == ("amd", "ray-worker-0", "ok")
        inside = lab.exec("ray-worker-0", "sh", "-c", "ls /dev/kfd /dev/dri").stdout.split()
        assert inside == ["/dev/kfd", "/dev/dri:", "renderD129"] or inside == ["/dev/dri:", "renderD129", "/dev/kfd"], inside
        id, _ = lab.ids()["ray-worker-0"]
        (rules / id / "devices.deny").write_text("c 10:229 rwm")

        def anew():
            now = lab.ids().get("ray-worker-0")
            return now and now[0] != id and lab.states()["ray-worker-0"] == "ready"

        wait_for("another container", anew, 120, 0.5)
        events = [e["reason"] for e in lab.events("ray-worker-0")]
        assert any("the GPU is gone inside the container" in reason for reason in events), events
        assert lab.snapshot()["incidents"][0]["cause"] == "gpu"
        lab.exec("ray-worker-0", "sh", "-c", ": </dev/dri/renderD129")
    finally:
        lab.down()
