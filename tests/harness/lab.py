"""A lab of its own for a test or a bench: other name, ports, socket and data directory than any other on this machine.

Standard library only; everything is asked through `labd` and the `docker` command, as a person would.
"""
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
CA = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")


def labd_binary():
    """The binary under test: $LABD, else what cargo built last."""
    if path := os.environ.get("LABD"):
        return path
    built = [p for p in (ROOT / "target/release/labd", ROOT / "target/debug/labd") if p.exists()]
    assert built, "no labd binary: cargo build"
    return str(max(built, key=lambda p: p.stat().st_mtime))


def wait_for(what, condition, seconds=60, every=0.1):
    """Waits until `condition` is true and returns what it returned; fails after the deadline."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        last = condition()
        if last:
            return last
        time.sleep(every)
    raise AssertionError(f"{what}: not within {seconds} s (last: {last!r})")


def run(*argv, check=True, timeout=120, **kwargs):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=timeout, **kwargs)
    if check and done.returncode != 0:
        raise AssertionError(f"{argv[:4]}... exited {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done


def docker(*argv, **kwargs):
    return run("docker", *argv, **kwargs)


def one_line(done, code):
    """The one line that a command of labd said on stderr when it failed with this exit code."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert len(lines) == 1 and lines[0].startswith("labd: "), done.stderr
    assert "panick" not in done.stderr
    return lines[0]


def kill_first_process(container):
    """SIGKILL, of which the engine knows nothing; whether there was a process to kill."""
    pid = int(docker("inspect", "-f", "{{.State.Pid}}", container).stdout)
    # An ended container's pid is 0, and signals to 0 go to every process of our own group.
    if not pid:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # the engine has not seen its end yet
        return False
    return True


def sweep(lab):
    """Removes the containers, the network and the volumes that the engine holds for a lab of a test, by the lab's name."""
    ids = docker("ps", "-aq", "--filter", f"label=dev.labd.lab={lab}").stdout.split()
    if ids:
        docker("rm", "-f", *ids, check=False)
    docker("network", "rm", lab, check=False)
    volumes = docker("volume", "ls", "-q", "--filter", f"label=dev.labd.lab={lab}").stdout.split()
    if volumes:
        docker("volume", "rm", "-f", *volumes, check=False)


def build_settings():
    """[images.build] for the machine we are on: its CA bundle, mirrors and proxies."""
    env = os.environ
    lines = [f'ca_bundle = "{CA}"'] if CA.exists() else []
    for key, names in {
        "pip_index_url": ["PIP_INDEX_URL"],
        "goproxy": ["GOPROXY"],
        "debian_mirror": ["LABD_DEBIAN_MIRROR"],
        "http_proxy": ["http_proxy", "HTTP_PROXY"],
        "https_proxy": ["https_proxy", "HTTPS_PROXY"],
        "no_proxy": ["no_proxy", "NO_PROXY"],
    }.items():
        value = next((env[n] for n in names if env.get(n)), None)
        if value:
            lines.append(f'{key} = "{value}"')
    return "\n".join(lines)


class Visitor:
    """What a browser does with the page: it keeps the cookie, and the page's script shows the session's CSRF token."""

    def __init__(self, page, trusted=None):
        """`trusted`: file with the certificates that are trusted where the page is served over TLS."""
        self.page, self.origin, self.cookie, self.csrf = page, page.rstrip("/"), None, None
        self.context = ssl.create_default_context(cafile=trusted) if page.startswith("https:") else None

    def ask(self, method, path, body=None, **headers):
        """Status and answer, JSON where it is that. A header of None is left out."""
        told = {"Origin": self.origin, "Cookie": self.cookie, "X-Labd-Csrf": self.csrf, "Content-Type": body is not None and "application/json" or None}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.page + path, data, {k: v for k, v in told.items() if v is not None}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.context) as answer:
                return answer.status, self.heard(answer)
        except urllib.error.HTTPError as error:
            return error.code, self.heard(error)

    def heard(self, answer):
        text = answer.read().decode(errors="replace")
        if cookie := answer.headers.get("Set-Cookie"):
            value = cookie.partition(";")[0]
            self.cookie = None if value.endswith("=") else value
        try:
            told = json.loads(text)
        except ValueError:
            return text
        if isinstance(told, dict) and told.get("csrf"):
            self.csrf = told["csrf"]
        return told


