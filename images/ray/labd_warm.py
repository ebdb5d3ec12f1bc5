"""Warm starts: a process per Ray node that has imported what Ray's workers import, and forks for each new worker process.

What a recovery waits for is Python: a worker with a runtime environment imports Ray once to find its command, and once more
to run it; with Ray Train, PyTorch and Lightning that is seconds of CPU. So:

- **The server** (`python -m labd_warm serve`, started by the container's start.sh beside `ray start`) imports numpy, pandas,
  pyarrow, torch and the like (`serve-light`: only what Ray needs), and keeps the compiled code of Ray's own modules. It never
  imports Ray: `ray._raylet` takes what `RAY_*` says when it is loaded for good, the job's id included. It touches no GPU.
- **A job's process** is a child of the server that has imported Ray with the environment of a job's workers, and forks them:
  Ray starts two processes for the first work of a job on a node, and both would import it at once. It is made when Ray's agent
  announces the job (labd_packages.py), which is when its driver starts, or else when the first worker comes; and it ends when
  it has had no worker for a while, or others are wanted more.
- **The first process** is the one that Ray starts. `labd_warm.pth` brings it here when it is about to run Ray's
  `setup_worker.py` or `default_worker.py`. It hands its files, environment, arguments, directory, limits and signals to the
  server over a Unix socket, then waits: signals are passed on, and it ends as the worker ends. When it is killed the worker
  is killed: the kernel sends SIGKILL when the other end of a socket closes.
- **The worker** is forked, takes on what it was handed, and runs `default_worker.py` as `__main__`. What the server has
  imported is not in `sys.modules` until the worker imports it: then the module comes from memory, with the number of threads
  and the randomness that an import at that moment would have had.

Served is only a process that would have got the same: this Python, these packages (an overlay of this environment, a
working directory or a PYTHONPATH that shadows none of them), the same values of every environment variable that was read
while they were imported, and the same programs where PATH was searched for one. The same holds for what a job's process has
imported besides; where only that differs, the server forks the worker, and it imports Ray itself. In every other case, and when
anything is wrong, the process goes on as if nothing were here. It waits for a server that has just started where that has no torch to
import, or a worker of the same job has had torch from one in this container: that takes less time than its own import.

`LABD_WARM=0` switches it off.
"""
import os
import sys

SOCKET = "LABD_WARM_SOCKET"
SETUP, WORKER = "/ray/_private/workers/setup_worker.py", "/ray/_private/workers/default_worker.py"
ANSWER_SECONDS = 5.0
# And where a job's process has to import Ray before: less time than this process's own import would take, busy as the machine is.
RAY_SECONDS = 30.0
WAIT = b"."
# What an environment's own .pth files add, which the worker reads again: setuptools, which comes with Lightning.
OVERLAYS = {"DistutilsMetaFinder"}
# How old a process may be that still waits for a server; a file says for which jobs that is worth it.
WAIT_SECONDS = 6.0
WORTH_WAITING = "/tmp/labd-torch-"
SOON = ".soon"  # beside the socket, with the server's pid in it
MOST_FILES = 250  # the kernel passes 253 at once
# Read by C libraries when they are loaded, by the loader or by Python itself: must be as the server's.
READ_EARLY = ("LD_", "GLIBC_", "MALLOC_", "JE_", "MIMALLOC_", "ARROW_", "OMP_", "KMP_", "GOMP_", "OPENBLAS_", "GOTO_", "MKL_", "BLIS_",
              "NPY_", "NUMPY_", "NUMEXPR_", "FSSPEC_", "TORCH_", "PYTORCH_", "ATEN_", "C10_", "PYTHON", "LANG", "LC_", "OPENSSL_",
              "PROTOCOL_BUFFERS_")
# Those of them that the worker handles itself, or that are read when they are used.
HANDLED = {"PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_HOME"}
# Read by Ray's library when it is loaded, which does not tell.
READ_BY_RAY = ("RAY_", "GRPC_", "OTEL_", "ABSL_")
# What only Ray's agents are told.
AGENTS_OWN = {"RAY_NODE_ID", "RAY_enable_pipe_based_agent_to_parent_health_check"}
ANNOUNCE_SECONDS = 0.2  # the agent has other things to do


def socket_path():
    return os.environ.get(SOCKET, "/run/labd-warm.sock")


# ---- The first process ----


asked = False


def hook():
    """Called while Python starts, for Ray's two worker scripts only. Returns where the process should go on by itself."""
    global asked
    try:
        if asked or os.environ.get("LABD_WARM", "1") == "0":
            return
        asked = True  # a virtual environment reads its .pth files twice
        script = sys.orig_argv[1]
        if script.endswith(WORKER):
            hand_over(sys.orig_argv, dict(os.environ))
        elif script.endswith(SETUP):
            set_up(sys.orig_argv)
    except Exception as error:
        debug(error)


def set_up(argv):
    """What `setup_worker.py` does for a Python worker, without importing Ray for it: `RuntimeEnvContext.exec_worker`.

    Nothing happens where Ray's own code is not the one that this was written after.
    """
    if not knows_ray(os.path.dirname(os.path.dirname(os.path.dirname(argv[1])))):
        return
    given, rest = {}, []
    for arg in argv[2:]:
        key, equals, value = arg.partition("=")
        if key in ("--serialized-runtime-env-context", "--language") and equals and key not in given:
            given[key] = value
        elif arg == "--" or "--serialized-runtime-env-context".startswith(key) or "--language".startswith(key):
            return  # argparse has ways with these that are not ours
        else:
            rest.append(arg)
    if given.get("--language") != "PYTHON" or not rest:
        return
    context = {}
    if text := given.get("--serialized-runtime-env-context"):
        import json

        context = json.loads(text)
    folder, python, line, env = command(context, rest)
    # With nothing but a `cd` before it, bash itself can be left out.
    if python == sys.executable and folder is not None and rest[0].endswith(WORKER) and "BASH_ENV" not in env and env.get("LABD_WARM", "1") != "0":
        told = {**env, "_": python}
        if folder:
            told.update(OLDPWD=env.get("PWD", os.getcwd()), PWD=folder)
        try:
            hand_over([python, *rest], told, folder, path_with(env.get("PYTHONPATH"), folder or os.getcwd()))
        except Exception as error:
            debug(error)
    os.execvpe("bash", ["bash", "-c", line], env)


