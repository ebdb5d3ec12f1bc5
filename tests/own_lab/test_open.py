"""What is open to whom, on a lab of its own: files, containers' rights, the store, the network.

The tables here are written down, not computed: whoever opens something changes a line of this file.
"""
import base64
import hashlib
import hmac
import http.client
import json
import os
import pathlib
import pty
import resource
import shutil
import socket
import stat
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from harness.lab import Lab, labd_binary, run, wait_for

pytestmark = pytest.mark.root

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
SUBNET = "198.18.171"
# Of metadata, in bytes: what a process can be handed, and no more, is taken.
LONGEST = 100_000


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A workspace and a writable mount that every local user can reach: the case that must hold."""
    lab = Lab("labdopen", f"{SUBNET}.0/24", gpus=1)
    shared = tmp_path_factory.mktemp("shared")
    for parent in (shared, *shared.parents):
        if str(parent) != "/" and parent != pathlib.Path("/tmp"):
            parent.chmod(0o755)
    lab.workspace, lab.written = shared / "workspace", shared / "written"
    lab.written.mkdir()
    lab.base = lab.base.replace("data_dir =", f'workspace = "{lab.workspace}"\ndata_dir =')
    lab.write(f'[[mounts]]\nsource = "{lab.written}"\ntarget = "/mnt/written"\nread_only = false\n[services.tensorboard]\nenabled = true\n')
    with lab.running():
        yield lab


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


# ---- files ----


def test_every_file_of_labd_is_its_own(lab):
    assert mode(lab.data_dir) == 0o700
    others = [(str(p), oct(mode(p))) for p in lab.data_dir.rglob("*") if mode(p) & 0o007 and not p.is_symlink()]
    assert not others, "open to every local user"
    groups = [str(p) for p in lab.data_dir.rglob("*") if mode(p) & 0o070]
    assert groups == [str(lab.data_dir / "door/jobs.sock")]
    assert {p.name for p in lab.data_dir.glob("ledger.db*")} >= {"ledger.db", "ledger.db-wal"}
    assert mode(lab.socket) == 0o660 and mode(f"{lab.socket}.lock") == 0o600


def test_no_local_user_keeps_labd_from_starting(lab):
    """What the daemon locks is not for others to lock, nor is any name of it anybody's."""
    held = pathlib.Path("/run/labd/labs") / f"{lab.name}.lock"
    assert mode(held) == 0o600
    for path in (held, f"{lab.socket}.lock"):
        done = run(*NOBODY, "flock", "--nonblock", path, "true", check=False)
        assert done.returncode != 0 and "ermission" in done.stderr, path
    assert "@labd" not in pathlib.Path("/proc/net/unix").read_text()
    second = lab.labd("--socket", lab.dir / "other.sock", "run", check=False)
    assert "taken by another program" in second.stderr or "another labd runs the lab" in second.stderr


# ---- set-id files ----

# Every way that Linux has to give a file these bits, as the container's root: by path, by descriptor, at its making, without
# the library between, and file capabilities, which are the same by another name.
MAKE = r'''
import ctypes, os, shutil, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
made = []
def attempt(name, how):
    path = os.path.join(sys.argv[1], name)
    try:
        how(path)
    except OSError as e:
        print(name, "refused:", e.strerror)
def copy(path):
    shutil.copyfile("/bin/bash", path)
    os.chmod(path, 0o755)
def chmod(bits):
    def how(path):
        copy(path)
        os.chmod(path, 0o755 | bits)
    return how
def fchmod(path):
    copy(path)
    with open(path) as f:
        os.fchmod(f.fileno(), 0o4755)
def call(number, *args):
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def fchmodat2(path):
    copy(path)
    call(452, -100, path.encode(), 0o4755, 0)
def openat2(path):
    how = struct.pack("QQQ", os.O_CREAT | os.O_WRONLY, 0o4755, 0)
    call(437, -100, path.encode(), how, len(how))
def tmpfile(path):
    fd = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR, 0o4755)
    os.link(f"/proc/self/fd/{fd}", path, follow_symlinks=True)
def capability(path):
    copy(path)
    os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 0x80, 0, 0, 0))
os.umask(0)
for name, how in {
    "plain": chmod(0), "chmod-4": chmod(0o4000), "chmod-2": chmod(0o2000), "fchmod": fchmod, "fchmodat2": fchmodat2, "openat2": openat2,
    "open": lambda p: os.open(p, os.O_CREAT | os.O_WRONLY, 0o4755), "tmpfile": tmpfile,
    "mknod": lambda p: os.mknod(p, 0o104755), "device": lambda p: os.mknod(p, 0o060666, os.makedev(8, 0)),
    "io-uring": lambda p: call(425, 1, ctypes.create_string_buffer(128)), "capability": capability,
}.items():
    attempt(name, how)
'''


