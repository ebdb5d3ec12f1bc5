"""Ray's own processes forked from one that has imported Ray, with a Ray that tells what it sees. No engine, no Ray needed."""
import json
import os
import pathlib
import select
import signal
import subprocess

import pytest

from harness.forking import Environment, gone
from harness.lab import wait_for

AGENT = """
import json, os, resource, signal, sys
from ray.dashboard import consts
import heavy, psutil
seen = {
    "warm": heavy.PID != os.getpid(), "pid": os.getpid(), "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "cwd": os.getcwd(),
    "env": dict(os.environ), "umask": os.umask(0), "name": __name__, "file": __file__, "main": sys.modules["__main__"].__dict__ is globals(),
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "prefix": sys.prefix, "executable": sys.executable, "pipe": consts.PARENT_HEALTH_CHECK_BY_PIPE,
    "fds": sorted(int(f) for f in os.listdir("/proc/self/fd") if int(f) > 2 and os.path.exists("/proc/self/fd/" + f) and os.get_inheritable(int(f))),
    "parent": psutil.Process(os.getpid()).ppid(), "of another": psutil.Process(1).ppid(), "oneshot": psutil.Process.ppid.cache_activate,
    "hooked": os.environ.get("HOOKED_IN") == str(os.getpid()), "title": os.environ.pop("TITLE", None),
}
print(json.dumps(seen), flush=True)
if __name__ == "__main__":
    exec(sys.argv[1] if len(sys.argv) > 1 else "")
"""
CONSTS = """
import os
def env_bool(name, default):
    return os.environ[name] == "1" if name in os.environ else default
PARENT_HEALTH_CHECK_BY_PIPE = env_bool("RAY_enable_pipe_based_agent_to_parent_health_check", False)
"""
# Ray's dashboard, which has its parts forked from a process of their own.
DASHBOARD = """
import json, multiprocessing, os
import heavy
from ray.dashboard.subprocesses import module
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ray", module.__name__])
    ours, theirs = context.Pipe()
    part = context.Process(target=module.run, args=(theirs,), daemon=True)
    part.start()
    told = ours.recv()
    part.join()
    print(json.dumps({"warm": heavy.PID != os.getpid(), "pid": os.getpid(), "part": told, "code": part.exitcode}), flush=True)
"""
PART = """
import os, sys
import heavy
def run(conn):
    main = sys.modules["__main__"]
    conn.send({"heavy": heavy.PID, "main": [main.__name__, main.__file__], "argv": sys.argv, "path": sys.path})
    sys.exit(3)
"""
HEAVY = "import os\nPID = os.getpid()\nWAS = os.environ.get('HEAVY_READS_THIS')\n"
PSUTIL = """
class Process:
    def __init__(self, pid):
        self.pid = pid
    def ppid(self):
        return int(open(f"/proc/{self.pid}/stat").read().rsplit(")", 1)[1].split()[1])
    ppid.cache_activate = "there"
"""
# `ray start`: says what it is, then does as its argument tells.
RAY = """
import json, os, sys
from ray.scripts.scripts import main
print(json.dumps({"argv": sys.argv, "pid": os.getpid(), "name": __name__, "path": sys.path, "threads": len(os.listdir("/proc/self/task"))}), flush=True)
sys.exit(main())
"""


class Node(Environment):
    """With such a Ray, too."""

    def __init__(self, folder):
        super().__init__(folder, ("labd_warm.py", "labd_warm.pth", "labd_node.py", "labd_node.pth"), "ray/dashboard/agent.py", hidden=("RAY_",))
        for path, text in {
            "ray/__init__.py": "import heavy", "ray/scripts/__init__.py": "", "ray/dashboard/__init__.py": "", "ray/dashboard/consts.py": CONSTS,
            "ray/scripts/scripts.py": "import sys\ndef main():\n    exec(sys.argv[2])\n",
            "ray/_private/__init__.py": "", "ray/_private/log_monitor.py": "", "heavy.py": HEAVY, "psutil.py": PSUTIL,
            "ray/dashboard/agent.py": "from ray.dashboard import consts\nimport psutil\nif __name__ == '__main__':\n"
                                      + "".join(f"    {line}\n" for line in AGENT.splitlines()),
        }.items():
            self.put(path, text)
        self.put("ray/dashboard/dashboard.py", DASHBOARD)
        self.put("ray/dashboard/subprocesses/__init__.py", "")
        self.put("ray/dashboard/subprocesses/module.py", PART)
        self.ray = self.venv / "bin/ray"
        self.ray.write_text(RAY)
        self.socket = folder / "node.sock"
        self.env["LABD_NODE_SOCKET"] = str(self.socket)
        self.first = None

    def begin(self, does="import signal; signal.pause()", **env):
        """Starts the node; returns what `ray start` says of itself."""
        self.first = super().begin("-u", self.site / "labd_node.py", self.ray, "start", does, env={**self.env, **env},
                                   stdout=subprocess.PIPE, text=True)
        return json.loads(self.first.stdout.readline())

    def start(self, *args, **kwargs):
        kwargs["env"] = {"RAY_NODE_ID": "1", "RAY_RAYLET_PID": str(os.getpid()), "RAY_CLIENT_MODE": "0", **kwargs.get("env", self.env)}
        return super().start(*args, options=["-u"], **kwargs)

    def parent(self):
        """The process that forks: the one that listens, and is not `ray start`."""
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if path.name != str(self.first.pid) and str(self.ray).encode() in (path / "cmdline").read_bytes():
                    return int(path.name)
            except OSError:
                pass
        return None

    def stop(self):
        if self.first:
            self.first.kill()
            self.first.wait(30)
            self.first.stdout.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    node = Node(tmp_path_factory.mktemp("node"))
    node.begin()
    yield node
    node.stop()


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    yield node
    node.stop()


