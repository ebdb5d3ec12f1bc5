"""What the lab is once it is up. The Compose lab's own checks are here."""
import json
import re
import urllib.request

from harness.lab import ROOT, docker, wait_for


def test_up_ends_in_a_table_with_everything_ready(lab):
    states = lab.states()
    grafana = states.pop("grafana")
    assert set(states.values()) == {"ready"}, states
    # Without a registry of images, Grafana says so and everything else runs.
    assert grafana in ("ready", "unavailable")
    if grafana == "unavailable":
        assert "image cannot be pulled" in lab.service("grafana")["last_reason"]
        told = [e["what"] for e in lab.events() if e["kind"] == "image" or e["service"] == "grafana"]
        assert told.count("unavailable") == 1, told
    table = lab.labd("status").stdout
    assert all(len(line) <= 80 for line in table.splitlines()), table
    for word in ("ray-worker-1", "ready", "SIM-0", "simulated", "JupyterLab", "http://localhost:"):
        assert word in table


def test_up_again_changes_nothing(lab):
    before = lab.ids()
    lab.up()
    assert lab.ids() == before


def test_the_snapshot_has_what_its_schema_promises(lab):
    s = lab.snapshot()
    assert s["schema"] == 1 and s["node"]["cpus"] > 0 and s["links"]
    assert {"name", "state", "since", "restarts", "last_reason"} <= set(s["services"][0])
    assert {"id", "name", "vendor", "simulated", "worker"} <= set(s["gpus"][0])
    assert [g["simulated"] for g in s["gpus"]] == [True, True]
    assert [g["worker"] for g in s["gpus"]] == ["ray-worker-0", "ray-worker-1"]


def test_each_worker_sees_one_gpu_and_not_the_same(lab):
    seen = [lab.exec(f"ray-worker-{i}", "printenv", "LABD_GPU_UUID").stdout.strip() for i in (0, 1)]
    assert seen == ["SIM-0", "SIM-1"]


def test_jupyter_has_no_gpu_and_knows_ray(lab):
    env = lab.exec("jupyter", "env").stdout
    assert "LABD_GPU_UUID" not in env
    for name in ("RAY_ADDRESS=ray://ray-driver:10001", "RAY_API_SERVER_ADDRESS=http://front-door:8265", "RAY_AUTH_TOKEN=", "AWS_ENDPOINT_URL=", "AWS_ACCESS_KEY_ID="):
        assert name in env
    versions = lab.exec("jupyter", "sh", "-c", "jupyter lab --version && jupyter kernelspec list && python -c 'import ray; print(ray.__version__)'").stdout
    assert "2.60.0" in versions and "python3" in versions


def test_rays_nodes_are_head_driver_and_two_workers(lab):
    nodes = [n for n in lab.api("/api/v0/nodes?detail=1")["data"]["result"]["result"] if n["state"] == "ALIVE"]
    assert len(nodes) == 4
    assert sum(bool(n["is_head_node"]) for n in nodes) == 1
    roles = sorted(n["labels"].get("labd.role", "head") for n in nodes)
    assert roles == ["driver", "head", "worker", "worker"]
    head = next(n for n in nodes if n["is_head_node"])
    assert head["resources_total"].get("CPU", 0) == 0
    assert all(n["resources_total"].get("GPU", 0) == (1 if n["labels"].get("labd.role") == "worker" else 0) for n in nodes)


def test_the_bucket_exists(lab):
    code = "import boto3; print([b['Name'] for b in boto3.client('s3').list_buckets()['Buckets']])"
    assert "'ray'" in lab.exec("jupyter", "python", "-c", code).stdout


def test_only_loopback_ports_are_open(lab):
    for service in lab.ids():
        for bindings in (lab.inspect(service)["NetworkSettings"]["Ports"] or {}).values():
            assert all(b["HostIp"] == "127.0.0.1" for b in bindings or []), service


def test_every_container_has_its_limits(lab):
    for service in lab.ids():
        host = lab.inspect(service)["HostConfig"]
        assert host["Memory"] > 0, service
        assert host["LogConfig"]["Type"] == "local" and host["LogConfig"]["Config"]["max-size"], service
        assert host["RestartPolicy"]["Name"] in ("no", ""), service


def test_a_stranger_without_the_token_is_refused(lab):
    code = "import urllib.request as u; u.urlopen('http://ray-head:8265/api/jobs/')"
    done = lab.exec("jupyter", "env", "-u", "RAY_AUTH_TOKEN", "python", "-c", code, check=False)
    assert "401" in done.stderr


def test_secrets_are_in_no_command_line_log_or_journal(lab):
    secrets = [c["secret"] for c in json.loads(lab.labd("credentials", "--json").stdout)]
    shown = [
        docker("ps", "-a", "--no-trunc", "--filter", f"label=dev.labd.lab={lab.name}").stdout,
        lab.labd("plan", "--json").stdout,
        lab.labd("status", "--json").stdout,
        lab.labd("events", "--json", "-n", "500").stdout,
        (lab.dir / "labd.log").read_text(),
    ]
    for secret in secrets:
        assert not any(secret in text for text in shown)


def test_prometheus_scrapes_ray_labd_and_itself(lab):
    url = lab.link("Prometheus")

    def healthy():
        with urllib.request.urlopen(url + "api/v1/targets", timeout=10) as answer:
            targets = json.load(answer)["data"]["activeTargets"]
        up = [t["labels"]["job"] for t in targets if t["health"] == "up"]
        return {"ray", "labd", "prometheus"} <= set(up) and up.count("ray") >= 4

    wait_for("all targets up", healthy, 60, every=1)


