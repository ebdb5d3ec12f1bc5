"""A machine with real systemd, which is a container."""
import json
import os
import pathlib
import platform

from harness.lab import ROOT, docker, labd_binary, run, wait_for

CGROUP = pathlib.Path("/sys/fs/cgroup")


def image():
    """The distribution of this machine with systemd in it, so that a dynamic labd runs there, too. Made once."""
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "bookworm")
    name = f"labd-dev/systemd:{suite}-tools"
    if docker("image", "inspect", name, check=False).returncode != 0:
        mirror = os.environ.get("LABD_DEBIAN_MIRROR") or run(ROOT / "images/base/bootstrap.sh", "--print-mirror").stdout.strip()
        run("bash", "-c", """
            set -eu
            work=$(mktemp -d); trap 'rm -rf --one-file-system "$work"' EXIT
            PATH=$PATH:/usr/sbin debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,debootstrap,iptables "$1" "$work" "$2" >&2
            tar -C "$work" --numeric-owner --one-file-system -cf - . | docker import --change 'CMD ["/sbin/init"]' - "$3"
        """, "bash", suite, mirror, name, timeout=600)
    return name


class Machine:
    """No network, no engine: labd says so, and runs. `more` are options of `docker run` that give it some."""

    def __init__(self, name, network="none", more=()):
        self.name = name
        docker("rm", "-f", name, check=False)
        # Its systemd must not lay hands on this machine's cgroups: it would remount their folder, which is shared. On
        # cgroup v1 it gets a folder of its own with nothing in it but the tree that it must have.
        if (CGROUP / "systemd").is_dir():
            cgroups = ["--tmpfs", str(CGROUP), "-v", f"{CGROUP}/systemd:{CGROUP}/systemd:rw"]
        else:
            cgroups = ["-v", f"{CGROUP}:{CGROUP}:rw", "--cap-add", "SYS_ADMIN"]
        self.id = docker("run", "-d", "--name", name, "--network", network, "--security-opt", "seccomp=unconfined",
                         "--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp", "--cgroupns=host", *cgroups,
                         "-e", "container=docker", "-v", f"{labd_binary()}:/mnt/labd:ro", *more, image()).stdout.strip()
        states = ("running", "degraded")
        wait_for("systemd is up", lambda: self("systemctl", "is-system-running", check=False).stdout.strip() in states, 60)

    def __call__(self, *argv, **kwargs):
        return docker("exec", self.id, *argv, **kwargs)

    def show(self, name):
        return self("systemctl", "show", "labd", "-p", name, "--value").stdout.strip()

    def pid(self):
        return int(self.show("MainPID"))

    def running(self):
        """The daemon's pid as it tells it, once systemd calls it active."""
        done = self("/usr/local/bin/labd", "status", "--json", check=False)
        return self.show("ActiveState") == "active" and done.returncode == 0 and json.loads(done.stdout)["labd"]["pid"]

    def unit(self):
        """What doctor says of the unit."""
        report = json.loads(self("/mnt/labd", "doctor", "--json", check=False).stdout)
        return next(c for c in report["checks"] if c["name"] == "unit")
