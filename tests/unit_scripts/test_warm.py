"""Worker processes forked from a warm one, with a default_worker.py that tells what it sees. No engine, no Ray needed."""
import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess

import pytest

from harness.forking import Environment, gone
from harness.lab import ROOT, wait_for

IMAGE = ROOT / "images/ray"
WORKERS = "ray/_private/workers"
# Says in one line of JSON what it is, then does as its arguments tell.
PROBE = """
import json, os, resource, signal, sys
before, had = "heavy" in sys.modules, os.environ.get("PYTORCH_OF_HEAVY")
if "SETS_FIRST" in os.environ:
    os.environ["HEAVY_DEFAULT"] = "mine"
import heavy
seen = {
    "warm": heavy.PID != os.getpid(), "visible": before, "pid": os.getpid(), "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path,
    "cwd": os.getcwd(), "env": dict(os.environ), "umask": os.umask(0), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
    "name": __name__, "file": __file__, "main": sys.modules["__main__"].__dict__ is globals(), "nice": os.nice(0), "group": os.getpgrp(),
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "ignored": signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN,
    "fds": sorted(int(f) for f in os.listdir("/proc/self/fd") if int(f) > 2 and os.path.exists("/proc/self/fd/" + f) and os.get_inheritable(int(f))),
    "prefix": sys.prefix, "executable": sys.executable, "oom": open("/proc/self/oom_score_adj").read().strip(), "cmdline": len(open("/proc/self/cmdline").read()),
    "hooked": os.environ.get("HOOKED_IN"), "spec": heavy.__spec__.origin, "random": __import__("random").random(), "had": had,
}
print(json.dumps(seen), flush=True)
exec(sys.argv[1] if len(sys.argv) > 1 else "")
"""
HEAVY = """
import os
from shutil import which
PID = os.getpid()
WAS = os.environ.get('HEAVY_READS_THIS')
OTHERS = dict(os.environ)
HAS = which('sought')
os.environ['PYTORCH_OF_HEAVY'] = '1'
os.environ.setdefault('HEAVY_DEFAULT', '1')
"""


class Node(Environment):
    """And the warm process beside it."""

    def __init__(self, folder):
        super().__init__(folder, ("labd_warm.py", "labd_warm.pth"), f"{WORKERS}/default_worker.py")
        self.put("heavy.py", HEAVY)
        self.put(f"{WORKERS}/default_worker.py", PROBE)
        (folder / "list.json").write_text(json.dumps({"layers": [["json"], ["heavy"]], "rays": {}}))
        self.socket = folder / "warm.sock"
        self.env |= {"LABD_WARM_SOCKET": str(self.socket), "LABD_WARM_LIST": str(folder / "list.json")}
        self.server = None

    def begin(self, **env):
        self.server = super().begin("-m", "labd_warm", "serve", env={**self.env, **env})

    def serve(self, **env):
        self.begin(**env)
        wait_for("the warm process listens", self.socket.exists, 60)
        return self

    def stop(self):
        if self.server and self.server.poll() is None:
            self.server.terminate()
            self.server.wait(30)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    node = Node(tmp_path_factory.mktemp("warm"))
    yield node.serve()
    node.stop()


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    yield node
    node.stop()


def test_a_worker_is_forked_and_is_as_one_that_started_by_itself(shared, tmp_path):
    """Everything that a process inherits, compared with a process that had no warm one."""
    piped, other = os.pipe()
    os.set_inheritable(piped, True)

    def before():
        os.umask(0o027)
        os.nice(3)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        pathlib.Path("/proc/self/oom_score_adj").write_text("500")

    env = {**shared.env, "RAY_JOB_ID": "01000000", "NEW": "ü", "TMPDIR": str(tmp_path)}
    env.pop("HOME", None)
    seen = {}
    for name, more in (("warm", {}), ("cold", {"LABD_WARM": "0"})):
        seen[name], _, err = shared.run("pass", "--more=x y", env={**env, **more}, cwd=tmp_path, preexec_fn=before, pass_fds=[piped])
        assert err == ""
        assert seen[name]["warm"] == (name == "warm"), "forked only when it is on"
        assert seen[name]["hooked"] == str(seen[name].pop("pid")), "labd's other hooks ran in the worker itself"
        seen[name].pop("random")
    seen["cold"]["env"].pop("LABD_WARM")
    for name in ("warm", "cold"):
        seen[name]["env"].pop("HOOKED_IN"), seen[name].pop("hooked"), seen[name].pop("warm")
        assert not seen[name].pop("visible"), "what is in memory is not imported yet"
        assert seen[name].pop("cmdline") > 100, "there is room for a title"
        seen[name].pop("group")
    assert seen["warm"] == seen["cold"]
    assert seen["warm"]["umask"] == 0o027 and seen["warm"]["nice"] == 3 and piped in seen["warm"]["fds"] and seen["warm"]["ignored"]
    os.close(piped), os.close(other)


