"""A real browser before the page: Debian's Chromium, driven by Playwright from target/tools/venv (scripts/tools.sh test)."""
import contextlib
import os
import shutil
import sys

from .lab import ROOT

SHOTS = ROOT / "target" / "shots"  # ignored: to be looked at


@contextlib.contextmanager
def chromium():
    folder = ROOT / "target/tools/venv/lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
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
