"""The store of packages that all Ray containers of a lab share, with a pip and a uv of a few lines. No engine needed."""
import asyncio
import fcntl
import http.server
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from harness.lab import ROOT

IMAGE = ROOT / "images/ray"
sys.path.insert(0, str(IMAGE))
import labd_packages as packages  # noqa: E402, found by the path above

WORKING_DIR = "RAY_RUNTIME_ENV_CREATE_WORKING_DIR"


@pytest.fixture
def store(tmp_path):
    return packages.Store(str(tmp_path / "store"))


def make(path, *names, version="1.0"):
    """What an installer leaves, without one."""
    site = pathlib.Path(path) / "virtualenv/lib/python3.13/site-packages"
    site.mkdir(parents=True, exist_ok=True)
    for name in names or ("emoji",):
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "RECORD").write_text(f"{name}.py\n")
        (site / f"{name}.py").write_text(f"version = '{version}'\n" * 500)
    return site


def key(*lines, env=(), working_dir=None, base="", kind="pip", **config):
    return packages.key_of(kind, {"packages": list(lines), **config}, dict(env), working_dir, base)


# ---- what is shared with whom ----


def test_a_key_is_made_of_all_that_decides_what_is_installed(tmp_path):
    one = key("emoji", "boto3>=1.2")
    assert one == key("emoji", "boto3>=1.2", env={"FOOD11_DATA_DIR": "/mnt", "LABD_JOB": "a"})
    assert one == key("emoji # for fun", "boto3>=1.2", "")
    different = [
        one,
        key("emoji"),
        key("emoji", "boto3>=1.2", base="another Ray"),
        key("emoji", "boto3>=1.2", env={"PIP_INDEX_URL": "http://mirror/simple"}),
        key("emoji", "boto3>=1.2", env={"UV_INDEX": "x"}),
        key("emoji", "boto3>=1.2", pip_check=True),
        key("emoji", "boto3>=1.2", pip_install_options=["--pre"]),
        key("emoji", "boto3>=1.2", kind="uv"),
        key("emoji", "boto3>=${VERSION}", env={"VERSION": "1.2"}),
        key("emoji", "boto3>=${VERSION}", env={"VERSION": "1.3"}),
    ]
    assert len(set(different)) == len(different)


def test_a_requirements_file_counts_by_its_content_and_not_by_its_place(tmp_path):
    def of(folder, text, uri="gcs://a.zip"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "requirements.txt").write_text(text)
        return key(f"-r ${{{WORKING_DIR}}}/requirements.txt", env={WORKING_DIR: str(tmp_path / folder)}, working_dir=uri)

    assert of("a", "emoji\n") == of("b", "emoji\n", "gcs://b.zip")
    assert of("a", "emoji\n") != of("b", "boto3\n")
    # A file of the working directory is known by the directory's URI alone.
    wheel = f"${{{WORKING_DIR}}}/x-1-py3-none-any.whl\n"
    assert of("a", wheel, "gcs://a.zip") != of("a", wheel, "gcs://b.zip")
    (tmp_path / "a/more.txt").write_text("numpy\n")
    nested = of("a", "-r more.txt\n")
    (tmp_path / "a/more.txt").write_text("pandas\n")
    assert nested != of("a", "-r more.txt\n")


@pytest.mark.parametrize("lines", [
    ["-e git+https://example.org/x.git@" + "a" * 40],
    ["--editable ."],
    ["./x"],
    ["/mnt/wheels/x-1-py3-none-any.whl"],
    ["x-1-py3-none-any.whl"],
    ["x @ file:///mnt/x-1-py3-none-any.whl"],
    ["git+https://example.org/x.git"],
    ["x @ git+https://example.org/x.git@main"],
    ["x @ hg+https://example.org/x"],
    ["-r requirements.txt"],
    ["-r /nowhere/requirements.txt"],
    ["-c constraints.txt"],
    [f"${{{WORKING_DIR}}}/x.whl"],
    ["--find-links /mnt/wheels", "emoji"],
    ["--find-links=file:///mnt/wheels", "emoji"],
    ["--find-links ${WHEELS}", "emoji"],
    ["--find /mnt/wheels", "emoji"],
    ["-f /mnt/wheels", "emoji"],
    ["-f/mnt/wheels", "emoji"],
    ["--pre --find-links /mnt/wheels", "emoji"],
    ["--pre -r /mnt/requirements.txt"],
    ["--req /mnt/requirements.txt"],
    ["--build-constraint /mnt/constraints.txt", "emoji"],
])
def test_what_can_change_under_its_name_is_not_shared(lines):
    with pytest.raises(packages.NotShared):
        key(*lines)


