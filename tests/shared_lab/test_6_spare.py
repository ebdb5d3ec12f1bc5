"""A worker process that waits on an idle GPU node, and a run that goes on in it."""

import pytest

from harness.lab import wait_for

pytestmark = pytest.mark.root
HELPERS = ("SynchronizationActor", "DatasetManager", "PreemptionWatcher")


def processes(lab, service):
    """Ray's worker processes of jobs there: pid -> title."""
    return {pid: args.removeprefix("ray::").strip() for pid, args in lab.processes(service).items() if args.startswith("ray::")}


def test_a_run_that_loses_its_worker_goes_on_in_a_process_that_waits(lab):
    lab.wait_ready()
    before = {service: set(processes(lab, service)) for service in ("ray-worker-0", "ray-worker-1", "ray-driver")}

    def idle(service):
        return [pid for pid, title in processes(lab, service).items() if title == "IDLE" and pid not in before[service]]

    def helpers():
        """What Ray Train makes anew with each group of workers."""
        return sorted(pid for pid, title in processes(lab, "ray-driver").items() if title.startswith(HELPERS))

    lab.submit("spare", "python", "train.py", "--name", "spare", "--epochs", "120", "--seconds-per-epoch", "0.5")
    wait_for("it trains", lambda: lab.job("spare") and lab.worker_of("spare"), 90, every=0.3)
    lost = lab.worker_of("spare")
    other = next(worker for worker in ("ray-worker-0", "ray-worker-1") if worker != lost)
    wait_for("a process waits on the other node", lambda: idle(other), 60)
    beside = wait_for("three wait beside the driver", lambda: len(newer := sorted(p for p in idle("ray-driver") if p > max(helpers()))) >= 3 and newer, 60)
    # There it would die with a worker, and come back in the process that waits for one.
    assert not [title for at in (lost, other) for title in processes(lab, at).values() if title.startswith("PreemptionWatcher")]
    # Ray may have an idle process of its own there, too, and the first one seen need not be the one that the run will take.
    spare = idle(other)
    lab.sigkill(lost)
    wait_for("it trains on the other node", lambda: lab.worker_of("spare") == other, 60, every=0.2)
    trains = [p for p, title in processes(lab, other).items() if title.startswith("RayTrainWorker")]
    assert trains and set(trains) <= set(spare)
    # Ray keeps idle processes of its own there, which look the same.
    assert set(helpers()) & set(beside)
    lab.stop_job("spare")
    wait_for("no process of the run is left", lambda: not set(processes(lab, other)) - before[other] and not any(p >= min(beside) for p in idle("ray-driver")), 60)
    lab.wait_ready()
