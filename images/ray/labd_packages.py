"""What labd adds to Ray's runtime-env agent: the packages that a job asks for are installed once for all nodes.

Ray installs `runtime_env={"pip": [...]}` anew on every node, and again after a restart of its container. Here every finished
environment lies in a store on a volume that all Ray containers of the lab share, under a key made of all that decides
what is installed: whoever needs it next, another node or the same one after a crash, finds it there.

`RAY_RUNTIME_ENV_PLUGINS` makes the agent import this module, which wraps Ray's own plugins for `pip` and `uv`, and the one
for working directories, which would take a folder from under the job that runs in it. In the store:

    envs/KEY/lock               held exclusively by whoever builds
    envs/KEY/current            the completion mark: which build is valid, and what was installed
    envs/KEY/BUILD/used         held shared by whoever uses that build; its time says when it was last wanted
    envs/KEY/BUILD/virtualenv   an overlay of the image's Python, as Ray makes it
    cache/                      uv's cache; the environments' files are hard links to its files
    builders                    held shared by those who use the cache
    starting, tidying           held by the one who looks whether the cache can be trusted, or makes room
    size                        bytes of all this, as they were when room was last made
    *.gone                      what is being removed, or was when its remover died

A process that dies loses its locks, so a build without a mark and without a lock is nobody's and is removed by the next.

pip decides what is to be installed (`--dry-run --report`), as uv would install Ray again; uv fetches and links it. Where uv
fails, pip installs; where the store cannot serve (requirements that name changing files, no volume, any error of ours),
Ray does what it does without this module.
"""
import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

RuntimeEnvPlugin = object
if __name__ != "__main__":  # `tidy` needs nothing of Ray, whose import is a second of CPU
    with contextlib.suppress(ImportError):  # tests of this module alone
        from ray._private.runtime_env.plugin import RuntimeEnvPlugin

STORE = "/packages"
# What is kept unless labd.toml says more: at least one environment of a course without CUDA, at most three with it.
LEAST_BYTES, MOST_BYTES = 2 << 30, 20 << 30
FORMAT = 1  # a part of every key: what another version of this module built is not ours to judge
FRONT_DOOR = "http://front-door:8265/labd/installs"
POST_SECONDS = 2.0
MISSES = 5  # then labd is taken to be away, and asked less often
AWAY_SECONDS = 10.0
LAST_WORDS_SECONDS = 600.0  # an upgrade of labd, with time to spare
MEASURE_SECONDS = 10.0  # PyTorch has tens of thousands of files, and the node that looks at each has better things to do
LOOSE_BYTES = 64 << 20
START_SECONDS = 60.0  # a node that comes back has its jobs running by then
WORKING_DIR = "RAY_RUNTIME_ENV_CREATE_WORKING_DIR"
COMMIT = re.compile(r"@[0-9a-fA-F]{40}$")
VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
# What pip has decided: another attempt, Ray's included, ends the same way.
PIP_SAYS_NO = re.compile(
    r"ResolutionImpossible|No matching distribution|Could not find a version|Invalid requirement|DO NOT MATCH THE HASHES"
)
# Options and settings that put packages elsewhere than into the environment, or name files whose content can change.
ELSEWHERE = (
    "target", "prefix", "root", "user", "editable", "requirement", "dry-run", "report", "python", "constraint", "build-constraint",
)


class NotShared(Exception):
    """A reason why Ray installs this environment for itself."""


class Refused(RuntimeError):
    """What pip said of requirements that cannot be installed."""


class Cancelled(Exception):
    """The end of an installation that nobody waits for any more."""


# ---- what decides what is installed ----


