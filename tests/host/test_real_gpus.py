"""GPUs as the daemon sees them, from the vendors' side to the page: its own probes, a stand-in for NVIDIA's library, the files of
a kernel with AMD's GPUs, and a kernel's log. No engine and no GPU."""
import collections
import contextlib
import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import tempfile
import threading
import time

import pytest

from harness.lab import ROOT, free_port, labd_binary, run, wait_for

GIB = 1 << 30


class Machine:
    """A daemon on a machine whose hardware is a folder. Its engine does not answer: nothing is started."""

    def __init__(self, folder, library=None):
        self.dir = pathlib.Path(folder)
        self.root, self.script = self.dir / "root", self.dir / "script"
        self.file("dev/kmsg", "")
        self.config = self.dir / "labd.toml"
        self.config.write_text(f"""
[lab]
name = "labdreal"
data_dir = "{self.dir}/data"
page = "127.0.0.1:{free_port()}"
[engine]
socket = "{self.dir}/no-engine.sock"
[network]
subnet = "198.18.227.0/24"
[ports]
dashboard = 0
[http]
jupyter_port = 0
""")
        self.env = {**os.environ, "LABD_CONFIG": str(self.config), "LABD_SOCKET": f"{self.dir}/labd.sock", "NO_COLOR": "1",
                    "LABD_SYS_ROOT": str(self.root), "LABD_LOG": "info", "FAKE_NVML": str(self.script),
                    "LABD_NVML": str(library or "/nonexistent"), "LABD_NVIDIA_SMI": "/nonexistent"}
        self.daemon = None

    def file(self, path, text):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def link(self, path, to):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(to)

    def plug_in(self, pci, vendor="0x10de"):
        for name, text in {"vendor": vendor, "class": "0x030200", "numa_node": "0", "local_cpulist": "0-1"}.items():
            self.file(f"sys/bus/pci/devices/{pci}/{name}", text + "\n")

    def is_like(self, tree):
        """Files of a kernel with AMD's GPUs."""
        for line in (ROOT / f"crates/labd-gpu/src/kernel/trees/{tree}.tree").read_text().splitlines():
            if line.startswith("#"):
                continue
            path, text = line.split("\t")
            if text.startswith("-> "):
                self.link(path, text[3:])
            else:
                self.file(path, text.replace("\\n", "\n"))

    def says(self, text):
        """From now on NVIDIA's library behaves like this."""
        new = self.dir / "script.new"
        new.write_text(text)
        new.rename(self.script)

    def kernel_says(self, *lines):
        with open(self.root / "dev/kmsg", "a") as log:
            for number, line in enumerate(lines):
                log.write(f"3,{time.monotonic_ns()},{int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1e6) + number},-;{line}\n")

    def start(self):
        with open(self.dir / "labd.log", "ab") as log:
            self.daemon = subprocess.Popen([labd_binary(), "run"], env=self.env, stdout=log, stderr=log, start_new_session=True)

    def stop(self, number=signal.SIGTERM):
        if self.daemon:
            self.daemon.send_signal(number)
            self.daemon.wait(60)
            self.daemon = None

    def keeps(self, gpu, is_quarantined):
        """Whether it is on disk already: what was only said is lost with a daemon that is killed."""
        with contextlib.closing(sqlite3.connect(f"file:{self.dir}/data/journal.db?mode=ro", uri=True)) as journal:
            text, = journal.execute("SELECT value FROM memory WHERE key = 'gpus'").fetchone() or ("{}",)
        return (gpu in json.loads(text).get("judge", {}).get("quarantined", {})) == is_quarantined

    def labd(self, *argv, check=True):
        return run(labd_binary(), *argv, check=check, timeout=60, env=self.env)

    def gpus(self):
        done = self.labd("gpu", "list", "--json", check=False)
        return {g["id"]: g for g in json.loads(done.stdout)["gpus"]} if done.returncode == 0 else {}

    def events(self):
        return [json.loads(line) for line in self.labd("events", "-n", "100", "--json").stdout.splitlines()]

    def sources(self):
        return json.loads(self.labd("gpu", "list", "--json").stdout)["sources"]

    def until(self, what, condition, seconds=60):
        try:
            return wait_for(what, condition, seconds, 0.2)
        except AssertionError as error:
            log = (self.dir / "labd.log").read_text(errors="replace")[-3000:]
            raise AssertionError(f"{error}\n{self.gpus()}\n{log}") from None


