"""A Python environment with labd's files of a Ray image in it, and first processes that ask to be forked in another's place."""
import json
import os
import pathlib
import shutil
import subprocess
import sys

from harness.lab import ROOT


class Environment:
    """`probe` is the script that runs in such a process: it says in one line of JSON what it is."""

    def __init__(self, folder, files, probe, hidden=()):
        self.folder, self.venv = folder, folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        self.python = self.venv / "bin/python"
        self.site = next(self.venv.glob("lib/python3*/site-packages"))
        self.probe = self.site / probe
        for name in files:
            shutil.copy(ROOT / "images/ray" / name, self.site)
        self.put("labd.pth", 'import os; os.environ.__setitem__("HOOKED_IN", str(os.getpid()))\n')
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LABD", "COV", *hidden))}
        self.env |= {"LABD_WARM_DEBUG": "1", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
        self.said = folder / "said.log"

    def put(self, path, text):
        (self.site / path).parent.mkdir(parents=True, exist_ok=True)
        (self.site / path).write_text(text)

    def begin(self, *args, **kwargs):
        """Starts what forks."""
        with open(self.said, "ab") as log:
            return subprocess.Popen([self.python, *args], cwd="/", stderr=log, **kwargs)

    def start(self, *args, python=None, options=(), **kwargs):
        """Starts a first process."""
        kwargs.setdefault("env", self.env)
        return subprocess.Popen([python or self.python, *options, self.probe, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, **kwargs)

    def run(self, *args, code=0, **kwargs):
        first = self.start(*args, **kwargs)
        out, err = first.communicate(timeout=60)
        assert first.returncode == code, err
        seen = json.loads(out.splitlines()[0])
        assert seen["warm"] == (seen["pid"] != first.pid)
        return seen, out, err


def gone(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True