@pytest.mark.parametrize("lines", [
    ["emoji"], ["zope.interface==5 ; python_version > '3'"], ["ray[serve]>=2"], ["torch >= 2.0"],
    ["x @ https://example.org/x-1-py3-none-any.whl#sha256=00"], ["https://example.org/x-1-py3-none-any.whl"],
    ["x @ git+https://example.org/x.git@" + "a" * 40], ["--index-url https://example.org/simple", "emoji"],
    ["--extra-index-url=https://example.org/simple", "emoji"], ["--find-links https://example.org/wheels", "emoji"],
    ["-fhttps://example.org/wheels", "emoji"], ["--pre", "emoji"], ["--require-hashes", "emoji==1 --hash=sha256:00"],
    ["--index-url https://example.org/simple --extra-index-url https://example.org/more", "emoji"],
])
def test_what_an_index_has_is_shared(lines):
    assert key(*lines)


def test_options_and_settings_that_install_elsewhere_are_not_shared():
    for options in (["--target=/x"], ["-t", "/x"], ["--user"], ["-e", "."], ["--prefix", "/x"]):
        with pytest.raises(packages.NotShared):
            key("emoji", pip_install_options=options)
    for env in ({"PIP_TARGET": "/x"}, {"PIP_USER": "1"}):
        with pytest.raises(packages.NotShared):
            key("emoji", env=env)
    with pytest.raises(packages.NotShared):
        key("emoji", pip_version="==24.0")
    with pytest.raises(packages.NotShared):
        key("emoji", kind="uv", env={"UV_PRERELEASE": "allow"})
    assert key("emoji", kind="uv", uv_pip_install_options=["--no-cache"]) == key("emoji", kind="uv")


@pytest.mark.parametrize("options", [
    ["--constraint=/mnt/c.txt"], ["--constraint", "/mnt/c.txt"], ["--constr=/mnt/c.txt"], ["-c", "/mnt/c.txt"], ["-Uc", "/mnt/c.txt"],
    ["--build-constraint=/mnt/c.txt"], ["--find-links=/mnt/wheels"], ["--find-links", "/mnt/wheels"], ["-f", "/mnt/wheels"],
    ["-f/mnt/wheels"], ["--find-links", "file:///mnt/wheels"],
])
def test_options_that_name_what_can_change_are_not_shared(options):
    with pytest.raises(packages.NotShared):
        key("emoji", pip_install_options=options)


def test_settings_that_name_what_can_change_are_not_shared(tmp_path):
    for env in (
        {"PIP_FIND_LINKS": "/mnt/wheels"}, {"PIP_FIND_LINKS": "https://example.org/wheels /mnt/wheels"},
        {"PIP_BUILD_CONSTRAINT": "/mnt/c.txt"}, {"PIP_CONSTRAINT": "c.txt"}, {"PIP_CONSTRAINT": "https://example.org/c.txt"},
    ):
        with pytest.raises(packages.NotShared):
            key("emoji", env=env)
    # Addresses count as an index does.
    assert key("emoji", env={"PIP_FIND_LINKS": "https://example.org/a https://example.org/b"})
    assert key("emoji", pip_install_options=["--pre", "-f", "https://example.org/a", "--find-links=http://example.org/b"])
    # A file of constraints counts by its content, with the files that it names.
    (tmp_path / "c.txt").write_text("-c more.txt\n")

    def constrained(text):
        (tmp_path / "more.txt").write_text(text)
        return key("emoji", env={"PIP_CONSTRAINT": str(tmp_path / "c.txt")})

    assert constrained("emoji<2\n") == constrained("emoji<2\n") != constrained("emoji<3\n")


def test_environments_that_ray_takes_for_one_are_two_where_settings_differ():
    def suffix(env_vars=None, **rest):
        return packages.uri_suffix({"pip": {"packages": ["emoji"]}, "env_vars": env_vars, **rest})

    assert suffix() == suffix({"A": "1"}) == suffix({"A": "2"}, working_dir="gcs://a.zip") == ""
    assert suffix({"PIP_INDEX_URL": "a"}) != suffix({"PIP_INDEX_URL": "b"}) != ""
    line = {"packages": [f"-r ${{{WORKING_DIR}}}/requirements.txt"]}
    assert packages.uri_suffix({"pip": line, "working_dir": "a"}) != packages.uri_suffix({"pip": line, "working_dir": "b"})


# ---- the store ----


def test_what_is_finished_is_built_once_and_found_at_once(store):
    first, made = store.obtain("k", make)
    again, made_again = packages.Store(store.root).obtain("k", lambda path: pytest.fail("built twice"))
    assert made and not made_again and first.path == again.path
    assert store.find("other") is None


def test_a_failed_build_leaves_nothing_and_is_tried_again(store):
    def fails(path):
        make(path)
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        store.obtain("k", fails)
    assert store.find("k") is None and os.listdir(store.envs + "/k") == ["lock"]
    assert store.obtain("k", make)[1]


BUILDER = """
import sys, time
sys.path.insert(0, {image!r})
import labd_packages
def build(path):
    open(path + "/half", "w").close()
    print(path, flush=True)
    time.sleep(600)
labd_packages.Store({root!r}).obtain("k", build)
"""