def nvidia(count, extra=""):
    """So many H100s, `GPU-0` and so on."""
    text = [extra.rstrip("\n"), "driver=570.124.06", "library=12.570.124.06", f"count={count}"]
    for i in range(count):
        text += [f"{i}.uuid=GPU-{i}", f"{i}.name=NVIDIA H100 80GB HBM3", f"{i}.pci=00000000:{0x41 + i:02X}:00.0", f"{i}.minor={i}",
                 f"{i}.memory={80 * GIB}", f"{i}.used={(i + 1) * GIB}", f"{i}.temperature={40 + i}", f"{i}.utilisation=97",
                 f"{i}.power=312500"]
    return "\n".join(line for line in text if line) + "\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    run("cc", "-shared", "-fPIC", "-o", made, ROOT / "crates/labd-probe-nvidia/tests/nvml.c")
    return made


@pytest.fixture
def machine(library):
    folder = tempfile.mkdtemp(prefix="labdreal-")
    machine = Machine(folder, library)
    yield machine
    machine.stop()
    shutil.rmtree(folder, ignore_errors=True)


def two_gpus(machine):
    machine.plug_in("0000:41:00.0")
    machine.plug_in("0000:42:00.0")
    machine.says(nvidia(2))
    machine.start()
    machine.until("two GPUs", lambda: len(machine.gpus()) == 2)


def test_what_nvidias_library_says_is_shown(machine):
    two_gpus(machine)
    machine.until("readings", lambda: machine.gpus()["GPU-1"].get("reading"))
    gpu = machine.gpus()["GPU-1"]
    assert (gpu["vendor"], gpu["state"], gpu["pci"], gpu["memory_bytes"]) == ("nvidia", "ok", "0000:42:00.0", 80 * GIB)
    reading = gpu["reading"]
    assert (reading["utilisation_percent"], reading["temperature_c"], reading["memory_used_bytes"]) == (97, 41, 2 * GIB)
    assert reading["power_w"] == 312.5
    (source,) = machine.sources()
    assert (source["name"], source["driver"], source["stale_since"]) == ("NVML", "570.124.06", None)
    text = machine.labd("gpu", "list").stdout
    assert "2.0/80.0 GiB" in text and "driver 570.124.06" in text
    assert max(map(len, text.splitlines())) <= 80, text


def test_a_gpu_that_falls_off_the_bus_is_quarantined_alone(machine):
    two_gpus(machine)
    machine.kernel_says("NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.")
    machine.until("the first is quarantined", lambda: machine.gpus()["GPU-0"]["state"] == "quarantined")
    assert machine.gpus()["GPU-0"]["trouble"]["code"] == "xid-79" and "0000:41:00.0" in machine.gpus()["GPU-0"]["trouble"]["remedy"]
    assert machine.gpus()["GPU-1"]["state"] == "ok"
    # The library says it of the second one, without a word of the kernel.
    machine.says(nvidia(2, "1=15"))
    machine.until("the second, too", lambda: machine.gpus()["GPU-1"]["state"] == "quarantined")
    machine.says(nvidia(2))

    # Over a restart of labd, which reads the kernel's lines of this boot again.
    machine.until("both are kept", lambda: machine.keeps("GPU-0", True) and machine.keeps("GPU-1", True))
    machine.stop(signal.SIGKILL)
    machine.start()
    machine.until("it knows", lambda: machine.gpus().get("GPU-0", {}).get("state") == "quarantined")
    machine.labd("gpu", "release", "GPU-0")
    machine.until("released", lambda: machine.gpus()["GPU-0"]["state"] == "ok" and machine.keeps("GPU-0", False))
    machine.stop(signal.SIGKILL)
    machine.start()
    machine.until("it has read all", lambda: machine.gpus().get("GPU-0", {}).get("reading"))
    assert machine.gpus()["GPU-0"]["state"] == "ok" and machine.gpus()["GPU-1"]["state"] == "quarantined"
    events = machine.labd("events", "-n", "100").stdout
    assert events.count("xid-79") == 1, events