def key_of(kind, config, env, working_dir=None, base=""):
    """The folder's name for an environment, or NotShared. `env` is the agent's environment with the job's laid over it."""
    known = {"pip": {"packages", "pip_check", "pip_install_options"}, "uv": {"packages", "uv_check", "uv_pip_install_options"}}
    config = {name: value for name, value in config.items() if value is not None}
    if kind == "uv" and config.get("uv_pip_install_options") == ["--no-cache"]:
        del config["uv_pip_install_options"]  # Ray's default
    if extra := set(config) - known[kind]:
        raise NotShared(f"it sets {sorted(extra)[0]}")
    if kind == "uv" and config.get("uv_pip_install_options"):
        raise NotShared("it has options for uv")
    options = config.get("pip_install_options", [])
    for option, following in zip(options, [*options[1:], ""]):
        if re.match(r"-[UIqv]*[etrc]", option) or is_option(option, ELSEWHERE):
            raise NotShared(f"its options name {option.split('=')[0]}")
        if (links := re.match(r"(?:-[UIqv]*f|--fi[^=]*=?)(.*)", option)) and not on_the_web(links[1] or following):
            raise NotShared("its options name a folder of packages")
    settings = {name: value for name, value in env.items() if name.startswith(("PIP_", "UV_"))}
    for name in settings:
        if name.startswith("PIP_") and name != "PIP_CONSTRAINT" and name[4:].lower().replace("_", "-") in ELSEWHERE:
            raise NotShared(f"{name} is set")
        if kind == "uv" and name.startswith("UV_") and name not in ("UV_BREAK_SYSTEM_PACKAGES", "UV_CACHE_DIR", "UV_LINK_MODE", *UV_INDEXES):
            raise NotShared(f"{name} is set")
    if not on_the_web(settings.get("PIP_FIND_LINKS", "")):
        raise NotShared("PIP_FIND_LINKS names a folder")
    if constraint := settings.get("PIP_CONSTRAINT"):
        # By content, as a file that a line names.
        settings["PIP_CONSTRAINT"] = list(asked([f"-c {path}" for path in constraint.split()], env, working_dir))
    parts = [FORMAT, kind, base, list(asked(config.pop("packages", []), env, working_dir)), config, settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def is_option(word, names):
    """Whether a word is one of these long options of pip, which takes an abbreviation for the whole."""
    name = word[2:].split("=")[0] if word.startswith("--") else ""
    return name not in ("", "pre") and any(full.startswith(name) for full in names)


def on_the_web(links):
    """Whether all of these are addresses: what lies there counts as an index does. A folder's content can change unseen."""
    return all(re.match(r"https?://", link) for link in re.sub("[\"']", " ", links).split())


def asked(lines, env, working_dir, folder=None, seen=()):
    """All requirements, those of files named by them included, with the value of every variable that they name."""

    def expanded(text):
        return VARIABLE.sub(lambda m: env.get(m[1] or m[2], m[0]), text)

    for line in lines:
        line = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if not line:
            continue
        names = {a or b for a, b in VARIABLE.findall(line)}
        option, _, value = re.match(r"(--?[\w-]+)?(\s*=?\s*)(.*)", line).groups("")
        if re.fullmatch(r"-[rc].*|--requirement|--constraint", option):
            # `-rfile` is an option with its value, too.
            if option not in ("-r", "-c") and not option.startswith("--"):
                value = line[2:].strip()
            path = os.path.join(folder or "", expanded(value))
            if not os.path.isabs(path) or path in seen:
                raise NotShared(f"{line} names no file that is known here")
            yield "constraints" if option.lstrip("-").startswith("c") else "requirements"
            yield from asked(read_lines(path), env, working_dir, os.path.dirname(path), (*seen, path))
            continue
        if option.startswith("-e") or is_option(option, ("editable",)):
            raise NotShared("it installs in editable mode")
        if is_option(option, ELSEWHERE) or option and re.search(r"\s(-[ercf]|--(ed|req|con|fi))", line):
            raise NotShared(f"what its line with {option} names can change")
        if (links := re.match(r"(?:-f|--fi[\w-]*)\s*=?(.*)", line)) and WORKING_DIR not in names and not on_the_web(expanded(links[1])):
            raise NotShared("it names a folder of packages")
        yield [line, {name: env.get(name) for name in sorted(names - {WORKING_DIR})}]
        if WORKING_DIR in names:
            if not working_dir:
                raise NotShared("it names a working directory and has none")
            yield working_dir  # its URI: a hash of its content
        elif not option:
            where = line.partition(" @ ")[2].strip() or line
            where = where.split(" ;")[0].split("#")[0].strip()
            if re.match(r"(git|hg|svn|bzr)\+", where):
                if not (where.startswith("git+") and COMMIT.search(where)):
                    raise NotShared("it names a branch of a repository, which moves")
            elif where.startswith("file:") or not re.match(r"https?:", where) and re.search(r"/|^\.|\.(whl|zip|gz)$", re.split(r"[;<>=!~\[]", where)[0].strip()):
                raise NotShared("it names local files")


def read_lines(path):
    """A requirements file's lines, continued ones joined."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().replace("\\\n", " ").splitlines()
    except (OSError, UnicodeDecodeError):
        raise NotShared(f"{path} cannot be read here") from None


def uri_suffix(runtime_env):
    """What makes two environments differ that have one URI to Ray: it knows neither settings nor files that lines name."""
    settings = {k: v for k, v in (runtime_env.get("env_vars") or {}).items() if k.startswith(("PIP_", "UV_"))}
    if WORKING_DIR in json.dumps([runtime_env.get("pip"), runtime_env.get("uv")]):
        settings[WORKING_DIR] = runtime_env.get("working_dir")
    return "-" + hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12] if settings else ""


def base_fingerprint():
    """What an overlay lies over: this Python, the names of all packages that it sees, and pip's configuration."""
    names = [sys.version, os.uname().machine]
    for folder in sys.path:
        if folder.endswith("-packages") and os.path.isdir(folder):
            names += sorted(name for name in os.listdir(folder) if name.endswith(("-info", ".egg", ".egg-link")))
    for path in ("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf", os.environ.get("PIP_CONFIG_FILE", "")):
        with contextlib.suppress(OSError, UnicodeDecodeError), open(os.path.expanduser(path), encoding="utf-8") as file:
            names.append(file.read())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]


# ---- the store ----


class Held:
    """A finished environment in use: nobody removes it until `release`."""

    def __init__(self, path, lock):
        self.path = path
        self.lock = lock

    def release(self):
        lock, self.lock = self.lock, None
        if lock is not None:
            os.close(lock)