def test_a_builder_that_is_killed_in_the_middle_is_taken_over(store):
    code = BUILDER.format(image=str(IMAGE), root=store.root)
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        half = other.stdout.readline().strip()
        waits = threading.Event()
        found = []
        thread = threading.Thread(target=lambda: found.append(store.obtain("k", make, waits.set)))
        thread.start()
        assert waits.wait(30) and not found and os.path.exists(half + "/half")
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    thread.join(30)
    held, made = found[0]
    assert made and held.path != half and not os.path.exists(half)


def test_one_that_waits_can_be_told_to_stop(store):
    os.makedirs(store.envs + "/k")
    lock = packages.try_lock(store.envs + "/k/lock", fcntl.LOCK_EX)
    with pytest.raises(packages.Cancelled):
        store.obtain("k", make, cancelled=lambda: True)
    os.close(lock)


def test_two_that_want_the_same_at_once_build_it_once(store):
    built, found = [], []

    def build(path):
        built.append(path)
        time.sleep(0.2)
        make(path)

    threads = [threading.Thread(target=lambda: found.append(packages.Store(store.root).obtain("k", build)[0].path)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(built) == 1 and found == built * 5


@pytest.mark.parametrize("change", ["upgrade", "remove", "add"])
def test_an_environment_that_a_job_changed_is_built_anew_and_not_taken_from_who_uses_it(store, change):
    user, _ = store.obtain("k", make)
    site = pathlib.Path(user.path) / "virtualenv/lib/python3.13/site-packages"
    if change == "upgrade":
        (site / "emoji-1.0.dist-info").rename(site / "emoji-2.0.dist-info")
    elif change == "remove":
        (site / "emoji.py").unlink()
    else:
        (site / "boto3").mkdir()
    assert store.find("k") is None
    held, made = store.obtain("k", make)
    assert made and held.path != user.path and os.path.exists(user.path)
    user.release()
    held.release()
    store.make_room(1 << 40)
    assert not os.path.exists(user.path) and store.find("k").path == held.path


def test_compiled_files_are_no_change(store):
    held, _ = store.obtain("k", make)
    (pathlib.Path(held.path) / "virtualenv/lib/python3.13/site-packages/__pycache__").mkdir()
    assert store.find("k").path == held.path


def test_what_a_power_cut_may_have_halved_is_built_anew(store, monkeypatch):
    old, _ = store.obtain("old", make)
    store.sync()
    assert not any(name.startswith("dirty-") for name in os.listdir(store.root))
    new, _ = store.obtain("new", make)
    (pathlib.Path(store.cache) / "archive-v0").mkdir()
    monkeypatch.setattr(packages, "boot", lambda: "another")
    assert store.find("old").path == old.path and store.find("new") is None
    with store.building():
        assert os.listdir(store.cache) == []
    monkeypatch.undo()


def test_room_is_made_by_removing_what_was_wanted_longest_ago_and_nothing_in_use(store):
    paths = {}
    for age, name in enumerate(["newest", "used", "older", "oldest"]):
        held, _ = store.obtain(name, make)
        paths[name] = held.path
        if name != "used":
            held.release()
        os.utime(held.path + "/used", (time.time() - 1000 * age,) * 2)
    whole = packages.disk_usage(store.root)
    store.make_room(whole)
    assert all(os.path.exists(path) for path in paths.values())
    store.make_room(whole - 1)
    assert not os.path.exists(paths.pop("oldest")) and all(os.path.exists(path) for path in paths.values())
    store.make_room(0)
    assert [name for name in paths if os.path.exists(paths[name])] == ["used"]
    assert store.obtain("oldest", make)[1]


def test_room_is_made_in_the_cache_first_where_it_has_much_that_no_environment_has(store, monkeypatch):
    monkeypatch.setattr(packages, "LOOSE_BYTES", 20_000)

    def archive(name):
        folder = pathlib.Path(store.cache) / "archive-v0" / name
        folder.mkdir(parents=True)
        (folder / "x.py").write_text("x = 1\n" * 5000)
        # uv links each file of a package but this one, which it copies.
        (folder / "RECORD").write_text("x.py\n")
        return folder

    def build(path):
        os.link(archive("linked") / "x.py", make(path) / "linked.py")

    held, _ = store.obtain("k", build)
    held.release()
    loose = archive("loose")
    installing = packages.try_lock(store.root + "/builders", fcntl.LOCK_SH)
    store.shrink_cache()
    assert loose.exists(), "somebody installs from it"
    os.close(installing)
    store.make_room(packages.disk_usage(store.root))
    assert loose.exists()
    store.make_room(packages.disk_usage(store.root) - 1)
    assert not loose.exists() and os.path.isdir(store.cache) and store.find("k")
    assert (pathlib.Path(held.path) / "virtualenv/lib/python3.13/site-packages/linked.py").read_text()
    # All that is there is used by an environment, but for its RECORD: removing it would free nothing.
    linked = pathlib.Path(store.cache) / "archive-v0/again"
    linked.mkdir(parents=True)
    (linked / "RECORD").write_text("x.py\n")
    os.link(pathlib.Path(held.path) / "virtualenv/lib/python3.13/site-packages/linked.py", linked / "x.py")
    store.shrink_cache()
    assert linked.exists()


def test_what_those_left_who_were_killed_or_failed_is_removed(store):
    held, _ = store.obtain("k", make)
    held.release()

    def fails(path):
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError):
        store.obtain("failed", fails)
    os.makedirs(store.envs + "/installing")
    installing = packages.try_lock(store.envs + "/installing/lock", fcntl.LOCK_EX)
    os.makedirs(store.envs + "/never-locked")
    gone = [store.root + "/cache.gone", store.envs + "/old.gone", store.envs + "/k/1.gone"]
    for folder in gone:
        make(folder)
    store.make_room(1 << 40)
    assert not [folder for folder in gone if os.path.exists(folder)]
    assert sorted(os.listdir(store.envs)) == ["installing", "k"] and store.find("k")
    # What was half removed does not cost an environment its place.
    whole = packages.disk_usage(store.root)
    make(store.root + "/cache.gone")
    store.make_room(whole)
    assert store.find("k")
    os.close(installing)


def test_a_folder_that_another_node_removes_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    mkdir, path = os.mkdir, tmp_path / "envs" / "k"
    path.parent.mkdir()

    def too_late(name, *args):
        monkeypatch.setattr(os, "mkdir", mkdir)
        raise FileExistsError(17, "File exists", name)

    monkeypatch.setattr(os, "mkdir", too_late)
    packages.make_directory(str(path))
    assert path.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        packages.make_directory(str(tmp_path / "file"))


def test_one_that_waits_for_a_key_whose_folder_is_removed_makes_it_again(store):
    os.makedirs(store.envs + "/k")
    lock = packages.try_lock(store.envs + "/k/lock", fcntl.LOCK_EX)
    waits, found = threading.Event(), []
    thread = threading.Thread(target=lambda: found.append(store.obtain("k", make, waits.set)))
    thread.start()
    assert waits.wait(30)
    packages.remove(store.envs + "/k")
    os.close(lock)
    thread.join(30)
    assert found[0][1] and store.find("k").path == found[0][0].path


def test_the_stores_size_is_what_was_counted_last_and_what_was_brought_since(store):
    store.obtain("k", make)[0].release()
    assert store.size(time.time(), 5) == packages.disk_usage(store.root), "nobody has counted yet"
    counted = packages.disk_usage(store.root)
    store.make_room(1 << 40)
    since = os.stat(store.root + "/size").st_mtime
    assert store.size(since + 1, 5) == counted + 5 and store.size(since - 1, 5) == counted
    store.make_room(0)
    assert store.size(since - 1, 5) < counted


# ---- installing ----


def report(*packages_, **more):
    return {"install": [{
        "metadata": {"name": name, "version": version},
        "download_info": {"url": f"https://files/{name}-{version}{kind}", "archive_info": {"hashes": {"sha256": "00"}}},
        "is_direct": False,
    } for name, version, kind in packages_], **more}


WHEEL = "-py3-none-any.whl"


def test_a_report_is_split_in_what_uv_can_link_and_what_must_be_built():
    decided = packages.read_report(report(("emoji", "2", WHEEL), ("old", "1", ".tar.gz")))
    assert decided.wheels == [f"emoji @ https://files/emoji-2{WHEEL} --hash=sha256:00"]
    assert (decided.others, decided.total) == (1, 2)
    with pytest.raises(packages.Refused, match="Changing the ray version is not allowed.*2.60.0.*2.9"):
        packages.read_report(report(("ray", "2.9", WHEEL)), "2.60.0")
    assert packages.read_report(report(("ray", "2.60.0", WHEEL)), "2.60.0").total == 1


class Tools:
    """Stands in for Python's venv, pip and uv; keeps what was run."""

    def __init__(self, decided, fail=()):
        self.decided, self.fail, self.ran, self.notes = decided, fail, [], set()

    def __call__(self, argv, env, cwd):
        word = "venv" if "venv" in argv else "uv" if argv[1:3] == ["pip", "install"] else " ".join(a for a in argv[3:] if a in ("install", "check", "--dry-run"))
        self.ran.append(word)
        self.notes |= {argv[at + 1] for at, a in enumerate(argv) if a in ("-r", "--report")}
        if word in self.fail:
            raise packages.Failed(argv, 1, self.fail[word])
        if word == "venv":
            os.makedirs(argv[-1] + "/bin")
        elif "--dry-run" in argv:
            pathlib.Path(argv[argv.index("--report") + 1]).write_text(json.dumps(self.decided))
        elif word in ("uv", "install"):
            self.env = env
            make(cwd + "/..", word)
        return ""


def installs(store, tools, *lines, env=(), **config):
    said = []
    installer = packages.Installer("pip", {"packages": list(lines), **config}, dict(env), tools, "uv", store.cache, "python", said.append)
    held, _ = store.obtain("k", installer)
    return sorted(e[0] for e in packages.installed(held.path) if e[0].endswith(".py")), " ".join(said)


def test_uv_installs_what_pip_decided(store):
    tools = Tools(report(("emoji", "2", WHEEL)))
    assert installs(store, tools, "emoji", env={"UV_SYSTEM_PYTHON": "1", "PIP_CERT": "/ca"})[0] == ["uv.py"]
    assert tools.ran == ["venv", "install --dry-run", "uv"]
    assert "UV_SYSTEM_PYTHON" not in tools.env and tools.env["SSL_CERT_FILE"] == "/ca"


def test_pip_builds_what_is_no_wheel(store):
    tools = Tools(report(("emoji", "2", WHEEL), ("old", "1", ".tar.gz")))
    assert installs(store, tools, "emoji", "old")[0] == ["install.py", "uv.py"]


def test_pip_installs_all_where_uv_fails(store):
    tools = Tools(report(("emoji", "2", WHEEL)), {"uv": "error: https://me:hunter2@files answers 401"})
    found, said = installs(store, tools, "emoji", pip_check=True)
    assert found == ["install.py"] and tools.ran == ["venv", "install --dry-run", "uv", "venv", "install", "check"]
    assert "401" in said and "hunter2" not in said


def test_addresses_which_may_hold_a_password_never_lie_in_the_store(store):
    tools = Tools(report(("emoji", "2", WHEEL), ("old", "1", ".tar.gz")))
    installs(store, tools, "--index-url https://me:hunter2@mirror/simple", "emoji", "old")
    assert {os.path.basename(path) for path in tools.notes} == {"requirements.txt", "report.json", "wheels.txt"}
    assert not [path for path in tools.notes if path.startswith(store.root) or os.path.exists(path)]


def test_nothing_is_installed_where_all_is_in_the_image(store):
    tools = Tools(report())
    assert installs(store, tools, "numpy")[0] == [] and tools.ran == ["venv", "install --dry-run"]


def test_what_pip_refuses_is_final_and_other_trouble_is_not(store):
    no = "ERROR: No matching distribution found for emojj"
    with pytest.raises(packages.Refused, match="No matching distribution found for emojj"):
        installs(store, Tools(report(), {"install --dry-run": no}), "emojj")
    with pytest.raises(packages.Failed):
        installs(store, Tools(report(), {"install --dry-run": "Segmentation fault"}), "emoji")


def test_a_command_is_stopped_with_all_that_it_started(tmp_path):
    runner = packages.Runner()
    written = tmp_path / "pid"

    def stop():
        deadline = time.monotonic() + 20
        while not (written.exists() and written.read_text().endswith("\n")) and time.monotonic() < deadline:
            time.sleep(0.05)
        runner.stopped.set()

    threading.Thread(target=stop).start()
    with pytest.raises(packages.Cancelled):
        runner(["sh", "-c", f"sleep 600 & echo $! >{written}; wait"], dict(os.environ), str(tmp_path))
    pid = int((tmp_path / "pid").read_text())

    def gone():
        try:
            return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            return True

    deadline = time.monotonic() + 20
    while not gone():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- inside the agent ----


class RuntimeEnv(dict):
    def pip_config(self):
        return self.get("pip", {})

    def env_vars(self):
        return self.get("env_vars", {})

    def working_dir(self):
        return self.get("working_dir", "")


def plugin(root):
    """A plugin as Ray's, wrapped."""

    class PipPlugin:
        def __init__(self):
            self.created = []

        def _get_path_from_hash(self, hash_val):
            return f"/ray/{hash_val}"

        def get_uris(self, runtime_env):
            return ["pip://abc"] if runtime_env.get("pip") else []

        async def create(self, uri, runtime_env, context, logger=None):
            self.created.append(uri)
            return 77

        def delete_uri(self, uri, logger=None):
            return 77

    class URICache:
        def __init__(self, delete_fn):
            self._delete_fn, self._unused_uris, self._total_size_bytes = delete_fn, set(), 1

        def mark_unused(self, uri, logger=None):
            self._unused_uris.add(uri)

    packages.wrap(PipPlugin, "pip", root)
    packages.wrap_cache(URICache)
    one = PipPlugin()
    return one, URICache(one.delete_uri)


def create(one, runtime_env):
    return asyncio.run(one.create(one.get_uris(runtime_env)[0], runtime_env, None, logging.getLogger()))


@pytest.fixture
def door(monkeypatch):
    """labd's front door: what it was told."""
    told = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))) | {"token": self.headers["Authorization"]})
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(packages.Progress.__init__, "__defaults__", (f"http://127.0.0.1:{server.server_port}/labd/installs", 0.05, lambda: 0))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    yield told
    server.shutdown()


