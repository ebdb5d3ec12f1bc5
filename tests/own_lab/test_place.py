"""Where workers run: near their GPU, and with one `/dev/shm` for all of them."""
import json
import os

import pytest

from harness.lab import Lab, wait_for


@pytest.fixture(scope="module")
def topology(tmp_path_factory):
    """A machine with two NUMA nodes of one CPU each; the second has no memory, which an engine here could not bind to."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    root = tmp_path_factory.mktemp("topology")
    for node, memory in ((0, 1 << 30), (1, 0)):
        path = root / f"sys/devices/system/node/node{node}"
        path.mkdir(parents=True)
        (path / "cpulist").write_text(f"{node}\n")
        (path / "meminfo").write_text(f"Node {node} MemTotal: {memory} kB\n")
    return root


@pytest.fixture(scope="module")
def placed(topology):
    """A lab on that machine, as little of it as there can be."""
    os.environ["LABD_SYS_ROOT"] = str(topology)
    off = "".join(f"[services.{name}]\nenabled = false\n" for name in ("prometheus", "grafana", "jupyter"))
    lab = Lab("labdplace", "198.18.232.0/24", gpus=2, extra=off)
    lab.sweep()
    try:
        lab.labd("up", "--timeout=5", check=False)
        wait_for("both workers run", lambda: all(f"ray-worker-{i}" in lab.ids() and running(lab, i) for i in (0, 1)), 120)
        yield lab
    finally:
        del os.environ["LABD_SYS_ROOT"]
        lab.down()


def running(lab, i):
    return lab.inspect(f"ray-worker-{i}")["State"]["Running"]


def cpus(lab, i):
    """The CPUs that the first process of a worker may run on."""
    said = lab.exec(f"ray-worker-{i}", "taskset", "-cp", "1").stdout
    return said.split(":")[1].strip()


def test_each_worker_runs_on_the_cpus_of_its_gpus_node(placed):
    plan = json.loads(placed.labd("plan", "--json").stdout)
    near = {s["name"]: s["container"].get("cpuset_cpus") for s in plan["plan"]["services"]}
    assert (near["ray-worker-0"], near["ray-worker-1"], near["ray-head"]) == ("0", "1", None)
    assert [cpus(placed, i) for i in (0, 1)] == ["0", "1"]
    head = placed.exec("ray-head", "taskset", "-cp", "1").stdout.split(":")[1].strip()
    assert head not in ("0", "1"), "services without a GPU run anywhere"
    host = [placed.inspect(f"ray-worker-{i}")["HostConfig"] for i in (0, 1)]
    assert [h["CpusetMems"] for h in host] == ["0", ""]


def test_workers_share_one_shared_memory(placed):
    device = [placed.exec(f"ray-worker-{i}", "stat", "-c", "%d", "/dev/shm").stdout.strip() for i in (0, 1)]
    assert device[0] == device[1] != placed.exec("ray-driver", "stat", "-c", "%d", "/dev/shm").stdout.strip()
    placed.exec("ray-worker-0", "sh", "-c", "echo hello > /dev/shm/from-0")
    assert placed.exec("ray-worker-1", "cat", "/dev/shm/from-0").stdout == "hello\n"


def test_limits_are_those_of_the_plan(placed):
    plan = json.loads(placed.labd("plan", "--json").stdout)
    limits = {u["Name"]: u["Hard"] for u in placed.inspect("ray-worker-0")["HostConfig"]["Ulimits"]}
    assert limits["nofile"] >= 1024
    # Where labd, and so the engine, may not raise it, asking for it would keep the container from starting.
    assert limits.get("memlock") == (-1 if plan["node"]["unlimited_memlock"] else None)


def test_binding_can_be_switched_off(placed):
    text = placed.config.read_text()
    placed.config.write_text(text.replace("simulate = 2", "simulate = 2\nbind = false"))
    try:
        plan = json.loads(placed.labd("plan", "--json").stdout)["plan"]
    finally:
        placed.config.write_text(text)
    assert all("cpuset_cpus" not in s["container"] for s in plan["services"])
