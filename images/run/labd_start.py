"""Named by RAY_START_HOOK in every Ray container: `ray start` calls it with what it is about to start. labd uploads it."""

# Waits until somebody listens at the port with this hexadecimal number, not for ever, then becomes the command.
AFTER = """port=$1; shift
for _ in $(seq 100); do
  grep -q ":$port [0-9A-F]*:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null && break
  sleep 0.2
done
exec "$@"
"""
CAN_WAIT = ("monitor", "log_monitor")
# `ray start` has this setting for the agent alone. A raylet that does not know it, either, starts without it.
LISTENS = "dashboard_agent_listen_port"


def before_start(parameters, head):
    """On the head, leaves out Ray's server for notebooks' connections (port 10001): it runs people's code, and labd has it on
    the driver node. And lets what nobody waits for start once the dashboard serves: each is a second of a core, while all wait
    for the head.

    On the other nodes, tells the raylet the one port that `ray start` keeps from it: where it knows all ports of its agents it
    joins the cluster at once, and gets work, instead of waiting until the slower agent has written its own into a file."""
    if head:
        parameters.ray_client_server_port = None
    try:
        from ray._private import services

        start = services.start_ray_process
        port = f"{parameters.dashboard_port:04X}" if head else None
        known = [] if head else [f"--undefok={LISTENS}", f"--{LISTENS}={int(parameters.dashboard_agent_listen_port)}"]
    except Exception as error:
        print(f"labd: Ray's processes start in Ray's own order ({type(error).__name__}: {error})", flush=True)
        return

    def start_ray_process(command, process_type, *args, **kwargs):
        if head and process_type in CAN_WAIT:
            command = ["/bin/sh", "-c", AFTER, "sh", port, *command]
        elif process_type == "raylet":
            command = [*command, *known]
        return start(command, process_type, *args, **kwargs)

    services.start_ray_process = start_ray_process