EMOJI = RuntimeEnv(pip={"packages": ["emoji"], "pip_check": False}, env_vars={"LABD_JOB": "food11"})


@pytest.fixture
def tools(monkeypatch):
    """What the wrapper runs, in place of real commands."""
    tools = Tools(report(("emoji", "2", WHEEL)))
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)  # this machine's own, which may forbid what is tested
    monkeypatch.setattr(packages.Runner, "__call__", lambda self, *args: tools(*args))
    monkeypatch.setattr(packages, "tidy_later", lambda root, path: None)
    monkeypatch.setattr(packages, "ray_version", lambda: None)
    monkeypatch.setattr(packages.sys, "base_prefix", sys.prefix)
    return tools


def test_ray_uses_the_stores_folder_and_the_next_node_installs_nothing(store, tools, door):
    one, cache = plugin(store.root)
    assert create(one, EMOJI) == 1
    path = one._get_path_from_hash("abc")
    assert path.startswith(store.envs) and one.created == []
    until(lambda: door and door[-1]["phase"] == "done")
    assert {"resolving", "installing", "done"} >= {words["phase"] for words in door}
    assert door[-1] | {"job": "food11", "packages": 1, "reason": None, "token": "Bearer hunter2"} == door[-1]
    assert isinstance(door[-1]["store_bytes"], int) and door[-1]["store_bytes"] >= packages.disk_usage(path)
    assert not any("store_bytes" in words for words in door if words["phase"] != "done")
    told = len(door)
    another, _ = plugin(store.root)
    assert create(another, EMOJI) == 1 and another._get_path_from_hash("abc") == path
    assert tools.ran.count("uv") == 1 and len(door) == told
    # Unused on one node, it is forgotten there and still held by the other.
    cache.mark_unused("pip://abc")
    assert one._get_path_from_hash("abc") == "/ray/abc" and cache._unused_uris == set() and cache._total_size_bytes == 0
    store.make_room(0)
    assert os.path.exists(path)
    another.delete_uri("pip://abc")
    store.make_room(0)
    assert not os.path.exists(path)


