"""What labd adds to Python processes of its lab: names for a job's unnamed runs, a log that goes on after the Ray head died, Train
state that any head can read, imports before there is work, Torch on simulated GPUs, a curve of what a run reports, and a word
where a Tune sweep would begin again.

**Names.** Ray Train resumes a run that starts again under the same `RunConfig(name=..., storage_path=...)`. A script that gives no
name gets a dated one each time, so its resubmission would begin from nothing. In the driver of a job that came through
labd's front door, whose metadata says `labd.run`, such a run is called by that word instead; the second unnamed run of
the same job is `<word>-2` and so on, in the order in which they are made. One line on stderr says so.

A name in the script always wins. Nothing happens outside such jobs, in Ray's worker processes (Tune starts Train runs
there, and all of them would get one name), in processes made by `multiprocessing` (they run the script's top level
again), or for `ray.tune.RunConfig` (a script that resumes a sweep must say its path, and so its name). Processes that train
side by side in one job make their runs in no certain order: name those runs. A virtual environment that is not a copy of
Ray's (conda, uv) has no such hook.

Off for one job with metadata `{"labd.run": ""}`; the front door leaves it empty for all jobs when `labd.toml` says so.

**Log.** What workers print reaches the driver's log over a subscription in the GCS, and a GCS that was started again knows
no subscriptions: the log of a job that goes on would be silent until its end (Ray 2.60). So the driver subscribes again
every few seconds; for a GCS that remembers, that changes nothing. While the head is away, drivers, Ray's agents and its
servers for notebooks ask for logs and errors five times a second, and not without a pause.

**Train state.** Ray Train's controller sends `torch.__version__` to an actor on the head as it is: a `TorchVersion`, which a head
without torch cannot unpickle, and the run ends in a controller error (Ray 2.60). In the controller it becomes plain text.

**Early imports.** Processes of a Train run import Ray Train before they wait for work, not with it, and on a GPU node torch and
Lightning too, once a process of the same job has imported `ray.train.torch`: those that labd keeps ready for a run that loses a
worker (src/ray/spare.rs) then have it.

**Preemption.** Ray Train's actor that waits for nodes to announce their end is put beside the controller. Ray puts it anywhere:
it died with a worker's node and came back on another, in the process that was kept ready for the worker.

**Simulated GPUs** (`LABD_SIMULATED_GPUS=1` in the environment, which no real GPU's container has). Ray Train takes a GPU it
assigned for a CUDA device. Where torch itself finds none, Ray's devices are the CPU, NCCL becomes gloo, and Lightning's
`accelerator="gpu"` is the CPU. One line in the job's log says so.

**Curve.** Runs that the driver of a job of the front door makes tell labd what they report to Ray Train (labd_curve.py). Not the
runs that Tune starts in Ray's worker processes, nor those of Train V1.

**Tune.** Where `Tuner(trainer)` meets Train V2, which Ray refuses with "Improper 'run'", a hint names the ways out. In a job's
driver, each sweep kept in an S3 store gets one empty object `.labd/<attempt>.<how>.<submission id>` in its folder, with
which `labd status` tells a sweep that resumes from one that begins again.

`labd.pth` imports this module in jobs of the front door, in Ray's worker processes, agents and servers for notebooks, and on
simulated GPUs. It imports nothing but `sys` until there is something to do.
"""
import sys

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray's job supervisor tells the entrypoint: runtime_env and metadata
KEY = "labd.run"
ROOT = "labd.root"  # the front door's mark on every job
ATTEMPT = "labd.attempt"
SUBMITTED = "labd.submitted"
CONFIG = "ray.train.v2.api.config"
WORKER = "ray._private.worker"
KV = "ray.experimental.internal_kv"
OF_TRAIN = "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"  # Ray Train sets it in the runtime_env of its own processes
FOR_TRAIN = ("ray.train.v2._internal.execution.worker_group.worker", "ray.train.v2._internal.callbacks.datasets")
GPU = "LABD_GPU_UUID"  # in a GPU worker's container
TORCH = "ray.train.torch"
# Imported early where a job uses that, in this order, where installed. Together they take seconds, and touch no GPU.
FOR_TORCH = ("torch", "torchvision", "lightning", "pytorch_lightning", TORCH, "ray.train.lightning")
PREEMPTION = "ray.train.v2._internal.callbacks.preemption_callback"
STATE = "ray.train.v2._internal.state.state_manager"
CALLBACKS = "ray.train.v2._internal.callbacks.env_callback"
DEVICES = "ray.air._internal.device_manager"
PROCESS_GROUPS = "torch.distributed.distributed_c10d"
LIGHTNING = {
    "lightning.pytorch.trainer.connectors.accelerator_connector": "_AcceleratorConnector",
    "pytorch_lightning.trainer.connectors.accelerator_connector": "_AcceleratorConnector",
    "lightning.fabric.connector": "_Connector",
    "lightning_fabric.connector": "_Connector",
}
TUNER = "ray.tune.tuner"
TUNER_INTERNAL = "ray.tune.impl.tuner_internal"
AGAIN_SECONDS = 2
NO_RESUME = "the run keeps Ray's own name and will not resume"


