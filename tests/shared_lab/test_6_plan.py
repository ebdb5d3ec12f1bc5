"""What people's code finds in its containers: a notebook's first cell, the job tools, data, environment, room for large things."""
import json
import re

import pytest

from harness.lab import wait_for

CODE = ("ray-driver", "ray-worker-0", "ray-worker-1", "jupyter")


def cell(lab, text, env=(), **kwargs):
    """Runs Python in JupyterLab's container with the kernel's Python, as a notebook would."""
    return lab.exec("jupyter", "env", *env, "/opt/ray/bin/python", "-c", text, **kwargs)


FIRST_CELL = """
import ray; ray.init(logging_level="ERROR")
@ray.remote(num_gpus=1)
def where():
    import os, socket
    return socket.gethostname(), os.environ["LABD_GPU_UUID"]
import json
print("said", json.dumps([ray.cluster_resources()["GPU"], *ray.get(where.remote())]))
"""


def test_a_notebooks_first_cell_reaches_the_gpus(lab):
    lab.wait_ready()
    # The server for it starts once the driver node is up.
    done = wait_for("ray.init() works", lambda: (d := cell(lab, FIRST_CELL, check=False)).returncode == 0 and d, 90, every=1)
    gpus, host, gpu = json.loads(re.search(r"^said (.*)$", done.stdout, re.MULTILINE)[1])
    assert gpus == 2 and re.fullmatch(r"ray-worker-[01]", host) and gpu == f"SIM-{host[-1]}"


@pytest.mark.parametrize("token", [(f"RAY_AUTH_TOKEN={'wrong' * 9}",), ("-u", "RAY_AUTH_TOKEN", "-u", "RAY_AUTH_MODE")])
def test_without_the_token_there_is_no_connection(lab, token):
    wait_for("the server", lambda: client_server(lab), 60)
    quick = FIRST_CELL.replace("import ray;", "import ray, ray.util.client.worker as w; w.INITIAL_TIMEOUT_SEC = 2; w.MAX_TIMEOUT_SEC = 3;")
    done = cell(lab, quick, env=token, check=False)
    assert done.returncode != 0 and "said" not in done.stdout
    # Ray's client knows no better word; the server's log has the reason.
    assert "ConnectionError" in done.stderr or "token" in done.stderr, done.stderr[-1500:]


def test_connections_are_made_on_the_driver_node_and_from_the_labs_network_alone(lab):
    text = "import socket, sys; print(socket.socket().connect_ex((sys.argv[1], 10001)))"
    for host, code in [("ray-driver", "0"), ("ray-head", "111")]:
        assert lab.exec("jupyter", "python3", "-c", text, host).stdout.strip() == code, host
    assert not any("10001" in port for port in lab.inspect("ray-driver")["NetworkSettings"]["Ports"])


def client_server(lab):
    """Pid and OOM score of the server for connections, inside the driver node."""
    found = lab.exec("ray-driver", "pgrep", "-f", "ray.util.client.server .*--mode=proxy", check=False).stdout.split()
    # The text of the container's own start command speaks of it, too: the server itself came after that.
    pid = found[-1] if len(found) > 1 else None
    return pid and (pid, lab.exec("ray-driver", "cat", f"/proc/{pid}/oom_score_adj").stdout.strip())


def test_the_server_of_connections_comes_back_and_goes_first_when_memory_runs_out(lab):
    pid, score = wait_for("the server", lambda: client_server(lab), 60)
    job = lab.submit("oomscore", "sh", "-c", "echo score $(cat /proc/self/oom_score_adj) $RAY_ADDRESS")
    said = re.search(r"^score (\d+) (\S+)$", lab.wait_job(job), re.MULTILINE)
    assert int(said[1]) < int(score) and not said[2].startswith(("ray:", "http:"))
    before = lab.ids()["ray-driver"]
    lab.exec("ray-driver", "kill", "-9", pid)
    wait_for("another one", lambda: (s := client_server(lab)) and s[0] != pid, 60)
    wait_for("ray.init() works", lambda: cell(lab, FIRST_CELL, check=False).returncode == 0, 60, every=1)
    assert lab.ids()["ray-driver"] == before, "the node lives on"