@pytest.mark.parametrize("service", ["jupyter", "ray-worker-0", "ray-driver"])
def test_no_container_makes_a_set_id_file_on_the_host(lab, service):
    targets = {"/mnt/written": lab.written} | ({"/workspace": lab.workspace} if service == "jupyter" else {})
    for inside, outside in targets.items():
        said = lab.exec(service, "python3", "-c", MAKE, inside).stdout
        refused = {line.split()[0] for line in said.splitlines()}
        assert refused == {"chmod-4", "chmod-2", "fchmod", "fchmodat2", "openat2", "open", "tmpfile", "mknod", "device", "io-uring",
                           "capability"}, said
        assert (outside / "plain").exists(), "and what is not set-id is made"
        for path in outside.iterdir():
            assert not mode(path) & 0o6000 and not stat.S_ISBLK(os.lstat(path).st_mode), path
            assert "security.capability" not in os.listxattr(path), path


def test_a_copied_shell_is_powerless_for_a_local_user(lab):
    """As in the finding: a shell in the workspace, made set-id from JupyterLab, started by somebody with an account."""
    shell = lab.workspace / "r"
    # This machine's own: the container's wants another libc.
    shutil.copy("/bin/bash", shell)
    shell.chmod(0o755)
    lab.exec("jupyter", "chmod", "4755", "/workspace/r", check=False)
    assert run(*NOBODY, shell, "-p", "-c", "id -u").stdout.strip() == "65534"
    # And the test would see it: the host's own root can make one there.
    shell.chmod(0o4755)
    assert run(*NOBODY, shell, "-p", "-c", "id -u").stdout.strip() == "0"
    checks = json.loads(lab.labd("doctor", "--json", check=False).stdout)
    found = [c for c in checks["checks"] if c["name"] == "set-id"]
    assert found[0]["verdict"] == "fail" and str(shell) in found[0]["why"]
    shell.unlink()


def test_what_people_do_as_root_in_a_container_goes_on(lab):
    """The rights that are left are enough for packages, archives and other users' files."""
    lab.exec("jupyter", "sh", "-ec", "cd /tmp; mkdir -p d; echo x >d/f; chown 1000:1000 d/f; chmod 600 d/f; cat d/f; tar cf t d; "
             "mkdir -p e; tar xf t -C e; python3 -c 'import tempfile, subprocess; subprocess.run([\"true\"], check=True)'; "
             "dpkg --configure -a; setpriv --reuid=1000 --regid=1000 --clear-groups cat d/f")


# ---- containers ----

PEOPLE = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"]
# service: capabilities, processes, read-only root
RIGHTS = {
    "ray-head": (PEOPLE, 16384, False),
    "ray-driver": (PEOPLE, 16384, False),
    "ray-worker-0": (PEOPLE, 16384, False),
    "jupyter": (PEOPLE, 16384, False),
    "minio": ([], 4096, True),
    "prometheus": (["DAC_OVERRIDE"], 2048, False),
    "tensorboard": (["DAC_OVERRIDE"], 1024, True),
    "front-door": ([], 64, True),
}
BITS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7}
CODE = {"ray-driver", "ray-worker-0", "jupyter", "ray-head"}
# secret: who holds it
HOLDERS = {
    "ray_token": CODE,
    "s3_access_key": CODE,
    "s3_secret_key": CODE,
    "jupyter_token": {"jupyter"},
    "jupyter_door": {"jupyter"},
    "grafana_password": set(),
    "access_key": {"minio"},
    "secret_key": {"minio"},
}


