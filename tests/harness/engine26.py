"""A second, newer container engine beside the machine's own: Debian trixie's Docker in a root of its own, with CDI switched on.

It lives in mount, network and process namespaces of its own, so it sees neither the other engine's bridge nor its firewall
rules, and everything it mounted and started ends with it. Its root is made once and kept in `target/engine26`.
"""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

from harness.lab import ROOT, docker, run, wait_for

HOME = ROOT / "target" / "engine26"
SYSTEM = HOME / "root"
PACKAGES = "docker.io,iptables,ca-certificates"

# `$1` is the system, `$2` a directory that both sides see.
BEGIN = r"""
set -e
root=$1
mount --bind "$root" "$root"
mkdir -p "$root/labd"
mount --bind "$2" "$root/labd"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
ip link set lo up
# Not only `chroot`: a container's namespace would begin at the machine's own root, and `docker exec` would end up there.
cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
exec dockerd --config-file /labd/daemon.json
"""

CONFIG = {
    "hosts": ["unix:///labd/docker.sock"],
    "features": {"cdi": True},
    # Cgroups are the one thing that is shared.
    "cgroup-parent": "/labd-engine26",
    "bip": "198.18.229.1/25",
    "default-address-pools": [{"base": "198.18.229.128/25", "size": 28}],
    "iptables": False,
    "ip6tables": False,
    "ip-masq": False,
}


def cannot():
    """Why there can be no such engine here, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in ("debootstrap", "unshare", "pivot_root", "ip") if not shutil.which(tool, path=PATH)]
    return f"needs {', '.join(missing)}" if missing else None


PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def make_system():
    """Debian trixie with its engine, from the package mirror: about a minute, once."""
    if SYSTEM.exists():
        return
    HOME.mkdir(parents=True, exist_ok=True)
    mirror = run(ROOT / "images/base/bootstrap.sh", "--print-mirror").stdout.strip()
    with tempfile.TemporaryDirectory(dir=HOME) as partial:
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "trixie", partial, mirror, timeout=900,
            env={**os.environ, "PATH": PATH})
        # Renamed when it is whole: a run that was cut short is begun anew.
        os.rename(partial, SYSTEM)
        os.mkdir(partial)


class Engine:
    def __init__(self, directory):
        self.socket = directory / "docker.sock"
        self.log = directory / "log"
        self.system = SYSTEM

    def docker(self, *argv, **kwargs):
        return docker("-H", f"unix://{self.socket}", *argv, **kwargs)

    def answers(self):
        return self.docker("info", check=False, timeout=20).returncode == 0

    def load(self, image):
        """Gives it an image of the other engine."""
        with tempfile.NamedTemporaryFile(dir=HOME) as file:
            docker("save", "-o", file.name, image, timeout=300)
            self.docker("load", "-i", file.name, timeout=300)
        return image


@contextlib.contextmanager
def engine(specifications):
    """The engine, with these CDI specifications: name -> content. Ends with everything it made but its system."""
    make_system()
    cdi = SYSTEM / "etc" / "cdi"
    shutil.rmtree(cdi, ignore_errors=True)
    cdi.mkdir(parents=True)
    for name, text in specifications.items():
        (cdi / name).write_text(text)
    bridge = run("ip", "-o", "-4", "addr", "show", "docker0", check=False).stdout
    # Short: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="labd26-") as directory:
        engine = Engine(pathlib.Path(directory))
        (pathlib.Path(directory) / "daemon.json").write_text(json.dumps(CONFIG))
        with engine.log.open("w") as log:
            process = subprocess.Popen(
                ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "sh", "-c", BEGIN, "sh",
                 SYSTEM, directory],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, "PATH": PATH})
        try:
            def up():
                assert process.poll() is None, f"the engine ended: {engine.log.read_text()[-2000:]}"
                return engine.answers()

            wait_for("the newer engine answers", up, 60)
            yield engine
        finally:
            stop(process)
            # Its containers' data; images are loaded anew, which is quick.
            for name in ("docker", "containerd"):
                shutil.rmtree(SYSTEM / "var/lib" / name, ignore_errors=True)
            shutil.rmtree(cdi, ignore_errors=True)
            remove_cgroups()
    assert run("ip", "-o", "-4", "addr", "show", "docker0", check=False).stdout == bridge, "the other engine's bridge was touched"


def stop(process):
    """SIGTERM to the engine, which is the first process of its namespace; the namespace ends with it."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if process.poll() is None:
        for child in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=10)


def remove_cgroups():
    for base in pathlib.Path("/sys/fs/cgroup").glob("**/labd-engine26"):
        for path in sorted((p for p in base.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
            with contextlib.suppress(OSError):
                path.rmdir()
        with contextlib.suppress(OSError):
            base.rmdir()