def test_ray_does_what_it_did_where_the_store_does_not_serve(store, tools, door, monkeypatch, tmp_path):
    for reason, change in {
        "no volume": lambda: plugin(str(tmp_path / "none")),
        "a disk's error": lambda: monkeypatch.setattr(packages.Store, "obtain", lambda *a: (_ for _ in ()).throw(OSError("disk full"))) or plugin(store.root),
    }.items():
        one, _ = change()
        assert create(one, EMOJI) == 77 and one.created == ["pip://abc"], reason
        assert one._get_path_from_hash("abc") == "/ray/abc"
        until(lambda: door and door[-1]["phase"] == "done")
    branch = RuntimeEnv(pip={"packages": ["git+https://example.org/x.git"]})
    one, _ = plugin(store.root)
    assert create(one, branch) == 77


def test_what_pip_refuses_is_the_jobs_error_and_is_told(store, tools, door):
    tools.fail = {"install --dry-run": "ERROR: No matching distribution found for emojj"}
    one, _ = plugin(store.root)
    with pytest.raises(RuntimeError, match="pip cannot install the packages of this job"):
        create(one, EMOJI)
    assert one.created == []
    until(lambda: door and door[-1]["phase"] == "failed")
    assert door[-1]["reason"] == "ERROR: No matching distribution found for emojj"