def test_an_agent_is_forked_and_is_as_one_that_started_by_itself(shared, tmp_path):
    piped, other = os.pipe()
    os.set_inheritable(piped, True)

    def before():
        os.umask(0o027)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

    seen = {}
    for name, more in (("warm", {}), ("cold", {"LABD_WARM": "0"})):
        env = {**shared.env, "RAY_enable_pipe_based_agent_to_parent_health_check": "1", "NEW": "ü", **more}
        seen[name], _, err = shared.run("pass", "--more=x y", env=env, cwd=tmp_path, preexec_fn=before, pass_fds=[piped])
        assert err == "" and seen[name].pop("warm") == (name == "warm"), "forked only when it is on"
        assert seen[name].pop("hooked"), "labd's other hooks ran in the agent itself"
        assert seen[name].pop("parent") == os.getpid(), "who started it is its parent, as far as psutil knows"
        seen[name]["env"].pop("HOOKED_IN"), seen[name].pop("pid")
    seen["cold"]["env"].pop("LABD_WARM")
    assert seen["warm"] == seen["cold"]
    assert seen["warm"]["pipe"] and seen["warm"]["umask"] == 0o027 and piped in seen["warm"]["fds"] and seen["warm"]["mask"] == [signal.SIGINT]
    assert not shared.run()[0]["pipe"], "each as the raylet tells it"
    os.close(piped), os.close(other)


def test_the_dashboard_and_what_its_parts_are_forked_from_are_forked_too(shared):
    seen = {}
    for name, more in (("warm", {}), ("cold", {"LABD_WARM": "0"})):
        shared.probe = shared.site / "ray/dashboard/dashboard.py"
        try:
            seen[name] = shared.run(env={**shared.env, **more})[0]
        finally:
            shared.probe = shared.site / "ray/dashboard/agent.py"
        assert seen[name].pop("warm") == (name == "warm")
        assert (seen[name]["part"].pop("heavy") == shared.first.pid) == (name == "warm"), "the part's server has imported Ray already"
        seen[name].pop("pid")
    assert seen["warm"] == seen["cold"] and seen["warm"]["code"] == 3


def test_the_first_process_is_ray_start_with_nothing_but_its_own(node):
    told = node.begin()
    assert told == {"argv": [str(node.ray), "start", "import signal; signal.pause()"], "pid": node.first.pid, "name": "__main__",
                    "path": [str(node.ray.parent), *[p for p in told["path"] if "/bin" not in p]], "threads": 1}
    children = pathlib.Path(f"/proc/{node.first.pid}/task/{node.first.pid}/children").read_text()
    assert children == "", "the parent of the agents is no child of Ray's"
    assert not [f for f in pathlib.Path(f"/proc/{node.first.pid}/fd").iterdir() if os.readlink(f).startswith("socket:")], "nothing stays open"


def test_the_commands_exit_code_is_the_nodes(node):
    for does, code in (("sys.exit(7)", 7), ("raise SystemExit", 0), ("import os; os._exit(3)", 3), ("raise RuntimeError('its own')", 1)):
        node.begin(does)
        assert node.first.wait(60) == code
    assert "RuntimeError: its own" in node.said.read_text()


def test_input_signals_and_the_exit_code_pass_through(shared):
    first = shared.start("import sys; print(sys.stdin.read().upper()); sys.exit(7)")
    out, err = first.communicate("some input", timeout=60)
    assert out.splitlines()[1:] == ["SOME INPUT"] and first.returncode == 7, err
    first = shared.start("signal.signal(15, lambda *_: (os.write(1, b'got it\\n'), os._exit(5))); print('ready')\nwhile True: signal.pause()")
    assert json.loads(first.stdout.readline())["warm"] and first.stdout.readline() == "ready\n"
    first.terminate()
    assert first.communicate(timeout=60)[0] == "got it\n" and first.returncode == 5
    _, _, err = shared.run("raise RuntimeError('its own')", code=1)
    assert "RuntimeError: its own" in err and "dashboard/agent.py" in err


