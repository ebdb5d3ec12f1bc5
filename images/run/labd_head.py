"""Named by RAY_START_HOOK in the head: `ray start` calls it with what it is about to start. labd uploads it."""

# Waits until somebody listens at the port with this hexadecimal number, not for ever, then becomes the command.
AFTER = """port=$1; shift
for _ in $(seq 100); do
  grep -q ":$port [0-9A-F]*:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null && break
  sleep 0.2
done
exec "$@"
"""
CAN_WAIT = ("monitor", "log_monitor")


def before_start(parameters, head):
    """Leaves out Ray's server for notebooks' connections (port 10001): it runs people's code, and labd has it on the driver
    node. And lets what nobody waits for start once the dashboard serves: each is a second of a core, while all wait for the
    head."""
    parameters.ray_client_server_port = None
    try:
        from ray._private import services

        start, port = services.start_ray_process, f"{parameters.dashboard_port:04X}"
    except Exception as error:
        print(f"labd: Ray's monitors start with the head ({type(error).__name__}: {error})", flush=True)
        return

    def start_ray_process(command, process_type, *args, **kwargs):
        if process_type in CAN_WAIT:
            command = ["/bin/sh", "-c", AFTER, "sh", port, *command]
        return start(command, process_type, *args, **kwargs)

    services.start_ray_process = start_ray_process