def install():
    """Arranges for every change right after the module that it changes was imported. Never raises: a script must run
    whatever happens here."""
    try:
        when_imported(STATE, lambda module: plain_versions(module.TrainStateManager))
        if is_of_train():
            when_imported(WORKER, lambda module: imports_before_work(module.Worker))
            when_imported(TORCH, tell_of_torch)
            when_imported(PREEMPTION, beside_controller)
        if is_server():
            when_imported(WORKER, patient)
        if simulated():
            when_imported(DEVICES, cpu_for_gpu)
            when_imported(PROCESS_GROUPS, gloo_for_nccl)
            for name, connector in LIGHTNING.items():
                when_imported(name, lambda module, connector=connector: cpu_in_lightning(getattr(module, connector)))
    except Exception as error:
        warn(error, "labd's changes for Torch are off")
    try:
        metadata = job_metadata()
    except Exception as error:
        warn(error, NO_RESUME)
        metadata = {}
    try:
        when_imported(TUNER_INTERNAL, lambda module: tuners(module, metadata))
        if metadata.get(KEY):
            names = Names(str(metadata[KEY]), str(metadata.get("job_submission_id", "")))
            when_imported(CONFIG, lambda module: patch(module.RunConfig, names))
        if metadata.get(ROOT):
            when_imported(WORKER, lambda module: (patient(module), keep_listening(module.Worker)))
            when_imported(TUNER, lambda module: remember_asking(module.Tuner))
            when_imported(CALLBACKS, lambda module: tell_of_reports(module, metadata))
    except Exception as error:
        warn(error, NO_RESUME)


def when_imported(name, change):
    if name in sys.modules:
        change(sys.modules[name])
        return
    for finder in sys.meta_path:
        if type(finder) is Finder:
            finder.changes[name] = change
            return
    sys.meta_path.insert(0, Finder(name, change))


def job_metadata():
    """The metadata of the job whose driver this process may be; nothing where the hook has no business."""
    import os

    # A cluster that a script starts inside its job hands the environment down to its workers.
    if any(arg.endswith("default_worker.py") for arg in sys.orig_argv):
        return {}
    if not (text := os.environ.get(JOB)):
        return {}
    import json  # some milliseconds, which no worker process should pay

    return json.loads(text).get("metadata") or {}


class Names:
    """`food11`, then `food11-2`, and so on within one attempt of one job.

    The count is kept in a file, not in this process: in `python a.py && python b.py` the second script must not resume
    the first one's run.
    """

    def __init__(self, base, submission):
        self.base = base
        self.submission = submission

    def next(self):
        """None in a child made by `multiprocessing`."""
        import fcntl
        import hashlib
        import os
        import tempfile

        if is_child():
            return None
        # All processes of one entrypoint share a session, and each submission starts one of its own.
        attempt = hashlib.sha256(f"{self.submission} {os.getsid(0)}".encode()).hexdigest()[:16]
        path = os.path.join(tempfile.gettempdir(), f"labd-runs-{os.getuid()}-{attempt}")
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            count = int(file.read() or 0) + 1
            file.seek(0)
            file.write(str(count))
        return self.base if count == 1 else f"{self.base}-{count}"