def test_an_agent_dies_with_its_first_process_and_the_other_way_round(shared):
    for victim in ("first", "agent"):
        first = shared.start("import time\nwhile True: time.sleep(100)")
        seen = json.loads(first.stdout.readline())
        agent = os.pidfd_open(seen["pid"])
        assert seen["warm"]
        os.kill(first.pid if victim == "first" else seen["pid"], signal.SIGKILL)
        assert first.wait(60) == -signal.SIGKILL
        assert select.select([agent], [], [], 60)[0], "nothing is left behind"
        os.close(agent)


def test_an_agent_asks_while_the_parent_still_imports(node):
    """The log monitor is the first that `ray start` starts."""
    (node.site / "ray/_private/log_monitor.py").write_text("import time\ntime.sleep(1)\n")
    node.begin()
    assert node.run()[0]["warm"]


def test_whatever_would_not_be_the_same_starts_by_itself(shared, tmp_path):
    env = shared.env
    (tmp_path / "heavy.py").write_text(HEAVY)
    told = {
        "a variable that Ray reads": (env | {"RAY_health_check_period_ms": "hunter2"}, "its RAY_health_check_period_ms is another"),
        "one that a module reads": (env | {"HEAVY_READS_THIS": "hunter2"}, "its HEAVY_READS_THIS is another"),
        "a path of its own": (env | {"PYTHONPATH": str(tmp_path)}, "its packages are others"),
        "one that Python reads": (env | {"PYTHONHASHSEED": "0"}, "with other options"),
        "a notebook's": (env | {"RAY_CLIENT_MODE": "1"}, "its RAY_CLIENT_MODE is another"),
        "another library first": (env | {"LD_PRELOAD": "/elsewhere/libjemalloc.so"}, "its LD_PRELOAD is another"),
    }
    for what, (how, why) in told.items():
        first = shared.start(env=how)
        out, err = first.communicate(timeout=60)
        assert not json.loads(out.splitlines()[0])["warm"] and why in err, what
    assert "hunter2" not in shared.said.read_text()
    seen, _, _ = shared.run(env=env | {"LD_PRELOAD": f"{shared.site}/ray/core/libjemalloc.so"})
    assert seen["warm"] and seen["env"]["LD_PRELOAD"].endswith("libjemalloc.so"), "Ray's own allocator, which an agent does without"


def test_the_parent_goes_with_the_node_and_agents_as_they_like(node):
    node.begin()
    first = node.start("import sys; sys.stdin.read(); print('went on')")
    assert json.loads(first.stdout.readline())["warm"]
    parent = node.parent()
    node.first.kill()
    node.first.wait()
    wait_for("nobody is served any more", lambda: not node.run()[0]["warm"], 30)
    assert not gone(parent)
    assert first.communicate("", timeout=60)[0] == "went on\n" and first.returncode == 0
    wait_for("the parent has gone, too", lambda: gone(parent), 30)


def test_without_the_parent_or_with_a_deaf_one_an_agent_starts_by_itself(node):
    assert not node.run()[0]["warm"]
    node.begin()
    assert node.run()[0]["warm"]
    os.kill(node.parent(), signal.SIGSTOP)
    first = node.start()
    assert not json.loads(first.stdout.readline())["warm"] and first.wait(60) == 0
    os.kill(node.parent(), signal.SIGCONT)
    out, err = first.communicate(timeout=60)
    assert out == "" and "TimeoutError" in err, "what it was asked for while it was deaf becomes no second agent"
    assert node.run()[0]["warm"]
    os.kill(node.parent(), signal.SIGKILL)
    wait_for("it is gone", lambda: node.parent() is None, 30)
    seen, _, err = node.run()
    assert not seen["warm"] and "ConnectionRefusedError" in err and node.first.poll() is None, "the node lives on"


@pytest.mark.parametrize(
    "breaks, why",
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n", "a library has started threads"),
        ("raise RuntimeError('broken')\n", "broken"),
    ],
)
def test_where_forking_is_unsound_ray_starts_as_ever(node, breaks, why):
    (node.site / "ray/scripts/__init__.py").write_text("import os\nif 'ONCE' not in os.environ:\n    os.environ['ONCE'] = '1'\n"
                                                       + "".join(f"    {line}\n" for line in breaks.splitlines()))
    node.begin()
    assert f"Ray's processes start cold on this node: RuntimeError: {why}" in node.said.read_text()
    assert not node.run()[0]["warm"] and node.parent() is None
    assert not node.socket.exists()


def test_a_parent_that_is_unsound_later_forks_nobody_and_is_no_second_ray_start(node):
    log_monitor = node.site / "ray/_private/log_monitor.py"
    log_monitor.write_text("import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n")
    node.begin()
    seen, _, err = node.run()
    assert not seen["warm"] and "a library has started threads" in err
    node.stop()
    log_monitor.write_text("raise RuntimeError('broken')\n")
    node.begin()
    assert not node.run()[0]["warm"]
    wait_for("the parent has ended", lambda: node.parent() is None, 30)
    assert not select.select([node.first.stdout], [], [], 0)[0], "nobody else said that it is `ray start`"
