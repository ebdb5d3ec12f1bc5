"""The labs that several files share: brought up by the first test that asks, taken down after the folder's last one."""
import sys

import pytest

from harness.lab import ROOT, Lab, build_settings, run

# In the one lab from its start, as they would cost a recreation of its containers.
MOUNT_AND_WORD = f"""
[[mounts]]
source = "{ROOT / 'samples'}"
target = "/mnt/samples"
read_only = true
[ray.env]
LABDTEST_WORD = "of the lab"
"""


@pytest.fixture(scope="package")
def lab():
    """Bringing it up is itself the first thing that is tested."""
    with Lab("labdtest", "198.18.240.0/24", head=MOUNT_AND_WORD).running() as lab:
        yield lab


@pytest.fixture(scope="package")
def course_lab():
    """A lab with Debian's torch in its Ray image and the pictures of samples/course where the course's runtime.json has them."""
    lab = Lab("labdcourse", "198.18.170.0/24", build=f'{build_settings()}\ntorch = "debian"')
    pictures = lab.dir / "pictures"
    lab.write(f'[[mounts]]\nsource = "{pictures}"\ntarget = "/mnt/pictures"\nread_only = true\n')
    run(sys.executable, ROOT / "samples/course/make_pictures.py", pictures)
    with lab.running():
        yield lab
