"""A head whose kept state cannot be used: set aside whole, said in one line, and the lab is ready again without a person."""
import re

from harness.lab import docker, run

JOB = "before-the-damage"
OTHER = "before-the-upgrade"


def put(lab, path, content):
    """Writes into the stopped head's volume, as the engine reaches it."""
    docker("cp", "-", f"{lab.container('ray-head')}:{path.rpartition('/')[0]}", input=tar_of(lab, path.rpartition("/")[2], content))


def tar_of(lab, name, content):
    (lab.dir / name).write_text(content)
    return run("tar", "-C", lab.dir, "--owner=0", "--group=0", "-c", name).stdout


def set_aside(lab):
    return sorted(lab.exec("ray-head", "sh", "-c", "ls -d /gcs/set-aside-* 2>/dev/null || true").stdout.split())


def jobs(lab):
    return {j["submission_id"] for j in lab.api("/api/jobs/")}


def start_again(lab):
    """The head, and then every node that must find it."""
    lab.labd("start", "ray-head")
    lab.wait_ready("ray-head", seconds=60)
    lab.wait_ready(seconds=180)


def remember_a_job(lab, job):
    lab.submit(job, "true")
    lab.wait_job(job, seconds=120)


def said(lab, text):
    logs = docker("logs", lab.container("ray-head"))
    return [line for line in (logs.stdout + logs.stderr).splitlines() if line.startswith("labd:") and text in line]


def test_a_state_that_is_whole_is_kept(lab):
    lab.wait_ready(seconds=180)
    before = set_aside(lab)
    remember_a_job(lab, JOB)
    lab.labd("stop", "ray-head")
    start_again(lab)
    assert JOB in jobs(lab) and set_aside(lab) == before


def test_a_damaged_state_is_set_aside_and_a_fresh_one_begins(lab):
    before = set_aside(lab)
    lab.labd("stop", "ray-head")
    put(lab, "/gcs/db/kv/CURRENT", "garbage")
    start_again(lab)
    (new,) = set(set_aside(lab)) - set(before)
    assert re.fullmatch(r"/gcs/set-aside-damaged-\d{8}T\d{6}Z", new)
    assert lab.exec("ray-head", "cat", f"{new}/kv/CURRENT").stdout == "garbage", "set aside as it was"
    assert said(lab, f"was set aside as {new}; a fresh one begins")
    assert JOB not in jobs(lab)


def test_another_versions_state_is_set_aside(lab):
    before = set_aside(lab)
    remember_a_job(lab, OTHER)
    lab.labd("stop", "ray-head")
    put(lab, "/gcs/db.ray-version", "2.59.0\n")
    start_again(lab)
    (new,) = set(set_aside(lab)) - set(before)
    assert new.startswith("/gcs/set-aside-2.59.0-")
    assert said(lab, f"labd: the head's state of Ray 2.59.0 was set aside as {new}; a fresh one begins")
    assert OTHER not in jobs(lab)
    version = lab.exec("ray-head", "ray", "--version").stdout.split()[-1]
    assert lab.exec("ray-head", "cat", "/gcs/db.ray-version").stdout.strip() == version


def test_the_cluster_trains_on_a_fresh_state(lab):
    lab.submit("after-the-damage", "python", "train.py", "--epochs", "2", "--name", "after-the-damage")
    assert "epoch 2/2" in lab.wait_job("after-the-damage")


def test_rays_environment_is_free_of_jupyterlabs_slow_import(lab):
    """`jsonschema` imports it wherever it is there, and every fresh worker process would parse its grammar first."""
    for service in ("ray-worker-0", "jupyter"):
        done = lab.exec(service, "/opt/ray/bin/python", "-c", "import jsonschema, rfc3987_syntax", check=False)
        assert done.returncode == 1 and "No module named 'rfc3987_syntax'" in done.stderr
