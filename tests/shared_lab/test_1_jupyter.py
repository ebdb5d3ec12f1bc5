"""JupyterLab through the page's login, in a real browser: on an origin of its own, where what people write cannot act for whoever looks."""
import contextlib
import json
import urllib.error
import urllib.parse
import urllib.request

import pytest

from harness.browser import RUNS, SHOTS, TICKET, chromium
from harness.browser import jupyter as opened
from harness.lab import wait_for

# What a cell's author may try with the browser of an admin who is logged in to labd beside it.
ATTACK = """
const page = '%(page)s', stop = '/api/v1/services/jupyter/stop', tried = window.top.labdTried = {};
const attempt = async (name, act) => { try { tried[name] = await act(); } catch (error) { tried[name] = 'refused: ' + error.name; } };
const simple = { method: 'POST', credentials: 'include', mode: 'no-cors' };
(async () => {
  await attempt('post', async () => (await fetch(page + stop, simple)).type);
  await attempt('post with a token', async () => (await fetch(page + stop, { ...simple, mode: 'cors', headers: { 'X-Labd-Csrf': 'x' } })).status);
  await attempt('read', async () => (await fetch(page + '/api/v1/snapshot', { credentials: 'include' })).status);
  await attempt('ticket', async () => (await fetch(page + '/api/v1/jupyter/ticket', { ...simple, mode: 'cors' })).status);
  await attempt('here', async () => (await fetch(stop, { method: 'POST' })).status);
  await attempt('read here', async () => (await fetch('/api/v1/snapshot')).status);
  await attempt('worker', async () => { await navigator.serviceWorker.register('/enter.js'); return 'registered'; });
  await attempt('frame', () => new Promise((resolve) => {
    const frame = document.createElement('iframe');
    frame.src = page + '/';
    frame.onload = () => { try { resolve('seen: ' + frame.contentDocument.title); } catch (error) { resolve('refused: ' + error.name); } };
    document.body.append(frame);
  }));
  tried.cookies = document.cookie;
  tried.opener = String(window.opener);
  tried.done = true;
})();
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(params=["localhost", "127.0.0.1"])
def admin(request, browser, lab):
    """The page, logged in, under a name with which one forwarded port is enough, and under one with which it is not."""
    lab.wait_ready("jupyter")
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(lab.labd("open", "--print").stdout.strip().replace("localhost", request.param))
    page.wait_for_selector("#gpu-cards li")
    yield page
    context.close()


def token(lab):
    return next(c["secret"] for c in json.loads(lab.labd("credentials", "--json").stdout) if c["name"] == "jupyter")


def test_it_opens_without_a_token_and_a_kernel_runs(lab, admin):
    page = opened(admin)
    ours, theirs = urllib.parse.urlsplit(admin.url), urllib.parse.urlsplit(page.url)
    if ours.hostname == "localhost":
        assert (theirs.hostname, theirs.port) == ("jupyter.localhost", ours.port)
    else:
        assert theirs.hostname == ours.hostname and theirs.port != ours.port
    assert "ticket" not in page.url and "token" not in page.url
    assert token(lab) not in page.content()
    # The door's secret is of no use to a kernel, and not in its environment.
    code = "import os; print(6 * 7, 'LABD_JUPYTER_DOOR' in os.environ)"
    assert page.evaluate(RUNS, code) == {"without": 403, "made": 201, "printed": "42 False\n"}
    # A terminal, as a person opens it, without what an earlier visit left open.
    page.goto(page.url.partition("/jupyter/")[0] + "/jupyter/lab?reset")
    page.locator(".jp-LauncherCard[title*='terminal' i]").first.click()
    page.wait_for_selector(".jp-Terminal .xterm-screen")
    page.screenshot(path=SHOTS / f"jupyter-{ours.hostname}.png")
    # Neither origin is sent what the other's cookie is worth.
    names = {cookie["name"]: cookie for cookie in admin.context.cookies()}
    assert {f"labd-{lab.name}", f"labd_jupyter-{lab.name}"} <= names.keys()
    assert all(names[n]["httpOnly"] and names[n]["sameSite"] == "Strict" for n in names if n.startswith("labd"))


def test_what_a_cell_writes_into_the_page_commands_nothing_of_labds(lab, admin):
    page = opened(admin)
    attack = ATTACK % {"page": admin.url.rstrip("/")}
    source = f"from IPython.display import HTML\nHTML({'<script>' + attack + '</script>'!r})"
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}},
                "cells": [{"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": source}]}
    host = urllib.parse.urlsplit(admin.url).hostname
    name = f"attack-{host}.ipynb"
    (lab.data_dir / "workspace" / name).write_text(json.dumps(notebook))
    last = max((e["seq"] for e in lab.events("jupyter")), default=0)
    before = lab.ids()["jupyter"]
    # A workspace of its own, in which nothing is open.
    page.goto(page.url.partition("/jupyter/")[0] + f"/jupyter/lab/workspaces/{host.replace('.', '')}/tree/{name}")
    cell = page.locator(".jp-Notebook .jp-CodeCell .cm-content").first
    cell.wait_for()

    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")

    def ran():
        # What is pressed before the notebook is whole is lost.
        if page.locator(".jp-OutputArea-output").count():
            return True
        # Whoever is too early for its kernel is asked which one to take, and everything behind a question waits.
        question = page.locator(".jp-Dialog")
        if question.count():
            print(question.first.inner_text())
            question.locator(".jp-mod-accept").first.click()
        with contextlib.suppress(Exception):  # a question has come meanwhile
            cell.click(timeout=5_000)
            page.keyboard.press("Shift+Enter")
        return False

    wait_for("the cell ran", ran, 120, 3)
    page.screenshot(path=SHOTS / f"attack-{host}.png")
    tried = wait_for("all of it was tried", lambda: page.evaluate("window.labdTried?.done && window.labdTried"), 60)
    # A simple request is sent, and its answer is not shown: that it did nothing is seen below.
    assert tried["post"] == "opaque" or tried["post"].startswith("refused"), tried
    for what in ("post with a token", "read", "ticket", "worker", "frame"):
        assert str(tried[what]).startswith("refused"), tried
    assert tried["here"] in (403, 404) and tried["read here"] == 404, tried
    assert "labd" not in tried["cookies"] and tried["opener"] == "null", tried
    assert lab.ids()["jupyter"] == before and lab.states()["jupyter"] == "ready"
    assert not [e for e in lab.events("jupyter") if e["seq"] > last and e["kind"] == "person" and e["reason"].endswith(": stop")]
    # The same button of labd's own page works: the person is an admin, and logged in.
    assert admin.evaluate(TICKET)[0] == 200


def test_it_ends_with_the_login(lab, admin):
    page = opened(admin)
    assert page.evaluate(RUNS, "print(1)")["printed"] == "1\n"
    admin.evaluate("fetch('/api/v1/logout', { method: 'POST' })")
    status = "async () => (await fetch('/jupyter/api/status')).status"
    wait_for("it is refused", lambda: page.evaluate(status) == 401, 10)
    page.wait_for_function("window.kernelSocket.readyState === WebSocket.CLOSED", timeout=15_000)
    page.reload()
    page.wait_for_selector("text=JupyterLab is opened from labd's page")


class Still(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def asked(lab, path, method="GET", data=None, **headers):
    """Status and where it leads, of JupyterLab's own port."""
    url = lab.link("JupyterLab").partition("/jupyter/")[0] + path
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()}, method=method)
    try:
        with urllib.request.build_opener(Still).open(request, timeout=30) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Location", "")


