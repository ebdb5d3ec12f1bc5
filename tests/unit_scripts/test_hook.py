"""labd's hook in Python processes, against a Ray, a Torch and a Lightning that are a few small files. No engine needed."""
import json
import os
import subprocess
import sys
import textwrap

import pytest

from harness.lab import ROOT

HOOK = ROOT / "images/ray"
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


# What the hook changes besides, as small as it can be.
FAKES = {
    # A version as torch has it: text of a class that only torch's own environment can unpickle.
    "ray/train/v2/_internal/state/state_manager.py": """
class TrainStateManager:
    def update_train_run_framework_versions(self, run_id, framework_versions):
        self.sent = run_id, framework_versions
""",
    "torch/__init__.py": """
import os

class cuda:
    is_available = staticmethod(lambda: "FAKE_CUDA" in os.environ)
""",
    "torch/distributed/__init__.py": "from torch.distributed.distributed_c10d import *",
    "torch/distributed/distributed_c10d.py": """
def init_process_group(backend=None, init_method=None, timeout=None, world_size=-1, rank=-1):
    return f"{backend} {rank}"

def new_group(ranks=None, timeout=None, backend=None):
    return backend
""",
    "ray/air/_internal/device_manager/__init__.py": """
class CPUTorchDeviceManager:
    pass

class CUDATorchDeviceManager:
    pass

SUPPORTED_ACCELERATOR_TORCH_DEVICE_MANAGER = {"GPU": CUDATorchDeviceManager, "HPU": int}

def get_torch_device_manager_by_context():
    return SUPPORTED_ACCELERATOR_TORCH_DEVICE_MANAGER["GPU"]()
""",
    "lightning/pytorch/trainer/connectors/accelerator_connector.py": """
class _AcceleratorConnector:
    def __init__(self, devices="auto", accelerator="auto"):
        self.chosen = f"{accelerator}:{devices}"
""",
    "ray/train/v2/api/data_parallel_trainer.py": """
class DataParallelTrainer:
    pass

class TorchTrainer(DataParallelTrainer):
    pass
""",
    "ray/tune/impl/tuner_internal.py": """
class FileSystem:
    type_name = "s3"

    def open_output_stream(self, path):
        print("mark", path)
        return open("/dev/null", "wb")

def get_fs_and_path(path, fs=None):
    return FileSystem(), path.removeprefix("s3://")

class RunConfig:
    name, storage_path, storage_filesystem = "sweep", "s3://ray/team", None

class TunerInternal:
    def __init__(self, restore_path=None, trainable=None, _entrypoint=None):
        self._trainable, self._run_config = trainable, RunConfig()
        if trainable == "refused":
            raise ValueError("Improper 'run'")

    def fit(self):
        if not callable(self._trainable):
            raise ValueError("Improper 'run'")
        return "fitted"
""",
    "ray/train/v2/_internal/execution/callback.py": """
class ControllerCallback:
    pass

class ReportCallback:
    pass

class WorkerGroupCallback:
    pass
""",
    "ray/train/v2/_internal/callbacks/env_callback.py": """
def _initialize_env_callbacks():
    return ["the script's own"]
""",
    "ray/cloudpickle.py": """
def register_pickle_by_value(module):
    print("whole", module.__name__)
""",
    "ray/tune/tuner.py": """
from ray.tune.impl.tuner_internal import TunerInternal

class Tuner:
    @classmethod
    def can_restore(cls, path):
        return "there" in path
""",
}


def write_modules(folder, modules):
    """Python modules below a folder, {path: text}, and what makes packages of the folders between."""
    for name, text in modules.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for inner in [inner for inner in folder.rglob("*") if inner.is_dir()]:
        (inner / "__init__.py").touch()


