"""Every fault of the data port gives the client one error of the right kind that says where and when."""

from __future__ import annotations

import dataclasses
import gc

import pytest

from nfctools import (
    PATH,
    QUICK,
    TICKET,
    Office,
    certificate,
    open_nfc,
    opened,
    other_certificate,
    served,
    target,
)
from vdkit.block.extent import ExtentKind
from vdkit.errors import (
    ConnectionLost,
    DeadlineExceeded,
    HostAccessDenied,
    HostError,
    HostFileLocked,
    HostOutOfMemory,
    ModeUnavailable,
    ProtocolError,
    TicketRefused,
    TransportError,
    TrustError,
    UsageError,
)
from vdkit.sim import ports
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.transports.nfc import Timeouts

MIB = 1 << 20
SHORT = Timeouts(connect=5, request=0.3, read=0.3, write=0.3, close=0.3)

#: Fault, error, part of the message, phase. ``{port}`` stands for the server's port.
OPENING: dict[str, tuple[NfcFaults, type[TransportError], str, str]] = {
    "no nfcssl": (
        NfcFaults(greeting_without_nfcssl=True),
        ModeUnavailable,
        "use the transport nbd",
        "greeting",
    ),
    "long greeting": (NfcFaults(greeting_too_long=True), ProtocolError, "longer than 4096", "greeting"),
    "other sha256": (NfcFaults(wrong_announced_sha256=True), TrustError, "announces another", "dialogue"),
    "no sha256": (NfcFaults(thumbprint_garbled=True), ProtocolError, "THUMBPRINT_SHA2", "dialogue"),
    "banner": (NfcFaults(banner_refused=True), TicketRefused, "530 Login incorrect", "dialogue"),
    "proxy": (NfcFaults(proxy_refused=True), TicketRefused, "500 Cannot proxy", "dialogue"),
    "crossed": (NfcFaults(proxy_crossed=True), ProtocolError, "'200 Connect ha-nfc'", "dialogue"),
    "4 for 36": (NfcFaults(session_complete_at=36), ProtocolError, "message 4", "in the handshake"),
    "4 for 51": (NfcFaults(session_complete_at=51), ProtocolError, "message 4", "in the handshake"),
    "4 for 52": (NfcFaults(session_complete_at=52), ProtocolError, "message 4", "in the handshake"),
    "20 for 36": (NfcFaults(classic_error_at=36), HostOutOfMemory, "Failed to allocate", "in the handshake"),
    "20 for 51": (NfcFaults(classic_error_at=51), HostOutOfMemory, "Failed to allocate", "in the handshake"),
    "20 for 52": (NfcFaults(classic_error_at=52), HostOutOfMemory, "Failed to allocate", "in the handshake"),
    "status": (NfcFaults(open_status=3), HostError, "status 3", "opening the disk"),
    "error": (NfcFaults(open_error=(99, "odd")), HostError, "error 99: 'odd'", "opening the disk"),
    "no twin": (
        NfcFaults(open_error=(11, "denied"), open_without_twin=True),
        HostAccessDenied,
        "error 11: 'denied'",
        "opening the disk",
    ),
    "no disk": (NfcFaults(open_file_type=0), ProtocolError, "file type 0", "opening the disk"),
    "sectors": (NfcFaults(open_sector_size=520), ProtocolError, "sectors of 520", "opening the disk"),
    "capacity": (NfcFaults(open_capacity=1 << 63), ProtocolError, "capacity", "opening the disk"),
    "error text": (
        NfcFaults(open_error=(1, "x"), error_text_too_long=True),
        ProtocolError,
        "an error text of 65537",
        "opening the disk",
    ),
}