class Lab:
    def __init__(self, name, subnet, gpus=2, extra="", build=None, data_dir=None, page=0, head=""):
        self.name = name
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self.data_dir = pathlib.Path(data_dir or self.dir / "data")
        self.config = self.dir / "labd.toml"
        self.socket = self.dir / "labd.sock"
        self.extra = extra
        self.base = f"""
[lab]
name = "{name}"
data_dir = "{self.data_dir}"
page = "127.0.0.1:{page or free_port()}"
[node]
address = "127.0.0.1"
[network]
subnet = "{subnet}"
[gpus]
simulate = {gpus}
[ports]
gcs = 0
dashboard = 0
s3 = 0
s3_console = 0
prometheus = 0
grafana = 0
jupyter = 0
tensorboard = 0
[http]
jupyter_port = 0
[images.build]
{build_settings() if build is None else build}
{head}
"""
        self.write(extra)

    def write(self, extra=""):
        self.config.write_text(self.base + extra)

    # ---- labd ----

    def labd(self, *argv, check=True, timeout=120, binary=None):
        env = {**os.environ, "LABD_CONFIG": str(self.config), "LABD_SOCKET": str(self.socket), "NO_COLOR": "1"}
        return run(binary or labd_binary(), *argv, check=check, timeout=timeout, env=env)

    def add_user(self, name, role, password, check=True):
        """An account of this name for the page, in place of one that a test before may have left."""
        self.labd("user", "remove", "--", name, check=False)
        return run(labd_binary(), "--config", self.config, "--socket", self.socket, "user", "add", "--role", role, "--", name, input=password, check=check)

    def visitor(self):
        """A browser's stand-in, nobody yet."""
        return Visitor(self.link("status page"), self.data_dir / "page.pem")

    def log_in(self):
        """Whoever opens the link of `labd open`: an admin."""
        visitor = self.visitor()
        token = self.labd("open", "--print").stdout.strip().partition("#link=")[2]
        assert visitor.ask("POST", "api/v1/login/link", {"token": token})[0] == 200
        return visitor

    def up(self, timeout=2400):
        return self.labd("up", f"--timeout={timeout}", timeout=timeout + 30)

    @contextlib.contextmanager
    def running(self):
        """Up for as long as it is needed."""
        # What a killed run left (a volume with Ray's old jobs, say) must not be adopted as ours.
        self.sweep()
        try:
            self.up()
            yield self
        finally:
            self.down()

    def down(self):
        """Everything this lab made, the data included: labs of tests leave nothing."""
        if self.config.exists():
            self.labd("down", check=False, timeout=180)
        self.sweep()
        shutil.rmtree(self.dir, ignore_errors=True)

    def sweep(self):
        """Removes what the engine holds under this lab's name, also from a run that was killed before its end."""
        sweep(self.name)

    def snapshot(self):
        return json.loads(self.labd("status", "--json").stdout)

    def service(self, name, snapshot=None):
        found = [s for s in (snapshot or self.snapshot())["services"] if s["name"] == name]
        assert found, f"no service {name}"
        return found[0]

    def link(self, name):
        """The address of what the page links to by this name."""
        return next(link["url"] for link in self.snapshot()["links"] if link["name"] == name)

    def states(self):
        return {s["name"]: s["state"] for s in self.snapshot()["services"]}

    def wait_ready(self, *names, seconds=90):
        def ready():
            states = self.states()
            wanted = names or [n for n in states if n != "grafana"]
            return all(states.get(n) == "ready" for n in wanted)

        wait_for(f"{names or 'all'} ready", ready, seconds)

    def events(self, service=None, last=200):
        argv = ["events", "--json", "-n", str(last)] + (["--service", service] if service else [])
        return [json.loads(line) for line in self.labd(*argv).stdout.splitlines()]

    def pid(self):
        return self.snapshot()["labd"]["pid"]

    def kill_daemon(self):
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        wait_for("labd is gone", lambda: not pathlib.Path(f"/proc/{pid}/cmdline").exists() or not pathlib.Path(f"/proc/{pid}/cmdline").read_bytes())

    # ---- containers ----

    def container(self, service):
        return f"{self.name}-{service}"

    def exec(self, service, *argv, **kwargs):
        return docker("exec", self.container(service), *argv, **kwargs)

    def inspect(self, service):
        return json.loads(docker("inspect", self.container(service)).stdout)[0]

    def ids(self):
        """service -> (container id, start time)"""
        names = docker("ps", "-a", "--filter", f"label=dev.labd.lab={self.name}", "--format", "{{.Names}}").stdout.split()
        # One of them may be gone by now: the others are printed all the same.
        found = json.loads(docker("inspect", *names, check=False).stdout) if names else []
        return {c["Name"].lstrip("/").removeprefix(self.name + "-"): (c["Id"], c["State"]["StartedAt"]) for c in found}

    def sigkill(self, service):
        """A crash that the engine was not asked for. Nothing happens to a container that does not run."""
        kill_first_process(self.container(service))

    def crash(self, service):
        """A crash, and the way back to ready."""
        before = self.service(service)["restarts"]
        self.sigkill(service)
        wait_for(f"{service} was restarted", lambda: self.service(service)["restarts"] > before, 30)
        self.wait_ready(service)

    def processes(self, service):
        """pid -> arguments, of one container."""
        lines = self.exec(service, "ps", "-eo", "pid=,args=").stdout.splitlines()
        return {int(pid): args for pid, args in (line.split(None, 1) for line in lines if " " in line.strip())}

    # ---- Ray ----

    def ray_token(self):
        return json.loads(self.labd("credentials", "--json").stdout)[0]["secret"]

    def api(self, path):
        url = self.link("Ray dashboard")
        request = urllib.request.Request(url.rstrip("/") + path, headers={"Authorization": f"Bearer {self.ray_token()}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def put_samples(self):
        target = self.data_dir / "workspace" / "samples"
        shutil.copytree(ROOT / "samples", target, dirs_exist_ok=True)
        return target

    def submit(self, job, *command, options=()):
        """`ray job submit` inside the Jupyter container, as a student would."""
        self.put_samples()
        self.exec("jupyter", "ray", "job", "submit", "--no-wait", "--submission-id", job, *options,
                  "--working-dir", "/workspace/samples", "--", *command)
        return job

    def job(self, job):
        found = [j for j in self.snapshot()["jobs"] if j["submission_id"] == job]
        return found[0] if found else None

    def run(self, name, is_so=lambda run: True):
        """A training run as labd shows it, once it is so."""
        found = [r for r in self.snapshot()["runs"] if r["name"] == name]
        return found[0] if found and is_so(found[0]) else None

    def logs(self, job):
        return re.sub(r"\x1b\[[0-9;]*m", "", self.api(f"/api/jobs/{job}/logs")["logs"])

    def stop_job(self, job):
        self.exec("jupyter", "ray", "job", "stop", "--no-wait", job, check=False)

    def wait_job(self, job, status="SUCCEEDED", seconds=180):
        def ended():
            found = self.job(job)
            return found and found["status"] in ("SUCCEEDED", "FAILED", "STOPPED") and found

        found = wait_for(f"job {job} ends", ended, seconds, every=0.5)
        assert found["status"] == status, f"{job}: {found['status']}: {found['message']}\n{self.logs(job)[-3000:]}"
        return self.logs(job)

    def worker_of(self, job):
        """The GPU worker on which a job's last epoch was trained."""
        found = re.findall(r"epoch \d+/\d+ .* on [\d.]+\.(\d+) gpu", self.logs(job))
        return f"ray-worker-{int(found[-1]) - 20}" if found else None


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