def is_child():
    """Whether `multiprocessing` made this process."""
    if (process := sys.modules.get("multiprocessing.process")) is None:
        return False
    # While a spawned child still imports the script, only `_inheriting` tells it from the script itself.
    return process.parent_process() is not None or getattr(process.current_process(), "_inheriting", False)


class Finder:
    """Waits for some modules, finds each as Python would have, and changes it right after its own code ran. One for all
    of them, as every import of the process asks every finder; it goes away with the last."""

    def __init__(self, name, change):
        self.changes = {name: change}

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.changes:
            return None
        # Once only; and `importlib` must not come back to us.
        change = self.changes.pop(fullname)
        if not self.changes and self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            from importlib.util import find_spec

            spec = find_spec(fullname)
            if spec is None:
                return None
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                try:
                    change(module)
                except Exception as error:
                    warn(error, NO_RESUME if fullname == CONFIG else f"labd's change to {fullname} is off")

            spec.loader.exec_module = exec_module
            return spec
        except Exception as error:
            warn(error, f"labd's change to {fullname} is off")
            return None


def wrapped(function, replacement):
    """`replacement` under the name of `function`, so that it is pickled as that: by name."""
    import functools

    return functools.wraps(function)(replacement)


# ---- names ----


def patch(run_config, names):
    """Lets Ray complete a configuration as ever, then replaces the name that it made up."""
    complete = run_config.__post_init__

    def __post_init__(self, *args, **kwargs):
        unnamed = not self.name
        complete(self, *args, **kwargs)
        if unnamed:
            try:
                if (chosen := names.next()) is not None:
                    self.name = chosen
                    say(f'this run has no name of its own; it is called "{chosen}", so that it resumes')
            except Exception as error:
                warn(error, NO_RESUME)

    run_config.__post_init__ = __post_init__


# ---- the log ----


def is_server():
    """Whether this is Ray's agent, which is a driver for the jobs that it starts, or a server for notebooks."""
    return any(arg.endswith(("dashboard/agent.py", "ray.util.client.server")) for arg in sys.orig_argv)


def patient(module):
    listen, print_logs = module.listen_error_messages, module.Worker.print_logs

    def listen_error_messages(worker, threads_stopped):
        worker.gcs_error_subscriber = Patient(worker.gcs_error_subscriber, threads_stopped)
        return listen(worker, threads_stopped)

    def patient_print_logs(self, *args, **kwargs):
        self.gcs_log_subscriber = Patient(self.gcs_log_subscriber, self.threads_stopped)
        return print_logs(self, *args, **kwargs)

    module.listen_error_messages = wrapped(listen, listen_error_messages)
    module.Worker.print_logs = wrapped(print_logs, patient_print_logs)


class Patient:
    """A subscriber that asks a GCS that is away five times a second. Ray's own asks again at once: each driver's two threads
    take a core from the head that is starting."""

    def __init__(self, subscriber, stopped):
        self.subscriber, self.stopped = subscriber, stopped

    def poll(self, *args, **kwargs):
        told = self.subscriber.poll(*args, **kwargs)
        # What it says of a GCS that is away: a pair for errors; None, or a dictionary without lines, for logs.
        if told in (None, (None, None)) or (isinstance(told, dict) and not told.get("lines")):
            self.stopped.wait(0.2)
        return told

    def __getattr__(self, name):
        return getattr(self.subscriber, name)


def keep_listening(worker):
    """Lets the thread that prints what workers print subscribe again and again."""
    print_logs = worker.print_logs

    def patched(self, *args, **kwargs):
        try:
            import threading

            subscriber = self.gcs_log_subscriber

            def subscribe():
                while not self.threads_stopped.wait(AGAIN_SECONDS):
                    try:
                        subscriber.subscribe()
                    except Exception:
                        pass  # the GCS is away, or the driver ends

            threading.Thread(target=subscribe, name="labd-logs", daemon=True).start()
        except Exception as error:
            warn(error, "the log of what workers print may end when the head restarts")
        return print_logs(self, *args, **kwargs)

    worker.print_logs = patched


