"""Nothing escapes supervision: stops by hand, hangs, nodes that left the cluster, and what is said about them."""
import contextlib
import json
import os
import signal

import pytest

from harness.lab import docker, wait_for

pytestmark = pytest.mark.root


def freeze(lab, *services):
    """SIGSTOP for every process of the services' containers: they run, and nobody answers."""
    for service in services:
        for pid in processes(lab, service):
            with contextlib.suppress(ProcessLookupError):  # a short one that ended meanwhile
                os.kill(pid, signal.SIGSTOP)


def processes(lab, service):
    """Pids by the host's count, the first process last: it must not see its children stop."""
    container = lab.inspect(service)["Id"]
    found = docker("top", container, "-eo", "pid").stdout.split()[1:]
    return [int(pid) for pid in reversed(found)]


def container_id(lab, service):
    """None while there is none."""
    return docker("inspect", "-f", "{{.Id}}", lab.container(service), check=False).stdout.strip() or None


def run_of(lab, service):
    """Container and time of its start; None while there is none."""
    return docker("inspect", "-f", "{{.Id}} {{.State.StartedAt}}", lab.container(service), check=False).stdout or None


def is_new(lab, service, before):
    now = container_id(lab, service)
    return now is not None and now != before


def incidents(lab, service):
    return [i for i in lab.snapshot()["incidents"] if i["service"] == service]


def metrics(lab):
    return lab.log_in().ask("GET", "metrics")[1]


def test_docker_stop_is_held_and_docker_start_releases_it(lab):
    lab.wait_ready()
    before = incidents(lab, "ray-worker-1")
    docker("stop", lab.container("ray-worker-1"))
    wait_for("held", lambda: lab.service("ray-worker-1")["state"] == "held", 20)
    said = lab.service("ray-worker-1")["last_reason"]
    assert "docker stop" in said and "labd start ray-worker-1" in said and f"docker start {lab.name}-ray-worker-1" in said
    lab.kill_daemon()
    lab.up()
    assert lab.service("ray-worker-1")["state"] == "held", "also after labd's own restart"
    docker("start", lab.container("ray-worker-1"))
    lab.wait_ready("ray-worker-1")
    started = lab.inspect("ray-worker-1")["State"]["StartedAt"]
    docker("stop", lab.container("ray-worker-1"))
    wait_for("held again", lambda: lab.service("ray-worker-1")["state"] == "held", 20)
    lab.labd("start", "ray-worker-1")
    lab.wait_ready("ray-worker-1")
    assert lab.inspect("ray-worker-1")["State"]["StartedAt"] > started
    assert incidents(lab, "ray-worker-1") == before, "a stop by hand is no incident"


def test_docker_start_releases_what_labd_stopped(lab):
    lab.wait_ready()
    lab.labd("stop", "prometheus")
    wait_for("held", lambda: lab.service("prometheus")["state"] == "held", 30)
    docker("start", lab.container("prometheus"))
    lab.wait_ready("prometheus")


def test_docker_stop_while_labd_is_away_is_held_all_the_same(lab):
    lab.wait_ready()
    lab.kill_daemon()
    docker("stop", lab.container("prometheus"))
    lab.up()
    wait_for("held", lambda: lab.service("prometheus")["state"] == "held", 20)
    lab.labd("start", "prometheus")
    lab.wait_ready("prometheus")


def test_docker_kill_restart_and_rm_are_no_stops(lab):
    lab.wait_ready()
    for command in (["kill"], ["kill", "-s", "TERM"], ["restart", "-t", "1"], ["rm", "-f"]):
        before = run_of(lab, "prometheus")
        docker(*command, lab.container("prometheus"))
        wait_for(f"{command}: a new run", lambda b=before: run_of(lab, "prometheus") not in (None, b), 30)
        lab.wait_ready("prometheus")


def test_a_removed_worker_is_told_to_ray_and_made_again(lab):
    lab.wait_ready()
    docker("rm", "-f", lab.container("ray-worker-1"))
    wait_for("an incident", lambda: any(i["cause"] == "gone" for i in incidents(lab, "ray-worker-1")), 20)
    lab.wait_ready("ray-worker-1")
    assert "tell-gcs" in [e["what"] for e in lab.events("ray-worker-1", 8)]


