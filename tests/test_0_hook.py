"""The hook that names a job's unnamed runs, against a Ray that is three small files. No engine needed."""
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

HOOK = pathlib.Path(__file__).resolve().parent.parent / "images/ray"
MADE_UP = "ray_train_run-dated"

CONFIG = f"""
from dataclasses import dataclass
from typing import Optional

@dataclass
class RunConfig:
    name: Optional[str] = None
    storage_path: Optional[str] = None

    def __post_init__(self):
        self.storage_path = self.storage_path or "/root/ray_results"
        if not self.name:
            self.name = "{MADE_UP}"
"""


@pytest.fixture
def job(tmp_path):
    """Runs a script as the driver of a job with this metadata (None: not a job at all)."""
    fake = tmp_path / "fake"
    for package in ("ray", "ray/train", "ray/train/v2", "ray/train/v2/api", "ray/tune"):
        (fake / package).mkdir(parents=True)
        (fake / package / "__init__.py").write_text("")
    (fake / "ray/train/v2/api/config.py").write_text(CONFIG)
    (fake / "ray/train/__init__.py").write_text("from ray.train.v2.api.config import RunConfig\n")
    (fake / "ray/tune/__init__.py").write_text(CONFIG)

    def run(script, metadata, script_name="train.py", shell=None, **env):
        path = tmp_path / script_name
        # site.addsitedir reads labd.pth just as the start of a virtual environment does.
        path.write_text(f"import site\nsite.addsitedir({str(HOOK)!r})\n" + textwrap.dedent(script))
        env = {**os.environ, "PYTHONPATH": str(fake), "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", **env}
        env.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)
        if metadata is not None:
            told = {"runtime_env": {"env_vars": {"KEY": "hunter2"}}, "metadata": metadata}
            env["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(told) if isinstance(metadata, dict) else metadata
        command = (shell or "{python} {path}").format(python=sys.executable, path=path)
        done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True, timeout=60, start_new_session=True)
        assert done.returncode == 0, done.stderr
        assert "hunter2" not in done.stderr
        return done.stdout.split(), done.stderr

    return run


FOOD = {"labd.run": "food11", "job_submission_id": "food11-r1"}
ONE = "from ray.train import RunConfig\nprint(RunConfig(storage_path='s3://ray').name)"


def test_an_unnamed_run_is_called_after_its_job_and_says_so(job):
    out, err = job(ONE, FOOD)
    assert out == ["food11"]
    assert err == 'labd: this run has no name of its own; it is called "food11", so that it resumes\n'


def test_further_runs_are_numbered_in_order_and_a_name_always_wins(job):
    out, err = job(
        """
        from ray.train import RunConfig
        for name in (None, "mine", None, "", "food11-2"):
            print(RunConfig(name=name).name)
        """,
        FOOD,
    )
    assert out == ["food11", "mine", "food11-2", "food11-3", "food11-2"]
    assert err.count("labd:") == 3


def test_the_next_attempt_gets_the_same_names(job):
    names = [job(f"{ONE}\nprint(RunConfig().name)", {**FOOD, "job_submission_id": f"food11-r{n}"})[0] for n in (1, 2, 2)]
    assert names == [["food11", "food11-2"]] * 3


def test_two_scripts_in_one_entrypoint_never_share_a_run(job):
    out, _ = job(ONE, FOOD, shell="{python} {path} && {python} {path}")
    assert out == ["food11", "food11-2"]


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"job_submission_id": "x"}, {"labd.run": ""}, {"other": "labd.run"}, '{"labd.run": null, "metadata": null}'],
)
def test_other_jobs_and_a_switched_off_hook_keep_rays_names(job, metadata):
    assert job(ONE, metadata) == ([MADE_UP], "")


def test_rays_workers_keep_rays_names(job):
    assert job(ONE, FOOD, script_name="default_worker.py") == ([MADE_UP], "")


def test_a_child_of_multiprocessing_keeps_rays_names_and_takes_no_number(job):
    out, _ = job(
        """
        import multiprocessing
        from ray.train import RunConfig
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(*pool.map(str.upper, ["child"]))
        print(RunConfig().name, flush=True)
        """,
        FOOD,
    )
    assert sorted(out) == ["CHILD", "food11", MADE_UP]


def test_tunes_own_configuration_is_left_alone(job):
    out, err = job("import ray.tune, ray.train\nprint(ray.tune.RunConfig().name)", FOOD)
    assert (out, err) == ([MADE_UP], "")


def test_ray_is_not_imported_early_and_the_import_hook_goes_away(job):
    out, _ = job(
        """
        import sys
        finders = len(sys.meta_path)
        print("ray" in sys.modules)
        import ray.train
        print(finders - len(sys.meta_path), type(ray.train.v2.api.config.__loader__).__name__)
        """,
        FOOD,
    )
    assert out == ["False", "1", "SourceFileLoader"]


def test_what_the_hook_does_not_understand_never_breaks_a_script(job, tmp_path):
    # A metadata that is no JSON, a counter that cannot be read, a Ray without RunConfig.
    out, err = job(ONE, "labd.run, but no JSON")
    assert out == [MADE_UP] and err.startswith("labd: the run keeps Ray's own name and will not resume (JSONDecodeError")
    spoil = "{python} {path} && for f in $TMPDIR/labd-runs-*; do echo nonsense >$f; done && {python} {path}"
    out, err = job(ONE + "\nprint(RunConfig().name)", FOOD, shell=spoil)
    assert out == ["food11", "food11-2", MADE_UP, MADE_UP]
    assert err.count("will not resume (ValueError") == 1, "it warns once"
    (tmp_path / "fake/ray/train/v2/api/config.py").write_text("class Other: pass\n")
    (tmp_path / "fake/ray/train/__init__.py").write_text("from ray.train.v2.api.config import Other\n")
    out, err = job("import ray.train\nprint(ray.train.Other.__name__)", FOOD)
    assert out == ["Other"] and err.count("labd:") == 1


def test_a_script_that_is_wrong_fails_with_its_own_error(job):
    out, _ = job(
        """
        from ray.train import RunConfig
        try:
            RunConfig(nonsense=1)
        except TypeError as error:
            print("nonsense" in str(error))
        print(RunConfig().name)
        """,
        FOOD,
    )
    assert out == ["True", "food11"]


WORKER = """
import threading

class Subscriber:
    def __init__(self):
        self.times = 0
        self.again = threading.Event()

    def subscribe(self):
        self.times += 1
        if self.times >= 3:
            self.again.set()

class Worker:
    def __init__(self):
        self.gcs_log_subscriber = Subscriber()
        self.threads_stopped = threading.Event()

    def print_logs(self):
        self.gcs_log_subscriber.subscribe()
        print("again" if self.gcs_log_subscriber.again.wait(30) else "once")
"""


@pytest.mark.parametrize("metadata, heard", [({"labd.run": "", "labd.root": "food11"}, "again"), ({"labd.run": "", "mine": "x"}, "once")])
def test_the_log_is_subscribed_to_again_in_jobs_of_the_front_door(job, tmp_path, metadata, heard):
    (tmp_path / "fake/ray/_private").mkdir()
    (tmp_path / "fake/ray/_private/__init__.py").write_text("")
    (tmp_path / "fake/ray/_private/worker.py").write_text(WORKER if heard == "again" else WORKER.replace("wait(30)", "wait(3)"))
    out, _ = job("from ray._private.worker import Worker\nWorker().print_logs()", metadata)
    assert out == [heard]