@pytest.fixture
def job(tmp_path):
    """Runs a script as the driver of a job with this metadata (None: not a job at all)."""
    fake = tmp_path / "fake"
    config = {
        "ray/train/v2/api/config.py": CONFIG,
        "ray/train/__init__.py": "from ray.train.v2.api.config import RunConfig\n",
        "ray/tune/__init__.py": CONFIG,
    }
    write_modules(fake, {**FAKES, **config})

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
        import ray.train.v2._internal.state.state_manager, ray.tune.impl.tuner_internal
        print(finders - len(sys.meta_path))
        """,
        FOOD,
    )
    assert out == ["False", "0", "SourceFileLoader", "1"]


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


CALLBACKS = """
from ray.train.v2._internal.callbacks.env_callback import _initialize_env_callbacks
for callback in _initialize_env_callbacks():
    print(getattr(callback, "job", callback))
"""


def test_runs_of_a_job_tell_labd_what_they_report_beside_the_scripts_own_callbacks(job):
    metadata = {"labd.run": "", "labd.root": "food11", "labd.attempt": "2", "labd.submitted": "2026", "job_submission_id": "food11-r1"}
    out, err = job(CALLBACKS, metadata)
    told = "{'root': 'food11', 'submitted': '2026', 'submission': 'food11-r1', 'attempt': 2}"
    assert " ".join(out) == f"whole labd_curve the script's own {told}" and err == ""
    assert " ".join(job(CALLBACKS, {"labd.run": "x"})[0]) == "the script's own", "not a job of the front door"


def test_without_its_module_there_is_no_curve_and_the_script_runs(job):
    out, err = job("import sys\nsys.modules['labd_curve'] = None\n" + CALLBACKS, {"labd.run": "", "labd.root": "food11"})
    assert " ".join(out) == "the script's own" and err.startswith("labd: labd keeps no curve of this run (")


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

    def poll(self):
        return {"lines": "a line"}

class Worker:
    def __init__(self):
        self.gcs_log_subscriber = Subscriber()
        self.threads_stopped = threading.Event()

    def print_logs(self):
        self.gcs_log_subscriber.subscribe()
        print("again" if self.gcs_log_subscriber.again.wait(30) else "once")
        while not (told := self.gcs_log_subscriber.poll())["lines"]:
            pass
        print(told["lines"])

def listen_error_messages(worker, threads_stopped):
    while (told := worker.gcs_error_subscriber.poll()) == (None, None):
        pass
    print(told[1])
"""
AWAY = """
import ray._private.worker as module

class Stopped:
    waits = []
    def wait(self, seconds):
        if seconds < 1:
            self.waits.append(seconds)
        return seconds >= 1

class Errors:
    answers = [(None, None), (None, None), ("key", "an error")]
    def poll(self):
        return self.answers.pop(0)

class Logs(Errors):
    answers = [{"ip": None, "lines": None}, {"ip": None, "lines": None}, {"ip": "198.18.0.1", "lines": ["a line"]}]
    again = module.threading.Event()
    again.set()
    def subscribe(self):
        pass

worker = module.Worker()
worker.gcs_error_subscriber, worker.gcs_log_subscriber, worker.threads_stopped = Errors(), Logs(), Stopped()
module.listen_error_messages(worker, worker.threads_stopped)
worker.print_logs()
print(Stopped.waits)
"""


@pytest.mark.parametrize("metadata, heard", [({"labd.run": "", "labd.root": "food11"}, "again"), ({"labd.run": "", "mine": "x"}, "once")])
def test_the_log_is_subscribed_to_again_in_jobs_of_the_front_door(job, tmp_path, metadata, heard):
    (tmp_path / "fake/ray/_private").mkdir()
    (tmp_path / "fake/ray/_private/__init__.py").touch()
    (tmp_path / "fake/ray/_private/worker.py").write_text(WORKER if heard == "again" else WORKER.replace("wait(30)", "wait(3)"))
    out, _ = job("from ray._private.worker import Worker\nWorker().print_logs()", metadata)
    assert out == [heard, "a", "line"]
    out, _ = job(AWAY, metadata)
    waits = "[0.2, 0.2, 0.2, 0.2]" if heard == "again" else "[]"
    assert " ".join(out) == f"an error again ['a line'] {waits}", "a driver spins while the head is away"