def notices(machine, part=""):
    texts = [n["text"] for n in json.loads(machine.labd("status", "--json").stdout)["notices"]]
    return [t for t in texts if part in t]


def test_a_switch_and_a_card_that_did_not_start_are_notices_until_their_cause_is_gone(machine):
    two_gpus(machine)
    machine.plug_in("0000:43:00.0")
    machine.kernel_says("nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
                        "NVRM: GPU 0000:43:00.0: RmInitAdapter failed! (0x62:0x40:2168)",
                        # Of no GPU: some network card.
                        "pcieport 0000:00:01.1: AER: Uncorrected (Fatal) error received: 0000:05:00.0")
    machine.until("the switch is told", lambda: notices(machine, "0000:a9:00.0"))
    machine.until("the card is told", lambda: notices(machine, "nvidia-init-failed"))
    assert not notices(machine, "<") and not notices(machine, "pcie-fatal") and not notices(machine, "labd gpu release"), notices(machine)
    # Somebody installs another driver: the card answers.
    machine.says(nvidia(3))
    machine.until("the card is there", lambda: len(machine.gpus()) == 3)
    machine.until("the notice is gone", lambda: not notices(machine, "nvidia-init-failed"))
    assert notices(machine, "0000:a9:00.0") and {g["state"] for g in machine.gpus().values()} == {"ok"}


def test_a_boot_with_a_card_that_does_not_answer_says_which_and_in_which_slot(machine):
    machine.plug_in("0000:43:00.0")
    machine.file("sys/bus/pci/slots/7/address", "0000:43:00\n")
    two_gpus(machine)
    machine.until("it is told", lambda: notices(machine, "3 on the PCI bus, 2 answer: the NVIDIA GPU at 0000:43:00.0 (slot 7) does not"), 120)
    assert {g["state"] for g in machine.gpus().values()} == {"ok"}
    # Switched off and on again.
    machine.stop()
    machine.says(nvidia(3))
    machine.start()
    machine.until("the card is there", lambda: len(machine.gpus()) == 3)
    assert not notices(machine, "on the PCI bus")


def test_one_tenants_fault_on_a_divided_card_is_that_instances_alone(machine):
    machine.plug_in("0000:41:00.0")
    for instance, number in ((5, 50), (9, 90)):
        for capability, node in ((f"gi{instance}", number), (f"gi{instance}/ci0", number + 1)):
            machine.file(f"proc/driver/nvidia/capabilities/gpu0/mig/{capability}/access", f"DeviceFileMinor: {node}\nDeviceFileMode: 292\n")
            machine.file(f"dev/nvidia-caps/nvidia-cap{node}", "")
    mig = "".join(f"0.mig.{i}.uuid={uuid}\n0.mig.{i}.name=NVIDIA H100 80GB HBM3 MIG 1g.10gb\n0.mig.{i}.memory={10 * GIB}\n"
                  for i, uuid in enumerate(("MIG-a", "MIG-b")))
    machine.says(f"{nvidia(1)}0.mig=7\n{mig}")
    machine.start()
    machine.until("two instances", lambda: set(machine.gpus()) == {"MIG-a", "MIG-b"})
    line = "NVRM: Xid (PCI:0000:41:00 GPU-I:{:02}): {}, pid=4321, name=python3, {}"
    machine.kernel_says(line.format(9, 94, "Contained: SM (0x1). RST: No, D-RST: No"))
    events = machine.until("it is told", lambda: [e for e in machine.events() if "xid-94" in json.dumps(e)])
    assert "MIG-b" in json.dumps(events) and "MIG-a" not in json.dumps(events), events
    # What needs a reset takes the other tenants along.
    machine.kernel_says(line.format(5, 95, "Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No"))
    machine.until("both are quarantined", lambda: {g["state"] for g in machine.gpus().values()} == {"quarantined"})