def test_a_front_door_that_is_away_costs_nothing(store, tools, monkeypatch):
    monkeypatch.setattr(packages.Progress.__init__, "__defaults__", ("http://127.0.0.1:9/labd/installs", 0.01, lambda: 0))
    one, _ = plugin(store.root)
    assert create(one, EMOJI) == 1


class Away:
    """A front door that is away for so many posts; keeps what it was told, and how often it was tried."""

    def __init__(self, monkeypatch, misses):
        self.misses, self.tried, self.told = misses, [], []
        monkeypatch.setattr(packages, "post", self.post)

    def post(self, url, words):
        if url != "here":
            return True  # from a thread of another test
        self.tried.append(time.monotonic())
        if len(self.tried) <= self.misses:
            return False
        self.told.append(words)
        return True


def test_an_installation_is_told_to_its_end_after_labd_was_away(monkeypatch):
    monkeypatch.setattr(packages, "AWAY_SECONDS", 0.05)
    away = Away(monkeypatch, 12)
    progress = packages.Progress("k", "food11", "here", every=0.01)
    until(lambda: away.told)
    assert away.told[0]["phase"] == "resolving"
    away.misses = len(away.tried) + 12
    progress.end("failed", "no such package")
    until(lambda: away.told[-1]["phase"] == "failed")
    assert away.told[-1]["reason"] == "no such package"
    progress.thread.join(20)
    assert not progress.thread.is_alive() and [words["phase"] for words in away.told].count("failed") == 1


def test_the_end_of_an_attempt_is_not_told_after_that_of_the_next(monkeypatch):
    monkeypatch.setattr(packages, "AWAY_SECONDS", 0.05)
    away = Away(monkeypatch, 1 << 30)
    first = packages.Progress("k", "food11", "here", every=0.01)
    first.end("failed", "the network is away")
    until(lambda: len(away.tried) >= 3)
    second = packages.Progress("k", "food11", "here", every=0.01)
    first.thread.join(20)
    second.end("done")
    away.misses = 0
    second.thread.join(20)
    assert not first.thread.is_alive() and {words["phase"] for words in away.told} <= {"resolving", "done"}
    assert away.told[-1]["phase"] == "done" and ("k", "food11") not in packages.Progress.latest


