"""One lab for the whole session: bringing it up is itself the first thing that is tested."""
import pytest

from lab import ROOT, Lab

# In the one lab from its start, as they would cost a recreation of its containers.
MOUNT_AND_WORD = f"""
[[mounts]]
source = "{ROOT / 'samples'}"
target = "/mnt/samples"
read_only = true
[ray.env]
LABDTEST_WORD = "of the lab"
"""


@pytest.fixture(scope="session")
def lab():
    lab = Lab("labdtest", "198.18.240.0/24", head=MOUNT_AND_WORD)
    # What a killed run left (a volume with Ray's old jobs, say) must not be adopted as ours.
    lab.sweep()
    try:
        lab.up_output = lab.up().stdout
        yield lab
    finally:
        lab.down()


@pytest.fixture
def fresh(request):
    """Makes labs that have nothing running yet, and removes what became of them."""
    made = []

    def make(name="labdbad", subnet="198.18.241.0/24", **kwargs):
        lab = Lab(name, subnet, **kwargs)
        made.append(lab)
        lab.sweep()
        return lab

    yield make
    for lab in made:
        lab.down()