def command(context, rest):
    """As `RuntimeEnvContext.exec_worker` makes it: (folder to go to, empty for none, None where more than that is to be done;
    the Python; bash's command line; environment). The entrypoint in `rest` may be replaced."""
    import shlex

    if unknown := set(context) - {"command_prefix", "env_vars", "py_executable", "override_worker_entrypoint", "java_jars"}:
        raise ValueError(f"unknown: {', '.join(unknown)}")
    env = expanded(context.get("env_vars") or {})
    if context.get("override_worker_entrypoint"):
        rest[0] = context["override_worker_entrypoint"]
    prefix, python = context.get("command_prefix") or [], context.get("py_executable") or sys.executable
    folder = None
    if not prefix:
        folder = ""
    elif len(prefix) == 3 and prefix[0] == "cd" and prefix[2] == "&&" and prefix[1].startswith("/") and not set(prefix[1]) - SAFE:
        folder = prefix[1]
    return folder, python, " ".join([*prefix, "exec", python, *(shlex.quote(arg) for arg in rest)]), env


SAFE = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./")


def expanded(variables):
    """This process's environment with these in it, as `ray._private.utils.update_envs` does it: earlier ones of them count."""
    if not any("$" in value for value in variables.values()):
        return {**os.environ, **variables}
    import re

    before = dict(os.environ)
    try:
        for key, value in variables.items():
            os.environ[key] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
        return dict(os.environ)
    finally:
        for key in variables:
            os.environ.pop(key, None) if key not in before else os.environ.__setitem__(key, before[key])


def debug(error):
    if os.environ.get("LABD_WARM_DEBUG"):
        print(f"labd: warm: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def knows_ray(ray):
    """Whether the sources that `set_up` stands for are those that it was compared with when the image was built."""
    try:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "labd_warm.stamp")) as file:
            return file.read() == stamp(ray)
    except OSError:
        return False


def stamp(ray):
    files = (f"{ray}/_private/workers/setup_worker.py", f"{ray}/_private/runtime_env/context.py")
    return "\n".join(f"{path} {(found := os.stat(path)).st_size} {int(found.st_mtime)}" for path in files)


def path_with(pythonpath, folder):
    """`sys.path` of a process that starts with this PYTHONPATH in this folder."""
    old = os.environ.get("PYTHONPATH")
    rest = sys.path[len({os.path.abspath(p) for p in old.split(os.pathsep)}) if old else 0:]
    new = [os.path.normpath(os.path.join(folder, p)) for p in pythonpath.split(os.pathsep)] if pythonpath else []
    return list(dict.fromkeys(new + rest))


def hand_over(argv, env, folder=None, path=None, connect=None):
    """Lets a server run `argv` and never returns; raises where the process must go on by itself."""
    import _socket
    import marshal
    import resource
    import select

    import _signal

    conn = (connect or connected)(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM))
    directory = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    ours, theirs = (s.detach() for s in _socket.socketpair())
    # What Ray's node handed to this process, and nothing that Python opened since.
    files = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd < 3 or inherited(fd)]
    request = {
        "version": version(), "argv": argv, "env": env, "files": files, "path": list(sys.path) if path is None else path,
        "prefixes": prefixes(), "executable": argv[0],
        "base_executable": getattr(sys, "_base_executable", argv[0]), "site": list(sys.modules["site"].PREFIXES),
        "finders": [kind(f) for f in strangers()], "terminal": [os.isatty(fd) for fd in (0, 1, 2)],
        "umask": umask(), "nice": os.getpriority(os.PRIO_PROCESS, 0), "affinity": sorted(os.sched_getaffinity(0)),
        "group": os.getpgrp(), "session": os.getsid(0), "mask": [int(s) for s in _signal.pthread_sigmask(_signal.SIG_BLOCK, [])],
        "ignored": [n for n in range(1, _signal.NSIG) if n not in (9, 19, 32, 33) and _signal.getsignal(n) is _signal.SIG_IGN],
        "limits": {n: resource.getrlimit(n) for n in LIMITS}, "ids": ids(),
        "oom": read("/proc/self/oom_score_adj"), "pid": os.getpid(),
    }
    body = marshal.dumps(request)
    fds = [directory, theirs, *files]
    packed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    assert len(fds) <= MOST_FILES
    sent = conn.sendmsg([len(body).to_bytes(8, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)])
    assert sent == 8
    # From its answer on, the worker is there, and this process must never go on by itself. A signal waits until then.
    passed_on = [_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2]
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, passed_on)
    try:
        conn.sendall(body)
        answer, extra, _, _ = conn.recvmsg(256, 64)
        if answer == WAIT:
            conn.settimeout(RAY_SECONDS)
            answer, extra, _, _ = conn.recvmsg(256, 64)
        answer = answer.removeprefix(WAIT)
        assert answer[:1] == b"+", answer.decode(errors="replace")
        pidfd = int.from_bytes(extra[0][2][:4], sys.byteorder)
    except BaseException:
        # Closing this end kills a worker that was made all the same, before anything is done twice.
        os.close(ours)
        conn.close()
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        raise
    os.close(theirs)
    os.close(directory)
    for number in passed_on:
        if _signal.getsignal(number) is not _signal.SIG_IGN:
            _signal.signal(number, lambda number, _: send(pidfd, number))
    _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
    status = None
    conn.settimeout(None)
    try:
        status = conn.recv(16)  # the end of the worker, or of the server
    except OSError:
        pass
    if not status:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
        os._exit(1)
    code = int(status)
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code != _signal.SIGKILL:
        _signal.signal(-code, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [-code])
    os.kill(os.getpid(), -code)
    os._exit(128 - code)


def announce(job, env, variables):
    """Tells the server, where there is one, that workers of this job may come, with this environment and these variables in it:
    called by Ray's agent for environments, which hears of a job when its driver starts."""
    if "0" in (env.get("LABD_WARM"), variables.get("LABD_WARM")) or any("$" in value for value in variables.values()):
        return
    import marshal
    import socket

    told = {name: value for name, value in {**env, **variables, "RAY_JOB_ID": job}.items() if name.startswith(READ_BY_RAY) and name not in AGENTS_OWN}
    body = marshal.dumps({"announced": told})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
        conn.settimeout(ANNOUNCE_SECONDS)
        conn.connect(socket_path())
        conn.sendall(len(body).to_bytes(8, "big") + body)