@pytest.mark.parametrize("server", ["/opt/ray/dashboard/agent.py", "ray.util.client.server", "other.py"])
def test_rays_servers_are_patient_while_the_head_is_away(job, tmp_path, server):
    (tmp_path / "fake/ray/_private").mkdir()
    (tmp_path / "fake/ray/_private/__init__.py").touch()
    (tmp_path / "fake/ray/_private/worker.py").write_text(WORKER)
    out, _ = job(AWAY, None, shell="{python} {path} " + server)
    waits = "[]" if server == "other.py" else "[0.2, 0.2, 0.2, 0.2]"
    assert " ".join(out) == f"an error again ['a line'] {waits}"


EARLY = """
import sys
sys.orig_argv = ["default_worker.py"]
from ray._private.worker import Worker
print("ray.train.v2._internal.execution.worker_group.worker" in sys.modules)
Worker().main_loop()
"""


@pytest.mark.parametrize("is_of_train", [True, False])
@pytest.mark.parametrize("module", ["pass", "raise RuntimeError('wrong')"])
def test_a_process_of_a_train_run_imports_ray_train_before_it_waits_for_work(job, tmp_path, is_of_train, module):
    write_modules(tmp_path / "fake", {
        "ray/_private/worker.py": """
import sys
class Worker:
    def main_loop(self):
        print("ray.train.v2._internal.execution.worker_group" in sys.modules)
""",
        "ray/train/v2/_internal/execution/worker_group/worker.py": module,
    })
    env = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"} if is_of_train else {}
    assert job(EARLY, None, script_name="default_worker.py", **env) == (["False", str(is_of_train)], "")


OF_TORCH = """
import sys, threading
sys.orig_argv = ["default_worker.py"]
from ray._private.worker import Worker
if {other_trains}:
    import ray.train.torch
    [t.join() for t in threading.enumerate() if t.name == "labd-torch"]
    del sys.modules["ray.train.torch"], sys.modules["torch"]
Worker().main_loop()
"""


@pytest.mark.parametrize("gpu, job_id, other_trains, imported", [
    ("SIM-0", "02", True, True),
    ("", "02", True, False),
    ("SIM-0", "02", False, False),
    ("SIM-0", "", True, False),
])
def test_a_process_of_a_run_with_torch_imports_it_before_it_waits_for_work(job, tmp_path, gpu, job_id, other_trains, imported):
    """With the threads that Ray assigns later. What is broken or not there keeps nothing else from being imported."""
    write_modules(tmp_path / "fake", {
        "ray/_private/worker.py": "import sys\nimport ray._private.utils\nfrom ray.experimental import internal_kv\nclass Worker:\n"
                                       "    def main_loop(self):\n        ray._private.utils.set_omp_num_threads_if_unset()\n"
                                       "        print('+'.join(n for n in ('torch', 'ray.train.torch') if n in sys.modules) or 'nothing')\n"
                                       "        print(getattr(sys.modules.get('torch'), 'threads', 'none'))\n",
        "ray/_private/utils.py": "import os\ndef set_omp_num_threads_if_unset():\n    os.environ['OMP_NUM_THREADS'] = '3'\n    return True\n",
        "ray/experimental/internal_kv.py": "kept = {}\n_internal_kv_put = kept.__setitem__\n_internal_kv_get = kept.get\n",
        "ray/train/v2/_internal/execution/worker_group/worker.py": "",
        "ray/train/v2/_internal/callbacks/datasets.py": "",
        "ray/train/torch.py": "import torch",
        "torch/__init__.py": "threads = 0\ndef set_num_threads(number):\n    global threads\n    threads = number\n",
        "torchvision.py": "raise RuntimeError('made for another torch')",
    })
    env = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", "LABD_GPU_UUID": gpu, **({"RAY_JOB_ID": job_id} if job_id else {})}
    out, err = job(OF_TORCH.format(other_trains=other_trains), None, script_name="default_worker.py", **env)
    assert (out, err) == (["torch+ray.train.torch", "3"] if imported else ["nothing", "none"], "")


WATCHER = """
from ray.train.v2._internal.callbacks import preemption_callback
preemption_callback.start()
"""