# ---- early imports ----


def is_of_train():
    import os

    return OF_TRAIN in os.environ


def torch_key():
    """Key in the GCS that says that this process's job uses `ray.train.torch`."""
    import os

    return f"labd-torch-{os.environ['RAY_JOB_ID']}".encode()


def tell_of_torch(_):
    import threading

    def tell():
        try:
            sys.modules[KV]._internal_kv_put(torch_key(), b"1")
        except Exception:
            pass  # the next process that imports it tells again

    # In a thread: a head that is away must not hold up what imports it.
    threading.Thread(target=tell, name="labd-torch", daemon=True).start()


def early_imports():
    """Modules to import before there is work, in order. Nothing of torch where there is no GPU: the actors that a run has beside
    its workers have no use for it, and would hold its memory."""
    import os

    yield from FOR_TRAIN
    if os.environ.get(GPU) and sys.modules[KV]._internal_kv_get(torch_key()):
        yield from FOR_TORCH


def imports_before_work(worker):
    main_loop = worker.main_loop

    def early(self, *args, **kwargs):
        try:
            import importlib

            for name in early_imports():
                try:
                    importlib.import_module(name)
                except Exception:
                    pass  # not installed, or broken: the work that needs it will say so
            if "torch" in sys.modules:
                threads_as_assigned(sys.modules["ray._private.utils"], sys.modules["torch"])
        except Exception:
            pass  # the head is away: nothing here is needed to work
        return main_loop(self, *args, **kwargs)

    worker.main_loop = wrapped(main_loop, early)


def threads_as_assigned(utils, torch):
    """Ray says by OMP_NUM_THREADS, once an actor has its CPUs, how many threads its libraries may have. Torch has read that when
    it was imported: it is told again."""
    assign = utils.set_omp_num_threads_if_unset

    def set_omp_num_threads_if_unset(*args, **kwargs):
        if is_set := assign(*args, **kwargs):
            try:
                import os

                torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
            except Exception as error:
                warn(error, "torch has as many threads as the node has CPUs")
        return is_set

    utils.set_omp_num_threads_if_unset = set_omp_num_threads_if_unset


# ---- preemption ----


def beside_controller(module):
    module.ray = BesideController(module.ray)


class BesideController:
    """`ray` for a module whose actors must run on its own node."""

    def __init__(self, ray):
        self.ray = ray

    def remote(self, *args, **options):
        if args:
            return self.ray.remote(*args, **options)  # without options: a class as it is
        try:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
            options = {"scheduling_strategy": here, **options}
        except Exception as error:
            warn(error, "Ray Train's watch for preemption may be on any node")
        return self.ray.remote(**options)

    def __getattr__(self, name):
        return getattr(self.ray, name)


# ---- Train state ----


def plain_versions(manager):
    """Versions as plain text, in the controller that sends them to the head."""
    update = manager.update_train_run_framework_versions

    def update_train_run_framework_versions(self, run_id, framework_versions, *args, **kwargs):
        try:
            framework_versions = {str(name): str(version) for name, version in framework_versions.items()}
        except Exception as error:
            warn(error, "labd does not follow this run")
        return update(self, run_id, framework_versions, *args, **kwargs)

    manager.update_train_run_framework_versions = wrapped(update, update_train_run_framework_versions)


# ---- curve ----


