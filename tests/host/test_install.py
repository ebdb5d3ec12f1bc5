"""`labd install`: files below a folder, and a whole machine with real systemd, which is a container."""
import json
import os
import pathlib
import stat
import subprocess

import pytest

from harness.lab import ROOT, docker, labd_binary, run, wait_for
from harness.machine import Machine

pytestmark = [pytest.mark.engine, pytest.mark.root]

FILES = {"usr/local/bin/labd": 0o755, "etc/systemd/system/labd.service": 0o644, "etc/labd/labd.toml": 0o640}


def labd(*argv, **kwargs):
    return run(labd_binary(), *argv, **kwargs)


def files(root):
    return {str(p.relative_to(root)): (stat.S_IMODE(p.stat().st_mode), p.read_bytes()) for p in root.rglob("*") if p.is_file()}


# ---- below a folder, as a package is made ----


def test_files_are_installed_whole_and_only_once(tmp_path):
    (tmp_path / "usr/share/bash-completion/completions").mkdir(parents=True)
    (tmp_path / "usr/share/man").mkdir(parents=True)
    before = os.umask(0o077)
    try:
        said = labd("install", "--root", tmp_path).stdout
    finally:
        os.umask(before)
    there = files(tmp_path)
    more = {"usr/share/bash-completion/completions/labd": 0o644, "usr/share/man/man1/labd.1": 0o644}
    assert {path: mode for path, (mode, _) in there.items()} == FILES | more
    assert [line.split()[0] for line in said.splitlines()] == ["installed"] * 5, "and nothing of systemd"
    assert there["usr/local/bin/labd"][1] == pathlib.Path(labd_binary()).read_bytes()
    assert there["etc/systemd/system/labd.service"][1] == (ROOT / "systemd/labd.service").read_bytes()
    labd("config", "check", tmp_path / "etc/labd/labd.toml")

    again = labd("install", "--root", tmp_path).stdout
    assert [line.split()[0] for line in again.splitlines()] == ["unchanged", "unchanged", "kept", "unchanged", "unchanged"]
    assert files(tmp_path) == there


def test_an_upgrade_keeps_labd_toml_and_uninstalling_keeps_it_too(tmp_path):
    labd("install", "--root", tmp_path)
    own = tmp_path / "etc/labd/labd.toml"
    own.write_text('[lab]\nname = "mine"\n')
    (tmp_path / "usr/local/bin/labd").write_text("an older one")
    said = labd("install", "--root", tmp_path).stdout.splitlines()
    assert said[0].startswith("updated ") and said[2] == f"kept       {own}"
    assert own.read_text() == '[lab]\nname = "mine"\n'
    said = labd("uninstall", "--root", tmp_path).stdout
    assert list(files(tmp_path)) == ["etc/labd/labd.toml"] and f"kept       {own}" in said
    assert "not installed" in labd("uninstall", "--root", tmp_path).stdout


def test_only_root_installs(tmp_path):
    binary = "/tmp/labd-install-as-nobody"
    run("install", "-m", "755", labd_binary(), binary)
    for verb in ("install", "uninstall"):
        done = subprocess.run([binary, verb], capture_output=True, text=True, user=65534, group=65534, extra_groups=[])
        assert (done.returncode, done.stderr) == (4, f"labd: only root may {verb} labd; run `sudo labd {verb}`\n")
    os.unlink(binary)


# ---- a machine with systemd ----


@pytest.fixture(scope="module")
def machine():
    made = Machine("labdinstall")
    yield made
    docker("rm", "-f", made.id, check=False)


def test_a_daemon_that_was_started_by_hand_is_not_fought(machine):
    assert machine.unit()["fix"] == "labd install"
    machine("/mnt/labd", "up", "--timeout=1", check=False)
    done = machine("/mnt/labd", "install", check=False)
    pid = json.loads(machine("/mnt/labd", "status", "--json").stdout)["labd"]["pid"]
    assert done.returncode == 1 and f"`kill {pid}` ends it and leaves the containers running" in done.stderr
    machine("bash", "-c", f"kill {pid}")
    wait_for("it is gone", lambda: machine("/mnt/labd", "status", check=False).returncode == 3)
    said = machine("/mnt/labd", "install").stdout
    assert "started    labd.service" in said
    assert machine.running() == machine.pid()


def test_it_is_active_and_a_second_install_changes_nothing(machine):
    pid = machine.running()
    said = machine("/usr/local/bin/labd", "install").stdout
    assert {line.split()[0] for line in said.splitlines()} == {"unchanged", "kept"}, said
    assert machine.running() == pid
    assert machine.unit() == {"name": "unit", "verdict": "ok", "why": "labd.service is enabled and active", "fix": None}
    assert machine.show("LimitMEMLOCK") == "infinity"
    machine("systemctl", "reload", "labd")


KILL_EACH = """
for i in 1 2 3 4 5 6 7 8; do
    while pid=$(systemctl show labd -p MainPID --value); [ "$pid" = 0 ] || [ "$pid" = "$old" ]; do sleep 0.05; done
    kill -9 "$pid"; old=$pid
done
"""


def test_killed_again_and_again_it_comes_back(machine):
    """More often than systemd's own patience, which is five starts in ten seconds."""
    pid = machine.running()
    machine("timeout", "60", "bash", "-c", KILL_EACH)
    assert wait_for("it runs again", machine.running, 30) != pid
    assert int(machine.show("NRestarts")) >= 8


def test_an_upgrade_restarts_it_and_no_start_does_not(machine):
    pid = machine.running()
    machine("bash", "-c", "cp /mnt/labd /root/labd && echo >>/root/labd")
    said = machine("/root/labd", "install", "--no-start").stdout
    assert said.startswith("updated    /usr/local/bin/labd") and "keeps running unchanged" in said
    assert machine.running() == pid
    machine("bash", "-c", "echo >>/root/labd")
    said = machine("/root/labd", "install").stdout
    assert "restarted  labd.service" in said and "daemon-reload" not in said
    assert machine.running() != pid


def test_a_broken_labd_toml_is_said_and_not_tried_forever(machine):
    machine("bash", "-c", "echo '[gpu]' >/etc/labd/labd.toml; systemctl restart labd", check=False)
    wait_for("it failed", lambda: machine.show("ActiveState") == "failed", 30)
    assert machine.show("ExecMainStatus") == "78"
    assert machine.unit()["verdict"] == "fail"
    machine("bash", "-c", "echo >/etc/labd/labd.toml")
    machine("systemctl", "start", "labd")
    assert machine.running()


def test_down_ends_it_for_good_and_up_starts_it_by_systemd(machine):
    machine("/usr/local/bin/labd", "down")
    wait_for("it ended", lambda: machine.show("ActiveState") == "inactive", 30)
    restarts = machine.show("NRestarts")
    machine("/usr/local/bin/labd", "up", "--timeout=1", check=False)
    assert machine.running() == machine.pid() and machine.show("NRestarts") <= restarts


def test_uninstalling_leaves_what_is_the_labs(machine):
    said = machine("/usr/local/bin/labd", "uninstall").stdout
    for kept in ("/etc/labd/labd.toml", "/var/lib/labd", "volumes and images"):
        assert f"kept       {kept}" in said, said
    assert machine("test", "-e", "/usr/local/bin/labd", check=False).returncode == 1
    assert machine.show("LoadState") == "not-found"
    assert machine("test", "-s", "/var/lib/labd/secrets.json").returncode == 0
    assert machine("/mnt/labd", "status", check=False).returncode == 3