def test_labd_is_asked_less_often_while_it_is_away_and_the_last_words_are_not_said_for_ever(monkeypatch):
    monkeypatch.setattr(packages, "AWAY_SECONDS", 0.3)
    monkeypatch.setattr(packages, "LAST_WORDS_SECONDS", 0.5)
    away = Away(monkeypatch, 1 << 30)
    progress = packages.Progress("k", "food11", "here", every=0.01)
    until(lambda: len(away.tried) >= 7)
    assert away.tried[6] - away.tried[5] >= 0.25
    progress.end("done")
    progress.thread.join(20)
    assert not progress.thread.is_alive()


def test_what_was_brought_is_measured_now_and_then_and_at_the_end(monkeypatch):
    door, measured = Away(monkeypatch, 0), []
    progress = packages.Progress("k", "food11", "here", every=0.01, measure=lambda: measured.append(1) or 7 * len(measured))
    until(lambda: len(door.told) >= 20)
    assert len(measured) == 1 and door.told[-1]["bytes"] == 7
    progress.end("done")
    progress.thread.join(20)
    assert door.told[-1]["bytes"] == 14


def test_room_is_made_once_some_time_after_the_agents_start(store, monkeypatch):
    tidied, started = [], time.monotonic()
    monkeypatch.setattr(packages, "tidy_later", lambda *args: tidied.append((time.monotonic() - started, *args)))
    packages.tidy_at_start(store.root, 0.8)
    packages.tidy_at_start(store.root + "/none", 0)
    assert tidied == [] and packages.START_SECONDS >= 60
    until(lambda: tidied)
    assert tidied[0][0] >= 0.8 and tidied[0][1:] == (store.root, "")
    asked = []
    monkeypatch.setattr(packages, "install", lambda: None)
    monkeypatch.setattr(packages, "tidy_at_start", lambda: asked.append(1))
    packages.Plugin()
    assert asked == [1] and len(tidied) == 1


def test_a_tidy_without_a_build_makes_room(store):
    store.obtain("k", make)[0].release()
    env = {**os.environ, "LABD_PACKAGES_LIMIT_BYTES": "1"}
    subprocess.run([sys.executable, IMAGE / "labd_packages.py", "tidy", store.root, ""], env=env, check=True, timeout=60)
    assert os.listdir(store.envs) == []


@pytest.fixture
def working_dirs(tmp_path):
    """Ray's plugin for working directories, wrapped, and a way to ask it for several at once, always on one event loop."""

    def folder(uri):
        return tmp_path / uri.split("://")[1].removesuffix(".zip")

    class WorkingDirPlugin:
        def __init__(self):
            self.created, self.fail = [], False

        def _get_directory_on_node(self, uri):
            return folder(uri)

        async def create(self, uri, runtime_env, context, logger=None):
            self.created.append(uri)
            await asyncio.sleep(0.05)
            if self.fail:
                raise OSError("the head is away")
            if uri and uri.startswith("gcs://"):
                packages.remove(folder(uri))  # what a job that runs in it finds gone
                folder(uri).mkdir()
            return 77

        def delete_uri(self, uri, logger=None):
            packages.remove(folder(uri))
            return 77

    packages.wrap_working_dir(WorkingDirPlugin)
    one, loop = WorkingDirPlugin(), asyncio.new_event_loop()

    def ask(*uris):
        async def all_at_once():
            return await asyncio.gather(*(one.create(uri, {}, None, logger=None) for uri in uris), return_exceptions=True)

        return loop.run_until_complete(all_at_once())

    yield one, ask
    loop.close()


def test_a_working_directory_is_made_once_however_many_ask_for_it(working_dirs, tmp_path):
    one, ask = working_dirs
    assert sorted(ask("gcs://a.zip", "gcs://a.zip", "gcs://b.zip")) == [0, 77, 77]
    assert sorted(one.created) == ["gcs://a.zip", "gcs://b.zip"]
    (tmp_path / "a/tune.py").touch()
    assert ask("gcs://a.zip") == [0] and (tmp_path / "a/tune.py").exists()
    # Deleted by Ray, or by anybody: it is made again.
    assert one.delete_uri("gcs://a.zip") == 77
    (tmp_path / "a").mkdir()
    assert ask("gcs://a.zip", "gcs://a.zip") == [77, 0]
    (tmp_path / "b").rmdir()
    assert ask("gcs://b.zip") == [77]


def test_working_directories_of_different_names_do_not_wait_for_each_other(working_dirs):
    one, ask = working_dirs
    began = time.monotonic()
    assert ask(*(f"gcs://{n}.zip" for n in range(100))) == [77] * 100
    assert time.monotonic() - began < 4


def test_a_folder_that_this_agent_did_not_make_is_made_anew(working_dirs, tmp_path):
    (tmp_path / "a").mkdir()
    assert working_dirs[1]("gcs://a.zip") == [77]


def test_working_directories_that_ray_does_not_make_are_left_to_it(working_dirs, tmp_path):
    one, ask = working_dirs
    local = f"local://{tmp_path}"
    assert ask(None, None, local, local) == [77] * 4
    assert one.created.count(None) == one.created.count(local) == 2