def connected(conn):
    import time

    conn.settimeout(ANSWER_SECONDS)
    while True:
        try:
            conn.connect(socket_path())
            return conn
        except (FileNotFoundError, ConnectionRefusedError):
            if age() > WAIT_SECONDS or not (os.path.exists(worth_waiting()) or coming()):
                raise
            time.sleep(0.05)


def coming():
    """Whether a server without torch is about to listen: a node has work before that, and the rest of a server's imports is
    less than those of a worker."""
    try:
        return os.path.exists(f"/proc/{int(read(socket_path() + SOON))}")
    except (OSError, ValueError):
        return False


def worth_waiting():
    return WORTH_WAITING + os.environ.get("RAY_JOB_ID", "")


def age():
    """Seconds since this process was made, whatever it has run since."""
    began = int(read("/proc/self/stat").rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(read("/proc/uptime").split()[0]) - began


def send(pidfd, number):
    import _signal

    try:
        _signal.pidfd_send_signal(pidfd, number)
    except OSError:
        pass


LIMITS = range(16)  # RLIMIT_CPU to RLIMIT_RTTIME


def inherited(fd):
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def prefixes():
    return [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]


def ids():
    return [os.getresuid(), os.getresgid(), os.getgroups()]


def umask():
    for line in read("/proc/self/status").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    raise OSError("no umask in /proc")


def read(path):
    with open(path) as file:
        return file.read().strip()


def strangers():
    """What imports modules here, without labd's own hook: the worker decides anew whether it has that."""
    return [f for f in sys.meta_path if type(f).__module__ != "labd_hook"]


def kind(finder):
    return finder.__qualname__ if isinstance(finder, type) else type(finder).__qualname__


def version():
    """Both ends must be of the same make."""
    found = os.stat(__file__)
    return [sys.version, list(sys.flags), sys.warnoptions, sys._xoptions, os.path.realpath(sys.executable), os.path.realpath(__file__), found.st_size, found.st_mtime_ns]


# ---- The server ----

# What a worker, a Train controller or a job's supervisor imports of Ray: first what each of them needs, then the rest.
RAYS = [["ray._private.node", "ray._private.worker", "ray._private.async_compat", "ray._private.runtime_env.setup_hook", "ray.actor"],
        ["ray.train", "ray.train.v2.api.data_parallel_trainer", "ray.train.v2._internal.execution.worker_group.worker",
         "ray.train.v2._internal.execution.controller.controller", "ray.train.v2._internal.state.state_actor",
         "ray.dashboard.modules.job.job_supervisor", "ray.train.torch", "ray.train.lightning", "ray.data", "ray.tune"]]
# Imported after that, where they are there. A line comes out of hiding as one.
MORE = [["boto3", "botocore.client"],
        ["torch", "torch.utils.data", "torch.distributed", "torch.nn.parallel"], ["torchvision", "torchvision.transforms", "torchvision.models"],
        ["lightning", "lightning.pytorch"], ["pytorch_lightning"]]


def build():
    """Run while the image is built: writes down what importing Ray imports, in its order, and where Ray's modules lie; and
    says of Ray's `setup_worker.py` whether `set_up` does the same."""
    import importlib
    import json

    base, before, layers = os.path.splitext(__file__)[0], set(sys.modules), []
    for names in RAYS:
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError as error:
                print(f"labd: warm: {name}: {error}", file=sys.stderr)
        found = [m for m in sys.modules if m not in before and m not in ("__main__", "__mp_main__")]
        before.update(found)
        heavy = {name.split(".")[0] for line in MORE for name in line}
        layers.append([m for m in found if m.split(".")[0] not in {"ray", "grpc", "labd_hook", "labd_warm"} | heavy])
    rays = {name: module.__spec__.origin for name, module in sys.modules.items() if name.split(".")[0] == "ray"
            and getattr(module, "__spec__", None) and (module.__spec__.origin or "").endswith(".py")}
    ray = os.path.dirname(sys.modules["ray"].__file__)
    for name, path in (("ray._private.workers.default_worker", f"{ray}/_private/workers/default_worker.py"),):
        rays[name] = path
    with open(base + ".json", "w") as file:
        json.dump({"layers": layers, "rays": rays, "first": RAYS[0]}, file)
    if os.path.exists(base + ".stamp"):
        os.remove(base + ".stamp")
    if not as_ray_does():
        print("labd: warm: this Ray starts its workers in a way of its own; they import Ray twice", file=sys.stderr)
    else:
        with open(base + ".stamp", "w") as file:
            file.write(stamp(ray))


def as_ray_does():
    """Whether `command` makes of each context what this Ray's own code makes of it: the same command and environment."""
    from unittest import mock

    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray.core.generated.common_pb2 import Language

    arguments = ["/x" + WORKER, "--node-ip-address=1.2.3.4", "--webui=", "--x=a b'c$HOME", "--y", "z"]
    contexts = [
        {}, {"env_vars": {"A": "1", "B": "$A:${A}:${NOT_THERE}:$NOT_THERE:${lower}", "PYTHONPATH": "/a:${PYTHONPATH}", "C": "x y"}},
        {"command_prefix": ["cd", "/a/b", "&&"]}, {"command_prefix": ["source", "/v/bin/activate", "1>&2", "&&"], "py_executable": "/v/bin/python"},
        {"py_executable": "nsys profile python", "env_vars": {"A": ""}}, {"override_worker_entrypoint": "/other/default_worker.py"},
        {"java_jars": ["/j"], "command_prefix": [], "env_vars": {}},
    ]
    for context in contexts:
        told = []
        with mock.patch.dict(os.environ, {"BEFORE": "b", "HOME": "/root"}), mock.patch("os.execvp", lambda file, args: told.append((args, dict(os.environ)))):
            RuntimeEnvContext(**context).exec_worker(list(arguments), Language.Value("PYTHON"))
        with mock.patch.dict(os.environ, {"BEFORE": "b", "HOME": "/root"}):
            _, _, line, env = command(context, list(arguments))
        if told != [(["bash", "-c", line], env)]:
            return False
    return True


class Recorder(type(os.environ)):
    """Notes which variables are read while modules are imported."""

    reads, copied = set(), []
    programs = {}  # what PATH was searched for, and what was found: an environment has a folder of its own in front of it

    def __getitem__(self, key):
        # Whoever copies the environment asks for each name in turn, and has no use for any of them.
        if Recorder.copied[-1:] == [key]:
            Recorder.copied.pop()
        else:
            Recorder.reads.add(key)
            Recorder.copied = []
        return super().__getitem__(key)

    def __iter__(self):
        names = list(super().__iter__())
        Recorder.copied = names[::-1]
        return iter(names)

    def items(self):
        return {self.decodekey(k): self.decodevalue(v) for k, v in self._data.items()}.items()

    def copy(self):
        return dict(self.items())


class Recording:
    """The time during which `Recorder` notes what is read, and which programs are looked for."""

    def __enter__(self):
        import shutil

        self.plain, self.which, self.over = os.environ.__class__, shutil.which, False

        def noted(cmd, mode=os.F_OK | os.X_OK, path=None):
            if path is None and not self.over:
                Recorder.programs[cmd, mode] = found = self.which(cmd, mode, os.environ.copy().get("PATH", os.defpath))
                return found
            return self.which(cmd, mode, path)

        shutil.which = noted
        os.environ.__class__ = Recorder

    def __exit__(self, *_):
        import shutil

        os.environ.__class__, shutil.which = self.plain, self.which
        self.over = True  # who has taken `noted` for its own keeps it


def changed(before, after):
    """The variables that an import set, {name: value} with None for one that it removed."""
    return {name: after.get(name) for name in {*before, *after} if before.get(name) != after.get(name)}


def preload(lists):
    """Imports everything; returns the layers, oldest first: {module name: module} each, and the variables that its import set."""
    import importlib

    had = {key: os.environ.get(key) for key in ("OPENBLAS_NUM_THREADS",)}
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads would not live through a fork; the worker says how many
    layers, sets = [], []
    with Recording():
        for names in lists:
            before, env = set(sys.modules), os.environ.copy()
            for name in names:
                try:
                    importlib.import_module(name)
                except BaseException:
                    pass  # a module that is made by another one, or is not there
            if "ray" in sys.modules:
                raise RuntimeError("Ray was imported")
            layers.append({m: module for m, module in list(sys.modules.items())
                           if m not in before and m.split(".")[0] not in sys.stdlib_module_names and not m.startswith("_cython")})
            sets.append(changed(env, os.environ.copy()))
    for key, value in had.items():
        os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
    return layers, sets


def set_variables(values):
    for name, value in values.items():
        if name in Recorder.reads and name in os.environ:
            continue  # set only where it is not, and the worker has set it meanwhile
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def unsound(with_ray=False):
    """Why forking this process would not be safe; None where it is."""
    if "ray" in sys.modules and not with_ray:
        return "Ray was imported"
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith(("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/accel", "/dev/infiniband")):
            return f"{target} is open"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised"
    names = [read(f"/proc/self/task/{task}/comm") for task in os.listdir("/proc/self/task") if int(task) != os.getpid()]
    # jemalloc (in pyarrow) looks after its own threads at a fork.
    if others := {name for name in names if not name.startswith("jemalloc")}:
        return f"a library has started threads ({', '.join(sorted(others))})"
    return None


class Parent:
    """Forks a process for each one that asks at its socket, and tells it how that one ended."""

    what = "a process"  # what starts cold where it is refused

    def __init__(self, path):
        import select
        import socket

        self.path, self.said, self.children = path, set(), {}  # children: pidfd -> (pid, connection)
        self.version = version()
        self.affinity = sorted(os.sched_getaffinity(0))
        # Hooks decide by the process they are in, and the child runs them again.
        sys.modules.pop("labd_hook", None)
        sys.meta_path[:] = strangers()
        self.base, self.env = list(sys.path), dict(os.environ)
        self.poll = select.poll()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def listen(self):
        import select

        # Bound under another name first: whoever finds the socket finds it listening.
        fresh = f"{self.path}.{os.getpid()}"
        self.listener.bind(fresh)
        os.chmod(fresh, 0o600)
        self.listener.listen(128)
        os.rename(fresh, self.path)
        self.poll.register(self.listener, select.POLLIN)

    def deaf(self):
        """From now on nobody is served; those who are there live on."""
        self.poll.unregister(self.listener)
        self.listener.close()
        self.listener = None

    def run(self):
        """Serves; in a child it returns what that has to carry out."""
        while self.listener is not None or self.children:
            asked_for = self.poll
            for fd, _ in asked_for.poll(self.patience()) or [(None, 0)]:
                if self.poll is not asked_for:
                    break  # a new process, with files of its own
                if fd in self.children:
                    self.ended(fd)
                    work = None
                elif self.listener is not None and fd == self.listener.fileno():
                    work = self.asked()
                else:
                    work = self.other(fd)
                if work is not None:
                    return work
        return None

    def patience(self):
        """The milliseconds after which `other` hears that nothing happened; None for never."""

    def other(self, fd):
        """What a server has to do where another of its files is ready; in a child it returns as `run` does."""

    def asked(self):
        conn, _ = self.listener.accept()
        request, fds = None, []
        try:
            conn.settimeout(ANSWER_SECONDS)
            request, fds = receive(conn)
            why = self.refuses(request, conn)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        return self.serve(conn, request, fds, why)

    def serve(self, conn, request, fds, why):
        import warnings

        pid = None
        try:
            if why is None:
                with warnings.catch_warnings(action="ignore"):  # of its threads; `unsound` has looked at them
                    pid = os.fork()
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        if pid == 0:
            self.leave(conn)
            return request, fds
        for fd in fds:
            os.close(fd)
        try:
            if pid is None:
                # Once each, and never a value: it may be a secret.
                if why not in self.said:
                    self.said.add(why)
                    print(f"labd: {self.what} starts cold: {why}", file=sys.stderr, flush=True)
                conn.sendall(f"-{why}".encode())
                conn.close()
            else:
                self.born(pid, conn)
        except OSError:
            pass  # the first process is gone; with it goes the child
        return None

    def born(self, pid, conn):
        import select
        import socket

        pidfd = os.pidfd_open(pid)
        self.children[pidfd] = (pid, conn)
        self.poll.register(pidfd, select.POLLIN)
        conn.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, pidfd.to_bytes(4, sys.byteorder))])

    def ended(self, pidfd):
        pid, conn = self.children.pop(pidfd)
        self.poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        try:
            conn.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        except OSError:
            pass
        conn.close()

    def leave(self, conn):
        """In the child: nothing of the server's is open any more."""
        if self.listener is not None:
            self.listener.close()
        conn.close()
        for pidfd, (_, other) in self.children.items():
            os.close(pidfd)
            other.close()
        self.children.clear()

    def is_another(self, request, conn):
        """Why a child could not be as the process that asks, whatever it runs; None where it could."""
        import resource
        import socket

        if request["version"] != self.version:
            return "it runs another Python, or one with other options"
        peer = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if peer[4:] != os.getuid().to_bytes(4, sys.byteorder) + os.getgid().to_bytes(4, sys.byteorder) or request["ids"] != ids():
            return "it runs as another user"
        if request["affinity"] != self.affinity:
            return "it is bound to other CPUs"
        if request["nice"] < os.getpriority(os.PRIO_PROCESS, 0):
            return "it has a higher priority"
        if any(request["terminal"]):
            return "it has a terminal"
        if any(limit[1] != resource.getrlimit(number)[1] for number, limit in request["limits"].items()):
            return "its limits are others"
        return None

    def imports_otherwise(self, request, known=frozenset()):
        unknown = set(request["finders"]) - self.finders - known
        return f"it imports in a way of its own ({', '.join(sorted(unknown))})" if unknown else None

    @staticmethod
    def has_another(names, its, ours):
        others = [name for name in names if its.get(name) != ours.get(name)]
        return f"its {min(others)} is another" if others else None


