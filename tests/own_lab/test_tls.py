"""The page over TLS, by labd's own executable and OpenSSL's clients. No engine is needed: it is away."""
import contextlib
import hashlib
import http.client
import os
import pathlib
import shutil
import socket
import ssl
import stat
import time
import urllib.parse

import pytest

from harness.browser import RUNS, chromium, jupyter
from harness.lab import Lab, free_port, one_line, run, wait_for

GIVEN = pathlib.Path(__file__).resolve().parents[1] / "data" / "tls"


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def serving(http, page="127.0.0.1"):
    """A lab without an engine, whose daemon runs: its page is what is asked."""
    lab = Lab("labdtls", "198.18.178.0/24", gpus=1)
    lab.port = free_port()
    lab.base = lab.base.replace("[http]", f"[http]\n{http}") + '[engine]\nsocket = "unix:///nowhere/docker.sock"\n'
    lab.base = "".join(f'page = "{page}:{lab.port}"\n' if line.startswith("page = ") else line for line in lab.base.splitlines(keepends=True))
    lab.write()
    try:
        lab.labd("up", "--timeout=3", check=False)
        wait_for("the page is served", lambda: listens(lab.port), 30)
        yield lab
    finally:
        with contextlib.suppress(AssertionError):
            os.kill(lab.pid(), 15)
            wait_for("labd ends", lambda: not lab.socket.exists(), 20)
        shutil.rmtree(lab.dir, ignore_errors=True)


def shown(port):
    """The certificate that is shown, as its SHA-256 fingerprint."""
    der = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port), timeout=10))
    return ":".join(f"{byte:02X}" for byte in hashlib.sha256(der).digest())


def notices(lab, part):
    return [n["text"] for n in lab.snapshot()["notices"] if part in n["text"]]


def test_a_certificate_of_labds_own_can_be_compared_and_trusted():
    with serving('tls = "self-signed"') as lab:
        link = lab.labd("open", "--print").stdout.strip()
        assert link.startswith(f"https://localhost:{lab.port}/#link="), link
        kept = lab.data_dir / "page.pem"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        fingerprint = shown(lab.port)
        told = lab.snapshot()["tls"]
        assert (told["fingerprint"], told["self_signed"]) == (fingerprint, True)
        assert fingerprint in lab.labd("doctor", check=False).stdout
        assert run("openssl", "x509", "-in", kept, "-noout", "-fingerprint", "-sha256").stdout.strip().endswith("=" + fingerprint)
        assert "OK" in run("openssl", "verify", "-x509_strict", "-CAfile", kept, kept).stdout

        # Who trusts it logs in, and the second origin has it, too.
        admin = lab.log_in()
        assert admin.ask("GET", "api/v1/me")[1]["role"] == "admin"
        told = admin.ask("POST", "api/v1/jupyter/ticket")[1]
        assert told["url"] == f"https://jupyter.localhost:{lab.port}/enter", told
        admin.origin = "http" + admin.origin.removeprefix("https")
        assert admin.ask("POST", "api/v1/logout")[0] == 403, "from a page without TLS"

        # Plain HTTP is led there.
        plain = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=10)
        plain.request("GET", "/?x=1", headers={"Host": f"localhost:{lab.port}"})
        answer = plain.getresponse()
        assert (answer.status, answer.headers["Location"]) == (307, f"https://localhost:{lab.port}/?x=1")

        # A client that stalls is dropped and keeps nobody.
        with socket.create_connection(("127.0.0.1", lab.port), timeout=30) as stalled:
            stalled.sendall(b"\x16\x03\x01")
            assert shown(lab.port) == fingerprint
            begun = time.monotonic()
            assert stalled.recv(1) == b"" and time.monotonic() - begun < 20

        os.kill(lab.pid(), 15)
        wait_for("labd ends", lambda: not lab.socket.exists(), 20)
        lab.labd("up", "--timeout=3", check=False)
        assert shown(lab.port) == fingerprint, "a restart keeps it"