def tell_of_reports(module, metadata):
    """A callback of labd's beside those that RAY_TRAIN_CALLBACKS names. Not in that variable: a Python that the script starts
    would inherit it, and one without labd's modules could not train."""
    make = module._initialize_env_callbacks

    def _initialize_env_callbacks():
        callbacks = make()
        try:
            import labd_curve
            from ray import cloudpickle

            # Whole, not by name: the controller may run in another environment than the script.
            cloudpickle.register_pickle_by_value(labd_curve)
            job = {
                "root": str(metadata[ROOT]),
                "submitted": str(metadata.get(SUBMITTED) or ""),
                "submission": str(metadata.get("job_submission_id") or metadata[ROOT]),
                "attempt": int(metadata.get(ATTEMPT) or 1),
            }
            callbacks.append(labd_curve.Curve(job))
        except Exception as error:
            warn(error, "labd keeps no curve of this run")
        return callbacks

    module._initialize_env_callbacks = wrapped(make, _initialize_env_callbacks)


# ---- Torch on simulated GPUs ----


def simulated():
    import os

    return os.environ.get("LABD_SIMULATED_GPUS") == "1"


def has_cuda():
    """Whether torch itself finds a GPU: then nothing is changed, whatever the environment says."""
    import torch

    return torch.cuda.is_available()


def cpu_for_gpu(module):
    """What Ray makes for a GPU that it assigned: the CPU's manager of devices, where torch finds no GPU."""
    gpu = module.SUPPORTED_ACCELERATOR_TORCH_DEVICE_MANAGER["GPU"]
    module.SUPPORTED_ACCELERATOR_TORCH_DEVICE_MANAGER["GPU"] = lambda: gpu() if has_cuda() else module.CPUTorchDeviceManager()


def gloo_for_nccl(module):
    """Process groups over gloo where NCCL is asked for, as Ray Train does for each worker with a GPU. Debian's torch has no
    libuv, which torch's store of keys wants unless told otherwise."""
    import os

    for name in ("init_process_group", "new_group"):
        make = getattr(module, name, None)
        if make is None:
            continue

        def made(*args, make=make, place=0 if name == "init_process_group" else 2, **kwargs):
            if not has_cuda():
                os.environ.setdefault("USE_LIBUV", "0")
            # A backend is one word, or one for each kind of device: `cpu:gloo,cuda:nccl`.
            asked = args[place] if len(args) > place else kwargs.get("backend")
            if "nccl" in str(asked or "").lower() and not has_cuda():
                if len(args) > place:
                    args = (*args[:place], "gloo", *args[place + 1 :])
                else:
                    kwargs["backend"] = "gloo"
                say_simulated(kwargs.get("rank"))
            return make(*args, **kwargs)

        made = wrapped(make, made)
        setattr(module, name, made)
        # Where torch was imported before this module, its names are copied already.
        package = sys.modules.get("torch.distributed")
        if getattr(package, name, None) is make:
            setattr(package, name, made)


def cpu_in_lightning(connector):
    """Lightning's choice of an accelerator: a GPU asked for is the CPU, and one device of it where all GPUs, or some by number,
    are asked for."""
    choose = connector.__init__

    def __init__(self, *args, **kwargs):
        try:
            asked = kwargs.get("accelerator", "auto")
            if asked in ("auto", "gpu", "cuda") and not has_cuda():
                if asked != "auto":
                    kwargs["accelerator"] = "cpu"
                devices = kwargs.get("devices", "auto")
                if isinstance(devices, (list, tuple)) and devices:
                    kwargs["devices"] = len(devices)
                elif str(devices) == "-1":
                    kwargs["devices"] = 1
                if asked != "auto" or has_gpu():
                    say_simulated(None)
        except Exception as error:
            warn(error, "Lightning chooses its accelerator itself")
        choose(self, *args, **kwargs)

    connector.__init__ = wrapped(choose, __init__)


def has_gpu():
    """Whether Ray assigned a GPU to this process."""
    import os

    return bool(os.environ.get("CUDA_VISIBLE_DEVICES", "").strip())


told_simulated = False


def say_simulated(rank):
    """One line for a job, from its first process of rank 0: Ray's store of keys knows whether it was said."""
    global told_simulated
    import os

    if rank is None or not isinstance(rank, int) or rank < 0:
        rank = int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)
    if told_simulated or rank != 0 or is_child():
        return
    told_simulated = True
    try:
        ray = sys.modules["ray"]
        if ray.is_initialized():
            from ray.experimental.internal_kv import _internal_kv_put

            job = ray.get_runtime_context().get_job_id()
            if _internal_kv_put(f"labd-simulated-{job}".encode(), b"1", overwrite=False):
                return
    except Exception:
        pass  # said twice is better than not at all
    say("simulated GPU: torch runs on the CPU (gloo)")


