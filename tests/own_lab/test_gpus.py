"""A GPU with a fault is kept from work, the others go on, and a person decides when it comes back."""
import pytest

from harness.lab import Lab, wait_for


@pytest.fixture(scope="module")
def lab():
    lab = Lab("labdgpus", "198.18.226.0/24", gpus=2, extra="[services.grafana]\nenabled = false\n[services.prometheus]\nenabled = false\n")
    lab.up()
    yield lab
    lab.down()


def gpu(lab, id):
    return next(g for g in lab.snapshot()["gpus"] if g["id"] == id)


def service(lab, name):
    return next(s for s in lab.snapshot()["services"] if s["name"] == name)


def state(lab, name):
    return service(lab, name)["state"]


def test_a_quarantined_gpu_is_drained_held_and_released(lab):
    other = lab.ids()["ray-worker-1"]
    said = lab.labd("gpu", "drill", "SIM-0", "xid-79").stdout
    assert "xid-79" in said
    wait_for("its worker is held", lambda: state(lab, "ray-worker-0") == "held", 60, 0.2)
    shown = gpu(lab, "SIM-0")
    assert shown["state"] == "quarantined" and shown["trouble"]["code"] == "xid-79" and shown["trouble"]["remedy"]
    reason = service(lab, "ray-worker-0")["last_reason"]
    assert "quarantined" in reason and "labd gpu release SIM-0" in reason
    # The other one has not noticed.
    assert state(lab, "ray-worker-1") == "ready" and lab.ids()["ray-worker-1"] == other
    status = lab.labd("status").stdout
    assert "quarantined" in status and max(map(len, status.splitlines())) <= 80, status
    assert any("xid-79" in line for line in lab.labd("events", "-n", "50").stdout.splitlines())
    causes = [i["cause"] for i in lab.snapshot()["incidents"] if i["service"] == "ray-worker-0"]
    assert causes[:1] == ["gpu"]

    # labd's own death lifts nothing.
    lab.kill_daemon()
    lab.up()
    wait_for("labd knows", lambda: gpu(lab, "SIM-0")["state"] == "quarantined", 20, 0.2)
    wait_for("still held", lambda: state(lab, "ray-worker-0") == "held", 20, 0.2)

    said = lab.labd("gpu", "release", "ray-worker-0").stdout
    assert "released" in said
    wait_for("it works again", lambda: state(lab, "ray-worker-0") == "ready", 90, 0.2)
    assert gpu(lab, "SIM-0")["state"] == "ok" and gpu(lab, "SIM-0")["trouble"] is None
    assert lab.ids()["ray-worker-1"] == other


def test_what_cannot_be_is_said_so(lab):
    for arguments, code, part in [
        (("gpu", "release", "GPU-nothing"), 6, "no GPU `GPU-nothing`; there are: SIM-0, SIM-1"),
        (("gpu", "drill", "SIM-0", "xid-0"), 1, "labd gpu faults"),
        (("gpu", "release", "SIM"), 6, "more than one GPU"),
    ]:
        done = lab.labd(*arguments, check=False)
        assert done.returncode == code and part in done.stderr, (arguments, done)
    assert "neither quarantined nor gone" in lab.labd("gpu", "release", "SIM-1").stdout
    faults = lab.labd("gpu", "faults").stdout
    assert "xid-79" in faults and max(map(len, faults.splitlines())) <= 80