class Server(Parent):
    """The server of workers: everything that does not change between two requests, and the children that live."""

    what = "a worker process"
    is_of_job = False
    first = None  # where Ray was imported: what it has put at the head of the path

    def __init__(self, path, more):
        import gc

        super().__init__(path)
        self.announce()
        self.dirs = self.dated()
        first, *rest = self.listed("layers")
        # What an import sets (Lightning does) belongs to that import: a process that has not done it does not have it.
        self.layers, self.sets = preload([first, ["numpy", "numpy.random"], [n for names in rest for n in names], *more])
        self.blas = blas_setters()
        self.codes = ray_codes(self.listed("rays"))
        self.reads = Recorder.reads - HANDLED
        self.finders = {kind(f) for f in sys.meta_path}
        self.tops = {name.split(".")[0] for name in sys.modules} | {"ray"}
        self.rays = self.listed("first")
        self.jobs, self.forked = {}, {}  # what Ray reads of the environment -> channel; pidfd -> pid
        if why := unsound():
            print(f"labd: no warm starts on this node: {why}", file=sys.stderr, flush=True)
            sys.exit(0)
        gc.collect()
        gc.freeze()
        self.listen()
        if os.path.exists(path + SOON):
            os.remove(path + SOON)

    def finding(self):
        """What finds modules that are in memory, not yet imported as far as a worker can see."""
        return [Hidden(self.layers[1:], self.sets[1:], self.blas), Codes(self.codes)]

    def announce(self):
        """Workers wait for a server that takes a second; not for one that imports torch, which few of them use."""
        from importlib.util import find_spec

        if not any(find_spec(name) for name in ("torch", "lightning", "pytorch_lightning")):
            with open(self.path + SOON, "w") as file:
                file.write(str(os.getpid()))

    @staticmethod
    def listed(what):
        import json

        with open(os.environ.get("LABD_WARM_LIST") or os.path.splitext(__file__)[0] + ".json") as file:
            return json.load(file).get(what, [])

    def dated(self):
        """Packages that come or go change the date of the folder that they lie in."""
        return {path: os.stat(path).st_mtime_ns for path in self.base if path.endswith("-packages") and os.path.isdir(path)}

    @staticmethod
    def programs_elsewhere(path):
        """A program that was looked for in PATH, and is found elsewhere in this one."""
        import shutil

        found = {cmd: shutil.which(cmd, mode, path or os.defpath) == before for (cmd, mode), before in Recorder.programs.items()}
        return min((cmd for cmd, same in found.items() if not same), default=None)

    def refuses(self, request, conn):
        """Why this request is not served; None where the worker will be as one that starts by itself."""
        if "announced" in request:
            return unsound()
        if self.dated() != self.dirs:
            self.deaf()
            return "packages were installed into Ray's own environment since this node started"
        if why := self.is_another(request, conn):
            return why
        overlay = request["prefixes"] != prefixes()
        if why := self.imports_otherwise(request, OVERLAYS if overlay else set()):
            return why
        env = request["env"]
        early = {name for name in {*env, *self.env} if name.startswith(READ_EARLY)} - HANDLED
        if why := self.has_another(early | self.reads, env, self.env):
            return why
        if env.get("PATH") != self.env.get("PATH") and (other := self.programs_elsewhere(env.get("PATH"))):
            return f"its {other} is another"
        site = sys.modules["site"]
        shared = [p for p in request["path"] if p in self.base]
        # What a virtual environment without these is told apart by is known only once its own packages are in the path.
        made_on_it = not overlay or set(site.PREFIXES) <= set(request["site"])
        if os.path.dirname(os.path.abspath(__file__)) not in shared or shared != [p for p in self.base if p in shared] or not made_on_it:
            return "its environment is not made on Ray's"
        return self.shadows(request["path"]) or unsound()

    def shadows(self, paths):
        """A module that one of these folders has, and that is in memory from another one."""
        for path in paths:
            if path not in self.base and os.path.exists(path):
                if not os.path.isdir(path):
                    return "it has an archive in its path"
                if shadows := {name.split(".")[0] for name in os.listdir(path)} & self.tops:
                    return f"its {min(shadows)} is another"
        return None

    def serve(self, conn, request, fds, why):
        return None if why is None and self.passed_on(conn, request, fds) else super().serve(conn, request, fds, why)

    def passed_on(self, conn, request, fds):
        """Whether it is left to the process of its job, which is made here where there is none; in that process itself, too."""
        announced = request.get("announced")
        env = request["env"] if announced is None else {**self.env, **announced}
        try:
            channel = self.of_job(env, conn, fds)
            if channel is not None and announced is None:
                conn.sendall(WAIT)
                post(channel, request, [conn.fileno(), *fds])
        except OSError:
            channel = None
        if self.is_of_job:
            return True
        if channel is None and announced is None:
            return False
        conn.close()
        for fd in fds:
            os.close(fd)
        return True

    def of_job(self, env, conn, fds):
        """The channel to the process for workers with this environment, which is made where there is none."""
        if not self.rays or "RAY_JOB_ID" not in env:
            return None
        told = of_ray(env)
        channel = self.jobs.pop(told, None) or self.begin_job(env, conn, fds)
        if channel is not None:
            self.jobs[told] = channel  # the one that was last wanted is the last
        return channel

    def begin_job(self, env, conn, fds):
        """Forks a process for workers with this environment; returns the channel to it, None in that process."""
        import select
        import socket
        import warnings

        while len(self.jobs) >= MOST_JOBS:
            self.forget(next(iter(self.jobs.values())))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with warnings.catch_warnings(action="ignore"):
                pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            ours.close()
            self.leave(conn)
            for fd in fds:
                os.close(fd)
            self.__class__ = OfJob
            self.begin(theirs, env)
            return None
        theirs.close()
        ours.settimeout(CHANNEL_SECONDS)
        pidfd = os.pidfd_open(pid)
        self.forked[pidfd] = pid
        for fd in (ours.fileno(), pidfd):
            self.poll.register(fd, select.POLLIN)
        return ours

    def forget(self, channel):
        """The process at the other end ends with the last of its workers."""
        self.jobs = {told: other for told, other in self.jobs.items() if other is not channel}
        self.poll.unregister(channel.fileno())
        channel.close()

    def other(self, fd):
        if fd in self.forked:
            self.poll.unregister(fd)
            os.waitpid(self.forked.pop(fd), 0)
            os.close(fd)
            return None
        if (channel := next((c for c in self.jobs.values() if c.fileno() == fd), None)) is None:
            return None
        try:
            request, fds = fetch(channel)
        except Exception:
            request, fds = None, []
        if fds:  # its job's process will not have it
            import socket

            return super().serve(socket.socket(fileno=fds[0]), request, fds[1:], None)
        if request == NO_RAY:
            self.rays = []  # it hands back what it was asked
        else:
            self.forget(channel)
        return None

    def leave(self, conn):
        super().leave(conn)
        for pidfd in self.forked:
            os.close(pidfd)
        for channel in self.jobs.values():
            channel.close()
        self.forked, self.jobs = {}, {}


