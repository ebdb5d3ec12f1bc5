"""What tests of every folder have."""
import pathlib

import pytest

from harness.lab import Lab

# What is in these needs an engine; files of tests/host say it themselves.
WITH_LABS = ("shared_lab", "own_lab")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.relative_to(pathlib.Path(__file__).parent).parts[0] in WITH_LABS:
            item.add_marker("engine")


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
