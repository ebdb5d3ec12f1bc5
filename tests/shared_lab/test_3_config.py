"""labd.toml while the lab runs."""
import json

from harness.lab import wait_for

# What runs people's code.
CODE = {"ray-driver", "ray-worker-0", "ray-worker-1", "jupyter"}


def outdated(lab):
    """Services whose containers are not what is wanted."""
    return {d["service"] for d in json.loads(lab.labd("plan", "--diff", "--json").stdout)}


def test_one_more_mount_recreates_what_is_idle_and_the_workers_one_at_a_time(lab):
    lab.wait_ready()
    data = lab.dir / "dataset"
    data.mkdir()
    (data / "hello.txt").write_text("from the host\n")
    before = lab.ids()
    lab.write(f'[[mounts]]\nsource = "{data}"\ntarget = "/mnt/dataset"\nread_only = true\n')
    said = lab.labd("reload").stdout
    assert "ray-worker-0, ray-worker-1" in said
    assert "`labd apply`" in said, "what is at work waits for it"
    code, both_away = CODE - {"jupyter"}, []

    def done():
        states = lab.states()
        if all(states[w] != "ready" for w in ("ray-worker-0", "ray-worker-1")):
            both_away.append(states)
        ids = lab.ids()
        changed = {n for n in before if ids.get(n, ("",))[0] != before[n][0]}
        return changed == code and all(states[service] == "ready" for service in code)

    wait_for("all of them are new and ready", done, 240)
    assert not both_away, "never both at once"
    assert "at its next stop" in lab.labd("plan", "--diff").stdout, "JupyterLab keeps its kernels"
    assert lab.labd("apply").stdout == "recreated now: jupyter\n"
    code = CODE
    wait_for("JupyterLab has it, too", done, 120)
    assert not code & outdated(lab)
    assert lab.labd("apply").stdout == "nothing waits: every container is up to date\n"
    for service in code:
        assert lab.exec(service, "cat", "/mnt/dataset/hello.txt").stdout == "from the host\n"
    lab.write()
    lab.labd("reload")
    lab.labd("apply")


def test_a_broken_file_is_refused_and_nothing_is_touched(lab):
    lab.wait_ready()
    wait_for("the mount is gone again", lambda: not CODE & outdated(lab), 180)
    lab.wait_ready()
    before = lab.ids()
    lab.write("[[mounts]]\nsourse = '/data'\ntarget = '/mnt'\n")
    line = lab.config.read_text().splitlines().index("sourse = '/data'") + 1
    for argv in (["reload"], ["config", "check"]):
        done = lab.labd(*argv, check=False)
        assert done.returncode == 78
        assert done.stderr == f"labd: {lab.config}:{line}: `sourse` is not a setting; did you mean `source`?\n"
    lab.write()
    lab.labd("reload")
    assert lab.ids() == before
    assert any(e["what"] == "refused" for e in lab.events())


def test_what_cannot_change_while_it_runs_is_said(lab):
    text = lab.config.read_text()
    lab.config.write_text(text.replace('name = "labdtest"', 'name = "other"'))
    done = lab.labd("reload", check=False)
    lab.config.write_text(text)
    assert done.returncode == 78 and "`lab.name` cannot change while labd runs" in done.stderr


def test_a_service_can_be_switched_off_and_on(lab):
    lab.write("[services.prometheus]\nenabled = false\n")
    lab.labd("reload")
    wait_for("off and gone", lambda: lab.service("prometheus")["state"] == "off" and "prometheus" not in lab.ids(), 60)
    assert lab.labd("restart", "prometheus", check=False).returncode == 78
    lab.write()
    lab.labd("reload")
    lab.wait_ready("prometheus")
