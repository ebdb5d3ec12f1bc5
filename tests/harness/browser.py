"""A real browser before the page: Debian's Chromium, driven by Playwright from target/tools/venv (scripts/tools.sh test)."""
import contextlib
import os
import shutil
import sys

from .lab import ROOT

SHOTS = ROOT / "target" / "shots"  # ignored: to be looked at


PACKAGES = ROOT / "target/tools/venv/lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


TICKET = """async () => {
  const headers = { 'X-Labd-Csrf': Object.entries(sessionStorage).find(([key]) => key.includes('csrf'))[1] };
  const answer = await fetch('/api/v1/jupyter/ticket', { method: 'POST', headers });
  return [answer.status, await answer.json()];
}"""

# Runs code in a kernel of its own as JupyterLab's page does, and returns what it printed, or why not.
RUNS = """async (code) => {
  const xsrf = (document.cookie.match(/(?:^|; )_xsrf=([^;]*)/) || [])[1];
  const ask = (method, path, headers) => fetch('/jupyter/api/' + path, { method, headers });
  const without = (await ask('POST', 'kernels', {})).status;
  const made = await ask('POST', 'kernels', { 'X-XSRFToken': xsrf });
  const kernel = (await made.json()).id;
  const socket = new WebSocket(location.origin.replace('http', 'ws') + `/jupyter/api/kernels/${kernel}/channels?session_id=t`);
  window.kernelSocket = socket;
  const printed = await new Promise((resolve) => {
    socket.onopen = () => socket.send(JSON.stringify({
      channel: 'shell', buffers: [], metadata: {}, parent_header: {}, content: { code, silent: false, store_history: false },
      header: { msg_id: 'm1', msg_type: 'execute_request', session: 't', username: '', version: '5.3', date: new Date().toISOString() } }));
    socket.onmessage = (event) => {
      const message = JSON.parse(event.data);
      if (message.msg_type === 'stream') resolve(message.content.text);
    };
    socket.onclose = (event) => resolve('closed: ' + event.code);
  });
  return { without, made: made.status, printed };
}"""


@contextlib.contextmanager
def chromium():
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        # Chromium has no sandbox of its own for root; and a container's /dev/shm is small.
        options = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        try:
            yield browser
        finally:
            browser.close()


def accessibility(page):
    """What axe-core finds wrong with the page as it is now; its context must bypass the page's CSP."""
    page.evaluate((PACKAGES / "axe_playwright_python/axe.min.js").read_text())
    found = page.evaluate("axe.run()")["violations"]
    return [(v["id"], v["help"], [node["html"][:120] for node in v["nodes"][:3]]) for v in found]


def jupyter(admin):
    """JupyterLab, as the page opens it for who is logged in there."""
    status, told = admin.evaluate(TICKET)
    assert status == 200, told
    page = admin.context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{told['url']}#ticket={told['ticket']}")
    page.wait_for_url("**/jupyter/lab**")
    page.wait_for_selector("#jp-main-dock-panel")
    return page