def test_a_browser_is_led_to_https_and_logs_in_once_it_accepts_the_certificate():
    with serving('tls = "self-signed"') as lab, chromium() as browser:
        with pytest.raises(Exception, match="ERR_CERT_AUTHORITY_INVALID"):
            browser.new_page().goto(lab.link("status page"))
        context = browser.new_context(ignore_https_errors=True)
        page, errors = context.new_page(), []
        page.on("console", lambda said: said.type == "error" and errors.append(said.text))
        # The token behind `#` stays with the browser on its way.
        page.goto(lab.labd("open", "--print").stdout.strip().replace("https:", "http:"))
        page.wait_for_selector("#gpu-cards li")
        assert page.url.startswith(f"https://localhost:{lab.port}/") and not errors, (page.url, errors)
        [cookie] = context.cookies()
        assert (cookie["name"], cookie["secure"], cookie["sameSite"]) == ("__Host-labd-labdtls", True, "Strict")


def test_jupyterlab_runs_a_cell_over_tls():
    lab = Lab("labdtlsjup", "198.18.179.0/24", gpus=1)
    lab.base = lab.base.replace("[http]", '[http]\ntls = "self-signed"')
    lab.write()
    with lab.running(), chromium() as browser:
        lab.wait_ready("jupyter")
        # One forwarded port is enough for the first name, and the second has a port for JupyterLab.
        for host in ("localhost", "127.0.0.1"):
            context = browser.new_context(ignore_https_errors=True)
            page = context.new_page()
            page.goto(lab.labd("open", "--print").stdout.strip().replace("localhost", host))
            page.wait_for_selector("#gpu-cards li")
            notebook = jupyter(page)
            assert notebook.url.startswith("https://"), notebook.url
            assert notebook.evaluate(RUNS, "print(6 * 7)") == {"without": 403, "made": 201, "printed": "42\n"}
            assert all(cookie["secure"] for cookie in context.cookies() if "labd" in cookie["name"]), context.cookies()
            context.close()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_both_versions_are_spoken_and_none_before(version):
    with serving('tls = "self-signed"') as lab:
        context = ssl.create_default_context(cafile=lab.data_dir / "page.pem")
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        context.set_alpn_protocols(["h2", "http/1.1"])
        with socket.create_connection(("127.0.0.1", lab.port), timeout=10) as raw, context.wrap_socket(raw, server_hostname="localhost") as tls:
            assert (tls.version(), tls.selected_alpn_protocol()) == (version.replace("_", "."), "http/1.1")


def test_a_given_certificate_is_followed_and_a_broken_one_refused(tmp_path):
    certificate, key, new = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "new.pem"
    shutil.copy(GIVEN / "cert.pem", certificate)
    shutil.copy(GIVEN / "key.pem", key)
    with serving(f'tls = "given"\ncertificate = "{certificate}"\nkey = "{key}"') as lab:
        first = shown(lab.port)
        context = ssl.create_default_context(cafile=GIVEN / "ca.pem")
        with socket.create_connection(("127.0.0.1", lab.port), timeout=10) as raw:
            context.wrap_socket(raw, server_hostname="localhost").close()

        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=x",
            "-addext", "subjectAltName=DNS:localhost", "-keyout", new, "-out", certificate)
        line = next(n for n, text in enumerate(lab.config.read_text().splitlines(), 1) if text.startswith("key = "))
        said = one_line(lab.labd("config", "check", check=False), 78)
        assert f"labd.toml:{line}: `http.key`: does not belong to the certificate" in said, said
        said = one_line(lab.labd("reload", check=False), 78)
        assert f"labd.toml:{line}: `http.key`" in said, said
        assert shown(lab.port) == first, "the one before goes on"
        wait_for("it is said", lambda: notices(lab, "does not belong to the certificate"), 90, every=1)
        assert shown(lab.port) == first

        new.replace(key)
        lab.labd("reload")
        wait_for("the new one is shown", lambda: shown(lab.port) != first, 10)
        wait_for("it is fine again", lambda: not notices(lab, "does not belong"), 10)
        assert notices(lab, "expires in"), "two days are soon"


def test_beyond_this_machine_without_tls_is_said():
    with serving('tls = "off"', page="0.0.0.0") as lab:
        assert notices(lab, "open beyond this machine")
        assert "open beyond this machine" in lab.labd("doctor", check=False).stdout
        assert "open beyond this machine" in (lab.dir / "labd.log").read_text()
        assert urllib.parse.urlsplit(lab.link("status page")).scheme == "http"