def test_every_container_has_the_rights_of_the_table(lab):
    there = {s["name"] for s in lab.snapshot()["services"]} - {"grafana"}
    assert there == RIGHTS.keys()
    for service, (capabilities, pids, read_only) in RIGHTS.items():
        container = lab.inspect(service)
        host = container["HostConfig"]
        assert host["CapDrop"] == ["ALL"] and sorted(c.removeprefix("CAP_") for c in host["CapAdd"] or []) == capabilities, service
        assert (host["PidsLimit"], host["ReadonlyRootfs"], host["Privileged"]) == (pids, read_only, False), service
        assert host["Memory"] > 0 and host["MemorySwap"] == host["Memory"], service
        assert host["SecurityOpt"][0] == "no-new-privileges" and host["SecurityOpt"][1].startswith("seccomp="), service
        assert not host["Devices"] and host["PidMode"] == "" and host["IpcMode"] in ("private", "shareable"), service
        status = dict(
            line.split(":\t", 1) for line in pathlib.Path(f"/proc/{container['State']['Pid']}/status").read_text().splitlines() if ":\t" in line
        )
        mask = sum(1 << BITS[c] for c in capabilities)
        for field in ("CapPrm", "CapEff", "CapBnd"):
            assert int(status[field], 16) == mask, (service, field)
        assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2"), service


def test_every_secret_is_where_it_is_needed_and_nowhere_else(lab):
    files = [json.loads((lab.data_dir / name).read_text()) for name in ("secrets.json", "minio-root.json", "jupyter-door.json")]
    secrets = {name: value for held in files for name, value in held.items()}
    assert secrets.keys() == HOLDERS.keys()
    for name, value in secrets.items():
        holders = {s for s in RIGHTS if any(value in e for e in lab.inspect(s)["Config"]["Env"])}
        assert holders == HOLDERS[name], name