READING: dict[str, tuple[NfcFaults, type[TransportError], str]] = {
    "magic": (NfcFaults(bad_magic=True), ProtocolError, "0x7ADA00A1"),
    "sequence": (NfcFaults(wrong_sequence=True), ProtocolError, "answers no request"),
    "opcode": (NfcFaults(wrong_opcode=True), ProtocolError, "opcode 22 answers one of 7"),
    "long payload": (NfcFaults(payload_too_long=True), ProtocolError, "a payload .* of 4097"),
    "short payload": (NfcFaults(payload_too_short=True), ProtocolError, "43 bytes, at least 44"),
    "status": (NfcFaults(chunk_status=3), ProtocolError, "status 3"),
    "range": (NfcFaults(chunk_out_of_range=True), ProtocolError, "outside the request"),
    "duplicate": (NfcFaults(chunk_duplicate=True, chunk_size=65536), ProtocolError, "overlaps"),
    "overlap": (NfcFaults(chunk_overlap=True, chunk_size=65536), ProtocolError, "overlaps"),
    "empty": (NfcFaults(chunk_empty=True), ProtocolError, "no bytes"),
    "offset": (NfcFaults(chunk_other_offset=True), ProtocolError, "the request was for"),
    "total": (NfcFaults(chunk_other_total=True), ProtocolError, "the request was for"),
    "longer": (NfcFaults(wire_length_delta=1), ProtocolError, "is announced as"),
    "shorter": (NfcFaults(wire_length_delta=-1), ProtocolError, "is announced as"),
    "fastlz": (NfcFaults(chunk_code=2), ProtocolError, "compression 2, which was not asked for"),
    "unknown code": (NfcFaults(chunk_code=9), ProtocolError, "compression 9"),
    "cut": (NfcFaults(chunk_cut=True), ConnectionLost, "closed the connection|broke"),
}

COMPRESSED: dict[str, tuple[NfcFaults, str, str]] = {
    "zlib": (NfcFaults(zlib_broken=True), "zlib", "a zlib chunk"),
    "overrun": (NfcFaults(skipz_overrun=True), "skipz", "a skipz segment"),
    "truncated": (NfcFaults(skipz_truncated=True), "skipz", "a skipz chunk ends"),
    "huge": (NfcFaults(wire_length_huge=True), "zlib", "1048577 bytes"),
}


def said_well(error: TransportError, port: int, *parts: str) -> None:
    text = str(error)
    assert text.startswith(f"127.0.0.1:{port}: "), text
    assert PATH in text
    assert TICKET not in text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize("name", OPENING)
def test_opening(name: str) -> None:
    faults, kind, text, phase = OPENING[name]
    with served(faults=faults) as server:
        with pytest.raises(kind) as caught:
            open_nfc(target(server), timeouts=QUICK)
        said_well(caught.value, server.port, text, phase)
        assert type(caught.value) is kind


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
def test_reading(name: str, mode: str) -> None:
    faults, kind, text = READING[name]
    with (
        served(Office(bytes(range(256)) * 4096), faults=faults) as server,
        open_nfc(target(server), mode=mode, timeouts=QUICK) as disk,
    ):
        with pytest.raises(kind, match=text) as caught:
            disk.read_into(0, bytearray(MIB))
        said_well(caught.value, server.port, "while reading 262144 bytes at offset ")
        with pytest.raises(kind, match=text) as again:
            disk.read_into(0, bytearray(512))
        assert str(again.value) == str(caught.value)


@pytest.mark.parametrize("name", COMPRESSED)
def test_reading_compressed(name: str) -> None:
    faults, compression, text = COMPRESSED[name]
    with (
        served(faults=faults) as server,
        open_nfc(target(server), compression=compression, timeouts=QUICK) as disk,
    ):
        with pytest.raises(ProtocolError, match=text) as caught:
            disk.read_into(0, bytearray(MIB))
        said_well(caught.value, server.port, "while reading")


def test_every_fault_has_a_test() -> None:
    used = [entry[0] for table in (OPENING, READING, COMPRESSED) for entry in table.values()]
    healthy = NfcFaults()
    tested = {
        f.name
        for f in dataclasses.fields(NfcFaults)
        for fault in used
        if getattr(fault, f.name) != getattr(healthy, f.name)
    }
    elsewhere = {
        # Below, and in the tests of the simulated data port.
        "connection_refusal",
        "ticket_refused",
        "read_error",
        "read_error_ranges",
        "write_error_ranges",
        "no_memory_over",
        "error_twin",
        "slow_reads",
        "slow_reads_every",
        "stuck_reads_every",
        "chunks_shuffled",
        "half_close_after_messages",
        "reset_after_bytes",
        "reset_chance",
        "reset_seed",
        "greeting_without_sha256",
        "greeting_silent",
        "unknown_services",
        "second_certificate",
        "classic_error_text",
        "hello_refused",
        "hello_twin",
        "stored_code_echoed",
        "chunks_reversed",
        "newest_first",
        "write_error",
        "write_reply_total",
        "map_refused",
        "map_short",
        "cut_after_messages",
        "silent_after_messages",
        "delay",
        "wait_for_version",
    }
    assert tested | elsewhere == {f.name for f in dataclasses.fields(NfcFaults)}


