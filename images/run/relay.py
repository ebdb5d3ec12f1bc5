"""Passes TCP connections of the lab's network on to Unix sockets of the host, on which labd listens.

    python3 relay.py PORT=SOCKET [PORT=SOCKET ...]

Containers reach labd at this container's fixed address, whatever a firewall or a rootless engine makes of connections
from a container to its host. The folder of a socket is mounted, not the socket: labd makes a new one at each start, and
the path is looked up for each connection. When nobody listens there, the answer is an HTTP 503.

Bytes go through as they are, at most 64 KiB of each direction in hand; the end of one direction is passed on without
ending the other. Standard library only, one file: labd uploads it.
"""
import asyncio
import os
import resource
import signal
import socket
import sys

CHUNK = 64 * 1024
# A full backlog refuses for moments only; labd that is away refuses at once.
BACKLOG_SECONDS = 5
# How long a client may still send, once labd has said its last word or was found away.
LINGER_SECONDS = 10
HEAD_SECONDS = 10

BODY = b"labd does not run on this machine now; jobs that train go on\n"
AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nRetry-After: 2\r\nConnection: close\r\n\r\n%s" % (len(BODY), BODY)
)


async def connect(path):
    """A connection to labd; OSError when it does not listen."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BACKLOG_SECONDS
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(path)
            return await asyncio.open_unix_connection(sock=sock, limit=CHUNK)
        except BlockingIOError:  # many came at once; asyncio itself would take this for connected
            sock.close()
            if loop.time() > deadline:
                raise
            await asyncio.sleep(0.02)
        except BaseException:
            sock.close()
            raise


async def pass_on(reader, writer):
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def relay(client, labd):
    """Until both directions have ended, or either side broke."""
    up = asyncio.create_task(pass_on(client[0], labd[1]))
    down = asyncio.create_task(pass_on(labd[0], client[1]))
    try:
        done, _ = await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        broken = any(task.exception() for task in done)
        if not broken:
            # A client that ended its request still waits for the answer; labd that ended waits for nothing.
            await asyncio.wait((up, down), timeout=LINGER_SECONDS if down in done else None)
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


async def say_away(reader, writer):
    """Hears the request's head first: some clients take an answer that comes before their question for noise."""
    try:
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, asyncio.TimeoutError):
        pass
    writer.write(AWAY)
    await writer.drain()
    writer.write_eof()

    async def discard():
        # Closed with bytes unread, the connection would be reset and the answer lost.
        while await reader.read(CHUNK):
            pass

    try:
        await asyncio.wait_for(discard(), LINGER_SECONDS)
    except (TimeoutError, asyncio.TimeoutError):
        pass


async def serve(path, reader, writer):
    sides = [writer]
    try:
        # A container that vanished leaves a silent connection, for ever without this.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            labd = await connect(path)
        except OSError as error:
            report(path, error)
            await say_away(reader, writer)
            return
        report(path, None)
        sides.append(labd[1])
        await relay((reader, writer), labd)
    except OSError:
        pass  # one side hung up; so do we
    finally:
        for side in sides:
            side.close()


state = {}


def report(path, error):
    """One line per change, not one per connection."""
    word = os.strerror(error.errno) if error and error.errno else str(error or "")
    if state.get(path, "") != word:
        state[path] = word
        print(f"relay: {path}: {word or 'labd answers again'}", file=sys.stderr, flush=True)


async def main(routes):
    servers = []
    for port, path in routes:
        servers.append(
            await asyncio.start_server(
                lambda reader, writer, path=path: serve(path, reader, writer), "0.0.0.0", port, limit=CHUNK, backlog=1024
            )
        )
    print("relay: listens on " + ", ".join(str(port) for port, _ in routes), file=sys.stderr, flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


def parse(words):
    routes = []
    for word in words:
        port, _, path = word.partition("=")
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536 and path.startswith("/")):
            sys.exit(f"relay: `{word}` is not PORT=SOCKET; give for example 8265=/run/labd/door.sock")
        routes.append((int(port), path))
    if not routes:
        sys.exit("relay: no routes; give PORT=SOCKET, for example 8265=/run/labd/door.sock")
    return routes


if __name__ == "__main__":
    # As PID 1 of a container, Python would ignore it; and there is nothing to finish.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    routes = parse(sys.argv[1:])
    try:
        asyncio.run(main(routes))
    except OSError as error:
        sys.exit(f"relay: cannot listen: {error}; give ports that are free")