class Store:
    """Environments by key, and the cache they are made from."""

    def __init__(self, root):
        self.root = root
        self.envs = os.path.join(root, "envs")
        self.cache = os.path.join(root, "cache")
        for folder in (self.envs, self.cache):
            make_directory(folder)

    def find(self, key):
        """The environment, held; None where there is none, or one that was changed since it was made."""
        mark = self.mark(key)
        if not mark:
            return None
        path = os.path.join(self.envs, key, mark["build"])
        lock = try_lock(os.path.join(path, "used"), fcntl.LOCK_SH, create=False)
        if lock is None:
            return None
        # It may have been removed before the lock was ours. What a power cut may have halved counts as changed.
        whole = mark["boot"] == boot() or os.path.exists(os.path.join(path, "synced"))
        if self.mark(key) == mark and whole and installed(path) == mark["installed"]:
            os.utime(lock)
            return Held(path, lock)
        os.close(lock)
        return None

    def mark(self, key):
        try:
            with open(os.path.join(self.envs, key, "current"), encoding="utf-8") as file:
                mark = json.load(file)
                return mark if {"build", "boot", "installed"} <= set(mark) else None
        except (OSError, ValueError, TypeError):
            return None

    def obtain(self, key, build, waiting=lambda: None, cancelled=lambda: False):
        """The environment, held, and whether `build(path)` had to make it."""
        if held := self.find(key):
            return held, False
        folder = os.path.join(self.envs, key)
        make_directory(folder)
        lock = wait_lock(os.path.join(folder, "lock"), fcntl.LOCK_EX, waiting, cancelled)
        try:
            if held := self.find(key):
                return held, False
            self.remove_builds(key)
            path = os.path.join(folder, f"{time.time_ns():x}")
            os.mkdir(path)
            used = try_lock(os.path.join(path, "used"), fcntl.LOCK_SH)
            try:
                with self.building(cancelled):
                    build(path)
                write(os.path.join(folder, "current"), json.dumps({"build": os.path.basename(path), "boot": boot(), "installed": installed(path)}))
            except BaseException:
                os.close(used)
                remove(path)
                raise
            return Held(path, used), True
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def building(self, cancelled=lambda: False):
        """The cache, held while a build uses it. Until it was synced, a power cut may have left it halved, and uv trusts it."""
        lock = wait_lock(os.path.join(self.root, "builders"), fcntl.LOCK_SH, cancelled=cancelled)
        try:
            self.trust_cache(cancelled)
            yield
        finally:
            os.close(lock)

    def trust_cache(self, cancelled):
        """Removes a cache that an earlier boot left unsynced, and notes that this one's is not synced from here on."""
        first = wait_lock(os.path.join(self.root, "starting"), fcntl.LOCK_EX, cancelled=cancelled)
        try:
            ours = f"dirty-{boot()}"
            if old := [name for name in os.listdir(self.root) if name.startswith("dirty-") and name != ours]:
                remove(self.cache)
                for name in old:
                    os.unlink(os.path.join(self.root, name))
            open(os.path.join(self.root, ours), "a").close()
            make_directory(self.cache)
        finally:
            os.close(first)

    def remove_builds(self, key, but=None):
        """Removes builds of a key that nobody uses; the caller holds the key's lock. True if none is left."""
        folder, left = os.path.join(self.envs, key), False
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if not os.path.isdir(path) or name == but:
                continue
            lock = try_lock(os.path.join(path, "used"), fcntl.LOCK_EX)
            if lock is None:
                left = True
                continue
            if (mark := self.mark(key)) and mark["build"] == name:
                os.unlink(os.path.join(folder, "current"))
            remove(path)
            os.close(lock)
        return not left

    def keys(self):
        """All keys, the one that was wanted longest ago first."""

        def wanted(key):
            mark = self.mark(key)
            with contextlib.suppress(OSError):
                return os.stat(os.path.join(self.envs, key, mark["build"] if mark else "lock", "used" if mark else "")).st_mtime
            return 0

        return sorted(os.listdir(self.envs), key=wanted)

    def sync(self):
        """Brings all to the disk, so that builds without `synced` and the cache outlive a power cut."""
        before = [os.path.join(self.envs, key, mark["build"]) for key in os.listdir(self.envs) if (mark := self.mark(key))]
        lock = try_lock(os.path.join(self.root, "builders"), fcntl.LOCK_EX)  # none is using the cache
        if subprocess.run(["sync", "-f", self.root], check=False).returncode == 0:
            for path in before:
                with contextlib.suppress(OSError):
                    open(os.path.join(path, "synced"), "a").close()
            if lock is not None:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.root, f"dirty-{boot()}"))
        if lock is not None:
            os.close(lock)

    def make_room(self, limit):
        """Removes what is nobody's, then what is not used until the store is within its bound: first the cache, where much of
        it is in no environment, then environments, the one that was wanted longest ago first. Notes the store's size."""
        one = try_lock(os.path.join(self.root, "tidying"), fcntl.LOCK_EX)
        if one is None:
            return
        try:
            self.remove_leftovers()
            size = disk_usage(self.root)
            if size > limit:
                self.shrink_cache()
                for key in self.keys():
                    if disk_usage(self.root) <= limit:
                        break
                    with self.locked(key) as locked:
                        if locked and self.remove_builds(key):
                            remove(os.path.join(self.envs, key))
                    self.shrink_cache()
                size = disk_usage(self.root)
            write(os.path.join(self.root, "size"), str(size))
        finally:
            os.close(one)

    def remove_leftovers(self):
        """Removes what others were removing when they were killed, builds that are not valid, and keys that have none left."""
        for folder in (self.root, self.envs, *(os.path.join(self.envs, key) for key in os.listdir(self.envs))):
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    if name.endswith(".gone"):
                        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        for key in os.listdir(self.envs):
            folder = os.path.join(self.envs, key)
            with self.locked(key) as locked:
                if locked:
                    valid = (mark := self.mark(key)) and mark["build"]
                    # Whoever waits for the lock sees that it is gone, and makes another.
                    if self.remove_builds(key, but=valid) and not (valid and os.path.isdir(os.path.join(folder, valid))):
                        remove(folder)
                else:
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)  # empty where its maker died before it locked it

    def size(self, since, brought):
        """The store's bytes, for people: those last counted, and what an installation that began at `since` has brought. All
        are counted only where nobody has done it yet, as that takes seconds."""
        try:
            with open(os.path.join(self.root, "size"), encoding="ascii") as file:
                # A count that is younger than the installation has some of its files already.
                return int(file.read()) + (brought if os.fstat(file.fileno()).st_mtime < since else 0)
        except (OSError, ValueError):
            return disk_usage(self.root)

    @contextlib.contextmanager
    def locked(self, key):
        lock = try_lock(os.path.join(self.envs, key, "lock"), fcntl.LOCK_EX, create=False)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)

    def shrink_cache(self):
        """Removes the cache where that frees more than a little, unless somebody installs right now: environments keep their
        files, which are links. As a whole, since uv does not look for a package again whose files alone are missing. A little
        is always in no environment: uv copies each package's RECORD. For that alone, the next environment would fetch again
        what it can link, and be a second copy on the disk."""
        lock = try_lock(os.path.join(self.root, "builders"), fcntl.LOCK_EX)
        if lock is None:
            return
        try:
            loose = sum(s.st_blocks * 512 for s in stats(os.path.join(self.cache, "archive-v0")) if s.st_nlink == 1)
            if loose > LOOSE_BYTES:
                remove(self.cache)
                make_directory(self.cache)
        finally:
            os.close(lock)


