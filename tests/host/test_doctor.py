"""`labd doctor`: right verdicts where no daemon runs, and a machine that hangs does not hang it."""
import json
import os
import pathlib
import socket
import subprocess

import pytest

from harness.lab import docker, labd_binary, run

pytestmark = pytest.mark.engine


@pytest.fixture
def ill(fresh):
    """A lab with an engine that is not there and mirrors that refuse at once: nothing outside this machine is asked."""
    lab = fresh(build='debian_mirror = "http://127.0.0.1:1/"\npip_index_url = "http://127.0.0.1:1/"\ngoproxy = "http://127.0.0.1:1/"\n'
                      '[images]\ngrafana = "127.0.0.1:1/grafana:1"')
    lab.base += '[engine]\nsocket = "unix:///nowhere/docker.sock"\n'
    lab.write()
    return lab


def doctor(lab, code, **kwargs):
    done = lab.labd("doctor", "--json", check=False, **kwargs)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    report = json.loads(done.stdout)
    assert report["fail"] == sum(c["verdict"] == "fail" for c in report["checks"])
    return report["checks"], done


def of(checks, name):
    found = [c for c in checks if c["name"] == name]
    assert found, f"no {name} among {[c['name'] for c in checks]}"
    return found[0]


def test_without_an_engine_it_says_how_to_get_one_and_goes_on(ill):
    checks, done = doctor(ill, 1)
    engine = of(checks, "engine")
    assert engine["verdict"] == "fail" and "no container engine answers at /nowhere/docker.sock" in engine["why"]
    assert engine["fix"].split()[0] in ("systemctl", "dockerd", "apt-get")
    assert of(checks, "live-restore")["verdict"] == of(checks, "subnet")["verdict"] == "skipped"
    assert of(checks, "labd.toml")["verdict"] == of(checks, "memory")["verdict"] == of(checks, "ports")["verdict"] == "ok"
    assert of(checks, "disk")["verdict"] in ("ok", "warn") and "free" in of(checks, "disk")["why"]
    assert of(checks, "gpus")["verdict"] == "skipped" and "2 simulated GPUs" in of(checks, "gpus")["why"]
    assert of(checks, "daemon") == {"name": "daemon", "verdict": "warn", "why": "does not run", "fix": "labd up"}
    assert "127.0.0.1: connection refused" in of(checks, "packages")["why"]
    assert done.stderr.startswith("labd: checks failed: engine")


def test_a_port_that_another_program_has(ill):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ill.base = ill.base.replace("prometheus = 0", f"prometheus = {port}")
        ill.write()
        checks, _ = doctor(ill, 1)
    ports = of(checks, "ports")
    assert ports["verdict"] == "fail"
    comm = pathlib.Path("/proc/self/comm").read_text().strip()
    assert ports["why"] == f"port {port} (`ports.prometheus`) is taken by {comm} (pid {os.getpid()})"
    assert "another `ports.prometheus`" in ports["fix"]
    assert of(doctor(ill, 1)[0], "ports")["verdict"] == "ok", "it is free again"


def test_a_broken_labd_toml(ill):
    text = ill.config.read_text()
    ill.config.write_text(text + "[gpu]\nsimulate = 2\n")
    checks, _ = doctor(ill, 1)
    line = len(text.splitlines()) + 1
    broken = of(checks, "labd.toml")
    assert broken["verdict"] == "fail" and broken["why"].startswith(f"{ill.config}:{line}: ")
    assert f"labd config check {ill.config}" in broken["fix"]
    # Its ports and sizes are nobody's to judge.
    assert of(checks, "ports")["verdict"] == of(checks, "memory")["verdict"] == "skipped"


def test_what_does_not_fit_the_machine(ill):
    ill.write('[services.ray-worker]\nmemory = "900 TiB"\n')
    memory = of(doctor(ill, 1)[0], "memory")
    assert memory["verdict"] == "fail" and "lower `services.ray-worker.memory`" in memory["fix"]


def test_on_a_screen_it_fits_and_has_no_colours_in_a_pipe(ill):
    done = ill.labd("doctor", check=False)
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines), max(lines, key=len)
    assert "\x1b" not in done.stdout
    assert any(line.startswith("fail     engine ") for line in lines)
    assert "\x1b[31mfail" in ill.labd("doctor", "--color=always", check=False).stdout


@pytest.mark.root
def test_somebody_who_is_not_root_is_told_what_needs_it(ill):
    """Also: nothing is made in the lab's folders, and nobody's secrets are shown."""
    binary = "/tmp/labd-doctor-as-nobody"
    run("install", "-m", "755", labd_binary(), binary)
    os.chmod(ill.dir, 0o755)
    gate = socket.socket(socket.AF_UNIX)
    gate.bind(str(ill.socket))
    gate.listen()
    os.chmod(ill.socket, 0o600)
    env = {**os.environ, "LABD_CONFIG": str(ill.config), "LABD_SOCKET": str(ill.socket)}
    done = subprocess.run([binary, "doctor", "--json"], capture_output=True, text=True, env=env, user=65534, group=65534,
                          extra_groups=[], timeout=60)
    gate.close()
    os.unlink(ill.socket)
    os.unlink(binary)
    checks = json.loads(done.stdout)["checks"]
    assert of(checks, "daemon")["verdict"] == "skipped" and "needs root" in of(checks, "daemon")["why"]
    assert not ill.data_dir.exists()


def test_an_engine_that_hangs_is_given_up(ill, tmp_path):
    path = tmp_path / "silent.sock"
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(path))
    silent.listen()
    ill.base = ill.base.replace("/nowhere/docker.sock", str(path))
    ill.write()
    checks, _ = doctor(ill, 1, timeout=60)
    silent.close()
    engine = of(checks, "engine")
    assert engine["verdict"] == "fail" and "does not answer within" in engine["why"]


def test_the_running_engine_and_a_leftover_of_another_lab(fresh):
    lab = fresh(name="labddoctor", subnet="198.18.234.0/24", build="")
    image = docker("images", "-q").stdout.split()[0]
    docker("create", "--name", "labddoctorold-x", "--label", "dev.labd.lab=labddoctorold", image, "true")
    try:
        checks = json.loads(lab.labd("doctor", "--json", check=False).stdout)["checks"]
    finally:
        docker("rm", "-f", "labddoctorold-x", check=False)
    assert of(checks, "engine")["verdict"] == "ok" and docker("version", "-f", "{{.Server.Version}}").stdout.strip() in of(checks, "engine")["why"]
    restore = docker("info", "-f", "{{.LiveRestoreEnabled}}").stdout.strip() == "true"
    assert of(checks, "live-restore")["verdict"] == ("ok" if restore else "warn")
    assert of(checks, "subnet")["verdict"] == "ok"
    old = [c for c in checks if c["name"] == "other-labs" and "labddoctorold" in c["why"]]
    assert old and old[0]["verdict"] == "warn" and "label=dev.labd.lab=labddoctorold" in old[0]["fix"]


def test_a_subnet_that_the_host_has_already(fresh):
    routes = [line.split() for line in pathlib.Path("/proc/net/route").read_text().splitlines()[1:]]
    route = next(route for route in routes if route[7] != "00000000")
    a, b, c, _ = bytes.fromhex(route[1])[::-1]
    lab = fresh(name="labddoctor", subnet=f"{a}.{b}.{c}.0/24", build="")
    checks, _ = doctor(lab, 1)
    assert of(checks, "subnet")["verdict"] == "fail" and "overlaps" in of(checks, "subnet")["why"]
