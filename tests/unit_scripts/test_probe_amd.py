"""AMD's probe as it is built, against a library that stands in for ROCm SMI and against Debian's own. No GPU, no engine."""
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import threading

import pytest

from harness.lab import ROOT, run, wait_for

CRATE = ROOT / "crates/labd-probe-amd"
CARGO = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo")) / "bin/cargo"
GIB = 1 << 30
# Enough for a loaded machine; nothing here is waited for once it is true.
DEADLINE_S = 60


def cargo(*argv):
    # Its folder has the settings it is built with.
    return run(CARGO if CARGO.exists() else "cargo", *argv, "--locked", "--quiet", cwd=CRATE, timeout=900)


@pytest.fixture(scope="session")
def probe_binary():
    cargo("build")
    return ROOT / "target/probe-amd/debug/labd-probe-amd"


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """The folder with the library that answers what a file says."""
    folder = tmp_path_factory.mktemp("rocm-smi")
    library = folder / "librocm_smi64.so"
    run("cc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,librocm_smi64.so", "-o", library, CRATE / "tests/rocm_smi.c")
    return folder


class Machine:
    """The files of a kernel with GPUs, and what ROCm SMI says of them."""

    def __init__(self, folder):
        self.root, self.script = folder / "root", folder / "script"
        self.nodes = self.root / "sys/class/kfd/kfd/topology/nodes"
        self.said = ["- version 7 2 0", "- driver 6.10.5"]
        self.gpus = 0
        self.write("sys/module/amdgpu/initstate", "live")
        self.write("dev/kfd", "")
        # The CPU's own node comes first.
        self.properties(simd_count=0, cpu_cores_count=64)

    def write(self, path, text):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def properties(self, mem_banks=None, **values):
        node = self.nodes / str(len(list(self.nodes.glob("*"))))
        self.write(node.relative_to(self.root) / "properties", "\n".join(f"{k} {v}" for k, v in values.items()))
        if mem_banks:
            bank = node.relative_to(self.root) / "mem_banks/0/properties"
            self.write(bank, f"heap_type 1\nsize_in_bytes {mem_banks}")
        return node

    def board(self, minor, pci, **files):
        """A PCI device with a render node."""
        for name, text in files.items():
            self.write(f"sys/bus/pci/devices/{pci}/{name.replace('__', '/')}", text)
        self.render(minor, self.root / f"sys/bus/pci/devices/{pci}")

    def render(self, minor, device):
        device.mkdir(parents=True, exist_ok=True)
        card = self.root / f"sys/class/drm/renderD{minor}"
        card.mkdir(parents=True)
        (card / "device").symlink_to(device)
        self.write(f"dev/dri/renderD{minor}", "")

    def gpu(self, minor, pci, unique_id, **said):
        """An MI100 in working order; `said` replaces what ROCm SMI answers."""
        domain, bus, rest = pci.split(":")
        device, function = rest.split(".")
        location = int(bus, 16) << 8 | int(device, 16) << 3 | int(function)
        self.board(
            minor, pci, vendor="0x1002", device="0x738c", mem_info_vram_total=32 * GIB - 4096, mem_info_vram_used=4096,
            hwmon__hwmon3__power1_average=250_000_000, hwmon__hwmon3__power1_cap=290_000_000,
        )
        node = self.properties(
            simd_count=480, location_id=location, domain=int(domain, 16), unique_id=unique_id, drm_render_minor=minor,
            gfx_target_version=90008, vendor_id=4098, device_id=0x738C,
        )
        self.answers(**{"drm_render_minor": minor, "unique_id": unique_id, **said})
        return node

    def answers(self, **said):
        index, self.gpus = self.gpus, self.gpus + 1
        values = {
            "name": "Arcturus GL-XL [Instinct MI100]",
            "busy_percent": 97, "memory_busy_percent": 40,
            "memory_total.0": 32 * GIB, "memory_usage.0": 5 * GIB,
            "memory_total.1": 32 * GIB, "memory_usage.1": 5 * GIB, "memory_total.2": GIB, "memory_usage.2": 0,
            "temp_metric.0": 41500, "temp_metric.1": 52000,
            "gpu_clk_freq.0": "2 300000000 1000000000 1502000000", "gpu_clk_freq.4": "0 1200000000",
            "ecc_count.1": "7 1", "ecc_count.4": "3 0",
        }
        values.update({name.replace("__", "."): value for name, value in said.items()})
        self.said += [f"{index} {name} {value}" for name, value in values.items() if value is not None]

    def tell(self, *more):
        """Puts what ROCm SMI says into effect, with further lines."""
        new = self.script.with_suffix(".new")
        new.write_text("\n".join([*more, f"- gpus {self.gpus}", *self.said, ""]))
        new.replace(self.script)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


