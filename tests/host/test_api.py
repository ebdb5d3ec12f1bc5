"""The API is what its document says: schemathesis asks every operation of it for whatever the document allows, and forbids. No
engine is needed: the lab's socket of the engine leads nowhere, so that actions do no harm.
"""
import contextlib
import json
import os
import shutil
import socket
import socketserver
import subprocess
import threading

from harness.lab import ROOT, Lab, labd_binary, wait_for

SCHEMATHESIS = ROOT / "target/tools/venv/bin/schemathesis"  # scripts/tools.sh test
# For what is made up, for each listener, beside the table of what is not as it must be, which is done to its end. Chosen: what was
# found came within 20 s.
SECONDS = 25
# Ends the lab, or the session that asks; the rest of both is in other tests.
LEFT_OUT = {"/api/v1/down", "/api/v1/logout"}


@contextlib.contextmanager
def daemon():
    lab = Lab("labdapi", "198.18.221.0/24", head='[engine]\nsocket = "unix:///nowhere/docker.sock"', build="")
    env = {**os.environ, "LABD_CONFIG": str(lab.config), "LABD_SOCKET": str(lab.socket)}
    with open(lab.dir / "labd.log", "w") as log:
        process = subprocess.Popen([labd_binary(), "run"], env=env, stdout=log, stderr=log)
    try:
        # What is linked to is known a moment after the socket answers.
        answers = lambda: lab.labd("status", check=False).returncode == 0 and lab.snapshot()["links"]
        wait_for("labd is up", lambda: lab.socket.exists() and answers(), 30)
        yield lab
        assert process.poll() is None, (lab.dir / "labd.log").read_text()[-2000:]
        assert "panic" not in (lab.dir / "labd.log").read_text()
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(lab.dir, ignore_errors=True)


class Relay(socketserver.ThreadingTCPServer):
    """Loopback's way to a Unix socket: schemathesis speaks TCP alone."""

    daemon_threads = True

    def __init__(self, path):
        self.path = str(path)
        super().__init__(("127.0.0.1", 0), self.Connection)

    class Connection(socketserver.BaseRequestHandler):
        def handle(self):
            with socket.socket(socket.AF_UNIX) as there:
                there.connect(self.server.path)
                back = threading.Thread(target=self.pump, args=(there, self.request))
                back.start()
                self.pump(self.request, there)
                back.join()

        def pump(self, source, target):
            with contextlib.suppress(OSError):
                while data := source.recv(1 << 16):
                    target.sendall(data)
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def of_listener(document, listener):
    """Those operations of the document that stand there. Streams go on while somebody listens: they are tested in Rust."""
    paths = {}
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            streams = "text/event-stream" in told["responses"]["200"]["content"]
            if listener not in told["x-labd-on"] or streams or path in LEFT_OUT:
                continue
            # A log that is followed is a stream, too.
            told["parameters"] = [p for p in told["parameters"] if p["name"] != "follow"]
            # The socket's permissions decide there.
            paths.setdefault(path, {})[method] = told if listener == "page" else {**told, "security": []}
    return {**document, "paths": paths}


def schemathesis(tmp_path, document, url, *argv, config=""):
    assert SCHEMATHESIS.exists(), "scripts/tools.sh test"
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    # What stands behind labd is not there: these three say so.
    statuses = '["2xx", "3xx", "4xx", 502, 503, 504]'
    (tmp_path / "config.toml").write_text(f"[checks.not_a_server_error]\nexpected-statuses = {statuses}\n{config}")
    command = [SCHEMATHESIS, "--config-file", "config.toml", "run", "openapi.json", "--url", url, "--seed=7",
               "--workers=2", "--continue-on-failure", "--no-shrink", "--request-timeout=30", *argv]
    operations = sum(len(methods) for methods in document["paths"].values())
    for phases in (["--phases=examples,coverage"], ["--phases=fuzzing", f"--max-time={SECONDS}"]):
        done = subprocess.run([*command, *phases], cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "fuzzing" in phases[0] or f"Tested: {operations}" in done.stdout, done.stdout[-3000:]


def test_the_page_answers_as_the_document_says(tmp_path):
    with daemon() as lab:
        visitor = lab.log_in()
        status, document = visitor.ask("GET", "api/v1/openapi.json")
        assert status == 200 and document["openapi"].startswith("3.1")
        scheme = document["components"]["securitySchemes"]["session"]
        name, _, value = visitor.cookie.partition("=")
        assert scheme["name"] == name
        config = f'[auth.openapi.session]\napi_key = "{value}"\n[auth.openapi.csrf]\napi_key = "{visitor.csrf}"\n'
        schemathesis(tmp_path, of_listener(document, "page"), visitor.origin, f"--header=Origin: {visitor.origin}", config=config)
        # It was somebody who asked all that, and still is.
        assert visitor.ask("GET", "api/v1/me")[1]["role"] == "admin"


def test_the_socket_answers_as_the_document_says(tmp_path):
    with daemon() as lab, Relay(lab.socket) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        document = lab.log_in().ask("GET", "api/v1/openapi.json")[1]
        try:
            schemathesis(tmp_path, of_listener(document, "socket"), f"http://127.0.0.1:{relay.server_address[1]}")
        finally:
            relay.shutdown()
