"""The watch over the logs of a Ray container, with small bounds and files of a test. No engine needed."""
import importlib.util
import os
import subprocess
import sys

import pytest

from harness.lab import ROOT

FILE = ROOT / "images/run/janitor.py"
MIB = 1 << 20


@pytest.fixture
def logs(tmp_path):
    folder = tmp_path / "session_2026-01-01_00-00-00_1_1/logs"
    (folder / "old").mkdir(parents=True)
    return folder


@pytest.fixture
def janitor(logs):
    spec = importlib.util.spec_from_file_location("janitor", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.KEPT, module.LONG, module.LONGEST, module.TAIL = 4 * MIB, 4 * MIB, 8 * MIB, 64
    module.look = lambda: module.main(logs.parent.parent)
    return module


def numbered(path, mib, begin=0):
    """16 bytes a line, so that what is missing is seen. The writer, still open."""
    log = open(path, "ab")
    log.write(b"".join(b"%015d\n" % n for n in range(begin, begin + mib * MIB // 16)))
    log.flush()
    return log


def aged(path, mib, seconds):
    path.write_bytes(bytes(mib * MIB))
    os.utime(path, (1_700_000_000 - seconds,) * 2)
    return path


def cuts(folder):
    """Whether this file system can take the beginning of a file away."""
    probe = folder / "probe"
    probe.write_bytes(bytes(3 * MIB))
    argv = ["fallocate", "--collapse-range", "--offset=0", f"--length={MIB}", probe]
    done = subprocess.run(argv, capture_output=True).returncode == 0
    probe.unlink()
    return done


def test_of_what_ended_the_oldest_goes_beyond_the_bound_and_what_is_written_never(logs, janitor, capsys):
    oldest, middle = aged(logs / "old/worker-a-01-7.out", 3, 300), aged(logs / "job-driver-a.log", 3, 200)
    newest, service = aged(logs / "job-driver-b.log", 1, 100), aged(logs / "raylet.out", 3, 900)
    written = aged(logs / "job-driver-c.log", 3, 900)
    with open(written, "ab"):
        janitor.look()
        assert not oldest.exists() and middle.exists() and newest.exists() and written.exists() and service.exists()
    assert capsys.readouterr().out == "labd: worker-a-01-7.out was removed: logs of what ended are kept up to 4 MiB\n"
    janitor.look()
    assert not written.exists() and service.exists(), "its writer is gone; a service's log is Ray's"


def test_a_running_jobs_log_loses_its_beginning_alone(logs, janitor):
    if not cuts(logs):
        pytest.skip("this file system cannot cut the beginning off a file")
    path = logs / "job-driver-a.log"
    with numbered(path, 6) as log:
        janitor.look()
        log.write(b"the job goes on\n")
        log.flush()
        text = path.read_bytes()
        lines = text.splitlines()
        assert int(lines[0]) == 4 * MIB // 16, "whole blocks, and nothing between is lost"
        assert lines[-1] == b"the job goes on" and b"\0" not in text
        assert b"labd: the first 4 MiB of this log were dropped, since it was longer than 4 MiB" in lines
        assert path.stat().st_blocks * 512 < 3 * MIB
        janitor.look()
        assert path.read_bytes() == text, "once"


def test_nothing_is_cut_under_a_reader_until_it_must_be(logs, janitor):
    path = logs / "job-driver-a.log"
    with numbered(path, 6) as log, open(path) as follower:
        follower.read()
        janitor.look()
        assert path.stat().st_size == 6 * MIB
        log.write(bytes(3 * MIB))
        log.flush()
        janitor.look()
        assert path.stat().st_size < 4 * MIB


def test_where_no_file_system_helps_the_disk_still_does_not_fill(logs, janitor, monkeypatch):
    path = logs / "job-driver-a.log"
    monkeypatch.setenv("PATH", str(logs))
    (logs / "fallocate").write_text("#!/bin/sh\nexit 1\n")
    (logs / "fallocate").chmod(0o755)
    with numbered(path, 6) as log:
        janitor.look()
        assert path.stat().st_size == 6 * MIB
        log.write(bytes(3 * MIB))
        log.flush()
        janitor.look()
        log.write(b"on\n")
        log.flush()
        assert path.read_text() == "\nlabd: the first 9 MiB of this log were dropped, since it was longer than 8 MiB\non\n"


def test_a_running_workers_output_is_emptied_and_its_end_kept(logs, janitor):
    path = logs / "worker-0a-01000000-7.out"
    with numbered(path, 6) as log, open(path):  # Ray's monitor reads it all the time.
        janitor.look()
        log.write(b"on\n")
        log.flush()
    assert path.read_bytes() == b"on\n"
    assert (logs / "old" / path.name).read_bytes().splitlines()[-1] == b"%015d" % (6 * MIB // 16 - 1)


def test_it_runs_as_labd_calls_it(tmp_path):
    argv = [sys.executable, "-I", "-S", FILE, tmp_path]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == ""