def test_input_output_and_the_exit_code_pass_through(shared):
    first = shared.start("import sys; print(sys.stdin.read().upper()); print('to err', file=sys.stderr); sys.exit(7)")
    out, err = first.communicate("some input", timeout=60)
    assert out.splitlines()[1:] == ["SOME INPUT"] and err == "to err\n" and first.returncode == 7
    _, _, err = shared.run("raise RuntimeError('its own')", code=1)
    assert "RuntimeError: its own" in err and "default_worker.py" in err
    seen, out, _ = shared.run("import atexit; atexit.register(print, 'at the end')")
    assert seen["warm"] and out.splitlines()[-1] == "at the end"


def test_a_worker_ends_with_all_that_it_was_to_do_at_its_end(shared, tmp_path):
    """Its modules are not taken apart, which would have closed its files."""
    ends = """
import atexit, sys, threading, time
left, raw = open({path!r}, "w"), open({path!r} + "b", "wb")
left.write("a line"), raw.write(b"bytes")
atexit.register(lambda: (time.sleep(0.1), sys.stdout.write("at exit\\n")))
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
{last}
"""
    path = tmp_path / "left"
    for last, code in (("", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit(-1)", 255)):
        for file in tmp_path.iterdir():
            file.unlink()
        _, out, err = shared.run(ends.format(path=str(path), last=last), code=code)
        assert out.splitlines()[1:] == ["thread", "at exit"], err
        assert (path.read_text(), (tmp_path / "leftb").read_bytes()) == ("a line", b"bytes")
    _, out, err = shared.run(ends.format(path=str(path), last="sys.exit('no')"), code=1)
    assert out.splitlines()[1:] == ["thread", "at exit"] and "no" in err.splitlines(), err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_passed_on_and_an_end_by_a_signal_is_one(shared, number):
    for handled in (True, False):
        # Not with `print`: the signal may come while "ready" is still being printed, and Python lets no file be entered twice.
        handler = "signal.signal({0}, lambda *_: (os.write(1, b'got it\\n'), os._exit(5)))" if handled else "signal.signal({0}, signal.SIG_DFL)"
        first = shared.start(handler.format(int(number)) + "; print('ready', flush=True)\nwhile True: signal.pause()")
        seen = json.loads(first.stdout.readline())
        assert seen["warm"] and first.stdout.readline() == "ready\n"
        first.send_signal(number)
        out, err = first.communicate(timeout=60)
        assert (out, first.returncode) == (("got it\n", 5) if handled else ("", -number)), err
        assert gone(seen["pid"])


def test_a_worker_dies_with_its_first_process_and_the_other_way_round(shared):
    for victim in ("first", "worker"):
        first = shared.start("import time\nwhile True: time.sleep(100)")
        seen = json.loads(first.stdout.readline())
        worker = os.pidfd_open(seen["pid"])
        assert seen["warm"]
        os.kill(first.pid if victim == "first" else seen["pid"], signal.SIGKILL)
        assert first.wait(60) == -signal.SIGKILL
        assert select.select([worker], [], [], 60)[0], "nothing is left behind"
        os.close(worker)
    assert shared.run()[0]["warm"], "and the next one is served"


def test_children_of_a_worker_outlive_nothing_they_should_not(shared):
    """A child made by fork shares the line to the first process: the death of the one must not kill the other."""
    first = shared.start("pid = os.fork()\nif pid == 0:\n import time; time.sleep(1000)\nprint(pid, flush=True)\nos._exit(3)")
    json.loads(first.stdout.readline())
    child = int(first.stdout.readline())
    assert first.wait(60) == 3 and not gone(child)
    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("beside", [["heavy", "torch", "torch.distributed"], ["heavy"]], ids=["with another library", "torch first"])
def test_labds_own_hook_starts_no_worker_cold_and_changes_what_comes_from_memory(node, beside):
    """On simulated GPUs the hook waits for modules in every Python of the node, the warm one included. No module runs twice."""
    for name in ("labd_hook.py", "labd.pth"):
        shutil.copy(IMAGE / name, node.site)
    torch = node.site / "torch/distributed"
    torch.mkdir(parents=True)
    (torch.parent / "__init__.py").write_text(
        "import builtins\nassert not hasattr(builtins, 'torch_ran'), 'a second time'\nbuiltins.torch_ran = True\n"
        "class cuda:\n    is_available = is_initialized = staticmethod(lambda: False)\n")
    (torch / "__init__.py").write_text("from .distributed_c10d import init_process_group\n")
    (torch / "distributed_c10d.py").write_text("def init_process_group(backend=None):\n    return backend\n")
    (node.folder / "list.json").write_text(json.dumps({"layers": [["json"], beside], "rays": {}}))
    node.serve(LABD_SIMULATED_GPUS="1")
    env = {**node.env, "LABD_SIMULATED_GPUS": "1"}
    told = {}
    for name, more in (("warm", {}), ("cold", {"LABD_WARM": "0"})):
        seen, out, err = node.run("import torch, torch.distributed; print(torch.distributed.init_process_group('nccl'))", env={**env, **more})
        assert seen["warm"] == (name == "warm"), node.said.read_text()
        told[name] = out.splitlines()[1:], err
    assert told["warm"] == told["cold"] == (["gloo"], "labd: simulated GPU: torch runs on the CPU (gloo)\n")


def test_a_variable_that_an_import_sets_comes_with_that_import(shared):
    """Lightning sets one of torch's."""
    seen, _, err = shared.run()
    assert seen["warm"], err
    assert seen["had"] is None and seen["env"]["PYTORCH_OF_HEAVY"] == "1"
    told = "import subprocess; print(subprocess.run(['sh', '-c', 'echo $PYTORCH_OF_HEAVY'], capture_output=True, text=True).stdout)"
    assert shared.run(told)[1].splitlines()[-2] == "1", "and reaches what it starts"
    seen, _, err = shared.run(env=shared.env | {"PYTORCH_OF_HEAVY": "0"})
    assert not seen["warm"] and "its PYTORCH_OF_HEAVY is another" in err, "one of its own"
    for env, value in (({}, "1"), ({"SETS_FIRST": "1"}, "mine")):
        seen, _, err = shared.run(env=shared.env | env)
        assert seen["warm"] and seen["env"]["HEAVY_DEFAULT"] == value, "set only where it is not"


def test_a_part_of_a_library_that_a_later_one_imported_is_where_its_code_looks_for_it(node):
    """As torch._dynamo, which lightning imports: it hangs on torch, and looks for itself in sys.modules."""
    torch, lightning = node.site / "torch", node.site / "lightning"
    torch.mkdir()
    (torch / "__init__.py").write_text(
        "import importlib\nclass cuda:\n    is_initialized = staticmethod(lambda: False)\n"
        "def __getattr__(name):\n    if name != 'lazy':\n        raise AttributeError(name)\n    return importlib.import_module('torch.lazy')\n")
    (torch / "lazy.py").write_text("import sys, symbols\ndef itself():\n    return sys.modules[__name__], symbols.itself()\n")
    (node.site / "symbols.py").write_text("import sys\ndef itself():\n    return sys.modules[__name__]\n")
    lightning.mkdir()
    (lightning / "__init__.py").write_text("import torch.lazy\n")
    node.serve()
    for name, more in (("warm", {}), ("cold", {"LABD_WARM": "0"})):
        seen, out, _ = node.run("import torch; torch.lazy.itself(); print('lightning' in sys.modules)", env={**node.env, **more})
        assert seen["warm"] == (name == "warm"), node.said.read_text()
        assert out.splitlines()[1:] == ["False"], name


def test_workers_share_no_randomness(shared):
    drawn = {shared.run()[0]["random"] for _ in range(4)}
    assert len(drawn) == 4


def test_the_end_of_the_warm_process_ends_no_worker(node):
    node.serve()
    first = node.start("import sys; sys.stdin.read(); print('went on')")
    assert json.loads(first.stdout.readline())["warm"]
    node.server.kill()
    node.server.wait()
    with pytest.raises(subprocess.TimeoutExpired):
        first.wait(0.5)
    out, _ = first.communicate("", timeout=60)
    assert out == "went on\n"
    seen, _, err = node.run()
    assert not seen["warm"] and "ConnectionRefusedError" in err, "the next one starts by itself"
    node.socket.unlink()
    node.serve()
    assert node.run()[0]["warm"]


def has_socket(pid):
    for file in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if "socket:" in os.readlink(file):
                return True
    return False


def test_a_worker_of_a_job_with_torch_waits_for_a_warm_process_that_has_just_started(node):
    (node.site / "torch.py").write_text("import types\ncuda = types.SimpleNamespace(is_initialized=lambda: False)\n")
    job = f"labdtest{os.getpid()}"
    mark = pathlib.Path(f"/tmp/labd-torch-{job}")
    env = node.env | {"RAY_JOB_ID": job}
    node.serve()
    assert node.run("import torch", env=env)[0]["warm"]
    node.stop()
    try:
        assert not node.run(env=env)[0]["warm"], "not for ever"
        first = node.start(env=env)
        wait_for("it asks", lambda: has_socket(first.pid), 4, every=0.05)
        node.serve()
        out, err = first.communicate(timeout=60)
        assert json.loads(out.splitlines()[0])["warm"], err
    finally:
        mark.unlink()


def test_a_worker_waits_for_a_warm_process_that_is_about_to_listen_unless_it_imports_torch(node):
    (node.site / "heavy.py").write_text(HEAVY + "import time, sys\nif not sys.argv[0].endswith('default_worker.py'):\n    time.sleep(3)\n")
    soon = pathlib.Path(f"{node.socket}.soon")
    for torch in (False, True):
        if torch:
            (node.site / "torch.py").write_text("import types\ncuda = types.SimpleNamespace(is_initialized=lambda: False)\n")
        node.begin()
        if not torch:
            wait_for("it is announced", soon.exists, 20, every=0.05)
        assert node.run()[0]["warm"] != torch, node.said.read_text()
        wait_for("the warm process listens", node.socket.exists, 20)
        wait_for("it needs no announcement any more", lambda: not soon.exists(), 5)
        node.stop()
        node.socket.unlink()
    soon.write_text(str(node.server.pid))
    seen, _, err = node.run()
    assert not seen["warm"] and "FileNotFoundError" in err, "nobody waits for the dead"


def test_without_a_warm_process_or_with_a_deaf_one_a_worker_starts_by_itself(node):
    assert not node.run()[0]["warm"]
    node.serve()
    node.server.send_signal(signal.SIGSTOP)
    first = node.start()
    assert not json.loads(first.stdout.readline())["warm"] and first.wait(60) == 0
    node.server.send_signal(signal.SIGCONT)
    # What it was asked for while it was deaf becomes no second worker: that would write here, too.
    assert first.stdout.read() == ""
    assert node.run()[0]["warm"]


RAY = """
import json as _, os, sys, queue
PID, JOB, READS = os.getpid(), os.environ["RAY_JOB_ID"], os.environ.get("READ_BY_RAYS_MODULES")
sys.path.insert(0, os.path.dirname(__file__) + "/thirdparty")
os.environ["RAY_CLIENT_MODE"] = "0"
"""
SAYS = "import ray; print(ray.PID, ray.JOB, ray.READS, os.environ['RAY_CLIENT_MODE'], ':'.join(sys.path))"


@pytest.fixture
def with_ray(node):
    node.put("ray/__init__.py", RAY)
    (node.folder / "list.json").write_text(json.dumps({"layers": [["json"], ["heavy"]], "rays": {}, "first": ["ray"]}))
    node.env["RAY_JOB_ID"] = "01000000"
    return node


def says(node, path=None, **env):
    seen, out, err = node.run(SAYS, env=node.env | env)
    assert seen["warm"], err
    pid, *rest = out.splitlines()[1].split()
    return int(pid), seen, rest


def test_workers_of_one_job_are_forked_from_a_process_that_has_imported_ray_once(with_ray):
    with_ray.serve()
    first = [with_ray.start(SAYS) for _ in range(3)]
    told = [f.communicate(timeout=60)[0].splitlines()[1] for f in first]
    assert len(set(told)) == 1 and told[0].split()[1:4] == ["01000000", "None", "0"], "Ray sees the job's environment"
    pid, seen, _ = says(with_ray)
    assert str(pid) == told[0].split()[0], "a later one comes from the same process"
    cold, out, _ = with_ray.run(SAYS, env=with_ray.env | {"LABD_WARM": "0"})
    assert out.splitlines()[1].split()[1:] == told[0].split()[1:], "and it has the same path as one that starts by itself"
    assert pid not in (seen["pid"], cold["pid"]) and not seen["visible"] and not cold["warm"]
    other, _, rest = says(with_ray, RAY_JOB_ID="02000000")
    assert other != pid and rest[0] == "02000000", "another job has one of its own"
    more, _, _ = says(with_ray, RAY_worker_niceness="3")
    assert more not in (pid, other), "and so have workers of a job whose environment has another value for Ray"
    assert says(with_ray)[0] == pid
    with_ray.stop()
    wait_for("they end with the server", lambda: gone(pid) and gone(other), 20)


def test_a_worker_that_reads_something_else_while_it_imports_ray_imports_it_itself(with_ray, tmp_path):
    with_ray.serve()
    kept = says(with_ray)[0]
    pid, seen, rest = says(with_ray, READ_BY_RAYS_MODULES="hunter2")
    assert pid == seen["pid"] and rest[1] == "hunter2"
    (tmp_path / "queue.py").write_text("")
    pid, seen, _ = says(with_ray, PYTHONPATH=str(tmp_path))
    assert pid == seen["pid"], "a module of its own, which only Ray imports"
    assert says(with_ray)[0] == kept
    said = with_ray.said.read_text()
    assert "its READ_BY_RAYS_MODULES is another" in said and "its queue is another" in said and "hunter2" not in said


def test_a_job_that_was_announced_finds_ray_imported(with_ray):
    """As Ray's agent announces it: with the raylet's environment, and what is only that agent's own."""
    with_ray.serve()

    def announce(**variables):
        env = {**with_ray.env, "RAY_NODE_ID": "abc", "RAY_SET": "raylet"}
        told = f"import sys, labd_warm; labd_warm.announce('03000000', {env!r}, {variables!r})"
        done = subprocess.run([with_ray.python, "-c", told], env=with_ray.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def children():
        return subprocess.run(["ps", "--ppid", str(with_ray.server.pid), "-o", "pid="], capture_output=True, text=True).stdout.split()

    announce(RAY_worker_niceness="0", OTHER="1")
    wait_for("its process is there", children, 20)
    announce(RAY_worker_niceness="0")
    made = children()
    pid, _, rest = says(with_ray, RAY_JOB_ID="03000000", RAY_worker_niceness="0", RAY_SET="raylet", MINE="1")
    assert [str(pid)] == made == children() and rest[0] == "03000000"
    announce(LABD_WARM="0")
    announce(RAY_worker_niceness="$OTHER")
    assert says(with_ray)[0] != pid and len(children()) == 2, "what has it off or is not known yet is not announced"


def test_a_worker_waits_while_ray_is_imported_on_a_busy_machine(with_ray):
    with_ray.put("ray/__init__.py", RAY + "import time\ntime.sleep(6)\n")
    with_ray.serve()
    first = [with_ray.start(SAYS) for _ in range(2)]
    told = [f.communicate(timeout=60)[0].splitlines() for f in first]
    assert all(json.loads(seen)["warm"] for seen, _ in told) and told[0][1] == told[1][1], "longer than for an answer"


@pytest.mark.parametrize(
    "more, why",
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n", "a library has started threads"),
        ("raise OSError('not today')\n", "OSError: not today"),
        ("sys.path.append('/x')\n", "changes how others are imported"),
        ("import heavy\n", "changes how others are imported"),
    ],
)
def test_where_ray_cannot_be_imported_ahead_workers_import_it(with_ray, more, why):
    """It is tried once for a server; whoever asked meanwhile is served without."""
    with_ray.put("ray/__init__.py", RAY + "if not sys.argv[-1].startswith('pass'):\n    " + more.replace("\n", "\n    "))
    with_ray.serve()
    assert all(json.loads(f.communicate(timeout=60)[0].splitlines()[0])["warm"] for f in [with_ray.start("import os") for _ in range(2)])
    for job in ("01000000", "02000000"):
        seen, out, err = with_ray.run("pass", env=with_ray.env | {"RAY_JOB_ID": job})
        assert seen["warm"], err
    assert with_ray.said.read_text().count("worker processes import Ray themselves: ") == 1 and why in with_ray.said.read_text()


def test_the_end_of_a_jobs_process_costs_nobody_a_warm_start_later(with_ray):
    with_ray.serve()
    held = with_ray.start("import ray; print(ray.PID, flush=True); sys.stdin.read(); print('went on')")
    assert json.loads(held.stdout.readline())["warm"]
    pid = int(held.stdout.readline())
    os.kill(pid, signal.SIGKILL)
    wait_for("it is buried", lambda: not os.path.exists(f"/proc/{pid}"), 20)
    assert says(with_ray)[0] != pid
    out, _ = held.communicate("", timeout=60)
    assert out == "went on\n" and held.returncode == 1, "its worker lives on; how that ends, nobody knows any more"


def test_few_jobs_have_a_process_at_a_time_and_none_is_taken_from_under_its_workers(with_ray):
    with_ray.serve()
    held = with_ray.start("import ray; print(ray.PID, flush=True); sys.stdin.read(); sys.exit(7)")
    assert json.loads(held.stdout.readline())["warm"]
    oldest = int(held.stdout.readline())
    pids = [says(with_ray, RAY_JOB_ID=f"{n:02}000000")[0] for n in range(2, 8)]
    wait_for("the older ones have ended", lambda: [gone(pid) for pid in pids] == [True] * 2 + [False] * 4, 20)
    assert not gone(oldest) and says(with_ray)[0] != oldest
    held.communicate("", timeout=60)
    assert held.returncode == 7
    wait_for("it ends with its last worker", lambda: gone(oldest), 20)


def cases(folder):
    shadow, archive, data = folder / "shadow", folder / "a.zip", folder / "data"
    shadow.mkdir()
    (shadow / "heavy.py").write_text(HEAVY)
    archive.write_bytes(b"PK\x05\x06" + bytes(18))
    data.mkdir()
    (data / "mine.py").write_text("")
    return shadow, archive, data


def test_whatever_would_not_be_the_same_is_not_served(shared, tmp_path):
    shadow, archive, data = cases(tmp_path)
    env = shared.env
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/sought"
    program.write_text("")
    program.chmod(0o755)
    told = {
        "a program that a preloaded module looks for": (dict(env=env | {"PATH": f"{tmp_path}/bin:{env['PATH']}"}), "its sought is another"),
        "a module of its own": (dict(env=env | {"PYTHONPATH": str(shadow)}), "its heavy is another"),
        "an archive": (dict(env=env | {"PYTHONPATH": str(archive)}), "it has an archive in its path"),
        "a variable that a preloaded module reads": (dict(env=env | {"HEAVY_READS_THIS": "hunter2"}), "its HEAVY_READS_THIS is another"),
        "a variable that Python reads": (dict(env=env | {"PYTHONHASHSEED": "0"}), "with other options"),
        "another language": (dict(env=env | {"LC_ALL": "C"}), "with other options"),
        "another CPU": (dict(preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})), "bound to other CPUs"),
    }
    if len(os.sched_getaffinity(0)) == 1:
        del told["another CPU"]
    for what, (how, why) in told.items():
        seen, _, err = shared.run(**how)
        assert not seen["warm"] and (seen["spec"].startswith(str(shadow)) or what != "a module of its own"), what
        assert why in err, what
    assert "hunter2" not in shared.said.read_text()
    seen, _, _ = shared.run(env=env | {"PYTHONPATH": f"{data}:/not/there", "MINE": "1"}, cwd=data)
    assert seen["warm"] and seen["path"][1:3] == [str(data), "/not/there"], "what shadows nothing is served"
    seen, _, _ = shared.run(env=env | {"PATH": f"{data}:{env['PATH']}"})
    assert seen["warm"] and seen["env"]["PATH"].startswith(f"{data}:"), "a folder without that program"