def try_lock(path, how, create=True):
    """A locked file's descriptor; None where another holds it, or it was removed meanwhile."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink:
            return lock
    except BlockingIOError:
        pass
    os.close(lock)
    return None


def make_directory(path):
    """Makes the directory where it is missing. Another node may remove it between `makedirs`'s try and its look at what was there."""
    while True:
        try:
            return os.makedirs(path, exist_ok=True)
        except FileExistsError:
            if os.path.lexists(path) and not os.path.isdir(path):
                raise


def wait_lock(path, how, waiting=lambda: None, cancelled=lambda: False):
    while (lock := try_lock(path, how)) is None:
        waiting()
        if cancelled():
            raise Cancelled
        make_directory(os.path.dirname(path))
        time.sleep(0.1)
    return lock


def installed(path):
    """What is installed in a build, short enough to be compared at each use: names, and each package's own list of files."""
    import glob

    found = []
    for site in sorted(glob.glob(os.path.join(path, "virtualenv/lib/python3*/site-packages"))):
        for entry in os.scandir(site):
            if entry.name.endswith(".dist-info"):
                with contextlib.suppress(OSError):
                    record = os.stat(os.path.join(entry.path, "RECORD"))
                    found.append([entry.name, record.st_size, record.st_mtime_ns])
            elif entry.name != "__pycache__":
                found.append([entry.name])
    return sorted(found)


