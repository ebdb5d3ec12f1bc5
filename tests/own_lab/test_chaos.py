"""Faults of all kinds, one after another, over a job that trains; `make chaos` throws more of them."""
import os

import pytest

from harness import chaos

pytestmark = pytest.mark.root


@pytest.mark.slow
def test_a_job_outlives_eight_faults():
    # Where nobody else uses the engine, it is restarted, too.
    alone = os.environ.get("LABD_TEST_ENGINE_RESTART") == "1"
    kinds = [kind for kind in chaos.WEIGHTS if kind not in chaos.SPECIAL or (kind == "engine-restart" and alone)]
    verdict = chaos.Chaos(seed=1, count=8, kinds=kinds, say=lambda line: print(line, flush=True)).run()
    assert verdict["ok"], "\n".join(verdict["problems"])