class Opened:
    """Counts how often files of a folder are opened, by name (inotify)."""

    IN_OPEN = 0x20

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.folders, self.counts = {}, collections.Counter()

    def watch(self, folder):
        self.folders[self.libc.inotify_add_watch(self.fd, os.fsencode(folder), self.IN_OPEN)] = folder

    def read(self):
        """The counts up to now."""
        with contextlib.suppress(BlockingIOError):
            while events := os.read(self.fd, 65536):
                while events:
                    folder, _, _, length = struct.unpack_from("iIII", events)
                    if name := events[16:16 + length].rstrip(b"\0").decode():
                        self.counts[self.folders[folder].name + "/" + name] += 1
                    events = events[16 + length:]
        return self.counts


@pytest.mark.parametrize("looks", [10, pytest.param(600, marks=pytest.mark.slow, id="600-looks-in-10-min")])
def test_a_card_that_sleeps_is_shown_and_nothing_of_it_is_read_that_would_wake_it(machine, looks):
    machine.is_like("mi100-bmc")
    device = (machine.root / "sys/bus/pci/devices/0000:c3:00.0").resolve()
    (device / "power").mkdir(exist_ok=True)
    (device / "ras").mkdir(exist_ok=True)
    (device / "ras/umc_err_count").write_text("ue: 0\nce: 0\n")
    status = device / "power/runtime_status"
    status.write_text("suspended\n")
    opened = Opened()
    for folder in {status.parent, *(path.parent for path in device.rglob("*") if path.is_file())}:
        opened.watch(folder)
    machine.start()
    asleep = lambda: [g for g in machine.gpus().values() if (g.get("reading") or {}).get("asleep")]
    machine.until("it is known to sleep", asleep)
    assert " asleep " in machine.labd("gpu", "list").stdout
    machine.until("many looks", lambda: opened.read()["power/runtime_status"] >= looks, 20 + 3 * looks)
    wakes = ("ras/", "hwmon", "gpu_busy_percent", "pp_dpm", "mem_info", "gpu_metrics", "current_compute_partition")
    woken = {name: n for name, n in opened.read().items() if any(part in name for part in wakes) and "mem_info_vram_total" not in name}
    assert asleep() and not woken, opened.counts
    status.write_text("active\n")
    machine.until("it is read again", lambda: opened.read()["ras/umc_err_count"] and not asleep())


# Lines about a GPU that answers all the same: its driver was loaded again since.
DID_NOT_START = {"nvidia-init-failed", "nvidia-other-driver", "nvidia-unsupported", "nvidia-no-room", "amdgpu-init-failed"}
# What is written of a fault, by its action.
DONE = {"nothing": "labd continues", "restart": "labd restarts its worker", "quarantine": "labd keeps it from work"}


def lines_of(*files, codes=""):
    """One line of each row of the table that people posted, with the row and the action: `tests/data/kernel`."""
    rows = {}
    for posted in (line for name in files for line in (ROOT / f"tests/data/kernel/{name}.tsv").read_text().splitlines()):
        if not posted.startswith("#"):
            _, text, code, gpu, action = posted.split("\t")
            if "-" not in (code, gpu) and code.startswith(codes):
                rows.setdefault(code, (text, code, action))
    return list(rows.values())


