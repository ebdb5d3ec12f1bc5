"""Where the script that makes the base image finds its mirror."""
import os
import subprocess

import pytest

from harness.lab import ROOT

SCRIPT = ROOT / "images/base/bootstrap.sh"
DEBIAN = "deb http://deb.debian.org/debian bookworm main\n"
OTHERS = "deb https://packages.example.com/apt cloud-sdk-bookworm main\n"
NEW = "Types: deb\nURIs: http://mirror.example.edu/debian\nSuites: trixie trixie-updates\nComponents: main\n"


def mirror(folder):
    env = {k: v for k, v in os.environ.items() if k != "DEBIAN_MIRROR"} | {"LABD_APT_DIR": str(folder)}
    return subprocess.run(["bash", SCRIPT, "--print-mirror"], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("files, found", [
    # Nothing in sources.list.d is how Debian's own installer leaves it.
    ({"sources.list": DEBIAN}, "http://deb.debian.org/debian"),
    ({"sources.list": OTHERS + DEBIAN}, "http://deb.debian.org/debian"),
    ({"sources.list.d/debian.sources": NEW}, "http://mirror.example.edu/debian"),
    ({"sources.list.d/a.list": OTHERS, "sources.list.d/debian.sources": NEW}, "http://mirror.example.edu/debian"),
])
def test_the_mirror_is_the_machines_own(tmp_path, files, found):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = mirror(tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (f"{found}\n", "", 0)


def test_none_is_said_in_one_line(tmp_path):
    done = mirror(tmp_path)
    assert done.returncode == 1 and "set DEBIAN_MIRROR" in done.stderr and done.stderr.count("\n") == 1


def test_whatever_fails_is_named_in_the_last_line(tmp_path):
    """That line is what labd shows."""
    (tmp_path / "awk").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "awk").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", SCRIPT, "--print-mirror"], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.splitlines()[-1].startswith("bootstrap: error: "), done.stderr