def test_metrics_and_alerts_are_as_prometheus_wants_them(lab):
    text = lab.log_in().ask("GET", "metrics")[1]
    docker("exec", "-i", lab.container("prometheus"), "promtool", "check", "metrics", input=text)
    said = docker("exec", lab.container("prometheus"), "promtool", "check", "config", "/etc/labd/prometheus.yml").stdout
    assert re.search(r"SUCCESS: [89]|SUCCESS: \d\d", said), said
    used = set(re.findall(r"\blabd_[a-z_]+", (ROOT / "src/services/alerts.yml").read_text()))
    assert used <= set(re.findall(r"^# TYPE (\w+)", text, re.M)), "an alert asks for a metric that labd has"
    with urllib.request.urlopen(lab.link("Prometheus") + "api/v1/rules", timeout=10) as answer:
        rules = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
    assert len(rules) >= 9 and all(rule["health"] in ("ok", "unknown") for rule in rules), rules


def test_the_page_shows_the_snapshot(lab):
    visitor = lab.log_in()
    assert "<script" in visitor.ask("GET", "")[1]
    assert visitor.ask("GET", "api/v1/snapshot")[1]["labd"]["lab"] == lab.name


def test_a_job_from_jupyter_trains_and_its_run_is_shown(lab):
    lab.submit("first", "python", "train.py", "--name", "first", "--epochs", "4", "--seconds-per-epoch", "0.2")
    logs = lab.wait_job("first")
    assert "starting fresh" in logs and "epoch 4/4" in logs
    wait_for("the run's name", lambda: lab.job("first")["run"] == "first", 20)
    kept = "import boto3; print(sum(o['Size'] for o in boto3.client('s3').list_objects_v2(Bucket='ray', Prefix='first/')['Contents']))"
    kept = int(lab.exec("jupyter", "python", "-c", kept).stdout)
    # As it is after its end: a list of a moment before is shown until the next one.
    run = wait_for("its checkpoints", lambda: lab.run("first", lambda r: (r["status"], r["checkpoints"], r["used_bytes"]) == ("FINISHED", 2, kept)), 90)
    assert run["submission_id"] == "first" and run["attempts"] == 1
    assert run["checkpoint"]["name"].startswith("checkpoint_") and 0 < run["checkpoint"]["bytes"] < run["used_bytes"]
    table = lab.labd("status").stdout
    assert "CHECKPOINT" in table and all(len(line) <= 80 for line in table.splitlines()), table


def test_a_run_over_both_workers(lab):
    lab.submit("both", "python", "train.py", "--name", "both", "--workers", "2", "--epochs", "3", "--seconds-per-epoch", "0.2")
    logs = lab.wait_job("both")
    assert set(re.findall(r"gpu (SIM-\d)", logs)) == {"SIM-0", "SIM-1"}


def test_three_jobs_of_half_a_gpu(lab):
    code = "import ray,time; ray.init(); f=ray.remote(num_gpus=0.5,num_cpus=1)(lambda: (time.sleep(3), __import__('os').environ['LABD_GPU_UUID'])[1]); print('ran on', ray.get(f.remote()))"
    for i in range(3):
        lab.submit(f"half-{i}", "python", "-c", code)
    for i in range(3):
        assert "ran on SIM-" in lab.wait_job(f"half-{i}")


def test_a_gpu_that_no_run_has_is_in_use_while_a_task_has_it(lab):
    lab.wait_ready()
    code = "import ray,time; ray.init(); ray.get(ray.remote(num_gpus=0.5,num_cpus=1)(lambda: time.sleep(15)).remote())"
    taken = lambda: sorted(gpu.get("taken", -1) for gpu in lab.snapshot()["gpus"])
    wait_for("all are free", lambda: taken() == [0, 0], 60)
    lab.submit("quiet-task", "python", "-c", code)
    wait_for("one is in use", lambda: taken() == [0, 0.5], 60, every=0.5)
    assert "50 % of it in use" in lab.labd("gpu", "list").stdout
    lab.wait_job("quiet-task")
    wait_for("all are free again", lambda: taken() == [0, 0], 60)


def test_a_tune_run_with_asha(lab):
    lab.submit("asha", "python", "tune.py", "--trials", "4", "--epochs", "8")
    logs = lab.wait_job("asha", seconds=240)
    assert "best rate" in logs


def test_an_infeasible_job_stays_pending_and_is_explained(lab):
    before = lab.ids()
    code = "import ray; ray.init(); ray.get(ray.remote(num_gpus=4)(lambda: 1).remote())"
    lab.submit("greedy", "python", "-c", code)
    demand = wait_for("the demand is shown", lambda: [d for d in lab.snapshot()["demands"] if d["infeasible"]], 60, every=0.5)[0]
    assert "4 GPU" in demand["asks_for"] and demand["node_has"].startswith("1 GPU")
    text = lab.labd("status").stdout
    assert "4 GPU" in text and "can never be met" in text
    assert lab.job("greedy")["status"] in ("PENDING", "RUNNING")
    lab.stop_job("greedy")
    lab.wait_job("greedy", "STOPPED")
    assert lab.ids() == before, "it disturbed nothing"