def test_an_overlay_of_the_environment_is_served_unless_it_shadows(node, tmp_path):
    """As Ray's pip plugin makes it: an environment of its own on top."""
    node.serve()
    over = tmp_path / "over"
    subprocess.run([node.python, "-m", "venv", "--without-pip", over], check=True)
    site = next(over.glob("lib/python3*/site-packages"))
    # A virtual environment on a virtual environment does not see it; one on a plain prefix would.
    (site / "_below.pth").write_text(f"import site; site.PREFIXES.append({str(node.venv)!r}); site.addsitedir({str(node.site)!r})\n")
    (site / "extra.py").write_text("")
    overlaid = shutil.which("python", path=over / "bin")
    seen, _, err = node.run("import extra; print(extra.__file__)", python=overlaid)
    assert seen["warm"], err
    assert seen["prefix"] == str(over) and seen["executable"] == overlaid and str(site) in seen["path"]
    # What setuptools does there; another package's way to import is not known.
    finder = "class {0}:\n    def find_spec(self, *_):\n        return None\n\nimport sys; sys.meta_path.insert(0, {0}())\n"
    (site / "hack.py").write_text(finder.format("DistutilsMetaFinder"))
    (site / "_a_hack.pth").write_text("import hack\n")
    seen, out, err = node.run("import sys; print([type(f).__name__ for f in sys.meta_path].count('DistutilsMetaFinder'))", python=overlaid)
    assert seen["warm"] and out.splitlines()[-1] == "1", err
    (site / "hack.py").write_text(finder.format("Strange"))
    seen, _, err = node.run(python=overlaid)
    assert not seen["warm"] and "it imports in a way of its own (Strange)" in err
    (site / "_a_hack.pth").unlink()
    (site / "heavy.py").write_text(HEAVY)
    assert node.run(python=overlaid)[0]["spec"] == str(site / "heavy.py")