def at(text, pci):
    """The line, about the GPU at this address (without its function)."""
    return re.sub(r"\b[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}", pci, text, flags=re.IGNORECASE)


def h100s(machine, count):
    for i in range(count):
        machine.plug_in(f"0000:{0x41 + i:02x}:00.0")
    machine.says(nvidia(count))


def mi210s(machine, count):
    """So many MI210s, each behind a port of its own, in the files of AMD's driver."""
    machine.file("dev/kfd", "")
    for i in range(count):
        pci, minor = f"0000:{0x41 + i:02x}:00.0", 128 + i
        device = machine.root / f"sys/devices/pci0000:00/0000:00:{i + 1:02x}.1/{pci}"
        files = {"vendor": "0x1002", "class": "0x038000", "device": "0x740f", "numa_node": "0", "local_cpulist": "0-1",
                 "gpu_busy_percent": "3", "mem_busy_percent": "0", "mem_info_vram_total": 64 * GIB, "mem_info_vram_used": GIB}
        for name, value in files.items():
            machine.file(device / name, f"{value}\n")
        machine.link(device / "driver", "../../../../bus/pci/drivers/amdgpu")
        machine.link(f"sys/bus/pci/devices/{pci}", f"../../../devices/pci0000:00/{device.parent.name}/{pci}")
        machine.link(f"sys/class/drm/renderD{minor}/device", f"../../../bus/pci/devices/{pci}")
        machine.file(f"dev/dri/renderD{minor}", "")
        compute(machine, i)


def compute(machine, i):
    """The driver has started this one."""
    properties = {"cpu_cores_count": 0, "simd_count": 416, "mem_banks_count": 1, "gfx_target_version": 90010, "vendor_id": 0x1002,
                  "device_id": 0x740f, "location_id": (0x41 + i) << 8, "domain": 0, "drm_render_minor": 128 + i, "unique_id": 0xa0 + i}
    node = f"sys/class/kfd/kfd/topology/nodes/{i + 1}"
    machine.file(f"{node}/mem_banks/0/properties", f"heap_type 1\nsize_in_bytes {64 * GIB}\n")
    machine.file(f"{node}/gpu_id", f"{100 + i}\n")
    machine.file(f"{node}/properties", "".join(f"{name} {value}\n" for name, value in properties.items()))


def test_each_row_of_nvidias_table_does_to_its_gpu_what_it_says(machine):
    rows = lines_of("nvidia")
    assert len(rows) > 30
    have_their_faults(machine, h100s, rows)


def test_each_row_of_amds_table_does_to_its_gpu_what_it_says(machine):
    rows = lines_of("amd", "posted", codes=("amdgpu-", "pcie-"))
    # What nobody posted, in the driver's words; and what is said of the port alone.
    rows += [("amdgpu 0000:03:00.0: amdgpu: WARN: GPU is throttled, expect performance decrease. SMUIO.", "amdgpu-throttled", "nothing"),
             ("amdgpu 0000:03:00.0: amdgpu: PCI error: detected callback, state(2)!!", "amdgpu-pci-reset", "restart"),
             ("amdgpu 0000:03:00.0: amdgpu: 2 new uncorrectable hardware errors detected in gfx block", "amdgpu-ras-block", "restart"),
             ("pcieport PORT: pciehp: Slot(0): Link Down", "pcie-down", "quarantine"),
             ("pcieport PORT: DPC: containment event, status:0x1f01 source:0x0000", "pcie-down", "quarantine")]
    table = {row["code"] for row in json.loads(machine.labd("gpu", "faults", "--json").stdout)}
    # Of no kernel's line, or of a GPU that does not start: they have tests of their own.
    apart = {"amdgpu-not-loaded", "amdgpu-no-firmware", "amdgpu-no-atomics"}
    assert {code for code in table if code.startswith(("amdgpu-", "pcie-"))} - apart == {code for _, code, _ in rows}
    have_their_faults(machine, mi210s, rows)