class OfJob(Server):
    """A job's process: what the server becomes in a child of its own. What it will not fork it hands back."""

    what = "a worker process, without what its job's process has imported,"

    is_of_job = True

    def begin(self, channel, env):
        """In the new process, before it has heard of any worker."""
        import gc
        import select

        self.listener, self.env = channel, env
        self.poll = select.poll()
        self.poll.register(channel, select.POLLIN)
        self.unfit = None
        gc.disable()
        try:
            self.imports()
            self.unfit = unsound(with_ray=True)
        except Exception as error:
            self.unfit = f"{type(error).__name__}: {error}"
        gc.enable()
        gc.freeze()
        if self.unfit:
            print(f"labd: worker processes import Ray themselves: {self.unfit}", file=sys.stderr, flush=True)
            self.hand_back(NO_RAY)

    def hand_back(self, what, fds=()):
        try:
            post(self.listener, what, fds)
        except OSError:
            pass  # nobody is there any more; who has asked goes on by itself

    def imports(self):
        import importlib

        set_environment(self.env)
        set_variables(self.sets[0])
        sys.meta_path[:0] = self.finding()
        before, path, env, meta = set(sys.modules), list(sys.path), os.environ.copy(), list(sys.meta_path)
        hidden, reads = dict(sys.meta_path[0].where), set(Recorder.reads)
        Recorder.reads.clear()
        with Recording():
            for name in self.rays:
                importlib.import_module(name)
        self.reads = Recorder.reads - HANDLED
        Recorder.reads |= reads
        if sys.meta_path != meta or sys.meta_path[0].where != hidden or sys.path[len(sys.path) - len(path):] != path:
            raise RuntimeError("its import changes how others are imported")
        self.first = sys.path[:len(sys.path) - len(path)]  # Ray has packages of its own, which come before all others
        self.sets[0] = {**self.sets[0], **changed(env, os.environ.copy())}
        self.tops |= {name.split(".")[0] for name in set(sys.modules) - before}

    def patience(self):
        return None if self.children else IDLE_SECONDS * 1000

    def asked(self):
        import socket

        try:
            request, (conn, *fds) = fetch(self.listener)
        except Exception:
            self.deaf()  # nobody is there any more
            return None
        if why := self.refuses(request, None):
            self.hand_back(request, [conn, *fds])
            for fd in (conn, *fds):
                os.close(fd)
            if why not in self.said and not self.unfit:
                self.said.add(why)
                print(f"labd: a worker process imports Ray itself: {why}", file=sys.stderr, flush=True)
            return None
        conn = socket.socket(fileno=conn)
        conn.settimeout(ANSWER_SECONDS)
        return Parent.serve(self, conn, request, fds, None)

    def other(self, fd):
        if fd is None:
            self.deaf()

    def refuses(self, request, conn):
        """What the server itself has not seen to: it has not imported Ray."""
        env = request["env"]
        if why := self.unfit or self.has_another(self.reads, env, self.env) or self.shadows(request["path"]):
            return why
        if env.get("PATH") != self.env.get("PATH") and (other := self.programs_elsewhere(env.get("PATH"))):
            return f"its {other} is another"
        return unsound(with_ray=True)


