"""What labd adds to the driver of a job that came through its front door: a name for runs without one, and a log that goes
on after the Ray head died.

**Names.** Ray Train resumes a run that starts again under the same `RunConfig(name=..., storage_path=...)`. A script that gives no
name gets a dated one each time, so its resubmission would begin from nothing. In the driver of a job that came through
labd's front door, whose metadata says `labd.run`, such a run is called by that word instead; the second unnamed run of
the same job is `<word>-2` and so on, in the order in which they are made. One line on stderr says so.

A name in the script always wins. Nothing happens outside such jobs, in Ray's worker processes (Tune starts Train runs
there, and all of them would get one name), in processes made by `multiprocessing` (they run the script's top level
again), or for `ray.tune.RunConfig`. Processes that train side by side in one job make their runs in no certain order:
name those runs. A virtual environment that is not a copy of Ray's (conda, uv) has no such hook.

Off for one job with metadata `{"labd.run": ""}`; the front door leaves it empty for all jobs when `labd.toml` says so.

**Log.** What workers print reaches the driver's log over a subscription in the GCS, and a GCS that was started again knows
no subscriptions: the log of a job that goes on would be silent until its end (Ray 2.60). So the driver subscribes again
every few seconds; for a GCS that remembers, that changes nothing.

`labd.pth` imports this module, when the environment speaks of `labd.run` at all.
"""
import sys

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray's job supervisor tells the entrypoint: runtime_env and metadata
KEY = "labd.run"
ROOT = "labd.root"  # the front door's mark on every job
CONFIG = "ray.train.v2.api.config"
WORKER = "ray._private.worker"
AGAIN_SECONDS = 2


def install():
    """Arranges that `RunConfig` is patched once Ray imports it. Never raises: a script must run whatever happens here."""
    try:
        metadata = job_metadata()
        if metadata.get(KEY):
            names = Names(str(metadata[KEY]), str(metadata.get("job_submission_id", "")))
            when_imported(CONFIG, lambda module: patch(module.RunConfig, names))
        if metadata.get(ROOT):
            when_imported(WORKER, lambda module: keep_listening(module.Worker))
    except Exception as error:
        warn(error)


def when_imported(name, change):
    if name in sys.modules:
        change(sys.modules[name])
    else:
        sys.meta_path.insert(0, Finder(name, change))


def job_metadata():
    """The metadata of the job whose driver this process may be; nothing where the hook has no business."""
    import json
    import os

    # A cluster that a script starts inside its job hands the environment down to its workers.
    if any(arg.endswith("default_worker.py") for arg in sys.orig_argv):
        return {}
    text = os.environ.get(JOB)
    return (json.loads(text).get("metadata") if text else None) or {}


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

        if (process := sys.modules.get("multiprocessing.process")) is not None:
            # While a spawned child still imports the script, only `_inheriting` tells it from the script itself.
            if process.parent_process() is not None or getattr(process.current_process(), "_inheriting", False):
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


class Finder:
    """Waits for the one module, finds it as Python would have, and changes it right after its own code ran."""

    def __init__(self, name, change):
        self.name = name
        self.change = change

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        # Once only; and `importlib` must not come back to us.
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            from importlib.util import find_spec

            spec = find_spec(fullname)
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                try:
                    self.change(module)
                except Exception as error:
                    warn(error)

            spec.loader.exec_module = exec_module
            return spec
        except Exception as error:
            warn(error)
            return None


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
                warn(error)

    run_config.__post_init__ = __post_init__


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
            warn(error)
        return print_logs(self, *args, **kwargs)

    worker.print_logs = patched


def say(text):
    print(f"labd: {text}", file=sys.stderr, flush=True)


warned = False


def warn(error):
    """Once: a hook that fails costs a script its resumption or a part of its log, and nothing else."""
    global warned
    if not warned:
        warned = True
        say(f"the run keeps Ray's own name and will not resume ({type(error).__name__}: {error}); give RunConfig a name")


install()