def boot():
    """This boot's word, which no boot before had."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def write(path, text):
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


def remove(path):
    """Removes a folder; under another name first, so that half of it is never taken for the whole."""
    gone = f"{path}.gone"
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def stats(path):
    """All files under a folder."""
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(folder, name))


def disk_usage(*paths):
    """Bytes on the disk, each file once however many names it has."""
    return sum({(s.st_dev, s.st_ino): s.st_blocks * 512 for path in paths for s in stats(path)}.values())


# ---- installing ----

UV_INDEXES = {"UV_DEFAULT_INDEX": "PIP_INDEX_URL", "UV_INDEX_URL": "PIP_INDEX_URL", "UV_INDEX": "PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL": "PIP_EXTRA_INDEX_URL"}


class Decided:
    """What pip would install: wheels with their addresses, and how many things that must be built first."""

    def __init__(self, wheels, others, total, direct):
        self.wheels = wheels
        self.others = others
        self.total = total
        self.direct = direct


def read_report(report, ray_version=None):
    """Reads pip's report; Refused where it would put another Ray over the image's."""
    wheels, others, direct, total = [], 0, set(), 0
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        info = item["download_info"]
        total += 1
        if normal(name) == "ray" and ray_version and version != ray_version:
            raise Refused(f"Changing the ray version is not allowed: the lab has {ray_version}, the packages of this job want {version}")
        if item.get("is_direct"):
            direct.add(normal(name))
        hashes = info.get("archive_info", {}).get("hashes") or {}
        if not info["url"].split("#")[0].endswith(".whl") or not hashes.get("sha256") and not info["url"].startswith("file:"):
            others += 1
        else:
            wheels.append(f"{name} @ {info['url']}" + (f" --hash=sha256:{hashes['sha256']}" if hashes.get("sha256") else ""))
    return Decided(wheels, others, total, direct)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


class Installer:
    """Makes one environment in a folder. `run(argv, env, cwd)` runs a command and returns its output or raises Failed."""

    def __init__(self, kind, config, env, run, uv, cache, python=None, log=lambda text: None, progress=lambda **what: None):
        self.kind, self.config, self.run, self.uv, self.cache = kind, config, run, uv, cache
        self.python = python or os.path.realpath(sys.executable)
        self.log, self.progress = log, progress
        self.env = {**env, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
        if kind == "uv":
            for theirs, ours in UV_INDEXES.items():
                if env.get(theirs):
                    self.env[ours] = env[theirs]
        # uv knows nothing of pip's settings and needs none; its own could lead it elsewhere.
        kept = ("UV_HTTP_TIMEOUT", "UV_NATIVE_TLS", "UV_INSECURE_HOST", "UV_CONCURRENT_DOWNLOADS", "UV_CONCURRENT_INSTALLS")
        self.uv_env = {k: v for k, v in env.items() if not k.startswith("UV_") or k in kept}
        self.uv_env.setdefault("UV_HTTP_TIMEOUT", "300")
        if env.get("PIP_CERT"):
            self.uv_env.setdefault("SSL_CERT_FILE", env["PIP_CERT"])

    def __call__(self, path):
        # Addresses may carry a password, and all jobs can read the store: what holds them lies outside, also if this is killed.
        with tempfile.TemporaryDirectory(prefix="labd-packages-", ignore_cleanup_errors=True) as notes:
            return self.make(path, notes)

    def make(self, path, notes):
        packages = self.config["packages"]
        if self.kind == "uv":
            packages = [VARIABLE.sub(lambda m: self.env.get(m[1] or m[2], m[0]), line) for line in packages]
        requirements = os.path.join(notes, "requirements.txt")
        write(requirements, "\n".join(packages) + "\n")
        self.cwd = os.path.join(path, "exec_cwd")
        os.makedirs(self.cwd, exist_ok=True)
        options = [o for o in self.config.get("pip_install_options", []) if o != "--no-cache-dir"] if self.kind == "pip" else []
        options += ["--no-cache-dir", "-r", requirements]
        self.overlay(path)
        self.progress(phase="resolving")
        report = os.path.join(notes, "report.json")
        try:
            self.pip(path, "install", "--dry-run", "--quiet", "--report", report, *options)
        except Failed as error:
            if PIP_SAYS_NO.search(error.output):
                raise Refused(f"pip cannot install the packages of this job:\n{masked(error.output[-4000:].strip())}") from None
            raise
        with open(report, encoding="utf-8") as file:
            decided = read_report(json.load(file), ray_version())
        self.log(f"pip decided on {decided.total} packages")
        self.progress(phase="installing", packages=decided.total)
        try:
            if decided.wheels:
                self.by_uv(path, decided, os.path.join(notes, "wheels.txt"))
            if decided.others:
                self.pip(path, "install", "--no-compile", *options)
        except Failed as error:
            self.log(f"uv did not install them ({last_line(error.output)}); pip does")
            shutil.rmtree(os.path.join(path, "virtualenv"))
            self.overlay(path)
            self.pip(path, "install", "--no-compile", *options)
        if self.config.get("pip_check") or self.config.get("uv_check"):
            try:
                self.pip(path, "check")
            except Failed as error:
                raise Refused(f"pip check found conflicts in the packages of this job:\n{masked(error.output[-4000:].strip())}") from None
        return decided.total

    def overlay(self, path):
        """An empty environment over the image's packages, with a pip of its own, as `virtualenv` would give."""
        virtualenv = os.path.join(path, "virtualenv")
        self.run([self.python, "-m", "venv", "--system-site-packages", "--without-pip", virtualenv], self.env, path)
        for name in ("pip", "pip3"):
            script = os.path.join(virtualenv, "bin", name)
            write(script, f"#!{virtualenv}/bin/python\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n")
            os.chmod(script, 0o755)

    def pip(self, path, *argv):
        return self.run([os.path.join(path, "virtualenv/bin/python"), "-m", "pip", *argv], self.env, self.cwd)

    def by_uv(self, path, decided, wheels):
        write(wheels, "\n".join(decided.wheels) + "\n")
        python = os.path.join(path, "virtualenv/bin/python")
        self.run(
            [self.uv, "pip", "install", "--no-config", "--python", python, "--no-deps", "--link-mode", "hardlink",
             "--cache-dir", self.cache, "-r", wheels],
            self.uv_env, self.cwd,
        )
        # To uv all came from an address; to people, and to `pip freeze`, from an index.
        import glob

        for file in glob.glob(os.path.join(path, "virtualenv/lib/python3*/site-packages/*.dist-info/direct_url.json")):
            if normal(os.path.basename(os.path.dirname(file)).split("-")[0]) not in decided.direct:
                os.unlink(file)