# The job's processes that a server has beside it; each may be for some workers of a job only.
MOST_JOBS = 4
# How long such a process waits for a worker to fork while it has none. Chosen, not measured.
IDLE_SECONDS = 300
# It reads while it has nothing else to do, and imports Ray in less than that.
CHANNEL_SECONDS = 1.0
NO_RAY = "no Ray"


def of_ray(env):
    """What Ray's library reads of an environment, without telling."""
    return tuple(sorted((name, value) for name, value in env.items() if name.startswith(READ_BY_RAY)))


def post(channel, what, fds=()):
    """Sends a value and files as one message."""
    import marshal
    import socket

    channel.sendmsg([marshal.dumps(what)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds))] if fds else [])


def fetch(channel):
    """A message as it was posted; raises where it is none, as at the channel's end."""
    import marshal
    import socket

    body, extra, flags, _ = channel.recvmsg(1 << 20, socket.CMSG_LEN(4 * (MOST_FILES + 1)), socket.MSG_CMSG_CLOEXEC)
    fds = files_in(extra)
    try:
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            raise ValueError("a part is missing")
        return marshal.loads(body), fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def receive(conn):
    import marshal
    import socket

    head, extra, flags, _ = conn.recvmsg(8, socket.CMSG_LEN(4 * MOST_FILES), socket.MSG_CMSG_CLOEXEC)
    fds = files_in(extra)
    try:
        left, parts = int.from_bytes(head, "big"), []
        if len(head) != 8 or flags & socket.MSG_CTRUNC or left > 64 << 20:
            raise ValueError("no request")
        while left:
            if not (part := conn.recv(min(left, 1 << 20))):
                raise ValueError("it went away")
            parts.append(part)
            left -= len(part)
        request = marshal.loads(b"".join(parts))
        if len(fds) != (0 if "announced" in request else 2 + len(request["files"])):
            raise ValueError("files are missing")
        return request, fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def files_in(extra):
    import socket

    fds = []
    for level, what, data in extra:
        if (level, what) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += [int.from_bytes(data[i:i + 4], sys.byteorder) for i in range(0, len(data) - len(data) % 4, 4)]
    return fds