def test_ray_makes_a_working_directory_where_that_failed_or_labd_knows_no_folder(working_dirs):
    one, ask = working_dirs
    one.fail = True
    assert [type(error) for error in ask("gcs://a.zip", "gcs://a.zip")] == [OSError] * 2
    one.fail = False
    assert ask("gcs://a.zip") == [77] and ask("gcs://a.zip") == [0]
    one._get_directory_on_node = None  # another Ray's
    assert ask("gcs://a.zip") == [77]


def test_the_agent_announces_each_job_and_makes_its_environment_whatever_comes_of_that(monkeypatch):
    class Agent:
        async def GetOrCreateRuntimeEnv(self, request):
            return request.job_id

    def announce(*told):
        announced.append(told)
        raise OSError("nobody listens")

    announced = []
    monkeypatch.setitem(sys.modules, "labd_warm", types.SimpleNamespace(announce=announce))
    monkeypatch.setenv("RAY_OF_RAYLET", "1")
    packages.wrap_agent(Agent)
    monkeypatch.setenv("RAY_OF_AGENT", "1")
    for text in ('{"env_vars": {"A": "1"}}', "{}", "not JSON"):
        request = types.SimpleNamespace(job_id=b"01000000", serialized_runtime_env=text)
        assert asyncio.run(Agent().GetOrCreateRuntimeEnv(request)) == b"01000000"
    assert [(job, env.get("RAY_OF_RAYLET"), env.get("RAY_OF_AGENT"), more) for job, env, more in announced] == [
        ("01000000", "1", None, {"A": "1"}), ("01000000", "1", None, {})]


def test_the_agent_has_its_plugins_wrapped(monkeypatch, capsys):
    def module(name, **members):
        made = types.ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)

    wrapped = []
    for name in ("ray", "ray._private", "ray._private.runtime_env"):
        module(name)
    for name, member in {"pip": "PipPlugin", "uv": "UvPlugin", "uri_cache": "URICache", "working_dir": "WorkingDirPlugin"}.items():
        module(f"ray._private.runtime_env.{name}", **{member: member})
    monkeypatch.setattr(packages, "wrap", lambda plugin, kind: wrapped.append(plugin))
    monkeypatch.setattr(packages, "wrap_cache", wrapped.append)
    monkeypatch.setattr(packages, "wrap_working_dir", wrapped.append)
    module("runtime_env_agent", RuntimeEnvAgent="RuntimeEnvAgent")
    monkeypatch.setattr(packages, "wrap_agent", wrapped.append)
    packages.install()
    assert wrapped == ["PipPlugin", "UvPlugin", "URICache", "WorkingDirPlugin", "RuntimeEnvAgent"]
    # Where Ray has one of them no more, the others are wrapped.
    module("ray._private.runtime_env.working_dir")
    packages.install()
    assert wrapped[5:] == ["PipPlugin", "UvPlugin", "URICache", "RuntimeEnvAgent"]
    assert "working directories are as Ray makes them" in capsys.readouterr().err


def test_a_set_up_that_is_given_up_ends_its_commands_and_frees_its_lock(store, tools, monkeypatch):
    started = threading.Event()

    def hangs(self, argv, env, cwd):
        started.set()
        assert self.stopped.wait(30)
        raise packages.Cancelled

    monkeypatch.setattr(packages.Runner, "__call__", hangs)
    monkeypatch.setattr(packages, "post", lambda *a: True)
    one, _ = plugin(store.root)

    async def give_up():
        work = asyncio.create_task(one.create("pip://abc", EMOJI, None, logging.getLogger()))
        assert await asyncio.to_thread(started.wait, 30)
        work.cancel()
        await work

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(give_up())
    monkeypatch.setattr(packages.Runner, "__call__", lambda self, *args: tools(*args))
    assert create(one, EMOJI) == 1


def test_the_agent_lives_when_ray_is_another_one():
    """A module that cannot be imported, or raises, takes a node down."""
    code = "import sys, types; sys.modules['ray._private'] = types.ModuleType('x'); import labd_packages; labd_packages.Plugin()"
    done = subprocess.run([sys.executable, "-c", code], cwd=IMAGE, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0 and "packages are installed on each node for itself" in done.stderr, done.stderr


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("blocks, set_to, limit", [(1 << 18, None, 2 << 30), (10 << 20, None, 4 << 30), (1 << 30, None, 20 << 30), (1, "7", 7), (1, "x", 2 << 30)])
def test_the_bound_is_a_tenth_of_the_disk_unless_it_is_set(monkeypatch, blocks, set_to, limit):
    class Disk:
        f_blocks, f_frsize = blocks, 4096

    monkeypatch.setattr(packages.os, "statvfs", lambda path: Disk)
    if set_to is None:
        monkeypatch.delenv("LABD_PACKAGES_LIMIT_BYTES", raising=False)
    else:
        monkeypatch.setenv("LABD_PACKAGES_LIMIT_BYTES", set_to)
    assert packages.limit_bytes() == limit