def test_packages_that_change_end_the_warm_process(node):
    node.serve()
    assert node.run()[0]["warm"]
    (node.site / "newcomer.py").write_text("")
    seen, _, err = node.run()
    assert not seen["warm"] and "packages were installed" in err
    assert node.server.wait(60) == 1, "and start.sh starts another"


def test_a_library_that_starts_threads_or_opens_a_gpu_switches_it_off(node):
    (node.site / "heavy.py").write_text(HEAVY + "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n")
    server = subprocess.run([node.python, "-m", "labd_warm", "serve"], env=node.env, capture_output=True, text=True, timeout=60)
    assert server.returncode == 0 and "no warm starts on this node: a library has started threads" in server.stderr
    assert not node.run()[0]["warm"]


SETUP = """
import json, os, sys
context = json.loads(next(a for a in sys.argv if a.startswith("--serialized-runtime-env-context=")).split("=", 1)[1])
print("setup itself", flush=True)
"""


@pytest.mark.parametrize(
    "context, warm",
    [
        ({}, True),
        ({"env_vars": {"A": "1", "B": "${A}$HOME${NOT}"}, "command_prefix": ["cd", "/tmp", "&&"]}, True),
        ({"command_prefix": ["export", "A=2", "&&", "cd", "/", "&&"]}, True),
        ({"py_executable": "exec nice -n 1 {python}"}, None),
        ({"unknown": 1}, None),
    ],
)
def test_the_first_stage_needs_no_ray(node, context, warm):
    """`setup_worker.py` finds command and environment, and runs a shell that runs the worker."""
    setup = node.probe.with_name("setup_worker.py")
    setup.write_text(SETUP)
    (node.site / "ray/_private/runtime_env").mkdir()
    (node.site / "ray/_private/runtime_env/context.py").write_text("")
    node.serve()
    args = [node.probe, "pass", f"--serialized-runtime-env-context={json.dumps(context)}", "--language=PYTHON", "--x=a b"]

    def run():
        return subprocess.run([node.python, setup, *args], env=node.env, capture_output=True, text=True, timeout=60).stdout

    assert run() == "setup itself\n", "only where the image's build has seen that it is the same"
    stamp = "import sys, labd_warm; open(sys.argv[1], 'w').write(labd_warm.stamp(sys.argv[2]))"
    subprocess.run([node.python, "-c", stamp, node.site / "labd_warm.stamp", node.site / "ray"], check=True, env=node.env)
    node.stop()
    node.socket.unlink()
    node.serve()
    out = run()
    if warm is None:
        assert "setup itself" in out or not out
        return
    seen = json.loads(out)
    assert seen["warm"] == warm and seen["argv"] == [str(node.probe), "pass", "--x=a b"]
    if "env_vars" in context:
        assert seen["env"]["A"] == "1" and seen["env"]["B"] == "1" + node.env.get("HOME", "") and seen["cwd"] == "/tmp" == seen["env"]["PWD"]
    if len(context.get("command_prefix", [])) > 3:
        assert seen["env"]["A"] == "2" and seen["cwd"] == "/"