@pytest.mark.slow
def test_what_hangs_is_found_said_and_recreated(lab):
    lab.wait_ready()
    frozen = ["minio", "prometheus", "ray-driver", "ray-worker-0"]
    before = lab.ids()
    freeze(lab, *frozen)
    for service in frozen:
        wait_for(f"{service} was recreated", lambda s=service: is_new(lab, s, before[s][0]), 90)
    lab.wait_ready()
    for service in frozen:
        newest = incidents(lab, service)[0]
        assert newest["cause"] == "hang" and newest["why"].startswith("hung: "), newest
    for node in ("ray-driver", "ray-worker-0"):
        assert "tell-gcs" in [e["what"] for e in lab.events(node, 10)]
    untouched = {"ray-head", "ray-worker-1"}
    assert {n: i for n, i in lab.ids().items() if n in untouched} == {n: before[n] for n in untouched}


def test_a_jupyterlab_that_hangs_is_said_and_keeps_its_kernels(lab):
    """One cell that blocks its event loop would cost every kernel."""
    lab.wait_ready()
    before = lab.inspect("jupyter")["Id"], run_of(lab, "jupyter")
    stopped = processes(lab, "jupyter")
    freeze(lab, "jupyter")
    said = wait_for("it is said", lambda: unhealthy(lab, "jupyter"), 90)
    assert "`labd restart jupyter` ends it" in said, said
    for pid in reversed(stopped):
        os.kill(pid, signal.SIGCONT)
    lab.wait_ready("jupyter")
    assert (lab.inspect("jupyter")["Id"], run_of(lab, "jupyter")) == before


def unhealthy(lab, service):
    now = lab.service(service)
    return now["state"] == "unhealthy" and now["last_reason"]


def test_a_head_that_hangs_is_recreated_and_nothing_else(lab):
    lab.wait_ready()
    before = lab.ids()
    freeze(lab, "ray-head")
    wait_for("the head was recreated", lambda: is_new(lab, "ray-head", before["ray-head"][0]), 90)
    lab.wait_ready()
    # Ray's own nodes may give up by themselves when their head is silent for long; labd has touched none of them.
    for node in ("ray-driver", "ray-worker-0", "ray-worker-1", "minio", "jupyter", "prometheus"):
        assert lab.ids()[node][0] == before[node][0], f"{node} is the same container"
    assert incidents(lab, "ray-head")[0]["cause"] == "hang"


@pytest.mark.slow
def test_a_worker_with_a_wrong_token_is_found_and_recreated(lab):
    """Whether Ray ends such a node or lets it try for ever: starting it again and again would not mend it."""
    lab.wait_ready()
    made = lab.inspect("ray-worker-1")
    # The same container but for its token, in the place of the right one, with labels that say that it is labd's.
    lab.kill_daemon()
    docker("rm", "-f", made["Id"])
    env = [e for e in made["Config"]["Env"] if not e.startswith("RAY_AUTH_TOKEN=")] + ["RAY_AUTH_TOKEN=wrong"]
    argv = ["create", "--name", lab.container("ray-worker-1"), "--network", lab.name, "--shm-size", "256m"]
    argv += ["--ip", made["NetworkSettings"]["Networks"][lab.name]["IPAddress"], "-p", "127.0.0.1::52365"]
    argv += ["--add-host", "minio:" + lab.inspect("minio")["NetworkSettings"]["Networks"][lab.name]["IPAddress"]]
    for pair in env:
        argv += ["-e", pair]
    for key, value in made["Config"]["Labels"].items():
        argv += ["--label", f"{key}={value}"]
    wrong = docker(*argv, made["Config"]["Image"], *made["Config"]["Cmd"]).stdout.strip()
    # One that never ran would be taken for one that labd was killed over while it created it.
    docker("start", wrong)
    lab.labd("up", "--timeout=5", check=False)
    wait_for("it was replaced", lambda: is_new(lab, "ray-worker-1", wrong), 300, every=1)
    lab.wait_ready("ray-worker-1")
    assert incidents(lab, "ray-worker-1")[0]["why"]


def test_shared_memory_that_killed_processes_left_is_removed_and_what_is_used_or_a_persons_own_stays(lab):
    lab.wait_ready()
    lab.exec("ray-worker-0", "sh", "-c", "cd /dev/shm && for f in psm_left psm_used psm_new mine.npy; do echo x > $f; done; "
             "touch -d '2 hours ago' psm_left psm_used mine.npy")
    # Mapped and closed, as who uses it has it.
    use = "import mmap, os, time; open('/tmp/user', 'w').write(str(os.getpid())); f = open('/dev/shm/psm_used', 'r+b'); " \
          "m = mmap.mmap(f.fileno(), 0); f.close(); time.sleep(600)"
    docker("exec", "-d", lab.container("ray-worker-1"), "python3", "-c", use)
    wait_for("it is mapped", lambda: lab.exec("ray-worker-1", "sh", "-c", "grep -c psm_used /proc/$(cat /tmp/user)/maps", check=False).stdout.strip() == "1")
    there = lambda: set(lab.exec("ray-worker-1", "ls", "/dev/shm").stdout.split())
    lab.sigkill("ray-worker-0")
    wait_for("what was left is removed", lambda: "psm_left" not in there(), 120, every=1)
    assert there() >= {"psm_used", "psm_new", "mine.npy"}
    wait_for("it is told", lambda: "removed 1 segment (2 B)" in lab.labd("events", "-n", "20").stdout.replace("\n", " "), 10)
    lab.exec("ray-worker-1", "sh", "-c", "kill $(cat /tmp/user); cd /dev/shm && rm psm_used psm_new mine.npy")
    lab.wait_ready()