def have_their_faults(machine, gpus, rows):
    """Starts machines on which each GPU has one of these faults."""
    for first in range(0, len(rows), 16):
        has_its_faults(machine, gpus, rows[first:first + 16])
        machine.stop()
        shutil.rmtree(machine.dir / "data")
        shutil.rmtree(machine.root)
        machine.file("dev/kmsg", "")


def has_its_faults(machine, plug_in, rows):
    plug_in(machine, len(rows))
    machine.start()
    machine.until("its GPUs", lambda: len(machine.gpus()) == len(rows))
    ids = {g["pci"]: g["id"] for g in machine.gpus().values()}
    ids = [ids[f"0000:{0x41 + i:02x}:00.0"] for i in range(len(rows))]
    machine.kernel_says(*[at(text, f"0000:{0x41 + i:02x}:00").replace("PORT", f"0000:00:{i + 1:02x}.1") for i, (text, _, _) in enumerate(rows)])

    def told(i):
        _, code, action = rows[i]
        return [e for e in machine.events() if e["what"] == code and e["reason"].startswith(f"GPU {ids[i]}: ") and DONE[action] in e["reason"]]

    for i, (text, code, _) in enumerate(rows):
        if code not in DID_NOT_START:
            machine.until(f"{text} is told", lambda i=i: told(i))
    gpus = machine.gpus()
    for i, (text, code, action) in enumerate(rows):
        gpu, holds = gpus[ids[i]], action == "quarantine" and code not in DID_NOT_START
        assert gpu["state"] == ("quarantined" if holds else "ok"), (text, gpu)
        assert not holds or gpu["trouble"]["code"] == code, (text, gpu)


def test_an_amd_card_that_did_not_start_is_told_until_it_answers(machine):
    mi210s(machine, 3)
    nodes = machine.root / "sys/class/kfd/kfd/topology/nodes"
    driver = lambda i: machine.root / f"sys/bus/pci/devices/0000:{0x41 + i:02x}:00.0/driver"
    for i in range(3):
        driver(i).unlink()
    nodes.rename(machine.dir / "nodes")
    machine.start()
    machine.until("it answers", lambda: machine.labd("gpu", "list", check=False).returncode == 0)
    machine.until("its driver is missed", lambda: any("driver is not loaded" in (s["trouble"] or "") for s in machine.sources()))
    # It is loaded, and starts the first. The second has another model, and a screen.
    machine.link(driver(0), "../../../../bus/pci/drivers/amdgpu")
    compute(machine, 0)
    for name, value in {"class": "0x030000", "device": "0x744c"}.items():
        machine.file(f"sys/bus/pci/devices/0000:42:00.0/{name}", value + "\n")
    machine.kernel_says("amdgpu 0000:42:00.0: Direct firmware load for amdgpu/gc_11_0_0_pfp.bin failed with error -2",
                        "amdgpu 0000:42:00.0: amdgpu: Fatal error during GPU init",
                        "[drm:amdgpu_device_init [amdgpu]] *ERROR* hw_init of IP block <smu> failed -22",
                        "kfd kfd: amdgpu: skipped device 1002:7300, PCI rejects atomics 730<0")
    codes = ("amdgpu-no-firmware", "amdgpu-init-failed", "amdgpu-no-atomics")
    for code in codes:
        machine.until(f"{code} is told", lambda code=code: notices(machine, code))
    assert not [n for n in notices(machine, "amdgpu-init-failed") if "0000:42:00.0" in n], "its firmware is missing, it is not broken"
    machine.until("the bus is compared", lambda: notices(machine, "3 on the PCI bus, 1 answers: the AMD GPUs at 0000:42:00.0, 0000:43:00.0 do not"), 120)
    # Its firmware is installed; the third is still out.
    for i in (1, 2):
        machine.link(driver(i), "../../../../bus/pci/drivers/amdgpu")
        compute(machine, i)
        machine.until("it answers", lambda i=i: len(machine.gpus()) == i + 1)
        if i == 1:
            machine.until("the second is well", lambda: not notices(machine, "amdgpu-no-firmware"))
            assert all(notices(machine, code) for code in codes[1:]), "which card that was is not said, and the third does not answer"
    machine.until("nothing is told any more", lambda: not any(notices(machine, code) for code in codes), 120)
    assert {g["state"] for g in machine.gpus().values()} == {"ok"}


