"""What breaks comes back, and says why."""
import re

import pytest

from harness.lab import docker, wait_for

pytestmark = pytest.mark.root

SERVICES = ["minio", "ray-head", "ray-driver", "ray-worker-0", "ray-worker-1", "jupyter", "front-door", "prometheus"]


@pytest.mark.parametrize("service", SERVICES)
def test_sigkill_of_a_service(lab, service):
    lab.wait_ready()
    before = lab.service(service)["restarts"]
    others = {n: i for n, i in lab.ids().items() if n != service}
    lab.crash(service)
    shown = lab.service(service)
    assert shown["restarts"] == before + 1
    assert "container exited 137 (SIGKILL)" in shown["last_reason"]
    assert "137" in lab.labd("status").stdout
    # An event is shown once it is on disk.
    whats = lambda: {e["what"] for e in lab.events(service, 12) if "137" in e["reason"]}
    wait_for("both are told", lambda: whats() >= {"restart", "ready"}, 10, 0.5)
    assert {n: i for n, i in lab.ids().items() if n != service} == others, "nothing else was touched"
    lab.wait_ready()


def test_training_resumes_from_its_checkpoint_when_its_worker_is_killed(lab):
    lab.wait_ready()
    lab.submit("survivor", "python", "train.py", "--name", "survivor", "--epochs", "32", "--seconds-per-epoch", "0.4")
    wait_for("some epochs", lambda: "epoch 5/32" in lab.logs("survivor"), 60, every=0.3)
    lab.sigkill(lab.worker_of("survivor"))
    logs = lab.wait_job("survivor")
    resumed = re.search(r"resumed at epoch (\d+) from checkpoint", logs)
    assert resumed, logs[-2000:]
    # The step after its last checkpoint, read back from MinIO: nothing is trained twice, nothing is left out.
    epochs = [int(e) for e in re.findall(r"epoch (\d+)/32 loss", logs)]
    assert int(resumed[1]) >= 5 and set(epochs) == set(range(1, 33)), epochs
    lab.wait_ready()


def test_sigkill_of_labd_touches_nothing_and_adoption_is_quick(lab):
    lab.wait_ready()
    lab.submit("undisturbed", "python", "train.py", "--name", "undisturbed", "--epochs", "20", "--seconds-per-epoch", "0.3")
    wait_for("it trains", lambda: "epoch 3/20" in lab.logs("undisturbed"), 60, every=0.3)
    before = lab.ids()
    seen = {s["name"]: (s["since"], s["last_reason"]) for s in lab.snapshot()["services"]}
    lab.kill_daemon()
    lab.up()
    assert lab.ids() == before
    now = lab.snapshot()
    assert {s["name"]: (s["since"], s["last_reason"]) for s in now["services"] if s["state"] == "ready"}.items() <= seen.items()
    logs = lab.wait_job("undisturbed")
    assert "resumed" not in logs and logs.count("starting fresh") == 1


def test_a_service_stopped_by_hand_is_held_and_released(lab):
    lab.wait_ready()
    lab.labd("stop", "jupyter")
    wait_for("held", lambda: lab.service("jupyter")["state"] == "held", 30)
    assert "labd start jupyter" in lab.service("jupyter")["last_reason"]
    lab.kill_daemon()
    lab.up()
    assert lab.service("jupyter")["state"] == "held", "also after labd's own restart"
    lab.labd("start", "jupyter")
    lab.wait_ready("jupyter")


def test_a_removed_container_is_made_again(lab):
    lab.wait_ready()
    docker("rm", "-f", lab.container("prometheus"))
    lab.wait_ready("prometheus")
    wait_for("it is there", lambda: "prometheus" in lab.ids(), 20)


def test_a_crash_loop_is_said_so_and_ends(lab):
    lab.wait_ready()

    def crash():
        state = lab.service("prometheus")["state"]
        if state == "ready":
            lab.sigkill("prometheus")
        return state == "crash-loop"

    wait_for("crash loop", crash, 90, every=0.3)
    assert "tried once a minute" in lab.service("prometheus")["last_reason"]
    assert lab.snapshot()["notices"][0]["severity"] == "error"
    lab.labd("start", "prometheus")
    lab.wait_ready("prometheus")


def test_logs_and_events_can_be_read(lab):
    assert lab.labd("logs", "ray-head", "-n", "5").stdout
    text = lab.labd("events", "-n", "5").stdout
    assert "REASON" in text and len(text.splitlines()) == 6