# -- what does not stop a client -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        NfcFaults(greeting_without_sha256=True),
        NfcFaults(wait_for_version=True),
        NfcFaults(hello_refused=True),
        NfcFaults(hello_refused=True, hello_twin=True),
        NfcFaults(chunks_reversed=True, chunk_size=7000),
        NfcFaults(newest_first=True, chunk_size=65536, chunks_reversed=True),
        NfcFaults(delay=0.001),
    ],
)
@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
def test_unusual_hosts_are_served_right(faults: NfcFaults, mode: str) -> None:
    content = bytes(range(251)) * 5000
    content = content[: len(content) // 512 * 512]
    office = Office(content)
    with opened(office, faults, mode=mode, writable=True) as disk:
        assert disk.fragment_size == (65536 if faults.hello_refused else 262144)
        data = bytearray(len(content))
        disk.read_into(0, data)
        assert data == content
        disk.write_from(512, content[: 600 * 1024])
    assert office.content()[512 : 512 + 600 * 1024] == content[: 600 * 1024]


def test_stored_chunks_under_either_label() -> None:
    content = bytes(i * 7919 % 251 + 1 for i in range(MIB))
    for compression in ("zlib", "skipz"):
        with opened(
            Office(content), NfcFaults(stored_code_echoed=compression == "skipz"), compression=compression
        ) as disk:
            data = bytearray(MIB)
            disk.read_into(0, data)
            assert data == content


def test_the_service_falls_back() -> None:
    for faults, service in (
        (NfcFaults(), "vpxa-nfc"),
        (NfcFaults(unknown_services=("vpxa-nfc", "vpxa-nfcssl")), "vpxa-nfc"),
        (NfcFaults(), "something-new"),
        (NfcFaults(), "ha-nfc"),
        (NfcFaults(), ""),
    ):
        for mode in ("nbd", "nbdssl"):
            with served(faults=faults) as server:
                open_nfc(target(server, service=service), mode=mode, timeouts=QUICK).close()


# -- refusals of the model -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "kind", "remedy"),
    [
        (ports.denied(PATH, writable=False), HostAccessDenied, "check that the ticket"),
        (ports.running(PATH), HostFileLocked, "open the disk under a snapshot"),
        (ports.locked(PATH), HostFileLocked, "open the disk under a snapshot"),
        (ports.missing(PATH), HostError, None),
        (ports.Refusal(5, "Failed to allocate the requested 1 bytes"), HostOutOfMemory, "open fewer disks"),
    ],
)
def test_refused_opens(refusal: ports.Refusal, kind: type[HostError], remedy: str | None) -> None:
    office = Office(bytes(MIB))
    office.refusal = refusal
    with served(office) as server:
        with pytest.raises(kind) as caught:
            open_nfc(target(server), timeouts=QUICK)
        said_well(caught.value, server.port, "opening the disk for reading", remedy or "")
        assert type(caught.value) is kind
        assert repr(refusal.text) in str(caught.value) or refusal.text in str(caught.value)


def test_a_read_only_ticket_refuses_writing() -> None:
    with (
        served(Office(bytes(MIB), writable=False)) as server,
        pytest.raises(HostAccessDenied, match="access = 2"),
    ):
        open_nfc(target(server), writable=True, timeouts=QUICK)


# -- trust ---------------------------------------------------------------------------------------------


def test_another_thumbprint() -> None:
    mine, other = certificate(), other_certificate()
    with served() as server:
        for changed, presented, expected in (
            ({"thumbprint": other.sha1}, mine.sha1, other.sha1),
            ({"thumbprint": None, "certificate": other.pem}, mine.sha256, other.sha256),
        ):
            with pytest.raises(TrustError) as caught:
                open_nfc(target(server, **changed), timeouts=QUICK)
            said_well(caught.value, server.port, presented, expected, "first TLS handshake")
        with pytest.raises(TrustError, match="neither a thumbprint nor a certificate"):
            open_nfc(target(server, thumbprint=None), timeouts=QUICK)
        open_nfc(target(server, thumbprint=None, certificate=mine.pem), timeouts=QUICK).close()


def test_another_certificate_in_the_second_session() -> None:
    with served(faults=NfcFaults(second_certificate=other_certificate())) as server:
        with pytest.raises(TrustError) as caught:
            open_nfc(target(server), timeouts=QUICK)
        said_well(caught.value, server.port, "second TLS", certificate().sha256, other_certificate().sha256)


