"""Keeps the logs of a Ray container from filling the disk: one look at them, and start.sh has one every few seconds.

    python3 -I -S janitor.py [FOLDER]

Ray rotates the logs of its own services (512 MB, five of each) and nothing that people's code writes. So:

* What nobody writes any more (logs of ended jobs, workers and connections) is kept up to KEPT bytes together; beyond, the
  oldest goes first.
* The log of a running job that is longer than LONG loses its beginning, in whole blocks and without a byte between lost
  (`fallocate --collapse-range`). Whoever follows it holds a position in the file that would then lie beyond its end, and
  would hear nothing until it has grown again: so nothing is cut while somebody follows, up to LONGEST.
* The output of a running worker that is longer than LONG is emptied, its end laid beside it: Ray's log monitor, which has
  sent nearly all of it to the job's log, begins again at the start of a file that has become shorter, and would send
  what is left a second time.

Writers append, so both are safe for them. Standard library only, one file: labd uploads it.
"""
import os
import pathlib
import re
import subprocess
import sys

MIB = 1 << 20
KEPT = 1024 * MIB
LONG = 512 * MIB
LONGEST = 1024 * MIB
TAIL = 16 * MIB
BLOCK = MIB  # a multiple of every file system's

JOB = re.compile(r"job-driver-.*\.log$")
WORKER = re.compile(r"worker-.*\.(out|err)$")
# What people's code or its setting up writes; Ray's own services are not among them.
OTHERS = re.compile(r"(ray_client_server|runtime_env_setup|python-core-|java-worker).*\.(out|err|log|[0-9])$")


def main(root):
    files = {}
    for path in logs(root):
        try:
            files[path] = path.stat()
        except FileNotFoundError:
            pass  # Ray's log monitor moves them.
    readers, writers = users({(s.st_dev, s.st_ino) for s in files.values()})
    ended = []
    for path, stat in files.items():
        if (stat.st_dev, stat.st_ino) not in writers:
            ended.append((stat.st_mtime, stat.st_blocks * 512, path))
        elif stat.st_size > LONG and JOB.match(path.name):
            if stat.st_size > LONGEST or (stat.st_dev, stat.st_ino) not in readers:
                shorten(path, stat.st_size)
        elif stat.st_size > LONG:
            empty(path)
    total = sum(size for _, size, _ in ended)
    for _, size, path in sorted(ended):
        if total <= KEPT:
            break
        path.unlink(missing_ok=True)
        total -= size
        say(f"{path.name} was removed: logs of what ended are kept up to {KEPT // MIB} MiB")


def logs(root):
    """Every file that may be cut or removed."""
    for folder in pathlib.Path(root).glob("session_2*/logs"):
        for path in [*folder.glob("*"), *folder.glob("old/*")]:
            known = JOB.match(path.name) or WORKER.match(path.name) or OTHERS.match(path.name)
            if (known or path.parent.name == "old") and path.is_file() and not path.is_symlink():
                yield path


def users(wanted):
    """Which of these files are open for reading, and for writing. Processes end while one looks."""
    readers, writers = set(), set()
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            descriptors = os.listdir(process / "fd")
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                stat = os.stat(process / "fd" / descriptor)
                key = (stat.st_dev, stat.st_ino)
                if key not in wanted:
                    continue
                info = (process / "fdinfo" / descriptor).read_text()
            except OSError:
                continue
            flags = int(re.search(r"^flags:\s*([0-7]+)", info, re.MULTILINE)[1], 8)
            (readers if flags & os.O_ACCMODE == os.O_RDONLY else writers).add(key)
    return readers, writers


def shorten(path, size):
    """Takes the beginning away, and leaves half of LONG."""
    cut = (size - LONG // 2) // BLOCK * BLOCK
    done = subprocess.run(
        ["fallocate", "--collapse-range", "--offset=0", f"--length={cut}", str(path)], capture_output=True, text=True
    )
    if done.returncode == 0:
        text = f"the first {cut // MIB} MiB of this log were dropped, since it was longer than {LONG // MIB} MiB"
    elif size > LONGEST:
        # No file system for it.
        os.truncate(path, 0)
        text = f"the first {size // MIB} MiB of this log were dropped, since it was longer than {LONGEST // MIB} MiB"
    else:
        return
    with open(path, "a") as log:
        log.write(f"\nlabd: {text}\n")
    say(f"{path.name}: {text}")


def empty(path):
    """Empties a file that somebody writes, and lays its end beside it, where no monitor looks."""
    old = path.parent / "old"
    old.mkdir(exist_ok=True)
    with open(path, "rb") as log:
        log.seek(-TAIL, os.SEEK_END)
        (old / path.name).write_bytes(log.read(TAIL))
    os.truncate(path, 0)
    say(f"{path.name} was emptied, since it was longer than {LONG // MIB} MiB; its end is in {old}")


def say(text):
    print(f"labd: {text}", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "/tmp/ray")
    except OSError as error:
        # A file that went away in between, or a disk that is full: the next look comes.
        print(f"labd: logs cannot be looked at: {error}", file=sys.stderr)
