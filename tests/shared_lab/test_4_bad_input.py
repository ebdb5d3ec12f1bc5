"""What a lab that runs cannot do is answered with one clear line and an exit code."""
from harness.lab import one_line


def test_an_unknown_service(lab):
    for argv in (["stop", "ray-worker-7"], ["logs", "minoi"], ["restart", "../down"]):
        line = one_line(lab.labd(*argv, check=False), 6)
        assert "no service" in line


def test_labd_twice(lab):
    line = one_line(lab.labd("run", check=False), 1)
    assert f"labd is already running (pid {lab.pid()})" in line
