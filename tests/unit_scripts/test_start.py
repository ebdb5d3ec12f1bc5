"""What runs before `ray start`, with a shell script for Ray and folders for volumes. No engine needed."""
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import types

import pytest

from harness.lab import ROOT, wait_for

RUN = ROOT / "images/run"
HOOK = RUN / "labd_start.py"
START = (RUN / "start.sh").read_text()
FATAL = "[2026-11-24 23:06:23,507 C 20 20] (gcs_server) rocksdb_store_client.cc:179:  Check failed: open_status.ok() "


class Node:
    """A container's file system as far as the script sees it; `ray` says what it was told and ends."""

    def __init__(self, folder):
        self.folder = folder
        self.state = folder / "gcs/db"
        self.logs = folder / "tmp/ray/session_2026-01-01_00-00-00_1_1/logs"
        self.logs.mkdir(parents=True)
        (folder / "gcs").mkdir()
        (folder / "bin").mkdir()
        self.ray("2.60.0")

    def ray(self, version, then="exit 0"):
        path = self.folder / "bin/ray"
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "ray, version {version}"; exit; }}\n'
                        f'mkdir -p {self.state}\necho "ran $*"\n{then}\n')
        path.chmod(0o755)

    def start(self, persist=True, code=0):
        env = {**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        env.pop("RAY_gcs_storage", None)
        if persist:
            env |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self.state)}
        # The script knows Ray's own folder by its path.
        text = START.replace("/tmp/", f"{self.folder}/tmp/")
        argv = ["sh", "-c", text, "sh", "ray", "start", "--head", "a b"]
        # A file, as a pipe would stay open as long as the script's watch lives.
        with open(self.folder / "said", "w+") as said:
            # Under `nohup make test` the script would be deaf to the signal that ends a head.
            done = subprocess.run(argv, env=env, stdout=said, stderr=subprocess.STDOUT, timeout=60,
                                  preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
            said.seek(0)
            text = said.read()
        assert done.returncode == code, text
        return text

    def fails_with(self, words):
        """The next life's state server dies with these words; so does the life."""
        log = self.logs / "gcs_server.out"
        # The kernel's times of files are as coarse as 10 ms.
        self.ray("2.60.0", f"sleep 0.05\ncat >>{log} <<'END'\n{FATAL}{words}\nEND\nexit 1")

    def aside(self):
        return sorted(p.name for p in (self.folder / "gcs").glob("set-aside-*"))


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_the_command_runs_as_it_is_and_its_exit_code_is_the_containers(node):
    node.ray("2.60.0", "exit 7")
    assert node.start(code=7) == "ran start --head a b\n"
    assert node.start(persist=False, code=7) == "ran start --head a b\n"


def test_a_state_of_the_same_version_is_kept(node):
    node.start()
    (node.state / "kept").write_text("")
    assert "labd:" not in node.start()
    assert (node.state / "kept").exists() and not node.aside()


def test_another_versions_state_is_set_aside_whole_and_said(node):
    node.ray("2.59.0")
    node.start()
    (node.state / "jobs").write_text("precious")
    node.ray("2.60.0")
    said = node.start()
    (aside,) = node.aside()
    assert re.fullmatch(r"set-aside-2\.59\.0-\d{8}T\d{6}Z", aside)
    assert said.splitlines()[0] == (
        f"labd: the head's state of Ray 2.59.0 was set aside as {node.folder}/gcs/{aside}; a fresh one begins"
    )
    assert (node.folder / "gcs" / aside / "jobs").read_text() == "precious"
    assert not (node.state / "jobs").exists()
    assert "labd:" not in node.start() and len(node.aside()) == 1


def test_a_state_that_nobody_signed_is_tried(node):
    node.state.mkdir()
    (node.state / "kept").write_text("")
    assert "labd:" not in node.start()
    (node.folder / "gcs/db.ray-version").write_text("")  # a power cut before its bytes
    assert "labd:" not in node.start()
    assert (node.state / "kept").exists()


def test_the_version_is_read_beside_ray_without_starting_it(node):
    (node.folder / "lib/python3.13/site-packages/ray-2.61.0.dist-info").mkdir(parents=True)
    node.start()
    assert (node.folder / "gcs/db.ray-version").read_text() == "2.61.0\n"


@pytest.mark.parametrize(
    "words",
    [
        "Failed to open RocksDB at /gcs/db/kv: Corruption: CURRENT file does not end with newline",
        "Failed to open RocksDB at /gcs/db/kv: IO error: No such file or directory: While opening a file for sequentially"
        " reading: /gcs/db/kv/MANIFEST-000017: No such file or directory",
        "RocksDB job counter at /gcs/db/kv is out of int range: -5",
    ],
)
def test_a_damaged_state_is_set_aside_at_the_next_start_and_once(node, words):
    node.fails_with(words)
    node.start(code=1)
    (node.state / "jobs").write_text("precious")
    assert not node.aside(), "the life that fails touches nothing"
    node.ray("2.60.0")
    said = node.start()
    (aside,) = node.aside()
    assert aside.startswith("set-aside-damaged-") and (node.folder / "gcs" / aside / "jobs").exists()
    assert said.startswith("labd: the head's state is damaged (") and said.endswith("; a fresh one begins\nran start --head a b\n")
    assert "labd:" not in node.start() and len(node.aside()) == 1


@pytest.mark.parametrize(
    "words",
    [
        "Failed to open RocksDB at /gcs/db/kv: IO error: While lock file: /gcs/db/kv/LOCK: Resource temporarily unavailable",
        "RocksDB Put failed for table=KV key=x: IO error: No space left on device: While appending to file: /gcs/db/kv/1.log",
        "Failed to open RocksDB at /gcs/db/kv: IO error: While open a file for appending: /gcs/db/kv/LOG: Permission denied",
        "Failed to open RocksDB at /gcs/db/kv: IO error: While pread: /gcs/db/kv/1.sst: Input/output error",
        "something else went wrong",
    ],
)
def test_what_may_pass_by_itself_costs_no_state(node, words):
    node.fails_with(words)
    for _ in range(3):
        assert "labd:" not in node.start(code=1)
    assert not node.aside()


@pytest.mark.parametrize("name", [None, "", "\x07rubbish"])
def test_a_state_without_its_sessions_name_is_set_aside(node, name):
    node.start()
    (node.state / "kv").mkdir()
    (node.state / "kv/CURRENT").write_text("MANIFEST-000005\n")
    if name is not None:
        (node.state / "session_name").write_text(name)
    assert "session_name is missing" in node.start()
    assert len(node.aside()) == 1


def test_a_state_with_its_sessions_name_is_kept(node):
    node.start()
    (node.state / "kv").mkdir()
    (node.state / "kv/CURRENT").write_text("MANIFEST-000005\n")
    (node.state / "session_name").write_text("session_2026-11-24_23-04-52_124908_7")
    assert "labd:" not in node.start() and not node.aside()


def test_a_state_that_was_taken_away_is_said_once(node):
    assert "labd:" not in node.start(), "there was none"
    (node.state / "kv").mkdir()
    (node.state / "kv/CURRENT").write_text("MANIFEST-000005\n")
    (node.state / "session_name").write_text("session_2026-11-24_23-04-52_124908_7")
    assert "labd:" not in node.start()
    wait_for("the watch saw it", (node.folder / "gcs/db.made").exists, 20)
    shutil.rmtree(node.state)
    assert "is gone from" in node.start()
    assert "labd:" not in node.start() and not node.aside()


def test_a_word_of_corruption_from_elsewhere_is_not_the_states(node):
    node.ray("2.60.0", f"echo '(gcs_server) gcs_job_manager.cc:1: job said: Corruption: x' >>{node.logs}/gcs_server.out; exit 1")
    node.start(code=1)
    assert "labd:" not in node.start(code=1)


def test_a_ray_that_waits_for_its_dead_state_server_is_ended(node):
    node.fails_with("Failed to open RocksDB at /gcs/db/kv: Corruption: x")
    path = node.folder / "bin/ray"
    # As `ray start` does: deaf to SIGTERM while it asks.
    path.write_text(path.read_text().replace("exit 1", "trap '' TERM\nexec sleep 50"))
    said = node.start(code=-1)
    assert "the head ends, and its next start sets the state aside" in said


def test_a_state_that_cannot_be_set_aside_stops_the_head_with_a_fix(node):
    node.ray("2.59.0")
    node.start()
    node.ray("2.60.0")
    (node.folder / "bin/mv").write_text("#!/bin/sh\necho 'mv: Read-only file system' >&2\nexit 1\n")
    (node.folder / "bin/mv").chmod(0o755)
    said = node.start(code=1)
    assert "could not be set aside" in said and "mend the disk" in said and "ran start" not in said


def test_a_restarted_nodes_old_worker_logs_are_put_away_and_others_are_not(node):
    for name in ("worker-a.out", "worker-b.err", "raylet.out"):
        (node.logs / name).write_text(name)
    node.start(persist=False)
    assert sorted(p.name for p in (node.logs / "old").iterdir()) == ["worker-a.out", "worker-b.err"]
    assert (node.logs / "raylet.out").exists()


@pytest.fixture
def agent():
    """Stands for Ray's environment agent, whose port says that the node is up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def connections(node, agent, monkeypatch, ends):
    """The driver node's start with a Python that notes how it was called; Ray lives until it was called twice."""
    (node.folder / "tmp/ray/session_latest").symlink_to(node.logs.parent)
    calls = node.folder / "calls"
    python = node.folder / "bin/python"
    python.write_text(f'#!/bin/sh\necho "$* fork $GRPC_ENABLE_FORK_SUPPORT oom $(cat /proc/self/oom_score_adj) ${{LABD_CONNECTIONS:-gone}}" >>{calls}\n{ends}\n')
    python.chmod(0o755)
    node.ray("2.60.0", f"for i in $(seq 300); do [ $(cat {calls} | wc -l) -ge 2 ] && exit 0; sleep 0.1; done 2>/dev/null; exit 5")
    monkeypatch.setenv("LABD_CONNECTIONS", f"10.0.0.10:6379 10.0.0.11 10001 {agent}")
    said = node.start(persist=False)
    return said, calls.read_text().splitlines()


def test_the_server_of_notebooks_connections_comes_back_and_dies_first(node, agent, monkeypatch):
    said, calls = connections(node, agent, monkeypatch, "exit 3")
    assert calls[0] == (
        "-m ray.util.client.server --address=10.0.0.10:6379 --host=10.0.0.11 --port=10001 --mode=proxy"
        f" --runtime-env-agent-address=http://10.0.0.11:{agent} fork 0 oom 1000 gone"
    )
    assert calls[1] == calls[0]
    assert "connections ended with exit code 3; the next one starts in 1 s" in said


def test_nobody_serves_connections_before_the_node_is_up(node, agent, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = server.getsockname()[1]
    called = node.folder / "calls"
    python = node.folder / "bin/python"
    python.write_text(f"#!/bin/sh\ntouch {called}\n")
    python.chmod(0o755)
    node.ray("2.60.0", "sleep 3")
    monkeypatch.setenv("LABD_CONNECTIONS", f"10.0.0.10:6379 10.0.0.11 10001 {nobody}")
    node.start(persist=False)
    assert not called.exists()


@pytest.mark.parametrize(
    "args, env, kind",
    [
        (["--head"], {}, None),
        (["--address=a:1", "--labels=labd.role=driver"], {}, "serve-light"),
        (["--address=a:1", "--labels=labd.role=worker,labd.gpu=x"], {}, "serve"),
        (["--address=a:1", "--labels=labd.role=worker"], {"LABD_WARM": "0"}, None),
    ],
)
def test_the_warm_process_starts_beside_workers_and_drivers(node, args, env, kind):
    asked = node.folder / "asked"
    python = node.folder / "bin/python"
    # 0: it is of no use here, and is not started again.
    python.write_text(f'#!/bin/sh\necho "$*" >>{asked}\nexit 0\n')
    python.chmod(0o755)
    module = node.folder / "lib/python3.13/site-packages/labd_warm.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    module.touch()
    node.ray("2.60.0", f"[ -z '{kind or ''}' ] || until [ -s {asked} ]; do sleep 0.05; done; exit 0")
    env = {**os.environ, "PATH": f"{node.folder}/bin:{os.environ['PATH']}", **env}
    env.pop("RAY_gcs_storage", None)
    text = START.replace("/tmp/", f"{node.folder}/tmp/")
    done = subprocess.run(["sh", "-c", text, "sh", "ray", "start", *args], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "ran start" in done.stdout
    assert (asked.read_text() if asked.exists() else None) == (f"-m labd_warm {kind}\n" if kind else None)


@pytest.mark.parametrize("image, env, how", [("old", {}, "ray"), ("new", {}, "node"), ("new", {"LABD_WARM": "0"}, "ray")])
def test_one_process_starts_ray_where_the_image_has_it(node, image, env, how):
    python = node.folder / "bin/python3"
    python.write_text('#!/bin/sh\necho "python $*"\n')
    python.chmod(0o755)
    site = node.folder / "lib/python3.13/site-packages"
    site.mkdir(parents=True)
    for name in ["labd_warm.py", "labd_node.py"][:1 + (image == "new")]:
        (site / name).touch()
    env = {**os.environ, "PATH": f"{node.folder}/bin:{os.environ['PATH']}", **env}
    env.pop("RAY_gcs_storage", None)
    text = START.replace("/tmp/", f"{node.folder}/tmp/")
    done = subprocess.run(["sh", "-c", text, "sh", "ray", "start", "--head", "a b"], env=env, capture_output=True, text=True, timeout=60)
    expected = f"python -u {site}/labd_node.py {node.folder}/bin/ray start --head a b" if how == "node" else "ran start --head a b"
    assert done.stdout == expected + "\n", done.stderr


class Parameters:
    ray_client_server_port = 10001


def hook_beside(monkeypatch, **private):
    """labd's hook, beside a Ray with these private modules."""
    for name in ("ray", "ray._private"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["ray._private"].__dict__.update(private)
    return runpy.run_path(str(HOOK))["before_start"]


def test_the_heads_monitors_start_once_the_dashboard_serves_and_all_else_at_once(monkeypatch):
    ray = types.SimpleNamespace(start_ray_process=lambda command, process_type, fate_share: subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    before_start = hook_beside(monkeypatch, services=ray)
    with socket.socket() as dashboard:
        dashboard.bind(("127.0.0.1", 0))
        parameters = Parameters()
        parameters.dashboard_port = dashboard.getsockname()[1]
        before_start(parameters, True)
        assert parameters.ray_client_server_port is None
        started = {what: ray.start_ray_process(["echo", what], what, fate_share=True) for what in ("monitor", "log_monitor", "raylet")}
        assert started["raylet"].wait(10) == 0 and started["raylet"].stdout.read() == "raylet\n"
        assert started["monitor"].poll() is None is started["log_monitor"].poll(), "nobody listens yet"
        dashboard.listen()
        for what in ("monitor", "log_monitor"):
            assert started[what].wait(10) == 0 and started[what].stdout.read() == f"{what}\n"


def test_a_ray_that_starts_its_processes_otherwise_is_left_alone(monkeypatch, capsys):
    hook_beside(monkeypatch)(Parameters(), True)
    assert "labd: Ray's processes start in Ray's own order (ImportError: " in capsys.readouterr().out


def test_a_raylet_beside_the_head_is_told_the_port_that_it_would_wait_for(monkeypatch):
    ray = types.SimpleNamespace(start_ray_process=lambda command, process_type, fate_share: command)
    parameters = Parameters()
    parameters.dashboard_agent_listen_port = 52365
    hook_beside(monkeypatch, services=ray)(parameters, False)
    assert parameters.ray_client_server_port == 10001, "nothing but that"
    assert ray.start_ray_process(["echo"], "log_monitor", fate_share=True) == ["echo"]
    told = ["raylet", "--undefok=dashboard_agent_listen_port", "--dashboard_agent_listen_port=52365"]
    assert ray.start_ray_process(["raylet"], "raylet", fate_share=True) == told