class Failed(Exception):
    """A command's failure, with what it printed."""

    def __init__(self, argv, code, output):
        super().__init__(f"{os.path.basename(argv[0])} exited {code}: {last_line(output)}")
        self.output = output


class Runner:
    """Runs commands one after the other, until it is told to stop."""

    def __init__(self, log=lambda text: None):
        self.log = log
        self.stopped = threading.Event()

    def __call__(self, argv, env, cwd):
        if self.stopped.is_set():
            raise Cancelled
        self.log(f"running {masked(' '.join(argv))}")
        process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )
        while True:
            try:
                output = process.communicate(timeout=0.2)[0]
                break
            except subprocess.TimeoutExpired:
                if self.stopped.is_set():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
                    raise Cancelled from None
        if output.strip():
            self.log(masked(output.strip()[-8000:]))
        if process.returncode != 0:
            raise Failed(argv, process.returncode, output)
        return output


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [masked(line) for line in lines]
    return next((line for line in reversed(lines) if line.startswith(("ERROR", "error", "×"))), lines[-1] if lines else "no word")[:300]


def masked(text):
    """The text without what stands before the host in an address."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def ray_version():
    import importlib.metadata

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("ray")
    return None


# ---- what labd is told ----


class Progress:
    """Tells labd what is being installed: at once, every two seconds, and at the end. Nothing waits for it or fails by it.

    While labd is away it goes on trying, as the installation goes on. How it ended is tried for some minutes more, unless
    there is another attempt by then: its words would be taken back by those of the former.
    """

    latest = {}  # by key and job

    def __init__(self, key, job, url=FRONT_DOOR, every=POST_SECONDS, measure=lambda: 0):
        import socket

        self.url, self.every, self.measure = url, every, measure
        self.store_size = lambda brought: None
        self.words = {
            "node": socket.gethostname(), "job": job, "key": key, "phase": "resolving", "since_ms": int(time.time() * 1000),
            "bytes": 0, "packages": 0, "reason": None,
        }
        self.bytes, self.measure_at = 0, 0.0
        self.changed = threading.Event()
        self.ended = False
        self.latest[key, job] = self
        self.thread = threading.Thread(target=self.run, name="labd-installs", daemon=True)
        self.thread.start()

    def __call__(self, **words):
        if any(self.words.get(name) != value for name, value in words.items()):
            self.words = {**self.words, **words}
            self.changed.set()

    def end(self, phase, reason=None):
        self.words = {**self.words, "phase": phase, "reason": reason}
        self.ended = True
        self.changed.set()

    def run(self):
        missed = 0
        while not self.ended:
            self.changed.clear()
            missed = 0 if post(self.url, self.measured()) else missed + 1
            if not self.ended:  # else it may have been set before it was cleared
                self.changed.wait(self.pause(missed))
        words, until = self.last_words(), time.monotonic() + LAST_WORDS_SECONDS
        while not post(self.url, words) and time.monotonic() < until and self.is_latest():
            missed += 1
            time.sleep(self.pause(missed))
        if self.is_latest():
            del self.latest[words["key"], words["job"]]

    def is_latest(self):
        return self.latest.get((self.words["key"], self.words["job"])) is self

    def pause(self, missed):
        return self.every if missed < MISSES else AWAY_SECONDS

    def measured(self):
        """The words with the bytes brought so far, which are measured now and then."""
        if time.monotonic() >= self.measure_at:
            with contextlib.suppress(Exception):
                self.bytes = int(self.measure())
            self.measure_at = time.monotonic() + MEASURE_SECONDS
        return {**self.words, "bytes": self.bytes}

    def last_words(self):
        self.measure_at = 0.0
        words = self.measured()
        with contextlib.suppress(Exception):
            if (size := self.store_size(words["bytes"])) is not None:
                words["store_bytes"] = int(size)
        return words


def post(url, words):
    import urllib.request

    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('RAY_AUTH_TOKEN', '')}"}
        request = urllib.request.Request(url, json.dumps(words).encode(), headers)
        # A proxy for packages is none for the lab's own names.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=2):
            return True
    except Exception:
        return False


def measure_since(store, path, start):
    """Bytes that an installation has brought so far: what is new in the cache, and what is in the environment itself."""
    new = []
    for folder in (store.cache, os.path.join(store.cache, "archive-v0")):
        with contextlib.suppress(OSError):
            new += [e.path for e in os.scandir(folder) if e.name.startswith(".tmp") or folder != store.cache and e.stat().st_mtime >= start]
    return disk_usage(*new, *([path] if path else []))


# ---- inside Ray's agent ----


def shared_environment(store, kind, config, env, working_dir, runner, progress, log):
    """One environment of the store, held; made first where it is not there. Runs in a thread of its own."""
    key = key_of(kind, config, env, working_dir, base_fingerprint())
    if held := store.find(key):
        log(f"labd: the packages are there already: {held.path}")
        if not all(os.path.exists(os.path.join(held.path, name)) for name in ("compiled", "synced")):
            tidy_later(store.root, held.path)
        return held
    uv = shutil.which("uv", path=os.path.dirname(sys.executable)) or shutil.which("uv")
    tell = progress(key)
    start, places = time.time(), [None]
    tell.measure = lambda: measure_since(store, places[0], start)
    tell.store_size = lambda brought: store.size(start, brought)

    def build(path):
        places[0] = path
        Installer(kind, config, env, runner, uv or "uv", store.cache, log=log, progress=tell)(path)

    held, made = store.obtain(key, build, lambda: tell(phase="waiting"), runner.stopped.is_set)
    log(f"labd: the packages are in {held.path}, " + ("installed just now" if made else "installed by another node"))
    tidy_later(store.root, held.path)
    return held


def tidy_at_start(root=STORE, after=START_SECONDS):
    """Makes room once some time after the agent's start: the bound may be a lower one now, jobs that ended have left
    environments, and who was killed has left halves. Later, since a node that comes back has jobs to start first."""
    if os.path.isdir(root):
        timer = threading.Timer(after, tidy_later, (root, ""))
        timer.daemon = True
        timer.start()


def tidy_later(root, path):
    """Compiles and syncs a build, if any, and makes room, in a process of its own, as nobody waits for any of it."""
    argv = [sys.executable, os.path.abspath(__file__), "tidy", root, path]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=process.wait, daemon=True).start()


def tidy(root, path, limit):
    os.nice(19)
    store = Store(root)
    lock = try_lock(os.path.join(path, "used"), fcntl.LOCK_SH, create=False) if path else None
    if lock is not None:
        one = try_lock(os.path.join(path, "compiling"), fcntl.LOCK_EX)
        if one is not None and not os.path.exists(os.path.join(path, "compiled")):
            python = os.path.join(path, "virtualenv/bin/python")
            subprocess.run([python, "-m", "compileall", "-q", os.path.join(path, "virtualenv/lib")], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            open(os.path.join(path, "compiled"), "a").close()
        store.sync()
        os.close(lock)
    store.make_room(limit)


def limit_bytes(root=STORE):
    """`ray.packages_limit`, or a tenth of the disk within bounds."""
    with contextlib.suppress(KeyError, ValueError):
        return int(os.environ["LABD_PACKAGES_LIMIT_BYTES"])
    try:
        disk = os.statvfs(root)
    except OSError:
        return MOST_BYTES
    return min(max(disk.f_blocks * disk.f_frsize // 10, LEAST_BYTES), MOST_BYTES)


def lock_of(plugin, uri):
    """Held while a plugin makes what an address names."""
    return plugin.__dict__.setdefault("_labd_locks", {}).setdefault(uri, asyncio.Lock())


def wrap(plugin_class, kind, root=STORE):
    """Lays the store over one of Ray's plugins: `create` finds or makes an environment there, and its folder is what Ray uses."""
    create, path_of, delete_uri, get_uris = (
        plugin_class.create, plugin_class._get_path_from_hash, plugin_class.delete_uri, plugin_class.get_uris,
    )

    def held_by(plugin):
        return plugin.__dict__.setdefault("_labd_held", {})

    def hash_of(uri):
        return uri.split("://", 1)[1]

    async def labd_create(self, uri, runtime_env, context, logger=None):
        config = dict(getattr(runtime_env, f"{kind}_config")() or {}) if uri else {}
        if not config.get("packages"):
            return await create(self, uri, runtime_env, context, logger)
        env = {**os.environ, **runtime_env.env_vars()}
        told, runner = [], Runner(lambda text: logger.info("%s", text))

        def progress(key):
            told.append(Progress(key, env.get("LABD_JOB") or None))
            return told[0]

        # One at a time for one URI; others go on meanwhile.
        async with lock_of(self, uri):
            if hash_of(uri) in held_by(self):
                return 1
            try:
                store = open_store(root)
                work = lambda: shared_environment(store, kind, config, env, runtime_env.working_dir() or None, runner, progress, logger.info)
                held_by(self)[hash_of(uri)] = await in_thread(work, runner)
                end(told, "done")
                return 1  # the store's bound is not Ray's
            except (Refused, asyncio.CancelledError) as error:
                end(told, "failed", last_line(str(error)) if isinstance(error, Refused) else "it took longer than setup_timeout_seconds")
                raise
            except NotShared as error:
                logger.info("labd: these packages are installed for this node alone: %s", error)
            except Exception as error:
                logger.warning("labd: the store of packages does not serve (%s: %s); Ray installs them", type(error).__name__, error)
            if not told:
                progress(hash_of(uri))
            told[0](phase="installing")
            try:
                size = await create(self, uri, runtime_env, context, logger)
                end(told, "done")
                return size
            except BaseException as error:
                end(told, "failed", last_line(str(error)))
                raise

    def labd_path(self, hash_val):
        held = held_by(self).get(hash_val)
        return held.path if held else path_of(self, hash_val)

    def labd_delete(self, uri, logger=None):
        if held := held_by(self).pop(hash_of(uri), None):
            held.release()
            return 1
        return delete_uri(self, uri, logger)

    def labd_uris(self, runtime_env):
        uris = get_uris(self, runtime_env)
        if not uris:
            return uris
        try:
            suffix = uri_suffix(runtime_env)
            return [uri + suffix for uri in uris]
        except Exception:
            return uris

    plugin_class.create, plugin_class._get_path_from_hash = labd_create, labd_path
    plugin_class.delete_uri, plugin_class.get_uris = labd_delete, labd_uris