def test_partitions_of_an_amd_card_are_workers_and_have_its_faults_and_no_other_cards(machine):
    machine.is_like("mi300x-cpx")
    machine.start()
    machine.until("all partitions", lambda: len(machine.gpus()) == 6)
    gpus = machine.gpus()
    plan = json.loads(machine.labd("plan", "--json").stdout)
    worker = {g["id"]: f"ray-worker-{g['slot']}" for g in plan["gpus"]}
    assert set(worker) == set(gpus) and sorted(worker.values()) == [f"ray-worker-{i}" for i in range(6)]
    assert set(worker.values()) == {s["name"] for s in plan["plan"]["services"] if s["name"].startswith("ray-worker-")}
    assert {g["partition"] for g in gpus.values()} == {"CPX"}
    first, second = ([i for i, g in gpus.items() if g["pci"] == pci] for pci in ("0000:05:00.0", "0000:27:00.0"))
    assert [gpus[i]["parent"] for i in first + second] == [first[0]] * 3 + [second[0]] * 3
    machine.until("the process on one of them", lambda: [i for i, g in machine.gpus().items() if g["processes"]])
    assert {i: [p["pid"] for p in g["processes"]] for i, g in machine.gpus().items() if g["processes"]} == {first[1]: [1200]}

    def concerned(code):
        return {(e["reason"].split(": ")[0], e["service"]) for e in machine.events() if e["what"] == code}

    def all_of(partitions):
        return {(f"GPU {i}", worker[i]) for i in partitions}

    # The driver resets a card as a whole.
    machine.kernel_says("amdgpu 0000:27:00.0: amdgpu: GPU reset(1) succeeded!")
    machine.until("the reset is told", lambda: concerned("amdgpu-reset") == all_of(second))
    machine.kernel_says("amdgpu 0000:05:00.0: amdgpu: GPU reset(2) failed")
    machine.until("the failed one is told", lambda: concerned("amdgpu-reset-failed") == all_of(first))
    assert {i for i, g in machine.gpus().items() if g["state"] == "quarantined"} == set(first)
    machine.labd("gpu", "release", first[0])
    assert {i for i, g in machine.gpus().items() if g["state"] == "quarantined"} == set(first[1:])
    # Somebody makes one GPU of the second again.
    for node in (6, 7):
        shutil.rmtree(machine.root / f"sys/class/kfd/kfd/topology/nodes/{node}")
    machine.file("sys/bus/pci/devices/0000:27:00.0/current_compute_partition", "SPX\n")
    said = f"GPU {second[0]} is divided otherwise: 3 × CPX before, whole now"
    machine.until("that is told", lambda: any(e["what"] == "divided" and e["reason"].startswith(said) for e in machine.events()))
    want = {**dict.fromkeys(first, "CPX"), second[0]: None}

    def planned():
        return {g["id"]: g["partition"] for g in json.loads(machine.labd("plan", "--json").stdout)["gpus"]}

    # It looks for itself, for 15 s at most: seen once that it had found none by then.
    machine.until("the plan has them", lambda: planned() == want, 90)