def blas_setters():
    """What sets the number of threads of each OpenBLAS that is loaded."""
    import ctypes

    found = []
    for path in sorted({line.split(None, 5)[5].strip() for line in read("/proc/self/maps").splitlines() if "openblas" in line}):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for name in ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads64_", "openblas_set_num_threads"):
            if (setter := getattr(library, name, None)) is not None:
                found.append(setter)
                break
    return found


def ray_codes(rays):
    """Compiled code of Ray's modules: reading it depends on nothing, running it is left to the worker."""
    from importlib.machinery import SourceFileLoader

    codes = {}
    for name, path in rays.items():
        try:
            dated = os.stat(path).st_mtime_ns
            codes[name] = (SourceFileLoader(name, path).get_code(name), path, dated)
        except (OSError, SyntaxError):
            pass
    return codes


# ---- The worker ----


def take_on(request, fds):
    """Takes on what the first process was, as far as the kernel and Python's own state of it are concerned."""
    import fcntl
    import resource
    import signal

    # A number may be a source and a target.
    high = 1 + max([*request["files"], *fds])
    directory, line, *files = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, high) for fd in fds]
    for fd in fds:
        os.close(fd)
    # First of all: when the first process dies, the kernel kills this one.
    fcntl.fcntl(line, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(line, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(line, fcntl.F_SETFL, fcntl.fcntl(line, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    try:
        if os.read(line, 1) == b"":
            os._exit(1)  # it died before that
    except BlockingIOError:
        pass
    for source, target in zip(files, request["files"]):
        os.dup2(source, target, inheritable=True)
        os.close(source)
    os.fchdir(directory)
    os.close(directory)
    os.umask(request["umask"])
    for number, limit in request["limits"].items():
        if resource.getrlimit(number) != limit:
            resource.setrlimit(number, limit)
    os.setpriority(os.PRIO_PROCESS, 0, request["nice"])
    if request["session"] == os.getsid(0) and request["group"] != os.getpgrp():
        os.setpgid(0, request["group"])
    if request["oom"] != read("/proc/self/oom_score_adj"):
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(request["oom"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    set_environment(request["env"])
    fresh()
    sys.orig_argv = request["argv"]
    sys.executable, sys._base_executable = request["executable"], request["base_executable"]


def set_environment(env):
    # A variable that stays is not written again: what shows a process's title looks for its arguments before the first one.
    for name in [n for n in os.environ if n not in env]:
        del os.environ[name]
    for name, value in env.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def as_main(script, code):
    """A module `__main__` for this script, or for none; returns what is to be executed in which namespace."""
    import types
    from importlib.machinery import BuiltinImporter, SourceFileLoader

    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, __loader__=BuiltinImporter)
    if script:
        main.__dict__.update(__file__=script, __loader__=SourceFileLoader("__main__", script), __cached__=None)
    sys.modules["__main__"] = main
    return code, main.__dict__


def become(server, request, fds):
    """Makes this process the worker; returns the script's code and the namespace to run it in."""
    import signal

    take_on(request, fds)
    set_variables(server.sets[0])
    script = request["argv"][1]
    sys.argv = request["argv"][1:]
    overlay = request["prefixes"] != prefixes()
    sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix = request["prefixes"]
    path = request["path"] + [p for p in server.base if p not in request["path"]]
    sys.path[:] = path
    sys.path_importer_cache.clear()
    if server.first is None:
        sys.meta_path[:0] = server.finding()
    if overlay:
        site = sys.modules["site"]
        site.PREFIXES[:] = request["site"]
        for folder in [p for p in path if p not in server.base and p.endswith("-packages")]:
            site.addsitedir(folder, set(path))
    hooks(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [*(server.first or []), *([] if sys.flags.safe_path else [os.path.dirname(os.path.realpath(script))]), *path]

    if (kept := server.codes.get(DEFAULT)) and os.path.realpath(script) == os.path.realpath(kept[1]):
        code = kept[0]
    else:
        with open(script, "rb") as file:
            code = compile(file.read(), script, "exec", dont_inherit=True)
    work = as_main(script, code)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["mask"])
    return work


F_SETSIG = 10
DEFAULT = "ray._private.workers.default_worker"


def hooks(folder):
    """What labd itself does at the start of every Python, decided anew for this process."""
    try:
        lines = read(os.path.join(folder, "labd.pth")).splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith(("import ", "import\t")):
            try:
                exec(line)
            except Exception as error:
                print(f"labd: warm: labd.pth: {error}", file=sys.stderr)


def fresh():
    """What a process of its own would not have in common with others."""
    import time

    time.tzset()
    if (tempfile := sys.modules.get("tempfile")) is not None:
        tempfile.tempdir = None
    if (process := sys.modules.get("multiprocessing.process")) is not None:
        process.current_process().authkey = os.urandom(32)


class Hidden:
    """Modules that are in memory, but not imported as far as the worker can see. A layer comes out as a whole, together with
    the older ones that it was built on."""

    def __init__(self, layers, sets, blas):
        self.layers, self.sets, self.blas = layers, sets, blas
        self.where = {name: number for number, layer in enumerate(layers) for name in layer}
        for name in self.where:
            sys.modules.pop(name, None)

    def find_spec(self, name, path=None, target=None):
        if (number := self.where.get(name)) is None:
            return None
        import copy

        found = self.layers[number][name]
        spec = copy.copy(found.__spec__)
        if spec is None:
            from importlib.machinery import ModuleSpec

            spec = ModuleSpec(name, None)
        spec.loader = Found(self, found, number)
        return spec

    def reveal(self, number):
        # A hook that waits for a module must see it come.
        awaited = {name for f in sys.meta_path if type(f).__module__ == "labd_hook" for name in f.changes}
        due = self.due(number)
        new = {name: self.where.pop(name) for name in due if name not in awaited}
        sys.modules.update((name, self.layers[at][name]) for name, at in new.items())
        for values in self.sets[:number + 1]:
            set_variables(values)
            values.clear()
        if "numpy" in new:
            self.numpy(self.layers[new["numpy"]])
        if "torch" in new:
            self.torch(sys.modules["torch"])
        for name in due:
            if name in self.where:
                __import__(name)

    def due(self, number):
        """What comes out with a layer: the layers before it, and what is reached from them without an import. A package holds
        its parts as attributes, those too that a later layer was the first to import; and such a part holds what came with
        it, though not what has a line of its own."""
        top = lambda name: name.split(".")[0]  # noqa: E731
        tops = {top(name) for layer in self.layers[:number + 1] for name in layer}
        reached = {at for name, at in self.where.items() if at > number and top(name) in tops}
        lines = {top(name) for line in [["numpy"], ["pandas"], ["pyarrow"], *MORE] for name in line}
        return [name for name, at in self.where.items() if at <= number or top(name) in tops or (at in reached and top(name) not in lines)]

    def numpy(self, layer):
        if "numpy.random" in layer:  # all workers would draw the same
            layer["numpy.random"].seed()
        for setter in self.blas:
            setter(threads("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))

    @staticmethod
    def torch(module):
        if hasattr(module, "default_generator"):
            module.default_generator.seed()
        if number := threads("MKL_NUM_THREADS", "OMP_NUM_THREADS"):
            module.set_num_threads(number)
        if "RAY_JOB_ID" in os.environ:
            try:
                os.close(os.open(worth_waiting(), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except OSError:
                pass  # then nobody waits


def threads(*names):
    """The first of these variables that is a number of threads; 0 where none is."""
    for name in names:
        first = os.environ.get(name, "").split(",")[0].strip()
        if first.isdecimal() and int(first) > 0:
            return int(first)
    return 0


class Found:
    """Loads what is loaded."""

    def __init__(self, hidden, module, number):
        self.hidden, self.module, self.number = hidden, module, number
        self.spec = module.__spec__

    def create_module(self, spec):
        self.hidden.where.pop(spec.name, None)
        # What is revealed with it may import it, as a part imports its package.
        sys.modules[spec.name] = self.module
        self.hidden.reveal(self.number)
        return self.module

    def exec_module(self, module):
        module.__spec__ = self.spec
        if module.__name__ == "numpy":
            self.hidden.numpy(self.hidden.layers[self.number])
        elif module.__name__ == "torch":
            self.hidden.torch(module)

    def __getattr__(self, name):  # get_data, is_package, ...: whoever asks a spec's loader means the real one
        return getattr(self.spec.loader, name)


class Codes:
    """Ray's modules, found without looking and read without a file."""

    def __init__(self, codes):
        from importlib.machinery import SourceFileLoader

        class Kept(SourceFileLoader):
            def get_code(self, fullname):
                return codes[fullname][0] if fullname in codes else super().get_code(fullname)

        self.codes, self.loader = codes, Kept

    def find_spec(self, name, path=None, target=None):
        if (kept := self.codes.get(name)) is None:
            return None
        from importlib.util import spec_from_file_location

        _, file, dated = kept
        try:
            if os.stat(file).st_mtime_ns != dated:
                return None
        except OSError:
            return None
        folders = [os.path.dirname(file)] if file.endswith("/__init__.py") else None
        return spec_from_file_location(name, file, loader=self.loader(name, file), submodule_search_locations=folders)


def serve(light):
    """The server's life; in a worker it returns code and namespace."""
    server = Server(socket_path(), [] if light else MORE)
    if (work := server.run()) is None:
        sys.exit(1)
    request, fds = work
    try:
        return become(server, request, fds)
    except Exception as error:
        # This process is the worker by now, and can still begin as ever.
        print(f"labd: a worker process starts cold: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os.execve(request["executable"], request["argv"], {**request["env"], "LABD_WARM": "0"})


def begin():
    if sys.argv[1:2] == ["build"]:
        sys.exit(build())
    if sys.argv[1:2] not in (["serve"], ["serve-light"]):
        sys.exit("usage: python -m labd_warm serve | serve-light | build")
    if os.environ.get("LABD_WARM", "1") == "0":
        sys.exit(0)
    if len(sys.argv) == 2:
        # Titles of processes are written over their arguments, which are looked for before the first variable.
        first = {name: os.environ[name] for name in ("LANG", "LC_ALL", "PYTHONUNBUFFERED") if name in os.environ}
        os.execve(sys.executable, [sys.executable, os.path.abspath(__file__), sys.argv[1], " " * 1500], {**first, **os.environ})
    if not sys.flags.safe_path:
        del sys.path[0]
    return sys.modules["labd_warm"].serve(sys.argv[1] == "serve-light")


def end_at_once(code):
    """Ends this process without taking its modules apart, which copies most of what a fork shares: a second of CPU for each actor
    that Ray Train ends while its run waits for the next workers. All else that Python does at its end is done, but for
    `__del__` of what is left."""
    import atexit
    import gc
    import io
    import threading

    threading._shutdown()
    atexit._run_exitfuncs()
    # Files that nobody has closed. Those that write into another one come first.
    kinds = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
    files = [found for found in gc.get_objects() if type(found) in kinds]
    for file in (sys.stdout, sys.stderr, *sorted(files, key=lambda file: kinds.index(type(file)))):
        try:
            file.flush()
        except Exception:
            pass  # closed, or nobody reads it
    os._exit(code)


if __name__ == "__main__":
    sys.modules["labd_warm"] = sys.modules["__main__"]
    work = begin()
    try:
        exec(*work)
    except SystemExit as ended:
        if not isinstance(ended.code, (int, type(None))):
            raise  # words, which Python writes down
        end_at_once((ended.code or 0) & 0xFF)
    end_at_once(0)
