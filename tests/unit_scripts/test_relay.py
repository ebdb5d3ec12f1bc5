"""The relay between the lab's network and labd's sockets. Loopback only, no engine needed."""
import contextlib
import hashlib
import http.client
import os
import pathlib
import selectors
import signal
import socket
import subprocess
import sys
import threading

import pytest

from harness.lab import ROOT, free_port, wait_for

RELAY = ROOT / "images/run/relay.py"


@contextlib.contextmanager
def listening(path, handle):
    """Stands for labd: calls `handle` with each connection, in a thread of its own."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(128)

    def accept():
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


@pytest.fixture
def relay(tmp_path):
    """A running relay of two ports; `relay.path` is the first one's socket."""
    ports, paths = (free_port(), free_port()), (tmp_path / "a.sock", tmp_path / "b.sock")
    argv = [sys.executable, RELAY, *(f"{port}={path}" for port, path in zip(ports, paths, strict=True))]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == f"relay: listens on {ports[0]}, {ports[1]}\n"
    process.port, process.path, process.ports, process.paths = ports[0], paths[0], ports, paths
    yield process
    process.kill()
    process.wait(10)
    process.stderr.close()


def dial(relay, port=None):
    return socket.create_connection(("127.0.0.1", port or relay.port), timeout=20)


def read_all(sock):
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def echo_when_done(peer):
    """Answers after the client ended its request, so it only works if that end is passed on alone."""
    with peer:
        data = read_all(peer)
        peer.sendall(hashlib.sha256(data).hexdigest().encode() + b" " + data[:10])


def test_each_port_leads_to_its_socket_and_half_closed_connections_live(relay):
    with listening(relay.paths[0], echo_when_done), listening(relay.paths[1], lambda p: (p.sendall(b"second"), p.close())):
        with dial(relay) as sock:
            sock.sendall(b"a request")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == hashlib.sha256(b"a request").hexdigest().encode() + b" a request"
        with dial(relay, relay.ports[1]) as sock:
            assert read_all(sock) == b"second"


def test_many_megabytes_go_through_unchanged_and_are_not_kept(relay):
    block, blocks = os.urandom(1 << 20), 200
    want = hashlib.sha256()
    with listening(relay.path, echo_when_done_slowly), dial(relay) as sock:
        for _ in range(blocks):
            want.update(block)
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).decode() == want.hexdigest()
    status = pathlib.Path(f"/proc/{relay.pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert peak < 100 * 1024, f"{peak} KiB for a {blocks} MiB body"


def echo_when_done_slowly(peer):
    seen = hashlib.sha256()
    with peer:
        while part := peer.recv(16384):
            seen.update(part)
        peer.sendall(seen.hexdigest().encode())


def test_a_reader_that_stops_makes_the_writer_wait(relay):
    release = threading.Event()

    def stalled(peer):
        release.wait(60)
        echo_when_done(peer)

    with listening(relay.path, stalled), dial(relay) as sock:
        sock.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 256 << 20:
                sent += sock.send(bytes(65536))
        assert sent < 64 << 20
        release.set()
        sock.settimeout(20)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).startswith(hashlib.sha256(bytes(sent)).hexdigest().encode())


def test_without_labd_the_answer_is_503_and_a_new_socket_is_found(relay):
    for _ in range(2):
        client = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=20)
        # A body far larger than any buffer on the way: the answer must arrive all the same.
        client.request("POST", "/api/jobs/", body=bytes(8 << 20), headers={"Content-Type": "application/json"})
        answer = client.getresponse()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.read() == b"labd does not run on this machine now; jobs that train go on\n"
        client.close()
        with listening(relay.path, echo_when_done), dial(relay) as sock:  # labd starts, and makes its socket anew
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock).endswith(b" ")
    relay.terminate()
    said = relay.stderr.read().splitlines()
    assert said == [f"relay: {relay.path}: {word}" for word in ("No such file or directory", "labd answers again", "Connection refused", "labd answers again")]


def test_labd_that_dies_ends_its_connections(relay):
    peers = []
    with listening(relay.path, peers.append), dial(relay) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        peer = wait_for("connected", lambda: peers, 10)[0]
        assert peer.recv(100).startswith(b"GET /")
        peer.close()
        assert read_all(sock) == b""


def test_a_client_that_goes_away_is_noticed_by_labd(relay):
    peers = []
    with listening(relay.path, peers.append):
        sock = dial(relay)
        wait_for("connected", lambda: peers, 10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        sock.close()
        peers[0].settimeout(10)
        assert peers[0].recv(10) == b""


def test_two_thousand_connections_at_once(relay):
    held, lock = [], threading.Lock()

    def hold(peer):
        with lock:
            held.append(peer)

    socks = []
    with listening(relay.path, hold):
        for _ in range(2000):
            socks.append(dial(relay))
        wait_for("all are through", lambda: len(held) == len(socks), 60)
        for n in (0, 999, 1999):
            held[n].sendall(b"hello")
            held[n].close()
        # The answers are on their way; the other connections stay silent.
        with selectors.DefaultSelector() as waiting:
            for s in socks:
                waiting.register(s, selectors.EVENT_READ)
            for n in range(3):
                answered = wait_for(f"answer {n + 1}", lambda: waiting.select(1), 30)[0][0].fileobj
                assert answered.recv(5) == b"hello"
                waiting.unregister(answered)
    for s in socks + held:
        s.close()
    wait_for("the relay holds nothing", lambda: len(os.listdir(f"/proc/{relay.pid}/fd")) < 50, 30)


def test_sigterm_ends_it_at_once_whatever_is_open(relay):
    with listening(relay.path, lambda peer: None), dial(relay):
        relay.send_signal(signal.SIGTERM)
        assert relay.wait(10) == 0


@pytest.mark.parametrize("words", [[], ["8265"], ["x=/a"], ["0=/a"], ["70000=/a"], ["8265=relative"], ["²=/a"]])
def test_a_wrong_command_line_is_answered_in_one_line(words):
    done = subprocess.run([sys.executable, RELAY, *words], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert done.stderr.startswith("relay: ") and done.stderr.count("\n") == 1 and "8265=/run/labd/door.sock" in done.stderr