# ---- Tune ----

asked_to_restore = False


def remember_asking(tuner):
    """A script that asks `Tuner.can_restore` resumes when it is run again."""
    can_restore = tuner.can_restore.__func__

    def asking(cls, *args, **kwargs):
        global asked_to_restore
        asked_to_restore = True
        return can_restore(cls, *args, **kwargs)

    tuner.can_restore = classmethod(wrapped(can_restore, asking))


def tuners(module, metadata):
    """A hint where a Tuner was given a trainer of Train V2, and a mark in the store for each sweep of a job."""
    tuner = module.TunerInternal
    make, fit = tuner.__init__, tuner.fit

    def __init__(self, *args, **kwargs):
        try:
            make(self, *args, **kwargs)
        except Exception:
            hint_at_trainer(kwargs.get("trainable"))
            raise
        try:
            if metadata.get(ROOT) and is_sweep(kwargs) and not is_child():
                mark_sweep(module, self._run_config, metadata, bool(kwargs.get("restore_path")))
        except Exception as error:
            warn(error, "labd does not know this Tune sweep")

    def fitted(self, *args, **kwargs):
        try:
            return fit(self, *args, **kwargs)
        except Exception:
            hint_at_trainer(getattr(self, "_trainable", None))
            raise

    tuner.__init__ = wrapped(make, __init__)
    tuner.fit = wrapped(fit, fitted)


def is_sweep(kwargs):
    """False for the Tuner that a trainer of Train V1 makes for itself."""
    return getattr(kwargs.get("_entrypoint"), "name", "TUNER") == "TUNER"


def hint_at_trainer(trainable):
    v2 = sys.modules.get("ray.train.v2.api.data_parallel_trainer")
    if v2 is None or not isinstance(trainable, v2.DataParallelTrainer):
        return
    say(
        f"Tuner({type(trainable).__name__}(...)) does not work with Ray Train V2. Either run this job with Train V1: "
        '"env_vars": {"RAY_TRAIN_V2_ENABLED": "0"} in its runtime_env; or give the Tuner a function that makes the trainer '
        "and calls its fit(), as in Ray's guide \"Hyperparameter Tuning with Ray Tune\" (ray.io, Train user guides)"
    )


def mark_sweep(module, run_config, metadata, restored):
    """Says in the log what begins again, and leaves a mark where labd looks: an object with no content."""
    attempt = int(metadata.get(ATTEMPT) or 1)
    how = "restored" if restored else "asked" if asked_to_restore else "fresh"
    if how == "fresh" and attempt > 1:
        say(
            f"attempt {attempt} of this job begins its Tune sweep again: the script makes a new Tuner without asking "
            "Tuner.can_restore; Ray's guide \"How to Enable Fault Tolerance in Ray Tune\" shows how to resume"
        )
    fs, path = module.get_fs_and_path(str(run_config.storage_path or ""), run_config.storage_filesystem)
    if "s3" not in fs.type_name:
        return
    from urllib.parse import quote

    submission = quote(str(metadata.get("job_submission_id") or metadata[ROOT]), safe="")
    with fs.open_output_stream(f"{path.rstrip('/')}/{run_config.name}/.labd/{attempt}.{how}.{submission}") as file:
        file.write(b"")


# ---- words ----


def say(text):
    # Not `print`: Ray Train puts one of its own into its workers, which says such a line twice.
    sys.stderr.write(f"labd: {text}\n")
    sys.stderr.flush()


warned = set()


def warn(error, loss):
    """Once for each loss: a hook that fails costs a script what it would have added, and nothing else."""
    if loss not in warned:
        warned.add(loss)
        advice = "; give RunConfig a name" if loss == NO_RESUME else ""
        say(f"{loss} ({type(error).__name__}: {error}){advice}")


install()
