"""Ray's own processes of a node, started from one that has imported Ray once.

`ray start`, the two agents without which a node is not whole, Ray's log monitor and, on the head, its autoscaler, its dashboard
and what that forks its parts from are one Python program each, and all import the same: a second of CPU for each, one after the
other, before a node that died is back. So:

- **The node's first process** (`python labd_node.py /opt/ray/bin/ray start ...`, what start.sh becomes) imports Ray, forks the
  parent, and is `ray start` from then on.
- **The parent** imports what the agents import besides, while `ray start` does its work, and forks one for each process that
  Ray starts with one of the programs in `labd_node.pth`, which brings it here; it hands over all it has and waits, as that of
  a worker does (labd_warm.py, which has the rest of it). What nobody has served goes on by itself.
- **The agent** runs its program as `__main__`. Its parent, as far as Ray asks, is the raylet: that of the process that waits.

The parent has one thread and no connection: gRPC, in Ray's own library as in Python's, starts both when it is first used.
Served is only a process for which everything that was read from the environment while Ray was imported is the same.

`LABD_WARM=0` switches this off, too: then, and when anything is wrong, Ray starts as ever.
"""
import os
import sys

import labd_warm

SOCKET = "LABD_NODE_SOCKET"
# The parent listens before it has imported everything: it answers within a second, or a few where the cores are busy. Ray
# itself waits 15 s for an agent.
ANSWER_SECONDS = 8.0
# Before `ray start` goes on, and after that. The first names of a line lead to the others.
FIRST = ("ray", "ray.scripts.scripts")
REST = ("ray.dashboard.agent", "grpc.aio", "ray.dashboard.http_server_agent", "ray._private.log_monitor",
        "ray._private.authentication.grpc_authentication_server_interceptor", "ray._private.runtime_env.agent.main")
# On the head besides.
HEAD = ("ray.dashboard.dashboard", "ray.dashboard.http_server_head", "ray.dashboard.subprocesses.handle")
# Told by the raylet to its agents, and read when they run; or read while Ray is imported, and set right in the agent.
TOLD = {"RAY_NODE_ID", "RAY_RAYLET_PID", "RAY_enable_pipe_based_agent_to_parent_health_check"}
# What Ray says to what it starts, and what it takes for said where nothing is.
UNSAID = {"RAY_CLIENT_MODE": "0", "RAY_LD_PRELOAD_ON_WORKERS": "0"}
# Ray has it loaded into what `ray start` starts, and not into agents and workers. What is forked does without.
ALLOCATOR = "/ray/core/libjemalloc.so"


def socket_path():
    return os.environ.get(SOCKET, "/run/labd-node.sock")


def script_at():
    """Where in its arguments a process has its script, or `-c`: Ray starts most of its own with `-u`."""
    at = 2 if sys.orig_argv[1:2] == ["-u"] else 1
    return sys.orig_argv.index("-c") if sys.orig_argv[at].startswith("-") else at


# ---- The first process of an agent ----


def hook():
    """Called while Python starts, for Ray's own programs only. Returns where the process should go on by itself."""
    try:
        if labd_warm.asked or os.environ.get("LABD_WARM", "1") == "0":
            return
        labd_warm.asked = True
        labd_warm.hand_over(sys.orig_argv, dict(os.environ), connect=connected)
    except Exception as error:
        labd_warm.debug(error)


def connected(conn):
    conn.settimeout(ANSWER_SECONDS)
    conn.connect(socket_path())
    return conn


# ---- The parent ----


class Agents(labd_warm.Parent):
    """Forks Ray's own processes, for as long as the process lives that is `ray start`."""

    what = "a process of Ray's own"

    def __init__(self, path):
        super().__init__(path)
        self.finders = {labd_warm.kind(f) for f in sys.meta_path}
        self.node = None

    def beside(self, pid):
        """In the parent: it goes when the node does."""
        import select

        self.node = os.pidfd_open(pid)
        self.poll.register(self.node, select.POLLIN)

    def other(self, fd):
        if fd == self.node:
            self.poll.unregister(fd)
            if self.listener is not None:
                self.deaf()

    def leave(self, conn):
        super().leave(conn)
        os.close(self.node)

    def refuses(self, request, conn):
        """Why this request is not served; None where the agent will be as one that starts by itself."""
        if why := self.is_another(request, conn):
            return why
        if request["prefixes"] != labd_warm.prefixes() or request["path"] != self.base[:len(request["path"])]:
            return "its packages are others"
        if why := self.imports_otherwise(request):
            return why
        env = dict(request["env"])
        if env.get("LD_PRELOAD", "").endswith(ALLOCATOR):
            del env["LD_PRELOAD"]
        early = {name for name in {*env, *self.env} if name.startswith((*labd_warm.READ_EARLY, *labd_warm.READ_BY_RAY))}
        if why := self.has_another((early | labd_warm.Recorder.reads) - TOLD, {**UNSAID, **env}, {**UNSAID, **self.env}):
            return why
        return labd_warm.unsound(with_ray=True)


