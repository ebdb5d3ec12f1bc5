"""What is shipped: one static file that needs nothing of the machine, and probes inside that need only an old glibc."""
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import urllib.request

import pytest

from harness.lab import ROOT, docker, run, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.root]

EMBEDDED = ROOT / "target/dist/probes/embed"
#: Oldest first; the archive moves them away over the years, so the mirror's oldest one is taken.
OLD_DEBIANS = ["stretch", "buster", "bullseye", "bookworm"]
GLIBC = (2, 17)


@pytest.fixture(scope="module")
def dist():
    """`make test` built it before; then this takes a moment."""
    run(ROOT / "scripts/dist.sh", timeout=3600)
    return ROOT / "dist/labd"


@pytest.fixture
def chroot(dist):
    """An empty root with labd in it. `chroot(*argv, lab)` is the command that runs there; mounts end with the process."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="labd-chroot-"))
    shutil.copy(dist, root / "labd")
    for folder in ("proc", "run"):
        (root / folder).mkdir()
    (root / "run/docker.sock").touch()

    def command(*argv, lab):
        # The lab's folder is at the same place inside, since the engine mounts from there. Nothing else is.
        inside = root / lab.dir.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        mounts = f"mount --rbind /proc {root}/proc && mount --bind /run/docker.sock {root}/run/docker.sock && mount --bind {lab.dir} {inside}"
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{mounts} && exec chroot {root} "$@"', "sh",
                "/labd", "--config", str(lab.config), "--socket", str(lab.socket), *argv]

    yield command
    shutil.rmtree(root)


@pytest.fixture
def bare_lab(fresh):
    """A lab of which only MinIO can run: no Ray is needed to show that the engine is driven."""
    lab = fresh("labdchroot", "198.18.230.0/24", gpus=2)
    rows = {r["name"]: r for r in json.loads(lab.labd("images", "list", "--json").stdout)}
    if rows["minio"]["state"] != "present":
        lab.labd("images", "build", "minio", timeout=2400)
    # Without the CA bundle and the mirrors: those files are not there inside.
    base = re.sub(r"\[images\.build\]\n(.+\n)*", "", lab.base).replace("[engine]\n", "")
    lab.base = base + f"""
