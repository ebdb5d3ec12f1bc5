"""A GPU that is taken away inside a running container, as `systemctl daemon-reload` does it, is seen there.

No GPU can be taken away here, so `tests/devices.rs` drives labd's own parts on this machine's engine: a container that was
handed two harmless device nodes, and then the control group's rule that allows one of them is withdrawn.
"""
import os
import pathlib
import subprocess

import pytest

from lab import ROOT, docker


def test_a_device_that_is_taken_away_is_missed_inside():
    if os.geteuid() != 0 or not pathlib.Path("/sys/fs/cgroup/devices/docker").is_dir():
        pytest.skip("needs root and the devices controller of cgroup v1: version 2 has no file to take a device away with")
    images = docker("images", "labd/base", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    if not images:
        pytest.skip("needs an image that labd built: labd images build")
    name = "a_device_that_is_taken_away_is_missed_inside"
    done = subprocess.run(["cargo", "test", "--quiet", "--test", "devices", "--", "--ignored", "--exact", name],
                          cwd=ROOT, env={**os.environ, "LABD_TEST_IMAGE": images[0]}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