class Probe:
    """A running probe. `line(kind)` is its next line of that kind, with what it holds."""

    def __init__(self, argv, **env):
        env = {**{k: v for k, v in os.environ.items() if not k.startswith(("RSMI_", "FAKE_"))}, **env}
        self.process = subprocess.Popen(
            [str(a) for a in argv], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        self.lines, self.errors = queue.Queue(), []
        threading.Thread(target=self.read, daemon=True).start()
        threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def line(self, kind, until=lambda value: True):
        def look():
            try:
                line = self.lines.get(timeout=1)
            except queue.Empty:
                return None
            assert line is not None, f"it ended: {self.process.wait(10)} {''.join(self.errors)}"
            return line if kind in line and until(line[kind]) else None

        return wait_for(f"a line with {kind}", look, DEADLINE_S, every=0)[kind]

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()


@pytest.fixture
def start(machine, probe_binary, stand_in):
    running = []

    def start(*more, argv=None, **env):
        machine.tell(*more)
        env = {"LD_LIBRARY_PATH": str(stand_in), "FAKE_RSMI": str(machine.script), "LABD_SYS_ROOT": str(machine.root), **env}
        running.append(Probe(argv or [probe_binary], **env))
        return running[-1]

    start.binary = probe_binary
    yield start
    for probe in running:
        probe.stop()


def nodes(device):
    return [node["path"] for node in device["nodes"]]


def test_units():
    cargo("test")


def test_an_mi100_beside_a_bmc_that_has_the_first_render_node(machine, start):
    machine.board(128, "0000:03:00.0", vendor="0x1a03", device="0x2000")
    machine.gpu(129, "0000:63:00.0", 0x4D5F2A0B1C3D4E5F)
    probe = start()
    assert probe.line("hello") == {"source": "rocm-smi", "driver": "6.10.5", "library": "7.2.0"}
    (device,) = probe.line("inventory")
    assert (device["id"], device["vendor"], device["name"]) == ("0x4d5f2a0b1c3d4e5f", "amd", "Instinct MI100")
    assert (device["memory_bytes"], device["pci"], device["index"]) == (32 * GIB, "0000:63:00.0", 0)
    assert nodes(device) == ["/dev/kfd", "/dev/dri/renderD129"]
    assert device["nodes"][1]["gid"] == os.stat(machine.root / "dev/dri/renderD129").st_gid
    (reading,) = probe.line("readings")
    assert reading == {
        "id": device["id"], "utilisation_percent": 97.0, "memory_used_bytes": 5 * GIB, "temperature_c": 41.5,
        "power_w": 250.0, "power_limit_w": 290.0, "clock_mhz": 1502, "memory_clock_mhz": 1200,
        "ecc_corrected": 10, "ecc_uncorrected": 1, "remap_pending": False, "remap_failed": False,
    }


@pytest.mark.parametrize("count", [2, 8])
def test_several_gpus_each_with_its_own_values(machine, start, count):
    for i in range(count):
        machine.gpu(130 + 2 * i, f"0000:{0x03 + 0x20 * i:02x}:00.0", 0xA0 + i, busy_percent=10 * i)
    probe = start()
    devices = probe.line("inventory")
    assert [d["id"] for d in devices] == [f"0x{0xA0 + i:016x}" for i in range(count)]
    assert [d["index"] for d in devices] == list(range(count))
    assert [nodes(d)[-1] for d in devices] == [f"/dev/dri/renderD{130 + 2 * i}" for i in range(count)]
    for _ in range(2):
        readings = probe.line("readings")
        assert [(r["id"], r["utilisation_percent"]) for r in readings] == [(d["id"], 10.0 * i) for i, d in enumerate(devices)]


def test_the_partitions_of_an_mi300x_are_devices_of_their_own(machine, start):
    pci, unique = "0000:05:00.0", 0x9F1E2D3C4B5A6978
    machine.board(
        128, pci, vendor="0x1002", device="0x74a1", mem_info_vram_total=192 * GIB, hwmon__hwmon3__power1_input=700_000_000,
        current_compute_partition="CPX",
    )
    for i in range(8):
        if i > 0:
            machine.render(128 + i, machine.root / f"sys/devices/platform/amdgpu_xcp_{i}")
        machine.properties(
            simd_count=152, location_id=5 << 8 | i << 28, domain=0, unique_id=unique, drm_render_minor=128 + i,
            gfx_target_version=90402, vendor_id=4098, device_id=0x74A1, mem_banks=24 * GIB,
        )
        # No sensor at the edge; what belongs to the whole GPU is answered by the first one.
        own = {} if i == 0 else {"memory_total__0": None, "busy_percent": None, "gpu_clk_freq__0": None}
        machine.answers(name="Aqua Vanjaram [Instinct MI300X]", drm_render_minor=128 + i, unique_id=unique, temp_metric__0=None, **own)
    probe = start()
    devices = probe.line("inventory")
    ids = [f"0x{unique:016x}"] + [f"0x{unique:016x}.{i}" for i in range(1, 8)]
    assert [d["id"] for d in devices] == ids
    assert {d["parent"] for d in devices} == {ids[0]} and {d["name"] for d in devices} == {"Instinct MI300X"}
    assert [nodes(d)[-1] for d in devices] == [f"/dev/dri/renderD{128 + i}" for i in range(8)]
    assert {d["memory_bytes"] for d in devices} == {24 * GIB}
    readings = probe.line("readings")
    assert [r["id"] for r in readings] == ids
    assert {r["temperature_c"] for r in readings} == {52.0}
    assert not any("utilisation_percent" in r or "error" in r for r in readings)


def test_without_a_render_node_the_pci_address_says_which(machine, start):
    machine.gpu(128, "0000:23:00.0", 0xA0, busy_percent=1)
    machine.gpu(
        129, "0000:63:00.0", 0xA1, drm_render_minor="error 3", pci_id=0x6300, pci_bandwidth="0 16000000000", pci_throughput=1,
        busy_percent=2,
    )
    readings = start().line("readings")
    assert [(r["id"][-2:], r["utilisation_percent"]) for r in readings] == [("a0", 1.0), ("a1", 2.0)]


def test_a_gpu_lost_in_between_is_an_error_and_the_other_goes_on(machine, start):
    for i in range(2):
        machine.gpu(128 + i, f"0000:{0x23 + 0x40 * i:02x}:00.0", 0xA0 + i)
    probe = start()
    assert "error" not in probe.line("readings")[1]
    machine.tell("1 * error 3")
    well, lost = probe.line("readings", until=lambda r: "error" in r[1])
    assert lost["error"] == "RSMI_STATUS_FILE_ERROR"
    assert "utilisation_percent" not in lost and "ecc_corrected" not in lost
    assert well["utilisation_percent"] == 97.0 and "error" not in well
    # And back, as after a reset.
    machine.tell()
    assert probe.line("readings", until=lambda r: "error" not in r[1])[1]["utilisation_percent"] == 97.0


def test_a_gpu_that_sleeps_is_not_asked_and_the_other_is(machine, start):
    for i in range(2):
        machine.gpu(128 + i, f"0000:{0x23 + 0x40 * i:02x}:00.0", 0xA0 + i)
    status = "sys/bus/pci/devices/0000:63:00.0/power/runtime_status"
    machine.write("sys/bus/pci/devices/0000:63:00.0/ras/umc_err_count", "ue: 1048560\nce: 1048560")
    machine.write(status, "suspended")
    probe = start()
    awake, asleep = probe.line("readings")
    assert asleep == {"id": "0x00000000000000a1", "asleep": True, "remap_pending": False, "remap_failed": False}
    assert awake["utilisation_percent"] == 97.0 and "asleep" not in awake
    machine.write(status, "active")
    assert probe.line("readings", until=lambda r: "asleep" not in r[1])[1]["utilisation_percent"] == 97.0


def test_a_card_that_is_too_hot_says_so_by_the_kernels_file(machine, start):
    machine.gpu(128, "0000:23:00.0", 0xA0)
    # gpu_metrics_v1_3: 112 bytes, then the bits of this moment. TEMP_MEM, and then none.
    told = machine.root / "sys/bus/pci/devices/0000:23:00.0/gpu_metrics"
    told.write_bytes(b"\x78\x00\x01\x03" + b"\xff" * 108 + (1 << 34).to_bytes(8, "little"))
    probe = start()
    (reading,) = probe.line("readings")
    assert (reading["throttled"], reading["utilisation_percent"]) == (["thermal"], 97.0)
    told.write_bytes(told.read_bytes()[:112] + bytes(8))
    probe.line("readings", until=lambda r: "throttled" not in r[0])


def test_what_is_not_supported_is_absent_and_no_error(machine, start):
    machine.gpu(128, "0000:23:00.0", 0xA0)
    probe = start()
    probe.line("readings")
    machine.tell("0 * error 2")
    (reading,) = probe.line("readings", until=lambda r: "utilisation_percent" not in r[0])
    assert "error" not in reading and reading["power_w"] == 250.0


def test_one_answer_that_fails_leaves_the_others(machine, start):
    # The crate looks up the clock number 40 of one, which is a panic.
    machine.gpu(128, "0000:23:00.0", 0xA0, busy_percent="error 16", gpu_clk_freq__0="40 300000000", memory_total__1="error 4")
    probe = start()
    (reading,) = probe.line("readings")
    assert "utilisation_percent" not in reading and "clock_mhz" not in reading and "error" not in reading
    assert (reading["temperature_c"], reading["memory_clock_mhz"]) == (41.5, 1200)
    assert reading["memory_used_bytes"] == 4096, "the kernel's, where the library's did not come"
    assert probe.errors == []


def test_a_gpu_that_comes_late_or_goes_is_a_new_inventory(machine, start):
    machine.gpu(128, "0000:23:00.0", 0xA0)
    probe = start()
    assert len(probe.line("inventory")) == 1
    node = machine.gpu(129, "0000:63:00.0", 0xA1)
    machine.tell()
    assert [d["id"][-2:] for d in probe.line("inventory")] == ["a0", "a1"]
    machine.gpus = 1
    machine.tell()
    shutil.rmtree(machine.root / "sys/bus/pci/devices/0000:63:00.0")
    shutil.rmtree(node)
    gone = probe.line("readings", until=lambda r: len(r) == 2 and "error" in r[1])[1]
    assert gone["error"] == "ENODEV"
    assert [d["id"][-2:] for d in probe.line("inventory")] == ["a0"]
    assert probe.process.poll() is None


def test_without_the_driver_it_says_so_and_finds_the_gpu_that_comes(machine, start):
    shutil.rmtree(machine.root / "sys/module")
    probe = start()
    trouble = probe.line("trouble")
    assert trouble["code"] == "amdgpu-not-loaded" and "modprobe amdgpu" in trouble["text"]
    machine.gpu(128, "0000:23:00.0", 0xA0)
    machine.tell()
    assert probe.line("inventory")[0]["id"] == "0x00000000000000a0"


def test_graphics_of_a_cpu_beside_another_vendors_gpu_is_no_trouble(machine, start):
    machine.board(128, "0000:11:00.0", vendor="0x1002", device="0x164e", **{"class": "0x030000"})
    machine.write("sys/bus/pci/devices/0000:41:00.0/vendor", "0x10de")
    machine.write("sys/bus/pci/devices/0000:41:00.0/class", "0x030200")
    machine.answers()
    probe = start()
    assert probe.line("inventory") == []
    assert probe.line("readings") == []
    assert probe.errors == []


def test_a_library_that_does_not_start_is_tried_again(machine, start):
    machine.gpu(128, "0000:23:00.0", 0xA0)
    probe = start("- init error 8")
    assert [d["id"][-2:] for d in probe.line("inventory")] == ["a0"], "it computes without"
    (reading,) = probe.line("readings")
    assert reading["power_w"] == 250.0 and reading.get("temperature_c") != 41.5
    trouble = probe.line("trouble")
    assert trouble["code"] == "RSMI_STATUS_INIT_ERROR" and "the kernel lists 1" in trouble["text"]
    machine.tell()
    probe.line("readings", until=lambda r: r[0].get("temperature_c") == 41.5)


def test_gpus_that_are_not_the_kernels_are_a_trouble(machine, start):
    machine.gpu(128, "0000:23:00.0", 0xA0, drm_render_minor=200)
    assert "do not match" in start().line("trouble")["text"]


def test_a_library_that_cannot_count_gives_its_own_code(machine, start):
    probe = start("- gpus error 16")
    assert probe.line("hello") == {"source": "rocm-smi"}
    assert probe.line("trouble")["code"] == "RSMI_STATUS_BUSY"


def test_a_hang_in_the_library_does_not_keep_it_from_ending(machine, start):
    machine.gpu(128, "0000:23:00.0", 0xA0)
    probe = start()
    probe.line("readings")
    machine.tell("0 temp_metric.0 hang")
    wait_for("the library hangs", machine.script.with_name("script.hangs").exists, DEADLINE_S)
    assert probe.process.poll() is None
    probe.process.stdin.close()
    assert probe.process.wait(DEADLINE_S) == 0


def test_a_crash_in_the_library_ends_it_by_that_signal(machine, start):
    machine.gpu(128, "0000:23:00.0", 0xA0)
    probe = start()
    probe.line("readings")
    machine.tell("0 busy_percent abort")
    assert probe.process.wait(DEADLINE_S) == -signal.SIGABRT


def test_it_ends_when_its_input_closes(machine, start):
    machine.gpu(128, "0000:23:00.0", 0xA0)
    probe = start()
    probe.line("readings")
    probe.process.stdin.close()
    assert probe.process.wait(DEADLINE_S) == 0


def test_it_ends_when_nobody_reads(machine, start):
    machine.gpu(128, "0000:23:00.0", 0xA0)
    # A reader in between that goes after its first line.
    argv = ["bash", "-c", 'exec 3<&0; { "$0" <&3; echo "$?" >&2; } | head -n 1', start.binary]
    probe = start(argv=argv)
    probe.line("hello")
    wait_for("its exit code", lambda: probe.errors, DEADLINE_S)
    assert probe.errors == ["0\n"]


def test_without_the_library_the_loader_says_which(machine, start, tmp_path):
    probe = start(LD_LIBRARY_PATH=str(tmp_path))
    assert probe.process.wait(DEADLINE_S) == 127
    wait_for("what the loader says", lambda: any("librocm_smi64.so:" in e for e in probe.errors), DEADLINE_S)


def test_with_a_rocm_before_6_it_ends_before_its_first_line_so_that_the_kernels_files_are_asked(machine, start, tmp_path):
    machine.gpu(128, "0000:23:00.0", 0xA0)
    library = tmp_path / "librocm_smi64.so"
    run("cc", "-DBEFORE_6", "-shared", "-fPIC", "-Wl,-soname,librocm_smi64.so.5", "-o", library, CRATE / "tests/rocm_smi.c")
    probe = start(LD_LIBRARY_PATH=str(tmp_path))
    assert probe.process.wait(DEADLINE_S) == 127
    wait_for("what the loader says", lambda: any("undefined symbol: rsmi_dev_revision_get" in e for e in probe.errors), DEADLINE_S)
    assert probe.lines.get(timeout=DEADLINE_S) is None, "a probe that spoke would be started again and again"


def test_no_gpu_is_hidden_by_a_variable(machine, start):
    machine.gpu(128, "0000:23:00.0", 0xA0)
    probe = start()
    probe.line("readings")
    environ = pathlib.Path(f"/proc/{probe.process.pid}/environ").read_text().split("\0")
    assert "RSMI_MUTEX_THREAD_ONLY=1" in environ, "locks of its own"
    assert not [e for e in environ if e.startswith(("ROCR_", "HIP_", "GPU_DEVICE_ORDINAL"))]


@pytest.fixture(scope="session")
def debians():
    """Debian's own ROCm SMI 6.1, header and library, with the libc that it was built for."""
    folder = ROOT / "target/rocm-smi"
    run(ROOT / "scripts/rocm-smi.sh", folder, timeout=300)
    return folder


def test_debians_rocm_smi_has_no_gpu_here_and_the_probe_says_so(debians, machine, start, probe_binary):
    """With its own loader, since it wants a newer libc than this machine may have."""
    libraries = debians / "usr/lib/x86_64-linux-gnu"
    argv = [libraries / "ld-linux-x86-64.so.2", "--library-path", libraries, probe_binary]
    # On a machine that has a GPU, the library sees it and the kernel's files of this test do not.
    probe = start(argv=argv, RSMI_MUTEX_THREAD_ONLY="1")
    hello = probe.line("hello")
    assert hello["source"] == "rocm-smi" and hello["library"].startswith("7.")
    for _ in range(2):
        assert probe.line("trouble")["code"] == "no-device"
    probe.process.stdin.close()
    assert probe.process.wait(DEADLINE_S) == 0


def test_debians_rocm_smi_has_the_functions_as_they_are_called(debians):
    """The stand-in is compiled as if it were the real library: against its header, a wrong type is an error."""
    symbols = (CRATE / "symbols.txt").read_text().split()
    header, library = debians / "usr/include", debians / "usr/lib/x86_64-linux-gnu/librocm_smi64.so"
    run("cc", "-Wall", "-Wextra", "-Werror", "-DREAL_HEADER", "-I", header, "-fsyntax-only", CRATE / "tests/rocm_smi.c")
    text = run("readelf", "--wide", "--dyn-syms", library).stdout
    defined = {line.split()[7] for line in text.splitlines() if " FUNC " in line and " UND " not in line}
    assert not set(symbols) - defined
