"""Packages that jobs ask for: installed once on this machine, there for every node, after a crash and a recreation, too.

Whether something was installed is told by what the store holds and what Ray's agents logged, never by time.
"""
import json
import re

import pytest

from harness.lab import docker, wait_for

JOB = '''
import json, socket
import ray

@ray.remote(num_gpus=1)
def where():
    import emoji, time
    time.sleep(1)  # so that two of these need two nodes
    return socket.gethostname(), emoji.__file__

import emoji
ray.init()
found = dict(ray.get([where.remote() for _ in range(2)]), driver=emoji.__file__)
print("found", json.dumps(found))
'''
PACKAGES = json.dumps({"pip": ["emoji==2.14.1"]})
NODES = ("ray-driver", "ray-worker-0", "ray-worker-1")


def submit(lab, job, packages=PACKAGES):
    """A job from JupyterLab; returns node -> the file from which it imported the package."""
    folder = lab.put_samples()
    (folder / "packages_job.py").write_text(JOB)
    lab.submit(job, "python", "packages_job.py", options=("--runtime-env-json", packages))
    return json.loads(re.findall(r"^found (.*)$", lab.wait_job(job, seconds=300), re.M)[-1])


def builds(lab):
    """All builds in the store that are complete."""
    text = lab.exec("ray-worker-0", "sh", "-c", "cat /packages/envs/*/current 2>/dev/null || true").stdout
    return sorted(re.findall(r'"build": "(\w+)"', text))


def installed_by(lab, node):
    """How often a node's agent installed something, in this life of its container or an earlier one."""
    command = "cat /tmp/ray/session_2*/logs/runtime_env_setup-*.log 2>/dev/null || true"
    return lab.exec(node, "sh", "-c", command).stdout.count("installed just now")


@pytest.mark.root
def test_packages_are_installed_once_for_all_nodes_and_outlive_a_workers_death_and_its_container(lab):
    lab.wait_ready()
    before, earlier = builds(lab), sum(installed_by(lab, n) for n in NODES)
    first = submit(lab, "packages")
    assert set(first) == {"ray-worker-0", "ray-worker-1", "driver"}
    assert len(set(first.values())) == 1 and first["driver"].startswith("/packages/envs/"), first
    after = builds(lab)
    assert len(after) == len(before) + 1
    assert sum(installed_by(lab, n) for n in NODES) == earlier + 1

    lab.sigkill("ray-worker-0")
    wait_for("the worker is seen to be gone", lambda: lab.states()["ray-worker-0"] != "ready", 30)
    lab.wait_ready()
    assert installed_by(lab, "ray-worker-0") <= 1
    assert submit(lab, "packages-killed") == first

    docker("rm", "-f", lab.container("ray-worker-1"))
    wait_for("the worker is seen to be gone", lambda: lab.states()["ray-worker-1"] != "ready", 30)
    lab.wait_ready()
    # The environment of a job that has ended is not looked for at a node's start.
    assert "emoji" not in lab.exec("ray-worker-1", "sh", "-c", "cat /tmp/ray/session_2*/logs/runtime_env_agent*.log").stdout
    assert submit(lab, "packages-anew") == first
    assert builds(lab) == after
    assert installed_by(lab, "ray-worker-1") == 0


def test_what_pip_refuses_is_the_jobs_own_error_in_pips_words(lab):
    lab.wait_ready()
    lab.put_samples()
    lab.submit("unknown-version", "true", options=("--runtime-env-json", json.dumps({"pip": ["emoji==0.0.0.1"]})))

    def over():
        found = lab.job("unknown-version")
        return found and found["outcome"] == "failed" and found

    assert "No matching distribution found for emoji==0.0.0.1" in wait_for("the job fails", over, 120, every=0.5)["message"]


def test_the_image_has_what_people_reach_for(lab):
    lab.wait_ready()
    for tool in ("git", "curl", "ssh", "gcc", "g++", "unzip", "less", "nano", "uv", "pip"):
        lab.exec("jupyter", "sh", "-c", f"command -v {tool}")
    # No environment to be cloned whole for each job, and a compiler that finds Python's headers.
    program = "import sys, sysconfig, os, ray; print(sys.prefix, sys.base_prefix, ray.__file__, os.path.exists(sysconfig.get_path('include') + '/Python.h'))"
    words = lab.exec("ray-worker-0", "python", "-c", program).stdout.split()
    assert words[:2] == ["/usr", "/usr"] and words[2].startswith("/opt/ray/") and words[3] == "True", words
    assert not lab.exec("jupyter", "sh", "-c", "echo $VIRTUAL_ENV").stdout.strip()


def test_pip_in_a_terminal_installs_for_the_notebooks_beside_rays_packages(lab):
    lab.wait_ready()
    lab.exec("jupyter", "pip", "install", "-q", "emoji==2.14.0", timeout=180)
    kernel = json.loads(lab.exec("jupyter", "cat", "/opt/jupyter/share/jupyter/kernels/python3/kernel.json").stdout)["argv"][0]
    found = lab.exec("jupyter", kernel, "-c", "import emoji, ray; print(emoji.__version__, emoji.__file__)").stdout.split()
    assert found[0] == "2.14.0" and found[1].startswith("/usr/local/lib/python3"), found
    lab.exec("jupyter", "pip", "uninstall", "-q", "-y", "emoji")
    # An environment of one's own works as well.
    lab.exec("jupyter", "sh", "-c", "rm -rf /tmp/own && python -m venv /tmp/own && /tmp/own/bin/python -c 'import sys; assert sys.prefix == \"/tmp/own\"'; rm -rf /tmp/own", timeout=180)