def test_incidents_are_told_everywhere(lab):
    lab.wait_ready()
    before = incidents(lab, "prometheus")
    lab.sigkill("prometheus")

    def over():
        new = [i for i in incidents(lab, "prometheus") if i not in before]
        return new[0] if new and new[0]["ready_at"] else None

    newest = wait_for("it is back", over, 30)
    assert newest["cause"] == "exit" and newest["why"] == "container exited 137 (SIGKILL)"
    assert newest["died_at"] <= newest["noticed_at"] <= newest["running_at"] <= newest["ready_at"]
    line = wait_for("a line", lambda: [e for e in lab.events("prometheus", 6) if e["kind"] == "incident"], 10)[-1]
    assert "noticed after" in line["reason"] and "ready after" in line["reason"]
    assert line["reason"] in lab.labd("events", "-n", "6", "--service", "prometheus").stdout
    assert 'labd_incidents_total{service="prometheus",cause="exit"}' in metrics(lab)
    lab.kill_daemon()
    lab.up()
    assert json.dumps(newest) in [json.dumps(i) for i in incidents(lab, "prometheus")], "the journal keeps them"


# A driver that the GCS counts as running, on a node that is dead, with a placement group that was never placed again.
LEFT_BEHIND = """
import os, sys
import grpc
from ray.core.generated import gcs_pb2, gcs_service_pb2 as messages, gcs_service_pb2_grpc as services
channel = grpc.insecure_channel("ray-head:6379")
call = {"metadata": (("authorization", "Bearer " + os.environ["RAY_AUTH_TOKEN"]),), "timeout": 20}
job, group = bytes.fromhex("ff0f0000"), bytes.fromhex("ab" * 14 + "ff0f0000")
jobs, groups = services.JobInfoGcsServiceStub(channel), services.PlacementGroupInfoGcsServiceStub(channel)
if sys.argv[1] == "leave":
    nodes = services.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(messages.GetAllNodeInfoRequest(), **call).node_info_list
    dead = next(node.node_id for node in nodes if node.state == 1)
    address = {"node_id": dead, "worker_id": b"w" * 28, "ip_address": "198.18.0.1"}
    # Ray's list of jobs fails where one has no environment.
    config = {"ray_namespace": "left", "runtime_env_info": {"serialized_runtime_env": "{}"}}
    data = gcs_pb2.JobTableData(job_id=job, driver_address=address, config=config)
    jobs.AddJob(messages.AddJobRequest(data=data), **call)
    spec = {"placement_group_id": group, "bundles": [{"unit_resources": {"GPU": 99}, "bundle_id": {"placement_group_id": group}}],
            "creator_job_id": job, "creator_actor_id": b"\\xff" * 16}
    groups.CreatePlacementGroup(messages.CreatePlacementGroupRequest(placement_group_spec=spec), **call)
found = [found.is_dead for found in jobs.GetAllJobInfo(messages.GetAllJobInfoRequest(), **call).job_info_list if found.job_id == job]
states = [found.state for found in groups.GetAllPlacementGroup(messages.GetAllPlacementGroupRequest(), **call).placement_group_table_data
          if found.placement_group_id == group]
print(found, [gcs_pb2.PlacementGroupTableData.PlacementGroupState.Name(state) for state in states])
"""


def test_a_driver_that_died_while_the_gcs_was_away_keeps_no_gpu(lab):
    def gcs(what):
        return lab.exec("ray-driver", "/opt/ray/bin/python", "-c", LEFT_BEHIND, what).stdout.strip()

    lab.crash("ray-worker-1")  # a node that is dead
    assert gcs("leave") == "[False] ['PENDING']"
    lab.crash("ray-head")
    wait_for("it is over", lambda: gcs("look") == "[False] ['REMOVED']", 90, every=3)
