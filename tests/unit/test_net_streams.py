"""Connections, streams, TLS and the accept loop."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfctools import certificate, other_certificate, scripted, served
from vdkit.errors import (
    ConnectFailed,
    ConnectionLost,
    ConnectionRefused,
    DeadlineExceeded,
    HostNotFound,
    ProtocolError,
    TrustError,
    UsageError,
)
from vdkit.net.connect import connect, host_port, map_socket_error
from vdkit.net.deadline import Deadline
from vdkit.net.fingerprints import fingerprints
from vdkit.net.listener import Listener
from vdkit.net.stream import SocketStream
from vdkit.net.tls import TlsStream
from vdkit.net.trust import Trust, client_context
from vdkit.sim.certificates import context_of

pytestmark = pytest.mark.usefixtures("no_leaks")


def soon(seconds: float = 20) -> Deadline:
    return Deadline.after(seconds)


def client(port: int, host: str = "127.0.0.1") -> SocketStream:
    return SocketStream(connect(host, port, soon()), host_port(host, port))


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def pair() -> Iterator[tuple[SocketStream, SocketStream]]:
    left, right = socket.socketpair()
    one, two = SocketStream(left, "left"), SocketStream(right, "right")
    try:
        yield one, two
    finally:
        one.close()
        two.close()


# -- connect -------------------------------------------------------------------------------------------


def test_names_and_literals() -> None:
    def greet(sock: socket.socket) -> None:
        sock.sendall(b"hello")

    for host in ("localhost", "127.0.0.1"):
        with scripted(greet) as port, connect(host, port, soon()) as sock:
            assert sock.recv(5) == b"hello"
    assert host_port("::1", 902) == host_port("[::1]", 902) == "[::1]:902"


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6(host: str) -> None:
    def shake(stream: SocketStream) -> None:
        stream.send((b"six",), soon())

    with Listener(shake, host) as listener, connect(host, listener.port, soon()) as sock:
        assert sock.recv(3) == b"six"
        assert listener.address == f"[::1]:{listener.port}"


def test_each_failure_has_its_own_error() -> None:
    port = closed_port()
    with pytest.raises(ConnectionRefused) as caught:
        connect("127.0.0.1", port, soon())
    assert str(caught.value) == (
        f"127.0.0.1:{port}: the connection to TCP port {port} was refused; "
        f"check that the firewall lets TCP {port} to that host through"
    )
    with pytest.raises(HostNotFound, match=r"no-such-host\.invalid:902"):
        connect("no-such-host.invalid", 902, soon())
    with pytest.raises(HostNotFound):
        connect("x" * 300, 902, soon())
    with pytest.raises(ConnectFailed):
        connect("255.255.255.255", 902, soon())


def test_a_firewall_that_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(self: socket.socket, address: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket.socket, "connect", hang)
    with pytest.raises(DeadlineExceeded, match=r"192\.0\.2\.1:902: .* within 3 seconds; check .* TCP 902"):
        connect("192.0.2.1", 902, Deadline.after(3))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), DeadlineExceeded),
        (ConnectionResetError(104, "reset"), ConnectionLost),
        (ssl.SSLEOFError(8, "eof"), ConnectionLost),
        (ssl.SSLError(1, "wrong version"), ProtocolError),
        (ssl.SSLCertVerificationError(1, "bad"), TrustError),
    ],
)
def test_errors_of_a_connected_socket(error: OSError, kind: type[Exception]) -> None:
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_message = "self-signed certificate"
    mapped = map_socket_error(error, "h:443", "GET")
    assert type(mapped) is kind
    assert "h:443: GET" in str(mapped)


# -- streams in clear ----------------------------------------------------------------------------------


def test_lines_leave_what_follows() -> None:
    with pair() as (one, two):
        two.send((b"220 hello\r\nrest", b" and more"), soon())
        assert one.read_line(100, soon(), "a line") == b"220 hello\r\n"
        view = memoryview(bytearray(13))
        one.recv_exact(view, soon())
        assert bytes(view) == b"rest and more"


def test_long_lines_are_refused() -> None:
    with pair() as (one, two):
        two.send((b"x" * 101,), soon())
        with pytest.raises(ProtocolError, match="left: a line is longer than 100"):
            one.read_line(100, soon(), "a line")


@pytest.mark.parametrize("seconds", [0.05, 1.2])
def test_silence_meets_its_deadline(seconds: float) -> None:
    with pair() as (one, _), pytest.raises(DeadlineExceeded, match=f"left: nothing came within {seconds:g}"):
        one.recv_exact(memoryview(bytearray(8192)), Deadline.after(seconds))


@pytest.mark.parametrize("seconds", [0.05, 1.2])
def test_a_peer_that_takes_nothing_meets_its_deadline(seconds: float) -> None:
    with pair() as (one, _), pytest.raises(DeadlineExceeded, match="took nothing"):
        one.send((bytes(64 << 20),), Deadline.after(seconds))


def test_the_end_is_an_error_or_zero() -> None:
    with pair() as (one, two):
        two.close()
        assert one.recv_into(memoryview(bytearray(1)), soon()) == 0
        with pytest.raises(ConnectionLost, match="left: "):
            one.recv_exact(memoryview(bytearray(1)), soon())
        with pytest.raises(ConnectionLost, match="left: "):
            one.send((b"x",), soon())


def test_abort_wakes_a_blocked_thread() -> None:
    with pair() as (one, _):
        caught: list[Exception] = []

        def read() -> None:
            try:
                one.recv_exact(memoryview(bytearray(10)), soon())
            except ConnectionLost as error:
                caught.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        one.abort()
        thread.join()
        assert caught


# -- TLS -----------------------------------------------------------------------------------------------


def tls_server(play: Callable[[TlsStream], None]) -> Callable[[SocketStream], None]:
    def handle(raw: SocketStream) -> None:
        stream = TlsStream(raw, context_of(certificate()), server=True)
        stream.handshake(soon())
        play(stream)

    return handle


def test_one_thread_sends_while_another_receives() -> None:
    """Both directions at once, with more in flight than any buffer holds."""
    total = 24 << 20
    data = bytes(range(256)) * 4096

    def both_ways(stream: TlsStream) -> None:
        def send() -> None:
            for _ in range(0, total, len(data)):
                stream.send((data[:100], data[100:]), soon(60))

        sender = threading.Thread(target=send)
        sender.start()
        view = memoryview(bytearray(len(data)))
        for _ in range(0, total, len(data)):
            stream.recv_exact(view, soon(60))
            assert view == data
        sender.join()

    with Listener(tls_server(both_ways)) as listener:
        raw = client(listener.port)
        stream = TlsStream(raw, client_context())
        stream.handshake(soon())
        assert stream.version == "TLSv1.2"
        assert "GCM" in stream.cipher
        both_ways(stream)
        raw.close()


def test_a_session_is_left_without_a_word() -> None:
    """TLS, clear, TLS again on one connection, with clear bytes right behind the last record."""

    def twice(first: TlsStream) -> None:
        view = memoryview(bytearray(4))
        first.recv_exact(view, soon())
        first.send((b"pong",), soon())
        raw = first.abandon()
        raw.send((b"clear",), soon())
        second = TlsStream(raw, context_of(certificate()), server=True)
        second.handshake(soon())
        second.send((b"again",), soon())
        second.close_notify(soon())

    with Listener(tls_server(twice)) as listener:
        raw = client(listener.port)
        first = TlsStream(raw, client_context())
        first.handshake(soon())
        assert first.peer_certificate() == certificate().der
        first.send((b"ping",), soon())
        view = memoryview(bytearray(5))
        first.recv_exact(view[:4], soon())
        raw = first.abandon()
        raw.recv_exact(view, soon())
        assert bytes(view) == b"clear"
        second = TlsStream(raw, client_context())
        second.handshake(soon())
        second.recv_exact(view, soon())
        assert bytes(view) == b"again"
        assert second.recv_into(view, soon()) == 0
        raw.close()


def test_an_authority_and_a_name(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(certificate().pem)
    other = tmp_path / "other.pem"
    other.write_text(other_certificate().pem)
    cases = [
        (ca, "localhost", True),
        (ca, "127.0.0.1", True),
        (ca, "elsewhere", False),
        (other, "localhost", False),
    ]
    for path, name, good in cases:
        with Listener(tls_server(lambda stream: stream.send((b"x",), soon()))) as listener:
            raw = client(listener.port)
            stream = TlsStream(raw, Trust(ca_file=str(path)).context(), hostname=name)
            if good:
                stream.handshake(soon())
                Trust(ca_file=str(path)).check(stream.peer_certificate(), "h")
            else:
                with pytest.raises(TrustError, match="not trusted"):
                    stream.handshake(soon())
            raw.close()


def test_no_tls_at_the_other_end() -> None:
    with scripted(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 20)) as port:
        raw = client(port)
        with pytest.raises((ProtocolError, ConnectionLost), match=f"127.0.0.1:{port}: "):
            TlsStream(raw, client_context()).handshake(soon())
        raw.close()


def test_old_tls_is_refused() -> None:
    def old(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(bytes.fromhex("1503010002") + b"\x02\x46")  # alert: protocol version

    with scripted(old) as port:
        raw = client(port)
        with pytest.raises(ProtocolError, match="TLS handshake failed"):
            TlsStream(raw, client_context()).handshake(soon())
        raw.close()


# -- listener and fingerprints -------------------------------------------------------------------------


def test_stop_breaks_what_is_open_and_joins() -> None:
    entered = threading.Event()

    def wait(stream: SocketStream) -> None:
        entered.set()
        stream.recv_exact(memoryview(bytearray(1)), soon(60))

    listener = Listener(wait).start()
    raw = client(listener.port)
    assert entered.wait(20)
    assert listener.connections == 1
    listener.stop()
    listener.stop()
    assert listener.connections == 0
    with pytest.raises((ConnectionLost, ConnectFailed)):
        raw.recv_exact(memoryview(bytearray(1)), soon())
    raw.close()


def test_a_handler_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fail(stream: SocketStream) -> None:
        raise RuntimeError("broken handler")

    with Listener(fail, name="shaky") as listener:
        for _ in range(3):
            raw = client(listener.port)
            assert raw.recv_into(memoryview(bytearray(1)), soon()) == 0
            raw.close()
    assert "broken handler" in caplog.text


def test_an_address_in_use() -> None:
    with Listener(lambda stream: None) as listener:
        with pytest.raises(ConnectFailed, match=f"127.0.0.1:{listener.port}: cannot listen"):
            Listener(lambda stream: None, port=listener.port).start()
        with pytest.raises(UsageError):
            listener.start()


def test_fingerprints_with_and_without_a_greeting() -> None:
    mine = certificate()
    with served() as server:
        for greeting in (True, None):
            found = fingerprints("127.0.0.1", server.port, greeting=greeting)
            assert (found.sha1, found.sha256, found.der) == (mine.sha1, mine.sha256, mine.der)
        with pytest.raises(ProtocolError):
            fingerprints("127.0.0.1", server.port, greeting=False)
    with Listener(tls_server(lambda stream: None)) as listener:
        assert fingerprints("localhost", listener.port).sha256 == mine.sha256
    with pytest.raises(ConnectionRefused):
        fingerprints("127.0.0.1", closed_port())