def wrap_cache(cache_class):
    """An environment of the store that no job of this node uses any more is forgotten at once: its next use looks again."""
    mark_unused = cache_class.mark_unused

    def labd_mark_unused(self, uri, *args, **kwargs):
        mark_unused(self, uri, *args, **kwargs)
        try:
            plugin = getattr(self._delete_fn, "__self__", None)
            if uri in self._unused_uris and uri.split("://", 1)[-1] in getattr(plugin, "_labd_held", {}):
                self._unused_uris.remove(uri)
                self._total_size_bytes -= self._delete_fn(uri, *args)
        except Exception:
            pass  # then it stays in use as long as this agent lives

    cache_class.mark_unused = labd_mark_unused


def wrap_working_dir(plugin_class):
    """Keeps Ray from making a working directory twice. Two environments that differ but have one directory, asked for at once,
    are both made, as neither finds it in Ray's cache; the second removes the folder in which the first one's job runs by then.
    """
    create, delete_uri = plugin_class.create, plugin_class.delete_uri

    def made_by(plugin):
        return plugin.__dict__.setdefault("_labd_made", set())

    def is_made(plugin, uri):
        try:
            return uri in made_by(plugin) and os.path.isdir(plugin._get_directory_on_node(uri))
        except Exception:
            return False

    async def labd_create(self, uri, *args, **kwargs):
        # A `local://` directory is the image's: Ray makes nothing there.
        if uri is None or str(uri).lower().startswith("local:"):
            return await create(self, uri, *args, **kwargs)
        async with lock_of(self, uri):
            if is_made(self, uri):
                return 0  # its size is counted already
            size = await create(self, uri, *args, **kwargs)
            made_by(self).add(uri)
            return size

    def labd_delete(self, uri, *args, **kwargs):
        made_by(self).discard(uri)
        return delete_uri(self, uri, *args, **kwargs)

    plugin_class.create, plugin_class.delete_uri = labd_create, labd_delete


