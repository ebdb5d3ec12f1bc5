"""What goes wrong is answered with one clear line and an exit code."""
import http.server
import json
import os
import pathlib
import socket
import socketserver
import subprocess
import threading
import urllib.request

import pytest

from harness.lab import docker, labd_binary, one_line, run, wait_for


def engine_at(lab, path):
    lab.base = lab.base + f'[engine]\nsocket = "unix://{path}"\n'
    lab.write()


def test_no_engine(fresh):
    lab = fresh()
    engine_at(lab, "/nowhere/docker.sock")
    line = one_line(lab.labd("up", check=False), 1)
    assert "no container engine answers at /nowhere/docker.sock" in line
    assert "no container engine answers" in lab.labd("status").stdout
    assert one_line(lab.labd("images", "list", check=False), 1)


@pytest.mark.root
def test_engine_without_permission(fresh, tmp_path):
    lab = fresh()
    path = tmp_path / "docker.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    os.chmod(path, 0o600)
    os.chmod(tmp_path, 0o755)
    # As somebody who is not root, from a place that everybody may read.
    binary = "/tmp/labd-as-nobody"
    run("install", "-m", "755", labd_binary(), binary)
    engine_at(lab, path)
    os.chmod(lab.dir, 0o777)
    for parent in path.parents:
        if str(parent).startswith("/tmp/"):
            os.chmod(parent, os.stat(parent).st_mode | 0o055)
    env = {**os.environ, "LABD_CONFIG": str(lab.config), "LABD_SOCKET": str(lab.socket)}
    done = subprocess.run([binary, "images", "list"], capture_output=True, text=True, env=env, user=65534, group=65534, extra_groups=[])
    server.close()
    os.unlink(binary)
    line = one_line(done, 1)
    assert "may not" in line or "permission" in line.lower()


