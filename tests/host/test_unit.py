"""labd under its unit, on real systemd with an engine: a first installation where no registry answers, an image that must be
built, supervision, and what systemd says of its rights."""
import contextlib
import json
import re

import pytest

from harness.lab import CA, ROOT, Lab, build_settings, docker, wait_for
from harness.machine import Machine

pytestmark = [pytest.mark.engine, pytest.mark.root]

BASE = "labd/base"


@contextlib.contextmanager
def without_a_base_image():
    """As on a machine that never built one; what was there is there again afterwards."""
    references = docker("images", "--format", "{{.Repository}}:{{.Tag}}", BASE).stdout.split()
    for n, reference in enumerate(references):
        docker("tag", reference, f"labd-dev/kept:{n}")
        docker("rmi", reference)
    try:
        yield
    finally:
        for n, reference in enumerate(references):
            docker("tag", f"labd-dev/kept:{n}", reference)
            docker("rmi", f"labd-dev/kept:{n}")


class UnitLab(Lab):
    """A lab whose labd is started by the systemd of a machine of its own; the engine is this machine's."""

    def __init__(self):
        # A package of the lab's own: no other test has made that image.
        super().__init__("labdunit", "198.18.172.0/24", build=build_settings() + '\npackages = ["emoji==2.14.1"]\ntorch = "none"\n')
        self.data_dir.mkdir()
        shares = [self.dir] + ([CA.parent] if CA.exists() else [])
        caps = ["NET_ADMIN", "SYS_ADMIN", "SYSLOG"]
        more = [*(f"--cap-add={cap}" for cap in caps), "--security-opt=apparmor=unconfined",
                "-v", "/var/run/docker.sock:/run/docker.sock", *(o for s in shares for o in ("-v", f"{s}:{s}"))]
        self.machine = Machine("labdunitmachine", network="host", more=more)
        self.machine("mkdir", "-p", "/etc/labd")
        self.machine("cp", self.config, "/etc/labd/labd.toml")
        self.socket = "/run/labd/labd.sock"
        rows = json.loads(self.machine("/mnt/labd", "images", "list", "--json").stdout)
        self.image = next(row["reference"] for row in rows if row["name"] == "ray")
        docker("rmi", "-f", self.image, check=False)

    def labd(self, *argv, check=True, timeout=120, binary=None):
        binary = "/mnt/labd" if argv[0] == "install" else "/usr/local/bin/labd"
        return self.machine(binary, *argv, check=check, timeout=timeout)

    def down(self):
        try:
            super().down()
        finally:
            docker("rm", "-f", self.machine.id, check=False)
            docker("rmi", "-f", self.image, check=False)


@pytest.fixture(scope="module")
def lab():
    lab = UnitLab()
    lab.sweep()
    try:
        yield lab
    finally:
        lab.down()


def test_systemd_finds_little_to_blame(lab):
    lab.machine("cp", "/mnt/labd", "/usr/local/bin/labd")
    (lab.dir / "labd.service").write_bytes((ROOT / "systemd/labd.service").read_bytes())
    lab.machine("cp", lab.dir / "labd.service", "/etc/systemd/system/")
    said = lab.machine("systemd-analyze", "security", "--offline=true", "labd.service", check=False).stdout
    assert float(re.search(r"exposure level for labd.service: ([0-9.]+)", said)[1]) <= 4.0, said


def test_a_first_installation_without_a_registry_makes_its_images_and_a_lab(lab):
    with without_a_base_image():
        lab.labd("install")
        lab.up(1200)
        assert docker("images", "-q", BASE).stdout, "made by debootstrap"
    filters = lab.machine("bash", "-c", f"grep -E '^(Seccomp|NoNewPrivs):' /proc/{lab.pid()}/status").stdout.split()
    assert filters == ["NoNewPrivs:", "1", "Seccomp:", "2"]
    # Only Grafana comes from a registry.
    assert {name for name, state in lab.states().items() if state != "ready"} <= {"grafana"}, lab.states()


def test_what_dies_comes_back_under_it(lab):
    before = lab.ids()["ray-worker-1"]
    docker("kill", lab.container("ray-worker-1"))
    wait_for("a new run", lambda: lab.ids().get("ray-worker-1", before) != before, 60)
    lab.wait_ready("ray-worker-1")
    rules = lab.machine("iptables", "-t", "raw", "-S", "PREROUTING").stdout
    assert f"labd:{lab.name}" in rules, "its rule against other hosts wants its rights"
