"""Who answers at the management port is not always a host: each stranger has an error of its own."""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vdkit.errors import (
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    LimitExceeded,
    ProtocolError,
    TrustError,
    VixError,
)
from vdkit.net.connect import connect, without_zone
from vdkit.net.deadline import Deadline
from vdkit.net.fingerprints import fingerprints
from vdkit.net.https import VerifiedConnection
from vdkit.net.listener import Handler, Listener
from vdkit.net.secret import Secret
from vdkit.net.stream import SocketStream
from vdkit.net.tls import TlsStream
from vdkit.net.trust import SYSTEM_AUTHORITIES, Trust, client_context, sha256_thumbprint
from vdkit.sim import certificates
from vdkit.vsphere.session import Session

PIN = Trust(sha256="AB" * 32)


def login(port: int, trust: Trust = PIN, **more: object) -> VixError:
    """What logging in to that port of loopback raises."""
    with pytest.raises(VixError) as caught:
        Session.login("127.0.0.1", port, "root", Secret("x"), trust, **more)  # type: ignore[arg-type]
    text = str(caught.value)
    assert f"127.0.0.1:{port}" in text
    assert "\n" not in text
    return caught.value


@contextmanager
def listening(handler: Handler) -> Iterator[int]:
    listener = Listener(handler).start()
    try:
        yield listener.port
    finally:
        listener.stop()


def _ssh(stream: SocketStream) -> None:
    stream.send((b"SSH-2.0-OpenSSH_9.2\r\n",), Deadline.after(5))
    stream.recv_into(memoryview(bytearray(4096)), Deadline.after(5))