def test_a_used_ticket() -> None:
    from vdkit.net.secret import Secret

    with served() as server:
        with pytest.raises(TicketRefused) as caught:
            open_nfc(target(server, ticket=Secret("another")), timeouts=QUICK)
        said_well(caught.value, server.port, "530 Login incorrect", "ask for a fresh one")
        assert caught.value.retryable


# -- writes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "kind", "text"),
    [
        (NfcFaults(write_error=(8, "no space")), HostError, "error 8: 'no space'"),
        (NfcFaults(write_reply_total=1), ProtocolError, "is about 1 bytes"),
    ],
)
@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
def test_writing(faults: NfcFaults, kind: type[TransportError], text: str, mode: str) -> None:
    with (
        served(Office(bytes(8 * MIB)), faults=faults) as server,
        open_nfc(target(server), mode=mode, writable=True, timeouts=QUICK) as disk,
    ):
        with pytest.raises(kind, match=text) as caught:
            disk.write_from(MIB, bytes(4 * MIB))
        said_well(caught.value, server.port, "while writing 262144 bytes at offset ")
        # A refusal is told again because the host refuses again, a broken session because it is broken.
        with pytest.raises(kind, match=text):
            disk.write_from(0, bytes(512))


# -- map and metadata ----------------------------------------------------------------------------------


def test_without_a_map_all_is_data() -> None:
    with opened(Office(bytes(MIB + 512)), NfcFaults(map_refused=True)) as disk:
        assert [e.kind for e in disk.extents()] == [ExtentKind.DATA]
        disk.read_into(0, bytearray(512))
    with opened(Office(bytes(MIB + 512)), NfcFaults(map_short=True)) as disk:
        assert [(e.length, e.kind) for e in disk.extents()] == [
            (MIB // 2, ExtentKind.ZERO),
            (MIB // 2 + 512, ExtentKind.DATA),
        ]


def test_a_map_after_a_write_is_data() -> None:
    with opened(Office(bytes(MIB)), writable=True) as disk:
        assert [e.kind for e in disk.extents()] == [ExtentKind.ZERO]
        disk.write_zeroes(0, 512)
        assert [e.kind for e in disk.extents()] == [ExtentKind.DATA]


def test_metadata() -> None:
    with opened(Office(bytes(MIB))) as disk:
        assert disk.metadata("adapterType") == "lsilogic"
        assert disk.metadata("nothing") is None
        assert disk.geometry == (0, 255, 63)


# -- silence -------------------------------------------------------------------------------------------


def test_silence_in_the_greeting() -> None:
    with served(faults=NfcFaults(greeting_silent=True)) as server:
        with pytest.raises(DeadlineExceeded) as caught:
            open_nfc(target(server), timeouts=SHORT)
        said_well(caught.value, server.port, "within 0.3 seconds", "in the greeting")


@pytest.mark.parametrize(
    ("messages", "phase"), [(1, "dialogue"), (4, "handshake"), (7, "HELLO"), (10, "opening")]
)
def test_silence_while_opening(messages: int, phase: str) -> None:
    with served(faults=NfcFaults(silent_after_messages=messages)) as server:
        with pytest.raises(DeadlineExceeded, match=r"within 0\.3 seconds") as caught:
            open_nfc(target(server), timeouts=SHORT)
        said_well(caught.value, server.port, phase)


@pytest.mark.parametrize("write", [False, True])
def test_silence_in_a_call(write: bool) -> None:
    with (
        served(faults=NfcFaults(silent_after_messages=11)) as server,
        open_nfc(target(server), writable=True, timeouts=SHORT) as disk,
    ):
        with pytest.raises(DeadlineExceeded, match=r"within 0\.3 seconds") as caught:
            disk.write_from(512, bytes(512)) if write else disk.read_into(512, bytearray(512))
        said_well(
            caught.value,
            server.port,
            f"while {'writing' if write else 'reading'} 512 bytes at offset 512",
        )


def test_options_that_make_no_sense() -> None:
    with served() as server:
        for options in ({"mode": "san"}, {"window": 0}, {"request_size": 1000}, {"request_size": 2 * MIB}):
            with pytest.raises(UsageError):
                open_nfc(target(server), **options)


def test_no_secret_in_any_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with served(faults=NfcFaults(proxy_refused=True)) as server:
        aim = target(server)
        with pytest.raises(TicketRefused) as caught:
            open_nfc(aim, timeouts=QUICK)
        assert TICKET not in repr(aim) + str(aim) + repr(caught.value)
        with pytest.raises(TicketRefused):
            open_nfc(aim, timeouts=QUICK)
    assert TICKET not in caplog.text
    gc.collect()