def test_programs_that_fail_on_one_gpu_again_and_again_are_told_and_hold_nothing(machine):
    two_gpus(machine)
    fault = "NVRM: Xid (PCI:0000:41:00): 31, pid={}, name=python3, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS"
    machine.kernel_says(*[fault.format(pid) for pid in range(1, 5)])
    machine.kernel_says("NVRM: Xid (PCI:0000:42:00): 94, pid=7, name=python3, Contained: SM (0x1). RST: No, D-RST: No")
    machine.until("the line after is told", lambda: "xid-94" in machine.labd("events", "-n", "100").stdout)
    assert machine.gpus()["GPU-0"]["trouble"] is None
    machine.kernel_says(fault.format(5))
    machine.until("it is told", lambda: (machine.gpus()["GPU-0"]["trouble"] or {}).get("code") == "app-errors")
    assert {g["state"] for g in machine.gpus().values()} == {"ok"} and machine.gpus()["GPU-1"]["trouble"] is None


def test_pasted_lines_are_explained_without_a_daemon():
    def explain(*argv, text=""):
        return run(labd_binary(), "gpu", "faults", "--explain", *argv, timeout=60, input=text).stdout

    line = "[12.5] NVRM: Xid (PCI:0000:05:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    for text in (explain(line, "hello"), explain(text=f"{line}\nhello\n")):
        assert "xid-79" in text and "0000:05:00.0" in text and "unknown: hello" in text
        assert max(map(len, text.splitlines())) <= 80, text
    values = [json.loads(v) for v in explain("--json", text=f"{line}\nhello\n").splitlines()]
    assert [v["code"] for v in values] == ["xid-79", None] and values[0]["gpu"] == "0000:05:00.0"


def test_a_hanging_library_makes_readings_stale_and_delays_nobody(machine):
    two_gpus(machine)
    answers, ended = [], threading.Event()

    def ask():
        while not ended.is_set():
            began = time.monotonic()
            machine.labd("status", "--json")
            answers.append(time.monotonic() - began)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        machine.says(nvidia(2, "0.nvmlDeviceGetTemperature=hang"))
        machine.until("stale", lambda: machine.sources()[0]["stale_since"])
    finally:
        ended.set()
        asker.join()
    # Slow machines answer slowly; a loop that waits for the probe would answer after 5 s.
    assert len(answers) > 3 and max(answers) < 4, answers
    assert all(g["state"] == "ok" for g in machine.gpus().values())
    assert "GPU readings stale since" in machine.labd("status").stdout
    machine.says(nvidia(2))
    machine.until("fresh again", lambda: machine.sources()[0]["stale_since"] is None, 120)


def test_one_that_goes_is_missing_and_is_itself_again_when_it_returns(machine):
    two_gpus(machine)
    shutil.rmtree(machine.root / "sys/bus/pci/devices/0000:41:00.0")
    machine.says(nvidia(2).replace("count=2", "count=1").replace("0.uuid=GPU-0", "0.uuid=GPU-1").replace("0000:41", "0000:42"))
    machine.until("it is missing", lambda: machine.gpus()["GPU-0"]["state"] == "missing", 120)
    assert machine.gpus()["GPU-1"]["state"] == "ok"
    machine.plug_in("0000:41:00.0")
    machine.says(nvidia(2))
    machine.until("it is back", lambda: machine.gpus()["GPU-0"]["state"] == "ok", 120)


def test_a_machine_of_amds_needs_nothing_of_rocm(machine):
    machine.is_like("mi100-bmc")
    machine.start()
    machine.until("the MI100", lambda: any(g["vendor"] == "amd" for g in machine.gpus().values()))
    (gpu,) = machine.gpus().values()
    assert gpu["pci"] == "0000:c3:00.0" and "MI100" in gpu["name"] and gpu["numa_node"] == 1
    machine.until("readings", lambda: list(machine.gpus().values())[0].get("reading"))
    assert list(machine.gpus().values())[0]["reading"]["utilisation_percent"] == 97
    machine.kernel_says("amdgpu 0000:c3:00.0: amdgpu: GPU reset(2) failed")
    machine.until("quarantined", lambda: list(machine.gpus().values())[0]["state"] == "quarantined")