def test_ray_trains_watch_for_preemption_is_where_its_controller_is(job, tmp_path):
    """Otherwise it dies with a worker's node, and comes back in the process kept for the worker."""
    write_modules(tmp_path / "fake", {
        "ray/__init__.py": "import types\nget_runtime_context = lambda: types.SimpleNamespace(get_node_id=lambda: 'here')\n"
                           "def remote(**options):\n    return lambda cls: print(cls.__name__, sorted(options.items()))\n"
                           "def kill(actor):\n    print('kill', actor)\n",
        "ray/util/scheduling_strategies.py": "NodeAffinitySchedulingStrategy = lambda node, soft: f'{node},soft={soft}'\n",
        "ray/train/v2/_internal/callbacks/preemption_callback.py":
            "import ray\nclass Watcher: ...\ndef start():\n    ray.remote(num_cpus=0)(Watcher)\n    ray.kill('it')\n",
    })
    out, _ = job(WATCHER, None, script_name="default_worker.py", RAY_WARN_BLOCKING_GET_INSIDE_ASYNC="0")
    assert out == "Watcher [('num_cpus', 0), ('scheduling_strategy', 'here,soft=False')] kill it".split()


VERSIONS = """
from ray.train.v2._internal.state.state_manager import TrainStateManager

class TorchVersion(str):
    pass

manager = TrainStateManager()
manager.update_train_run_framework_versions("run", {"ray": "2.60.0", "torch": TorchVersion("2.6.0")})
print(manager.sent[0], *(f"{name}={version}/{type(version).__name__}" for name, version in manager.sent[1].items()))
"""


@pytest.mark.parametrize("script_name, metadata", [("default_worker.py", None), ("train.py", FOOD)])
def test_versions_are_sent_to_the_head_as_plain_text(job, script_name, metadata):
    out, err = job(VERSIONS, metadata, script_name=script_name)
    assert (out, err) == (["run", "ray=2.60.0/str", "torch=2.6.0/str"], "")


def test_versions_of_a_kind_nobody_foresaw_go_as_they_are(job):
    out, err = job(VERSIONS.replace('{"ray": "2.60.0", "torch": TorchVersion("2.6.0")}', "[]").split("print")[0], None, "default_worker.py")
    assert out == [] and err.startswith("labd: labd does not follow this run (AttributeError")


TORCH = """
import os
import torch.distributed as dist
from ray.air._internal.device_manager import get_torch_device_manager_by_context
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector as Choice

print(dist.init_process_group(backend="nccl", rank=0).replace(" ", ":"))
print(dist.init_process_group("cpu:gloo,cuda:nccl", None, rank=1).replace(" ", ":"), dist.new_group([0], backend="nccl"))
print(dist.init_process_group("mpi", rank=0).replace(" ", ":"), dist.new_group(), dist.new_group([0], None, "NCCL"))
print(type(get_torch_device_manager_by_context()).__name__)
for choice in ({}, {"accelerator": "gpu"}, {"accelerator": "cuda", "devices": [0]}, {"devices": -1}, {"devices": 2}):
    print(Choice(**choice).chosen)
print(Choice(accelerator="tpu", devices=-1).chosen)
"""
ON_THE_CPU = "gloo:0 gloo:1 gloo mpi:0 None gloo CPUTorchDeviceManager auto:auto cpu:auto cpu:1 auto:1 auto:2 tpu:-1".split()
AS_WRITTEN = (
    "nccl:0 cpu:gloo,cuda:nccl:1 nccl mpi:0 None NCCL CUDATorchDeviceManager auto:auto gpu:auto cuda:[0] auto:-1 auto:2 tpu:-1".split()
)
SAYS = "labd: simulated GPU: torch runs on the CPU (gloo)\n"


@pytest.mark.parametrize("script_name", ["default_worker.py", "train.py"])
def test_torch_on_a_simulated_gpu_runs_on_the_cpu_and_says_so_once(job, script_name):
    assert job(TORCH, None, script_name=script_name, LABD_SIMULATED_GPUS="1") == (ON_THE_CPU, SAYS)