def test_its_own_port_asks_for_its_token_as_before(lab):
    lab.wait_ready("jupyter")
    secret = token(lab)
    assert asked(lab, "/jupyter/api/kernels")[0] == 403
    assert asked(lab, "/jupyter/api/kernels", X_Labd_Door="guess")[0] == 403
    assert asked(lab, "/jupyter/api/kernels", X_Labd_Door="")[0] == 403
    assert asked(lab, "/jupyter/api/kernels", X_Labd_Door=secret)[0] == 403
    assert asked(lab, "/jupyter/api/kernels", Authorization=f"token {secret}")[0] == 200
    assert asked(lab, f"/jupyter/lab?token={secret}")[0] == 200
    assert asked(lab, "/jupyter/lab")[1].startswith("/jupyter/login")
    # Addresses from before.
    assert asked(lab, "/") == (302, "/jupyter/")
    assert asked(lab, "/lab/tree/a?token=x") == (302, "/jupyter/lab/tree/a?token=x")
    assert asked(lab, "/jupyter/api/kernels", "POST", b"{}", Authorization=f"token {secret}")[0] == 201
    door = json.loads((lab.data_dir / "jupyter-door.json").read_text())["jupyter_door"]
    # The door's secret is no login for programs: what acts still needs Jupyter's own token of the page.
    assert asked(lab, "/jupyter/api/kernels", X_Labd_Door=door)[0] == 200
    assert asked(lab, "/jupyter/api/kernels", "POST", b"{}", X_Labd_Door=door)[0] == 403
    # Nor does it open anything of labd's.
    assert lab.visitor().ask("GET", "api/v1/snapshot", X_Labd_Door=door, Authorization=f"Bearer {door}")[0] == 401


def test_viewers_and_strangers_get_no_ticket(lab):
    lab.add_user("vera", "viewer", "a long enough password")
    vera = lab.visitor()
    assert vera.ask("POST", "api/v1/login", {"name": "vera", "password": "a long enough password"})[0] == 200
    assert vera.ask("POST", "api/v1/jupyter/ticket")[0] == 403
    assert lab.visitor().ask("POST", "api/v1/jupyter/ticket")[0] == 401
    host = urllib.parse.urlsplit(vera.page).netloc
    assert vera.ask("GET", "jupyter/lab")[0] == 404, "the page's own origin has none"
    second = f"jupyter.{host}"
    assert vera.ask("GET", "jupyter/lab", Host=second)[0] == 401
    assert vera.ask("POST", "enter", {"ticket": "0" * 64}, Host=second, Origin=f"http://{second}")[0] == 401
    assert vera.ask("GET", "api/v1/snapshot", Host=second)[0] == 404