def imported(names):
    """Imports these, and notes which variables are read meanwhile. What cannot be imported is left to the agents."""
    import importlib
    import logging

    plain = os.environ.__class__
    os.environ.__class__ = labd_warm.Recorder
    logging.disable(logging.INFO)
    try:
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError as error:
                labd_warm.debug(error)
        if (utils := sys.modules.get("ray.dashboard.utils")) is not None and names is not FIRST:
            utils.get_all_modules(utils.DashboardAgentModule)
    finally:
        logging.disable(logging.NOTSET)
        os.environ.__class__ = plain


def parent_of(agents):
    """Forks the parent of Ray's own processes, as a child of nobody here: its end is not that of a process of `ray start`.
    Returns True in that parent."""
    node = os.getpid()
    if pid := os.fork():
        os.waitpid(pid, 0)
        agents.listener.close()
        return False
    try:
        if os.fork():
            os._exit(0)
        agents.beside(node)
        return True
    except BaseException:
        os._exit(1)  # never a second `ray start`


def titled(text):
    """What `ps` shows: these processes have the arguments of the one that they were forked from."""
    if (raylet := sys.modules.get("ray._raylet")) is not None:
        raylet.setproctitle(text)


def serve(agents, names):
    """The parent's life, which begins by importing these; returns what an agent, forked from it, has to carry out."""
    import gc

    try:
        titled("labd: forks Ray's agents")
        imported(names)
        sys.path[:] = agents.base
        gc.collect()
        gc.freeze()
        if (work := agents.run()) is None:
            os._exit(0)
    except Exception as error:
        print(f"labd: Ray's processes start cold on this node: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    request, fds = work
    try:
        return become(request, fds)
    except Exception as error:
        # This process is the agent by now, and can still begin as ever.
        print(f"labd: {agents.what} starts cold: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os.execve(request["executable"], request["argv"], {**request["env"], "LABD_WARM": "0"})


def become(request, fds):
    """Makes this process the agent; returns its program's code and the namespace to run it in."""
    import signal

    labd_warm.take_on(request, fds)
    at = script_at()
    script, sys.argv = sys.orig_argv[at], sys.orig_argv[at:]
    if script == "-c":
        script, command = None, sys.argv.pop(1)
    titled(" ".join(sys.orig_argv))
    raylet_is_parent(request["pid"])
    if (consts := sys.modules.get("ray.dashboard.consts")) is not None:
        consts.PARENT_HEALTH_CHECK_BY_PIPE = consts.env_bool("RAY_enable_pipe_based_agent_to_parent_health_check", False)
    labd_warm.hooks(os.path.dirname(os.path.abspath(__file__)))
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(script)) if script else "")
    code = code_of(script) if script else compile(command, "<string>", "exec", dont_inherit=True)
    work = labd_warm.as_main(script, code)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["mask"])
    return work


def code_of(script):
    """The script's code, compiled once where it was imported as a module."""
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == script and (loader := getattr(module, "__loader__", None)) is not None:
            return loader.get_code(name)
    with open(script, "rb") as file:
        return compile(file.read(), script, "exec", dont_inherit=True)


def raylet_is_parent(first):
    """Who asks psutil for this process's parent gets that of the process that waits for it: Ray's agents compare it with the
    raylet, end where it is another one, and look for the raylet's children through it."""
    if (psutil := sys.modules.get("psutil")) is None:
        return
    import functools

    ppid, itself = psutil.Process.ppid, os.getpid()

    @functools.wraps(ppid)  # which has more to it than its code
    def told(process):
        return ppid(psutil.Process(first)) if process.pid == itself else ppid(process)

    psutil.Process.ppid = told


# ---- The node ----


def begin():
    """What the process has to carry out: in the node's first process that is the command in its arguments."""
    command = sys.argv[1:]
    if not command:
        sys.exit("usage: labd_node.py PROGRAM [ARGUMENT...]")
    if not sys.flags.safe_path:
        del sys.path[0]
    is_parent = False
    try:
        agents = Agents(socket_path())
        imported(FIRST)
        if why := labd_warm.unsound(with_ray=True):
            raise RuntimeError(why)
        titled(" ".join([sys.executable, *command]))
        agents.listen()
        is_parent = parent_of(agents)
    except Exception as error:
        print(f"labd: Ray's processes start cold on this node: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    if is_parent:
        return serve(agents, (*HEAD, *REST) if "--head" in command else REST)
    sys.argv, sys.orig_argv = command, [sys.executable, *command]
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(command[0])))
    with open(command[0], "rb") as file:
        return labd_warm.as_main(command[0], compile(file.read(), command[0], "exec", dont_inherit=True))


if __name__ == "__main__":
    sys.modules["labd_node"] = sys.modules["__main__"]
    work = begin()
    exec(*work)