@pytest.mark.parametrize("env", [{}, {"LABD_SIMULATED_GPUS": ""}, {"LABD_SIMULATED_GPUS": "1", "FAKE_CUDA": "1"}])
def test_torch_on_a_real_gpu_is_as_it_is_written(job, env):
    assert job(TORCH, FOOD, script_name="default_worker.py", **env) == (AS_WRITTEN, "")


def test_a_process_that_had_imported_torch_before_is_changed_all_the_same(job, tmp_path):
    early = "import torch.distributed, ray.air._internal.device_manager, lightning.pytorch.trainer.connectors.accelerator_connector"
    (tmp_path / "fake/sitecustomize.py").write_text(early)
    assert job(TORCH, None, LABD_SIMULATED_GPUS="1") == (ON_THE_CPU, SAYS)


def test_only_the_first_of_several_processes_speaks_of_the_simulated_gpu(job):
    script = TORCH.replace("rank=0", "rank=1")
    assert job(script, None, LABD_SIMULATED_GPUS="1", RANK="1")[1] == ""
    quiet = "from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector as Choice\nChoice()"
    assert job(quiet, None, LABD_SIMULATED_GPUS="1")[1] == "", "a process that was given no GPU"
    assert job(quiet, None, LABD_SIMULATED_GPUS="1", CUDA_VISIBLE_DEVICES="0")[1] == SAYS


TUNER = """
from ray.train.v2.api.data_parallel_trainer import TorchTrainer
from ray.tune.impl.tuner_internal import TunerInternal
{before}
try:
    print(TunerInternal({given}).fit())
except ValueError as error:
    print(str(error).split()[0])
"""


@pytest.mark.parametrize("metadata, script_name", [(FOOD, "train.py"), (None, "default_worker.py"), (None, "train.py")])
def test_a_tuner_over_a_trainer_of_train_v2_gets_a_hint_and_its_own_error(job, metadata, script_name):
    out, err = job(TUNER.format(before="import labd_hook", given="trainable=TorchTrainer()"), metadata, script_name)
    assert out == ["Improper"]
    assert err.count("labd:") == 1 and "TorchTrainer" in err and '"RAY_TRAIN_V2_ENABLED": "0"' in err and "a function" in err
    assert job(TUNER.format(before="import labd_hook", given='trainable="refused"'), metadata, script_name) == (["Improper"], "")
    assert job(TUNER.format(before="import labd_hook", given="trainable=print"), metadata, script_name) == (["fitted"], "")


@pytest.mark.parametrize(
    "attempt, before, given, mark, says",
    [
        ("1", "", "trainable=print", "1.fresh.food11-r1", ""),
        ("2", "", "trainable=print", "2.fresh.food11-r1", "attempt 2 of this job begins its Tune sweep again"),
        ("2", ASKS := "from ray.tune.tuner import Tuner; assert Tuner.can_restore('there')", "trainable=print", "2.asked.food11-r1", ""),
        ("2", ASKS, "restore_path='s3://there', trainable=print", "2.restored.food11-r1", ""),
    ],
)
def test_a_sweep_leaves_a_mark_that_says_whether_it_resumes(job, attempt, before, given, mark, says):
    metadata = {**FOOD, "labd.root": "food11", "labd.attempt": attempt}
    out, err = job(TUNER.format(before=before, given=given), metadata)
    assert out == ["mark", f"ray/team/sweep/.labd/{mark}", "fitted"]
    assert says in err and err.count("labd:") == bool(says)


def test_a_mark_names_its_job_whatever_its_id_is_and_trials_leave_none(job):
    metadata = {"labd.run": "", "labd.root": "a/b c", "labd.attempt": "1", "job_submission_id": "a/b c"}
    out, _ = job(TUNER.format(before="", given="trainable=print"), metadata)
    assert out == ["mark", "ray/team/sweep/.labd/1.fresh.a%2Fb%20c", "fitted"]
    assert job(TUNER.format(before="", given="trainable=print"), metadata, script_name="default_worker.py") == (["fitted"], "")
    train_v1 = "trainable=print, _entrypoint=type('Entrypoint', (), {'name': 'TRAINER'})"
    assert job(TUNER.format(before="", given=train_v1), metadata) == (["fitted"], "")