def wrap_agent(agent_class):
    """Tells the server of warm starts (labd_warm.py) which jobs come to this node: Ray has every node make a job's own
    environment when its driver starts, before there is work for it."""
    get_or_create = agent_class.GetOrCreateRuntimeEnv
    env = dict(os.environ)  # the raylet's; it changes while an environment is made

    async def labd_get_or_create(self, request):
        with contextlib.suppress(Exception):
            import labd_warm

            labd_warm.announce(request.job_id.decode(), env, json.loads(request.serialized_runtime_env).get("env_vars") or {})
        return await get_or_create(self, request)

    agent_class.GetOrCreateRuntimeEnv = labd_get_or_create


def open_store(root):
    if sys.prefix != sys.base_prefix:
        raise NotShared("the image's Python is a virtual environment")
    if not os.path.isdir(root):
        raise NotShared(f"there is no {root}")
    return Store(root)


async def in_thread(work, runner):
    """Waits for a thread off the event loop. Where the waiting is cancelled, the work is told to stop and not waited for: what
    it finishes all the same is released."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def settle(result, error):
        if done.cancelled() or done.done():
            if result is not None:
                result.release()
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)

    def run():
        result = error = None
        try:
            result = work()
        except Exception as e:
            error = e
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="labd-packages", daemon=True).start()
    try:
        return await done
    except asyncio.CancelledError:
        runner.stopped.set()
        raise


def end(told, phase, reason=None):
    for progress in told:
        progress.end(phase, reason)


def install():
    """Wraps Ray's plugins. Never raises: an agent whose plugin cannot be imported takes its node down."""
    try:
        from ray._private.runtime_env.pip import PipPlugin
        from ray._private.runtime_env.uri_cache import URICache
        from ray._private.runtime_env.uv import UvPlugin

        for plugin, kind in ((PipPlugin, "pip"), (UvPlugin, "uv")):
            wrap(plugin, kind)
        wrap_cache(URICache)
    except Exception as error:
        print(f"labd: packages are installed on each node for itself ({type(error).__name__}: {error})", file=sys.stderr, flush=True)
    try:
        from ray._private.runtime_env.working_dir import WorkingDirPlugin

        wrap_working_dir(WorkingDirPlugin)
    except Exception as error:
        print(f"labd: working directories are as Ray makes them ({type(error).__name__}: {error})", file=sys.stderr, flush=True)
    with contextlib.suppress(Exception):
        wrap_agent(sys.modules["runtime_env_agent"].RuntimeEnvAgent)  # the name that the agent's own script imports it by


class Plugin(RuntimeEnvPlugin):
    """The name by which the agent imports this module; a runtime_env has no such field."""

    name = "labd_packages"

    def __init__(self):
        install()
        with contextlib.suppress(Exception):
            tidy_at_start()


if __name__ == "__main__" and sys.argv[1:2] == ["tidy"]:
    tidy(sys.argv[2], sys.argv[3], limit_bytes(sys.argv[2]))