[images]
ray = "labd.invalid/none:1"
minio = "{rows['minio']['reference']}"
[engine]
socket = "unix:///run/docker.sock"
[services.prometheus]
enabled = false
[services.grafana]
enabled = false
"""
    lab.write()
    return lab


def test_it_is_static(dist):
    said = subprocess.run(["ldd", dist], capture_output=True, text=True)
    assert re.search("statically linked|not a dynamic executable", said.stdout + said.stderr), said
    headers = run("readelf", "-lW", dist).stdout
    assert "INTERP" not in headers, "it asks for a dynamic loader"
    assert re.search(r"Elf file type is DYN", headers), "it has one fixed address, which helps who attacks it"


def test_in_an_empty_root_it_finds_simulated_gpus(chroot, bare_lab):
    plan = json.loads(run(*chroot("plan", "--simulate-gpus", "2", "--json", lab=bare_lab)).stdout)
    assert [(g["id"], g["vendor"]) for g in plan["gpus"]] == [("SIM-0", "simulated"), ("SIM-1", "simulated")]
    assert {"ray-worker-0", "ray-worker-1"} <= {s["name"] for s in plan["plan"]["services"]}


def test_in_an_empty_root_it_drives_the_engine(chroot, bare_lab):
    with open(bare_lab.dir / "log", "w") as log:
        daemon = subprocess.Popen(chroot("run", lab=bare_lab), stdout=log, stderr=log)
    try:
        def snapshot():
            assert daemon.poll() is None, (bare_lab.dir / "log").read_text()
            # Asked from inside, too.
            asked = run(*chroot("status", "--json", lab=bare_lab), check=False)
            return asked.returncode == 0 and json.loads(asked.stdout)

        wait_for("the daemon", snapshot, 30)
        seen = wait_for("MinIO", lambda: (s := snapshot()) and bare_lab.service("minio", s)["state"] == "ready" and s, 60)
        assert seen["engine"]["version"] == docker("version", "--format", "{{.Server.Version}}").stdout.strip()
        assert [g["vendor"] for g in seen["gpus"]] == ["simulated"] * 2
        assert bare_lab.inspect("minio")["State"]["Running"]
        run(*chroot("down", lab=bare_lab))
        assert daemon.wait(60) == 0, (bare_lab.dir / "log").read_text()
        assert bare_lab.ids() == {}
    finally:
        daemon.kill()
        daemon.wait()


def probes():
    """The probes whose source is here, by name."""
    wanted = {"labd-probe-nvidia": ROOT / "crates/labd-probe-nvidia", "labd-probe-amd": ROOT / "crates/labd-probe-amd"}
    return sorted(name for name, source in wanted.items() if (source / "Cargo.toml").exists())


def test_the_probes_are_inside_and_need_no_glibc_above_2_17(dist):
    assert sorted(p.name for p in EMBEDDED.iterdir()) == probes()
    whole = dist.read_bytes()
    for name in probes():
        # The linker leaves out what nothing uses.
        assert whole.find((EMBEDDED / name).read_bytes()) > 0, f"{name} is not in {dist}"
        needed = re.findall(r"GLIBC_([\d.]+)", run("objdump", "-T", EMBEDDED / name).stdout)
        assert needed, f"{name} is not dynamic: it could load no library"
        newest = max(tuple(int(n) for n in version.split(".")) for version in needed)
        assert newest <= GLIBC, f"{name} needs glibc {newest}"


# glibc 2.27 of April 2018, as Ubuntu 18.04 came with it; pinned, since its archive's keys are not on a Debian.
LIBC_2018 = "http://archive.ubuntu.com/ubuntu/pool/main/g/glibc/libc6_2.27-3ubuntu1_amd64.deb"
LIBC_2018_SHA256 = "1e1eb86fd646aa68f7144ec692b837b6b352d215880c6a2d0c92c19d36938427"


def unpack_libc_of_2018(root):
    """Whether it could be had: not every mirror has it."""
    try:
        with urllib.request.urlopen(LIBC_2018, timeout=60) as answer:
            package = answer.read()
    except OSError as error:
        print(f"{LIBC_2018}: {error}")
        return False
    assert hashlib.sha256(package).hexdigest() == LIBC_2018_SHA256, f"{LIBC_2018} is another file than it was"
    root.mkdir(parents=True)
    (root / "libc6.deb").write_bytes(package)
    run("dpkg-deb", "-x", root / "libc6.deb", root)
    (root / "complete").touch()
    return True


@pytest.fixture(scope="module")
def old_system():
    """A folder with the C library of 2018 and nothing else; where that cannot be had, the root of the oldest Debian on the
    mirror, unpacked and not configured."""
    root = ROOT / "target/libc-2018"
    if (root / "complete").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    if unpack_libc_of_2018(root):
        return root
    mirror = run("bash", ROOT / "images/base/bootstrap.sh", "--print-mirror").stdout.strip()
    for suite in OLD_DEBIANS:
        root = ROOT / f"target/debian-{suite}"
        if (root / "complete").exists():
            return root
        shutil.rmtree(root, ignore_errors=True)
        done = run("debootstrap", "--foreign", "--variant=minbase", suite, root, mirror, check=False, timeout=600)
        if done.returncode == 0:
            (root / "complete").touch()
            return root
        shutil.rmtree(root, ignore_errors=True)
    pytest.fail(f"no Debian can be unpacked from {mirror}: {done.stdout[-500:]}{done.stderr[-500:]}")


def test_the_probes_run_on_an_old_glibc(dist, old_system):
    for name in probes():
        shutil.copy(EMBEDDED / name, old_system / name)
        # A probe ends with its input, which stays open here; it goes on for as long as it has something to say.
        here, there = os.pipe()
        try:
            done = run("timeout", "10", "chroot", old_system, f"/{name}", stdin=here, check=False)
        finally:
            os.close(here)
            os.close(there)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if lines:
            assert {"library-missing"} == {line["trouble"]["code"] for line in lines if "trouble" in line}, lines
        else:
            # Linked with its library: the loader says that it is missing, and finds nothing wrong with its own version.
            assert "librocm_smi64.so" in done.stderr and "GLIBC" not in done.stderr, done