def test_prometheus_answers_no_other_sites_page(lab):
    url = lab.link("Prometheus")
    request = urllib.request.Request(url + "api/v1/query?query=up", headers={"Origin": "https://evil.example"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_tensorboard_reads_what_is_logged_in_the_workspace_and_writes_nothing(lab):
    lab.exec("jupyter", "/opt/ray/bin/python", "-c", """
from tensorboardX import SummaryWriter
with SummaryWriter("/workspace/runs/first") as writer:
    writer.add_scalar("loss", 0.5, 1)
""")
    url = lab.link("TensorBoard")

    def runs():
        with urllib.request.urlopen(url + "data/runs", timeout=10) as answer:
            return json.load(answer)

    wait_for("the run is shown", lambda: "runs/first" in runs(), 90)
    assert "Read-only file system" in lab.exec("tensorboard", "touch", "/workspace/x", check=False).stderr


# ---- the command line ----


def test_what_a_container_prints_steers_no_terminal(lab):
    evil = "clip\x1b]52;c;ZXZpbA==\x07 move\x1b[2J\x1b[1;1H turn\u202eback gap\u200bless red\x1b[31mred\x1b[0m end"
    lab.exec("jupyter", "sh", "-c", 'printf "%s\\n" "$1" >/proc/1/fd/1', "sh", evil)
    wait_for("the line is there", lambda: "clip" in lab.labd("logs", "jupyter").stdout, 10)
    assert evil in lab.labd("logs", "jupyter").stdout, "a file or a program gets it as it is"
    leader, follower = pty.openpty()
    env = {**os.environ, "LABD_CONFIG": str(lab.config), "LABD_SOCKET": str(lab.socket)}
    child = subprocess.Popen([labd_binary(), "logs", "jupyter"], stdout=follower, stderr=follower, stdin=follower, env=env)
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert child.wait(20) == 0
    line = next(line for line in shown.decode().splitlines() if "clip" in line)
    assert line == "clip␛]52;c;ZXZpbA==␇ move␛[2J␛[1;1H turn\ufffdback gap\ufffdless red\x1b[31mred\x1b[0m end"


# ---- the store ----


class Store:
    """Raw requests, signed by hand: SDKs do not send what is wrong."""

    def __init__(self, lab):
        secrets = json.loads((lab.data_dir / "secrets.json").read_text())
        root = json.loads((lab.data_dir / "minio-root.json").read_text())
        self.jobs = (secrets["s3_access_key"], secrets["s3_secret_key"])
        self.root = (root["access_key"], root["secret_key"])
        ports = lab.inspect("minio")["NetworkSettings"]["Ports"]
        self.host = f"127.0.0.1:{ports['9000/tcp'][0]['HostPort']}"

    def ask(self, method, path, headers=(), body=b"", query=""):
        connection = http.client.HTTPConnection(self.host, timeout=20)
        connection.request(method, path + (f"?{query}" if query else ""), body=body, headers={k: v for k, v in dict(headers).items() if k != "host"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")

    def signed(self, keys, method, path, body=b"", query="", payload=None, extra=None, age=0):
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - age))
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        payload = payload or hashlib.sha256(body).hexdigest()
        headers = {"host": self.host, "x-amz-content-sha256": payload, "x-amz-date": now, **(extra or {})}
        names = ";".join(sorted(headers))
        listed = "".join(f"{k}:{headers[k]}\n" for k in sorted(headers))
        canonical = f"{method}\n{path}\n{'&'.join(sorted(query.split('&')))}\n{listed}\n{names}\n{payload}"
        key = b"AWS4" + keys[1].encode()
        for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"):
            key = hmac.new(key, part.encode(), "sha256").digest()
        headers["Authorization"] = f"AWS4-HMAC-SHA256 Credential={keys[0]}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        return self.ask(method, path, headers, body, query)


@pytest.fixture(scope="module")
def store(lab):
    return Store(lab)


TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
CHUNKS = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
CHUNKED = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": "5", "x-amz-trailer": "x-amz-checksum-crc32"}


def credential(keys):
    return f"{keys[0]}/{time.strftime('%Y%m%d', time.gmtime())}/us-east-1/s3/aws4_request"


@pytest.mark.parametrize("whose", ["jobs", "root"])
def test_the_store_takes_nothing_without_the_secret_key(store, whose):
    keys = getattr(store, whose)
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    forged = f"AWS4-HMAC-SHA256 Credential={credential(keys)}, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={'ab' * 32}"
    # CVE-2026-40344: an archive that is unpacked.
    archive = run("sh", "-c", "cd /tmp && echo x >forged && tar cf - forged | base64").stdout
    headers = {"X-Amz-Meta-Snowball-Auto-Extract": "true", "X-Amz-Content-Sha256": TRAILER, "X-Amz-Date": now, "Authorization": forged}
    assert store.ask("PUT", "/ray/x.tar", headers, base64.b64decode(archive))[0] == 403
    # CVE-2026-41145: the access key in the query, and no signature at all.
    headers = {"X-Amz-Content-Sha256": TRAILER, "X-Amz-Date": now, **CHUNKED}
    query = "X-Amz-Credential=" + urllib.parse.quote(credential(keys), safe="")
    assert store.ask("PUT", "/ray/forged", headers, CHUNKS, query)[0] == 403
    assert store.ask("PUT", "/ray/forged", headers | {"Authorization": forged}, CHUNKS)[0] == 403
    assert store.ask("PUT", "/ray/forged", headers, CHUNKS)[0] == 403
    # Parts of larger uploads are put in the same way.
    assert store.ask("PUT", "/ray/forged", headers, CHUNKS, f"partNumber=1&uploadId=x&{query}")[0] == 403
    for key in ("forged", "x.tar"):
        assert store.signed(store.root, "HEAD", f"/ray/{key}")[0] == 404


def test_one_keys_signature_is_not_anothers_right(store):
    """Signed by who may write to one bucket, with the root's access key in the query."""
    assert store.signed(store.root, "PUT", "/private")[0] in (200, 409)
    query = "X-Amz-Credential=" + urllib.parse.quote(credential(store.root), safe="")
    assert store.signed(store.jobs, "PUT", "/private/x", b"hello", query)[0] in (400, 403)
    assert store.signed(store.jobs, "PUT", "/private/x", CHUNKS, query, TRAILER, CHUNKED)[0] in (400, 403)
    assert store.signed(store.root, "HEAD", "/private/x")[0] == 404


def test_what_is_signed_is_taken(store):
    assert store.signed(store.jobs, "PUT", "/ray/plain", b"hello")[0] == 200
    assert store.signed(store.jobs, "PUT", "/ray/chunked", CHUNKS, payload=TRAILER, extra=CHUNKED)[0] == 200
    assert store.signed(store.jobs, "GET", "/ray/chunked") == (200, "hello")
    assert store.signed(store.jobs, "PUT", "/ray/old", CHUNKS, payload=TRAILER, extra=CHUNKED, age=3600)[0] == 403


def test_jobs_own_uploads_are_taken(lab):
    """As pyarrow and boto3 send them, large enough for several parts."""
    script = """
import os, pyarrow.fs as fs
s3, _ = fs.FileSystem.from_uri("s3://ray/open?scheme=http&endpoint_override=" + os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"))
with s3.open_output_stream("ray/open/large") as f:
    for _ in range(24):
        f.write(bytes(1 << 20))
assert s3.get_file_info("ray/open/large").size == 24 << 20
s3.delete_dir("ray/open")
"""
    lab.exec("jupyter", "python3", "-c", script)


def test_jobs_have_one_bucket_and_no_more(store):
    for path in ("info", "list-users", "list-canned-policies", "storageinfo"):
        assert store.signed(store.jobs, "GET", f"/minio/admin/v3/{path}")[0] == 403, path
    assert store.signed(store.root, "GET", "/minio/admin/v3/info")[0] == 200, "the same request of root"
    assert store.signed(store.root, "PUT", "/private")[0] in (200, 409)
    assert store.signed(store.jobs, "PUT", "/private/x", b"hello")[0] == 403
    assert store.signed(store.jobs, "GET", "/private")[0] == 403
    assert store.signed(store.jobs, "PUT", "/another")[0] == 403
    everybody = json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": ["*"]}, "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::ray/*"]}]}).encode()
    assert store.signed(store.jobs, "PUT", "/ray", everybody, "policy=")[0] == 403, "to open the bucket to everybody"
    assert store.signed(store.jobs, "GET", "/ray")[0] == 200


def test_the_user_of_jobs_comes_back_when_it_was_removed(lab, store):
    assert store.signed(store.root, "DELETE", "/minio/admin/v3/remove-user", query=f"accessKey={store.jobs[0]}")[0] == 200
    wait_for("jobs may write again", lambda: store.signed(store.jobs, "PUT", "/ray/again", b"x")[0] == 200, 40, every=1)


# ---- the network ----


@pytest.fixture
def outside():
    """A host of its own on a cable to this one, with a route to the lab's subnet."""
    # TEST-NET-3, as this machine may itself be in one of the other two.
    name, link, here, there = "labdopen", "labdopen0", "203.0.113.1", "203.0.113.2"
    assert "203.0.113." not in run("ip", "-4", "addr").stdout + run("ip", "-4", "route").stdout
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "out", "netns", name)
        run("ip", "addr", "add", f"{here}/30", "dev", link)
        run("ip", "link", "set", link, "up")
        for words in (f"addr add {there}/30 dev out", "link set out up", "link set lo up", f"route add {SUBNET}.0/24 via {here}"):
            run("ip", "-n", name, *words.split())
        yield lambda *argv, **kwargs: run("ip", "netns", "exec", name, *argv, **kwargs)
    finally:
        run("ip", "link", "del", link, check=False)
        run("ip", "netns", "del", name, check=False)


REACH = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    s = socket.socket()
    s.settimeout(1.5)
    try:
        s.connect((host, int(port)))
        print(target)
    except OSError:
        pass
    s.close()
"""


def rules():
    return [line for line in run("iptables", "-t", "raw", "-S", "PREROUTING").stdout.splitlines() if "labd:labdopen" in line]


def test_another_host_gets_nothing_of_the_labs_subnet(lab, outside):
    page = int(lab.base.split('page = "127.0.0.1:')[1].split('"')[0])
    targets = [f"{SUBNET}.{host}:{port}" for host, port in
               [(10, 6379), (10, 8265), (12, 9000), (12, 9001), (13, 9090), (15, 8888), (16, 8265), (11, 10001), (20, 52365), (1, page)]]
    reached = lambda: outside("python3", "-c", REACH, *targets).stdout.split()
    wait_for("the rule stands", lambda: len(rules()) == 1, 30)
    assert reached() == []
    # Without it what is published on loopback is there: the rule is what keeps it. labd may put it up again in between.
    def without():
        for rule in rules():
            run("iptables", "-t", "raw", *rule.replace("-A", "-D", 1).replace('"', "").split())
        return outside("python3", "-c", REACH, f"{SUBNET}.12:9000", f"{SUBNET}.15:8888").stdout.split()

    wait_for("the store and JupyterLab are reached", lambda: len(without()) == 2, 20)
    wait_for("labd puts it up again", lambda: len(rules()) == 1, 40)
    assert reached() == []
    # And the lab itself sees nothing of it.
    lab.exec("jupyter", "python3", "-c", REACH, f"{SUBNET}.12:9000")
    assert f"{SUBNET}.12:9000" in lab.exec("jupyter", "python3", "-c", REACH, f"{SUBNET}.12:9000").stdout


def test_labds_own_metrics_are_for_prometheus(lab):
    page = lab.base.split('page = "127.0.0.1:')[1].split('"')[0]
    ask = (f"import urllib.request\ntry:\n    print(urllib.request.urlopen('http://{SUBNET}.1:{page}/metrics', timeout=5).status)\n"
           "except OSError as e:\n    print('closed', e)")
    assert lab.exec("jupyter", "python3", "-c", ask).stdout.startswith("closed")
    url = lab.link("Prometheus")

    def up():
        with urllib.request.urlopen(url + "api/v1/query?query=up%7Bjob%3D%22labd%22%7D", timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return found and found[0]["value"][1] == "1"

    wait_for("Prometheus reads labd's metrics", up, 40)


# ---- budgets ----


def post(lab, path, body):
    """Status of what the door answers to a holder of the token."""
    url = lab.link("Ray dashboard").rstrip("/") + path
    headers = {"Authorization": f"Bearer {lab.ray_token()}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as e:
        return e.code


def test_idle_connections_disturb_nobody(lab):
    """More of them than a process may have open by default, at the page and at the door."""
    lab.wait_ready()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    urls = [lab.link(name) for name in ("status page", "Ray dashboard")]
    idle = []
    try:
        for n in range(1_100):
            host, port = urllib.parse.urlsplit(urls[n % len(urls)]).netloc.split(":")
            idle.append(socket.create_connection((host, int(port)), timeout=20))
        before = lab.ids()["prometheus"]
        lab.sigkill("prometheus")
        wait_for("labd supervises", lambda: lab.ids().get("prometheus", before) != before, 30)
        for url in urls:
            wait_for(f"{url} answers", lambda u=url: answers(u), 40)
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    lab.wait_ready("prometheus")


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except urllib.error.HTTPError as e:
        return e.code == 401
    except OSError:
        return False


def test_many_fat_submissions_are_followed_or_refused(lab):
    """Those of 920 kB made Ray's list longer than labd reads at once."""
    lab.wait_ready()
    fat = [f"fat-{n}" for n in range(72)]
    # They wait for what no node has: 72 drivers at once would be another test.
    def submit(job, length):
        return post(lab, "/api/jobs/", {"submission_id": job, "entrypoint": "true", "entrypoint_num_gpus": 8,
                                        "metadata": {"note": "x" * length}})

    assert {submit(job, 920_000) for job in fat} == {400}
    # Fewer: the status shows fifty jobs at most.
    fat = fat[:30]
    statuses = [submit(job, LONGEST) for job in fat]
    assert set(statuses) <= {200, 413, 507}, statuses
    taken = [job for job, status in zip(fat, statuses, strict=True) if status == 200]
    assert post(lab, "/api/jobs/", {"submission_id": "fat-none", "entrypoint": "true", "metadata": {"x": "x" * (2 << 20)}}) == 413
    assert post(lab, "/api/jobs/", {"submission_id": "x" * 129, "entrypoint": "true"}) == 400
    lab.exec("jupyter", "ray", "job", "submit", "--no-wait", "--submission-id", "slim", "--", "true")
    lab.wait_job("slim", seconds=240)
    for job in taken:
        lab.labd("jobs", "stop", job, check=False)
    wait_for("what was stopped is followed", lambda: all(lab.job(job)["outcome"] for job in taken), 240, every=2)


# ---- the end ----


def test_the_rule_goes_with_the_lab(lab):
    """The last test here: the lab is down afterwards."""
    lab.labd("down", timeout=180)
    assert rules() == []