def _http(stream: SocketStream) -> None:
    stream.recv_into(memoryview(bytearray(4096)), Deadline.after(5))
    stream.send((b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",), Deadline.after(5))


@pytest.mark.parametrize(
    ("handler", "said"), [(_ssh, "SSH-2.0-OpenSSH_9.2"), (_http, "HTTP/1.1 400 Bad Request")]
)
def test_what_does_not_speak_tls_is_quoted(handler: Handler, said: str) -> None:
    with listening(handler) as port:
        error = login(port)
    assert type(error) is ProtocolError
    assert said in str(error)
    assert "does not speak TLS" in str(error)


def test_a_port_that_takes_connections_and_says_nothing() -> None:
    with listening(
        lambda stream: stream.recv_exact(memoryview(bytearray(1 << 20)), Deadline.after(5))
    ) as port:
        error = login(port, timeout=0.2)
    assert type(error) is DeadlineExceeded
    assert f"TCP port {port} takes connections" in str(error)


def test_a_port_that_swallows_connections() -> None:
    """As behind a firewall that drops: a full queue of loopback takes no connection and says nothing."""
    with socket.socket() as server, contextlib.ExitStack() as fillers:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        error = login(port, timeout=0.3)
    assert type(error) is DeadlineExceeded
    assert f"no connection to TCP port {port} within 0.3 seconds" in str(error)
    assert "firewall" in str(error)


def test_an_address_that_swallows_connections_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name with an IPv6 address that a firewall drops, and an IPv4 address that works."""
    with (
        socket.socket() as full,
        socket.create_server(("127.0.0.1", 0)) as works,
        contextlib.ExitStack() as s,
    ):
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = s.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", one.getsockname()) for one in (full, full, works)
        ]
        monkeypatch.setattr("socket.getaddrinfo", lambda *given, **named: found)
        with connect("host.example.org", 443, timeout=0.6) as sock:
            assert sock.getpeername() == works.getsockname()
            assert sock.gettimeout() == 0.6


def test_what_a_stranger_says_is_bounded_and_printable() -> None:
    def noise(stream: SocketStream) -> None:
        stream.send((bytes(range(256)) * 4,), Deadline.after(5))

    with listening(noise) as port:
        assert "\x00" not in str(login(port))


# -- a host that goes on and on ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate() -> certificates.Certificate:
    return certificates.make_certificate()


#: What comes before the drops, what drops, and the pause in seconds between two of them.
_DRIPS = {
    "the status": (b"", b"H", 0.05),
    "100 for ever": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50, 0.0),
    "a header": (b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.05),
    "the body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"<", 0.05),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.05),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n", 0.05),
}


@pytest.mark.parametrize("what", list(_DRIPS))
def test_an_answer_that_drips_has_an_end(what: str, certificate: certificates.Certificate) -> None:
    """Every piece of it comes well within the time allowed, and the whole never."""
    head, drop, pause = _DRIPS[what]
    context = certificates.context_of(certificate)

    def drip(raw: SocketStream) -> None:
        stream = TlsStream(raw, context, server=True)
        stream.handshake(Deadline.after(5))
        stream.recv_into(memoryview(bytearray(4096)), Deadline.after(5))
        stream.send((head,), Deadline.after(5))
        over = Deadline.after(3)
        while not over.expired:
            stream.send((drop,), Deadline.after(5))
            time.sleep(pause)
        # A client that is still here is told that the connection has broken, which is another error.

    with listening(drip) as port:
        error = login(port, Trust(sha256=certificate.sha256), timeout=0.4)
    assert type(error) is DeadlineExceeded


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", ConnectFailed, "HTTP 302"),
        (
            b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="x"\r\n\r\n',
            ProtocolError,
            "refused before it reached the API",
        ),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", ProtocolError, "not that of a vSphere host"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n", ProtocolError, "not that of a vSphere host"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + b"x" * 300000,
            LimitExceeded,
            "longer than",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ProtocolError, "cannot be understood"),
        (b"", ConnectionLost, "closed the connection"),
    ],
)
def test_odd_answers_are_followed_nowhere(
    answer: bytes, kind: type[VixError], words: str, certificate: certificates.Certificate
) -> None:
    """No redirect is followed, no log-in tried again, no length believed; and each is asked once."""
    context = certificates.context_of(certificate)
    asked: list[int] = []

    def serve(raw: SocketStream) -> None:
        stream = TlsStream(raw, context, server=True)
        stream.handshake(Deadline.after(5))
        asked.append(stream.recv_into(memoryview(bytearray(4096)), Deadline.after(5)))
        stream.send((answer,), Deadline.after(5))

    with listening(serve) as port:
        error = login(port, Trust(sha256=certificate.sha256), timeout=2)
    assert type(error) is kind, error
    assert words in str(error)
    assert len(asked) <= 2


# -- old TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old_pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of that time: 1024 bits, signed with SHA-1."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not here")
    pem = tmp_path_factory.mktemp("old") / "old.pem"
    key = str(pem.with_suffix(".key"))
    command = [openssl, "req", "-x509", "-newkey", "rsa:1024", "-sha1", "-nodes", "-subj", "/CN=old"]
    command += ["-keyout", key, "-out", str(pem)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this openssl makes no such certificate")
    return pem


@contextmanager
def s_server(pem: Path, *options: str) -> Iterator[int]:
    """OpenSSL's own server with that certificate."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-cipher", "ALL:@SECLEVEL=0"]
    process = subprocess.Popen(
        [*command, "-cert", str(pem), "-key", str(pem.with_suffix(".key")), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("ACCEPT"):
                break
        yield port
    finally:
        process.terminate()
        process.wait(timeout=10)
        process.stdout.close()


@pytest.mark.witness("openssl")
@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_a_host_older_than_tls_1_2_must_be_named_as_one(old_pem: Path, version: str) -> None:
    der = ssl.PEM_cert_to_DER_cert(old_pem.read_text())
    trust = Trust(sha256=sha256_thumbprint(der))
    with s_server(old_pem, version) as port:
        error = login(port, trust)
        assert type(error) is ProtocolError
        assert "no TLS that is allowed" in str(error)
        assert "--legacy-tls" in str(error)
        with pytest.raises(ProtocolError):
            fingerprints("127.0.0.1", port, greeting=False)
        found = fingerprints("127.0.0.1", port, greeting=False, legacy_tls=True)
        assert found.sha256 == trust.sha256
        # Named as one it is spoken to: OpenSSL's page is no vSphere host, and says so only now.
        legacy = login(port, trust, legacy_tls=True, timeout=0.5)
        assert "TLS" not in str(legacy)
        assert type(login(port, legacy_tls=True)) is TrustError


def test_sslv3_is_never_spoken() -> None:
    for legacy in (False, True):
        context = client_context(legacy=legacy)
        assert context.options & ssl.OP_NO_SSLv3
        assert context.minimum_version != ssl.TLSVersion.SSLv3
    assert client_context().minimum_version is ssl.TLSVersion.TLSv1_2


# -- addresses and authorities -----------------------------------------------------------------------


def test_the_zone_of_a_link_local_address_is_ours_only() -> None:
    sent: list[bytes] = []

    class Wire:
        def sendall(self, data: bytes) -> None:
            sent.append(bytes(data))

        def close(self) -> None: ...

    connection = VerifiedConnection("[fe80::1%eth0]", 8443, trust=PIN, timeout=1)
    assert connection.host == "fe80::1%eth0"
    connection.sock = Wire()  # type: ignore[assignment]
    connection.request("GET", "/sdk")
    assert b"Host: [fe80::1]:8443\r\n" in b"".join(sent)
    assert without_zone("[fe80::1%eth0]") == "fe80::1"
    assert without_zone("a%b.example.org") == "a%b.example.org"


def _link_local() -> str | None:
    """An address of this machine that only means something together with a link."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        digits, *_, link = line.split()
        if digits.startswith("fe80"):
            return f"{ipaddress.IPv6Address(int(digits, 16))}%{link}"
    return None


def test_a_link_local_address_is_connected_to() -> None:
    address = _link_local()
    if address is None:
        pytest.skip("this machine has no link-local address")
    with socket.socket(socket.AF_INET6) as server:
        server.bind(socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][4])
        server.listen()
        with pytest.raises(DeadlineExceeded) as caught:
            Session.login(f"[{address}]", server.getsockname()[1], "root", Secret("x"), PIN, timeout=0.2)
    # The connection came about (the server says nothing then), and the message names the address.
    assert f"[{address}]" in str(caught.value)


def test_the_systems_authorities_do_not_know_a_host_of_ours(tmp_path: Path) -> None:
    from vdkit.sim.certificates import context_of, make_certificate
    from vdkit.sim.https import HttpResponse, HttpsServer

    server = HttpsServer(lambda request: HttpResponse(), context_of(make_certificate()), "127.0.0.1", 0)
    server.start()
    try:
        error = login(server.port, Trust(ca_file=SYSTEM_AUTHORITIES))
        assert type(error) is TrustError
        assert "not trusted" in str(error)
    finally:
        server.stop()
