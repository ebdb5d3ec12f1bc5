"""Worker processes on the lab are forked from the warm one, and live and end as ever."""
import json
import re

from harness.lab import wait_for

SCRIPT = '''
import json, os, signal, subprocess, sys
import ray

ray.init()

@ray.remote(num_cpus=0, label_selector={"labd.role": "worker"})
class Actor:
    def seen(self):
        import numpy
        parent = open(f"/proc/{os.getppid()}/cmdline").read()
        libraries = open(f"/proc/{os.getppid()}/maps").read()
        context = ray.get_runtime_context()
        return {"warm": "labd_warm" in parent, "drawn": numpy.random.rand(), "threads": os.environ.get("OMP_NUM_THREADS"),
                "with_ray": "/_raylet.so" in libraries, "parent": f"{context.get_node_id()} {os.getppid()}",
                "job": [context.get_job_id(), os.environ["RAY_JOB_ID"]], "put": ray.put(1).hex(), "random": ray.ObjectRef.from_random().hex()}

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

def errors(call):
    try:
        ray.get(call)
        return "none"
    except Exception as error:
        return f"{type(error).__name__} " + " ".join(str(error).split())

told = {}
for name, env in {"one": {"A": "1"}, "two": {"A": "2"}, "more": {"A": "4"}, "other": {"RAY_DEDUP_LOGS": "1"}, "off": {"LABD_WARM": "0"}}.items():
    actor = Actor.options(runtime_env={"env_vars": env}).remote()
    told[name] = ray.get(actor.seen.remote())
    told[name]["error"] = errors(actor.die.remote())
kept = Actor.options(runtime_env={"env_vars": {"A": "3"}}).remote()
told["kept"] = ray.get(kept.seen.remote())
told["mine"] = ray.get_runtime_context().get_job_id()
print("TOLD " + json.dumps(told), flush=True)
signal.pause()
'''


def test_actors_are_forked_from_the_warm_process_and_end_as_ever(lab):
    def is_warm(service):
        return lab.exec(service, "test", "-S", "/run/labd-warm.sock", check=False).returncode == 0

    def has_actors(service):
        return any(re.match("ray::Actor", args) for args in lab.processes(service).values())

    for service in ("ray-driver", "ray-worker-0", "ray-worker-1"):
        wait_for(f"{service} is warm", lambda at=service: is_warm(at), 120)
    (lab.put_samples() / "warm.py").write_text(SCRIPT)
    job = lab.submit("warm", "python", "warm.py")
    told = json.loads(wait_for("the actors told", lambda: re.search(r"TOLD (.*)", lab.logs(job)), 120, every=0.5)[1])
    assert told["one"]["warm"] and told["two"]["warm"] and told["kept"]["warm"]
    assert not told["off"]["warm"], "a job may switch it off"
    forked = [told[name] for name in ("one", "two", "more", "other", "kept")]
    assert all(seen["with_ray"] for seen in forked), "Ray was imported before the fork"
    assert len({seen["parent"] for seen in forked if seen is not told["other"]}) <= 2, "by one process on each node"
    assert told["other"]["parent"] not in {seen["parent"] for seen in forked if seen is not told["other"]}, "unless Ray is told something else"
    assert all(seen["job"] == [told["mine"]] * 2 for seen in forked), "and knows this job"
    for what in ("put", "random", "drawn"):
        assert len({seen[what] for seen in forked}) == len(forked), f"no two have {what} in common"
    assert told["one"]["threads"] == told["off"]["threads"]
    for name in ("one", "two", "off"):
        assert told[name]["error"].startswith("ActorDiedError") and "connection error code 2" in told[name]["error"], "a death is told as ever"

    lab.stop_job(job)
    lab.wait_job(job, "STOPPED")
    for service in ("ray-worker-0", "ray-worker-1"):
        wait_for("the job's actor has ended", lambda at=service: not has_actors(at), 60, every=0.5)