def test_engine_too_old(fresh, tmp_path):
    class Old(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = json.dumps({"Version": "19.03.15", "ApiVersion": "1.40"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

        def address_string(self):
            return "unix"

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    lab = fresh()
    path = tmp_path / "old.sock"
    with Server(str(path), Old) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        engine_at(lab, path)
        line = one_line(lab.labd("images", "list", check=False), 1)
        server.shutdown()
    assert "19.03.15" in line and "too old" in line


def test_the_pages_port_is_taken(fresh):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        lab = fresh(page=port)
        lab.labd("up", "--timeout=3", check=False)
        taken = f"port {port} is taken by another program; set `lab.page`"
        said = lambda: [n for n in lab.snapshot()["notices"] if taken in n["text"]]
        wait_for("it is said, and labd runs", said, 10)
    wait_for("it is free, and taken", lambda: not said(), 10)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        assert answer.status == 200


def test_a_services_port_is_taken(fresh):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        lab = fresh()
        lab.base = lab.base.replace("prometheus = 0", f"prometheus = {port}")
        lab.write()
        lab.labd("up", "--timeout=3", check=False)
        reason = wait_for("it is said", lambda: (r := lab.service("prometheus"))["state"] in ("backoff", "crash-loop") and r["last_reason"], 60)
        assert str(port) in reason, reason
    lab.labd("start", "prometheus")
    lab.wait_ready("prometheus")


@pytest.mark.root
def test_a_full_disk_costs_history_and_nothing_else(fresh, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small)
    try:
        lab = fresh(data_dir=small / "data")
        lab.labd("up", "--timeout=3", check=False)
        lab.wait_ready("prometheus", seconds=60)
        lab.labd("stop", "jupyter")
        wait_for("held", lambda: lab.service("jupyter")["state"] == "held", 60)
        try:
            with open(small / "fill", "wb") as fill:
                while True:
                    fill.write(b"x" * 4096)
                    fill.flush()
        except OSError:
            pass

        def said():
            lab.labd("restart", "prometheus")
            return [n for n in lab.snapshot()["notices"] if "history is not recorded" in n["text"]]

        wait_for("it is said", said, 60, every=1)
        lab.wait_ready("prometheus")
        # What labd must remember is read on a full disk as well.
        lab.kill_daemon()
        lab.labd("up", "--timeout=3", check=False)
        wait_for("still held", lambda: lab.service("jupyter")["state"] == "held", 30)
        assert [n for n in lab.snapshot()["notices"] if "history is not recorded" in n["text"]]
        assert any(e["what"] == "held" for e in lab.events("jupyter")), "history is shown as far as it is known"
        (small / "fill").unlink()
        wait_for("it is over", lambda: not [n for n in lab.snapshot()["notices"] if "not recorded" in n["text"]], 60, every=1)
        lab.down()
    finally:
        run("umount", "-l", small, check=False)


def test_a_failing_image_build_says_which_step_and_why(fresh):
    lab = fresh(head="[ray]\nversion = \"0.0.1\"\n")
    line = one_line(lab.labd("images", "build", "ray", check=False, timeout=600), 1)
    assert "ray" in line and "0.0.1" in line, line


@pytest.mark.parametrize("text, says", [
    ("[lab\n", ":"),
    ("[gpus]\nsimulate = 'two'\n", "whole number"),
    ("[gpu]\nsimulate = 2\n", "did you mean `gpus`"),
    ("[lab]\nname = 'My Lab'\n", "lower-case"),
    ("[services.ray-worker]\nmemory = '900 TiB'\n", "lower `services.ray-worker.memory`"),
])
def test_bad_toml(fresh, text, says):
    lab = fresh()
    lab.config.write_text(text)
    for argv in (["config", "check"], ["plan", "--simulate-gpus=2"], ["run", "--simulate-gpus=2"]):
        if says.startswith("lower") and argv[0] == "config":
            continue  # without GPUs it fits
        line = one_line(lab.labd(*argv, check=False), 78)
        assert says in line and str(lab.config) in line


def test_no_daemon(fresh):
    lab = fresh()
    line = one_line(lab.labd("status", check=False), 3)
    assert "start it with `labd up`" in line
    assert lab.labd("down").stdout == "the lab is down already\n"


def test_a_foreign_container_with_our_name(fresh):
    lab = fresh()
    image = next(i["reference"] for i in json.loads(lab.labd("images", "list", "--json").stdout) if i["name"] == "prometheus")
    docker("create", "--name", "labdbad-prometheus", image)
    try:
        lab.labd("up", "--timeout=3", check=False)
        shown = wait_for("blocked", lambda: (r := lab.service("prometheus"))["state"] == "blocked" and r, 30)
        assert "labd did not make is in the way" in shown["last_reason"]
        lab.labd("down")
        assert docker("ps", "-aq", "--filter", "name=labdbad-prometheus").stdout, "it is left alone"
    finally:
        docker("rm", "-f", "labdbad-prometheus", check=False)


def test_down_leaves_nothing_but_data(fresh):
    lab = fresh()
    lab.up()
    lab.labd("down")
    assert lab.ids() == {}
    assert lab.name not in docker("network", "ls", "--format", "{{.Name}}").stdout.split()
    assert f"{lab.name}-minio" in docker("volume", "ls", "-q").stdout.split()
    assert not pathlib.Path(lab.socket).exists()


def test_a_ledger_from_the_future_is_refused_and_left(fresh):
    lab = fresh()
    lab.labd("up", "--timeout=3", check=False)
    lab.labd("down")
    ledger = lab.data_dir / "ledger.db"
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('pragma user_version = 99'); c.commit()"
    run("python3", "-c", code, ledger)
    before = ledger.read_bytes()
    done = lab.labd("run", check=False)
    assert done.returncode == 1 and "was written by a newer labd" in done.stderr and len(done.stderr.splitlines()) == 1
    assert ledger.read_bytes() == before
