"""What the data port must accept from other people's clients (section 16), played byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nfctools import PATH, TICKET, Office, certificate, served, target
from vdkit.errors import ConnectionLost, ProtocolError, TrustError, VixError
from vdkit.net.connect import connect
from vdkit.net.deadline import Deadline
from vdkit.net.stream import SocketStream, Stream
from vdkit.net.tls import TlsStream
from vdkit.net.trust import client_context, sha256_thumbprint
from vdkit.sim.nfc_server import NfcServer
from vdkit.testing.relay import Relay
from vdkit.transports import nfc
from vdkit.wire.nfc import dialogue, handshake, records
from vdkit.wire.nfc.records import Io, MapRequest

pytestmark = pytest.mark.usefixtures("no_leaks")
CONTENT = bytes(range(256)) * 1024
HELLO = (handshake.build_tag("PlainText"), handshake.build_probe(), handshake.build_version(11))
NAMES = (handshake.build_name("vddk")[:264], b"vddk", b"nbdmode")
READY = (handshake.build_features(), handshake.build_ready())


def late() -> Deadline:
    return Deadline.after(20)


def take(stream: Stream, count: int) -> bytes:
    data = bytearray(count)
    stream.recv_exact(memoryview(data), late())
    return bytes(data)


def reply(stream: Stream) -> tuple[records.Header, bytes]:
    header = records.parse_header(take(stream, 16))
    return header, take(stream, header.length)


def ask(stream: Stream, line: bytes) -> str:
    stream.send((line,), late())
    return stream.read_line(1024, late(), "a reply").decode().rstrip()


@contextmanager
def admitted(server: NfcServer) -> Iterator[TlsStream]:
    """The first TLS session, ticket presented."""
    raw = SocketStream(connect("127.0.0.1", server.port, late()), "host")
    try:
        assert raw.read_line(4096, late(), "the greeting").startswith(b"220 VMware Authentication Daemon")
        stream = TlsStream(raw, client_context())
        stream.handshake(late())
        stream.send((dialogue.session_line(TICKET),), late())
        yield stream
    finally:
        raw.close()


@contextmanager
def session(server: NfcServer, service: str = "nfc", *, split: bool = True) -> Iterator[Stream]:
    """A disk session the way VDDK opens it: 36 awaited before 51, names in writes of their own."""
    with admitted(server) as first:
        assert ask(first, dialogue.proxy_line(service)).startswith("200 Connect ha-nfc")
        raw = first.abandon()
        stream: Stream = raw
        if service.endswith("ssl"):
            stream = second = TlsStream(raw, client_context())
            second.handshake(late())
            assert second.peer_certificate() == certificate().der
        for message in HELLO[:2]:
            stream.send((message,), late())
        assert take(stream, 264) == handshake.build_probe_reply()
        stream.send((HELLO[2],), late())
        assert take(stream, 264) == handshake.build_version(11)
        for message in NAMES if split else (b"".join(NAMES),):
            stream.send((message,), late())
        for message in READY:
            stream.send((message,), late())
        assert take(stream, 264) == handshake.build_ready()
        yield stream


def open_disk(stream: Stream, *, writable: bool = False) -> records.OpenReply:
    stream.send((records.encode_hello(0),), late())
    assert reply(stream) == ((2, 16, 0), bytes(16))
    stream.send((records.encode_sockopts(1),), late())
    assert records.decode_sockopts(reply(stream)[1]) == (1675000, 1675000, 1)
    stream.send((records.encode_respool(2),), late())
    assert reply(stream) == ((22, 4, 2), bytes(4))
    stream.send((records.encode_open(3, PATH, writable=writable),), late())
    header, payload = reply(stream)
    assert header == (4, 60, 3)
    return records.decode_open_reply(payload)


@pytest.mark.parametrize("service", list(dialogue.SERVICES))
@pytest.mark.parametrize("split", [True, False])
def test_every_service_and_either_way_to_send_names(service: str, split: bool) -> None:
    with served(Office(CONTENT)) as server, session(server, service, split=split) as stream:
        opened = open_disk(stream)
        assert opened.capacity == len(CONTENT)
        assert opened[2:4] == (2, 0x1E)
        assert opened[5] == 512
        assert opened[7:] == (255, 63)


def test_the_dialogue_in_every_form() -> None:
    with served() as server, admitted(server) as stream:
        assert ask(stream, b"BANNER\r\n").startswith("220 VMware Authentication Daemon Version 1.10")
        assert ask(stream, b"BANNER \r\n").startswith("220")
        announced = ask(stream, b"THUMBPRINT_SHA2 x\r\n")
        assert announced == "200 " + sha256_thumbprint(certificate().der)
        assert ask(stream, f"THUMBPRINT_SHA2 {certificate().sha256}\r\n".encode()) == "501 Invalid arguments"
        assert ask(stream, b"CONNECT_VPXA x\r\n") == "530 Please login with USER and PASS"
        assert ask(stream, b"PROXY telnet\r\n") == "500 Cannot proxy"
        assert ask(stream, b"PROXY vpxa-nfcssl\r\n") == "200 Connect ha-nfcssl"


def test_several_requests_before_a_reply_is_read() -> None:
    with served(Office(CONTENT)) as server, session(server) as stream:
        handle = open_disk(stream).handle
        requests = [records.encode_read(4 + n, handle, n * 4096, 4096) for n in range(32)]
        stream.send((b"".join(requests),), late())
        for n in range(32):
            header, payload = reply(stream)
            assert header.sequence == 4 + n
            assert records.decode_io(payload) == Io(0, 1, 0, n * 4096, 4096, 0, 4096, 4096)
            assert take(stream, 4096) == CONTENT[n * 4096 : n * 4096 + 4096]


def test_a_long_read_comes_in_chunks_of_64_kib() -> None:
    with served(Office(CONTENT)) as server, session(server) as stream:
        handle = open_disk(stream).handle
        stream.send((records.encode_read(4, handle, 0, 65536 * 3 + 512),), late())
        for start, length in ((0, 65536), (65536, 65536), (131072, 65536), (196608, 512)):
            assert records.decode_io(reply(stream)[1])[5:8] == (start, length, length)
            assert take(stream, length) == CONTENT[start : start + length]


def test_a_write_in_fragments_has_one_reply() -> None:
    office = Office(bytes(len(CONTENT)))
    with served(office) as server, session(server) as stream:
        handle = open_disk(stream, writable=True).handle
        for start, length in ((0, 65536), (65536, 512)):
            head = records.encode_io(14, Io(handle, 0, 0, 1024, 66048, start, length, length))
            stream.send((head, CONTENT[start : start + length]), late())
        assert reply(stream) == ((7, 44, 14), records.encode_io(14, Io(0, 0, 0, 0, 66048, 0, 66048, 0))[16:])
        stream.send((records.encode_close(15, handle),), late())
        assert reply(stream)[0] == (5, 16, 15)
    assert office.content()[1024 : 1024 + 66048] == CONTENT[:66048]


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("service", ["nfc", "nfcssl"])
def test_the_end_in_either_form(short: bool, service: str) -> None:
    with served(Office(CONTENT)) as server, session(server, service) as stream:
        handle = open_disk(stream).handle
        stream.send((records.encode_close(4, handle, short=short),), late())
        assert reply(stream)[0] == (5, 8 if short else 16, 4)
        stream.send((records.encode_end(5, short=short),), late())
        assert reply(stream)[0] == (3, 4 if short else 16, 5)
        try:
            stream.send((handshake.build_session_complete(),), late())
            assert stream.recv_into(memoryview(bytearray(1)), late()) == 0
        except ConnectionLost:
            pass


def test_what_is_wrong_is_answered_with_an_error() -> None:
    with served(Office(CONTENT, writable=False)) as server, session(server) as stream:
        handle = open_disk(stream).handle
        wrong = [
            records.encode_read(10, handle, len(CONTENT), 512),
            records.encode_read(11, handle + 1, 0, 512),
            records.encode_io(12, Io(handle, 0, 0, 0, 512, 0, 512, 512)) + bytes(512),
            records.encode_io(13, Io(handle + 1, 0, 0, 0, 512, 0, 512, 512)) + bytes(512),
            records.encode_map(14, MapRequest(handle, 65536, 512, 1)),
            records.encode_map(15, MapRequest(handle, 65536, 0, 5)),
            records.encode_close(16, handle + 1),
            records.encode_ddb_get(17, handle + 1, "x"),
            records.encode_hello(18, 16 << 20, 1),
        ]
        for record in wrong:
            stream.send((record,), late())
            header, payload = reply(stream)
            assert (header.opcode, header.sequence) == (1, records.parse_header(record).sequence)
            take(stream, records.decode_error(payload).text_length)
        stream.send((records.encode_open(19, PATH, writable=True),), late())
        header, payload = reply(stream)
        assert records.decode_error(payload).code == 11
        take(stream, records.decode_error(payload).text_length)
        # The twin: its zeroes mean nothing.
        assert reply(stream) == ((4, 60, 19), bytes(60))


def test_the_map_has_a_bit_per_chunk() -> None:
    office = Office(b"x" + bytes(65535) + bytes(65536 * 14) + b"y" * 65536)
    with office.store.open_writable("vm.vmdk") as disk:
        disk.write_zeroes(65536, 65536 * 14)
    with served(office) as server, session(server) as stream:
        handle = open_disk(stream).handle
        stream.send((records.encode_map(4, MapRequest(handle, 65536, 0, 16)),), late())
        assert records.decode_map_reply(reply(stream)[1]) == 16
        assert take(stream, 4) == b"\x01\x80\0\0"


def test_strict_records() -> None:
    """Two messages in one TLS record are refused, as hosts leave the second one unread."""
    with served(Office(CONTENT), strict_records=True) as server:
        with session(server, "nfcssl", split=False) as stream:
            open_disk(stream)
        with admitted(server) as first:
            ask(first, dialogue.proxy_line("nfcssl"))
            stream = TlsStream(first.abandon(), client_context())
            stream.handshake(late())
            stream.send((HELLO[0] + HELLO[1],), late())
            with pytest.raises(VixError):
                take(stream, 264)


def test_abrupt_ends_free_everything() -> None:
    closed: list[str] = []
    office = Office(CONTENT)

    def watch(device):  # type: ignore[no-untyped-def]
        real = device.close
        device.close = lambda: (closed.append(device.name), real())
        return device

    office.wrap = watch
    with served(office) as server:
        with session(server) as stream:
            open_disk(stream)
        with session(server, "nfcssl") as stream:
            open_disk(stream)
            stream.send((records.header(7, 44, 5),), late())
    assert len(closed) == 2


def test_the_size_of_requests_follows_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Office(CONTENT)) as server:
        with (
            Relay("127.0.0.1", server.port, to_client=0.005) as relay,
            nfc.open_nfc(target(server, port=relay.port)) as disk,
        ):
            assert disk.request_size == nfc.FAR_REQUEST_SIZE
        monkeypatch.setattr(nfc, "FAR_SECONDS", 60.0)
        with nfc.open_nfc(target(server)) as disk:
            assert disk.request_size == disk.fragment_size == nfc.NEAR_REQUEST_SIZE


def test_the_pin_of_a_ticket_may_be_of_either_kind_and_nonsense_is_the_hosts_doing() -> None:
    with served(Office(CONTENT)) as server:
        with nfc.open_nfc(target(server, thumbprint=certificate().sha256)) as disk:
            assert disk.capacity == len(CONTENT)
        with pytest.raises(ProtocolError, match=r"127\.0\.0\.1:\d+: the ticket's pin is none"):
            nfc.open_nfc(target(server, thumbprint="12:34"))
        with pytest.raises(TrustError):
            nfc.open_nfc(target(server, thumbprint="AB:" * 31 + "AB"))