def test_the_job_tools_work_in_a_terminal_and_in_a_notebook(lab):
    def tool(*argv):
        return lab.exec("jupyter", "ray", "job", *argv).stdout

    tool("submit", "--no-wait", "--submission-id", "tools", "--", "sh", "-c", "echo word of the job; sleep 600")
    wait_for("it runs", lambda: "RUNNING" in tool("status", "tools"), 60)
    wait_for("it has said it", lambda: "word of the job" in tool("logs", "tools"), 30)
    assert "tools" in tool("list")
    text = "from ray.job_submission import JobSubmissionClient as C; print(C().get_job_status('tools').value)"
    assert cell(lab, text).stdout.split()[-1] == "RUNNING"
    tool("stop", "tools")
    done = lab.exec("jupyter", "ray", "job", "status", "tools")
    assert "was stopped" in done.stdout + done.stderr


def test_data_environment_and_workspace_are_the_same_everywhere(lab):
    for service in CODE:
        said = lab.exec(service, "sh", "-c", 'ls /mnt/samples; echo "word $LABDTEST_WORD"').stdout.splitlines()
        assert said[-1] == "word of the lab" and len(said) > 1, service
        assert lab.exec(service, "touch", "/mnt/samples/x", check=False).returncode != 0, f"read-only in {service}"
    assert lab.exec("ray-head", "sh", "-c", "echo $LABDTEST_WORD").stdout.strip() == "of the lab"
    lab.exec("jupyter", "sh", "-c", "echo a notebook >~/work/note")
    assert (lab.data_dir / "workspace/note").read_text() == "a notebook\n"
    assert lab.exec("jupyter", "cat", "/workspace/note").stdout == "a notebook\n"
    lab.exec("ray-worker-0", "sh", "-c", "echo kept >/packages/test-8-plan")
    for service in ("ray-head", "ray-driver", "ray-worker-1"):
        assert lab.exec(service, "cat", "/packages/test-8-plan").stdout == "kept\n", service
    lab.exec("ray-head", "rm", "/packages/test-8-plan")


def test_a_simulated_gpu_says_what_it_is(lab):
    for i in (0, 1):
        assert lab.exec(f"ray-worker-{i}", "nvidia-smi", "-L").stdout == f"GPU 0: Simulated GPU (UUID: SIM-{i})\n"
        assert lab.exec(f"ray-worker-{i}", "printenv", "LABD_SIMULATED_GPUS").stdout == "1\n"
    assert lab.exec("ray-driver", "printenv", "LABD_SIMULATED_GPUS").stdout == "1\n"
    assert lab.exec("ray-driver", "sh", "-c", "command -v nvidia-smi", check=False).returncode != 0


def test_the_largest_upload_and_a_log_of_300_mb_do_not_cost_the_head(lab):
    lab.wait_ready()
    before = lab.ids()
    # Random bytes, as no compression helps with them; and a script that prints lines of 100 bytes.
    lab.exec("jupyter", "sh", "-c", "mkdir -p /tmp/large && head -c 90M /dev/urandom >/tmp/large/data")
    script = "import os; print(os.path.getsize('data'))\nfor i in range(30): print('x' * 99, *['y' * 99] * 99_999, sep='\\n')"
    lab.exec("jupyter", "sh", "-c", 'cat >/tmp/large/say.py <<"END"\n' + script + "\nEND")
    lab.exec("jupyter", "ray", "job", "submit", "--no-wait", "--submission-id", "large", "--working-dir", "/tmp/large", "--",
             "python", "say.py", timeout=180)
    wait_for("it ends", lambda: (j := lab.job("large")) and j["status"] == "SUCCEEDED", 240, every=1)
    done = lab.exec("jupyter", "sh", "-c", "ray job logs large >/tmp/large/log && wc -c </tmp/large/log", timeout=300)
    assert int(done.stdout) > 300_000_000
    assert str(90 << 20) in lab.exec("jupyter", "head", "-c", "4000", "/tmp/large/log").stdout
    lab.exec("jupyter", "rm", "-r", "/tmp/large")
    assert {n: i for n, i in lab.ids().items() if n.startswith("ray-")} == {n: i for n, i in before.items() if n.startswith("ray-")}
    oom = lab.exec("ray-head", "sh", "-c", "grep -h \"^oom_kill \" /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control", check=False)
    assert oom.stdout.split() in (["oom_kill", "0"], []), oom.stdout
