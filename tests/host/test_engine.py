"""What labd asks of an engine, asked of this machine's, from Rust: what no test with a pretended engine can vouch for."""
import os
import subprocess

import pytest

from harness.lab import ROOT, docker, sweep

pytestmark = pytest.mark.engine


def test_this_machines_engine_answers_as_labd_takes_it_to():
    images = docker("images", "labd/base", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    if not images:
        pytest.skip("needs an image that labd built: labd images build")
    try:
        done = subprocess.run(["cargo", "test", "--quiet", "--lib", "--", "--ignored", "--test-threads=1", "engine::docker::live::"],
                              cwd=ROOT, env={**os.environ, "LABD_TEST_IMAGE": images[0]}, capture_output=True, text=True, timeout=900)
    finally:
        sweep("wtengine")  # a Rust test that panics cleans nothing up
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
