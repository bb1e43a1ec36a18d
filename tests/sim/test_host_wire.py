"""What is no HTTP, or no SOAP, gets one answer; the host goes on serving and says nothing on stderr."""

from __future__ import annotations

import socket
import ssl

import pytest
from simclients import connection, envelope, post

from vdkit.sim.host import SimulatedHost

Capture = pytest.CaptureFixture[str]
CALL = envelope(
    '<RetrieveServiceContent xmlns="urn:vim25"><_this type="ServiceInstance">ServiceInstance</_this>'
    "</RetrieveServiceContent>"
)


def raw(host: SimulatedHost, data: bytes) -> bytes:
    """What the host answers to bytes, up to where it closes."""
    context = ssl.create_default_context(cadata=host.certificate.pem)
    with (
        socket.create_connection((host.host, host.port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=host.host) as wire,
    ):
        wire.sendall(data)
        found = b""
        while piece := wire.recv(65536):
            found += piece
        return found


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: x\r\n" * 200 + b"\r\n", 431),
        (b"POST /sdk HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /sdk HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST /sdk HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /sdk HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /sdk HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /sdk HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n", 400),
        (b"GET /sdk HTTP/1.1\r\nConnection: close\r\n\r\n", 405),
    ],
)
def test_bad_http(data: bytes, status: int, shared_simulated_host: SimulatedHost, capfd: Capture) -> None:
    answer = raw(shared_simulated_host, data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:100]
    assert post(shared_simulated_host, CALL)[0] == 200
    assert capfd.readouterr().err == ""


def test_a_body_in_chunks_with_extensions_and_trailers(shared_simulated_host: SimulatedHost) -> None:
    half = len(CALL) // 2
    body = b"%x;a=b\r\n%s\r\n%X\r\n%s\r\n0\r\nT: x\r\n\r\n" % (
        half,
        CALL[:half],
        len(CALL) - half,
        CALL[half:],
    )
    head = b'POST /sdk HTTP/1.1\r\nHost: a\r\nSOAPAction: "urn:vim25"\r\nTransfer-Encoding: chunked\r\n'
    answer = raw(shared_simulated_host, head + b"Connection: close\r\n\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"HostAgent" in answer


def test_the_client_may_ask_before_it_sends(shared_simulated_host: SimulatedHost) -> None:
    head = b"POST /sdk HTTP/1.1\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    answer = raw(shared_simulated_host, head % len(CALL) + CALL)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_connections_are_kept(shared_simulated_host: SimulatedHost) -> None:
    wire = connection(shared_simulated_host)
    wire.request("POST", "/sdk", CALL)
    first = wire.sock
    for _ in range(3):
        reply = wire.getresponse()
        assert (reply.status, b"HostAgent" in reply.read()) == (200, True)
        wire.request("POST", "/sdk", CALL)
    assert wire.sock is first
    wire.getresponse().read()
    wire.close()


@pytest.mark.parametrize("body", [b"", b"<a>", b"\xff\xfe", envelope("<Fly xmlns='urn:vim25'/>"), b"{}"])
def test_bad_soap_is_a_fault(body: bytes, shared_simulated_host: SimulatedHost, capfd: Capture) -> None:
    status, text, headers = post(shared_simulated_host, body)
    assert status == 500
    assert "InvalidRequestFault" in text
    assert "<faultcode>ServerFaultCode</faultcode>" in text
    assert headers["content-type"].startswith("text/xml")
    assert shared_simulated_host.internal_errors == []
    assert capfd.readouterr().err == ""


def test_a_client_that_speaks_no_tls(shared_simulated_host: SimulatedHost, capfd: Capture) -> None:
    with socket.create_connection(
        (shared_simulated_host.host, shared_simulated_host.port), timeout=30
    ) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while plain.recv(4096):
            pass
    assert post(shared_simulated_host, CALL)[0] == 200
    assert capfd.readouterr().err == ""


def test_the_versions_document(shared_simulated_host: SimulatedHost) -> None:
    wire = connection(shared_simulated_host)
    wire.request("GET", "/sdk/vimServiceVersions.xml")
    reply = wire.getresponse()
    assert reply.status == 200
    assert b"<version>8.0.3.0</version>" in reply.read()
    wire.close()
