"""Named by RAY_START_HOOK in the head: `ray start` calls it with what it is about to start. labd uploads it."""


def without_connections(parameters, head):
    """Leaves out Ray's server for notebooks' connections (port 10001): it runs people's code, and labd has it on the driver node."""
    parameters.ray_client_server_port = None
