"""What the codec refuses, and the cases of section 17's "decoder behaviour to test"."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from vdkit.errors import NotSupported, ProtocolError, UsageError
from vdkit.wire.nfc import assembly, classic, codecs, dialogue, handshake, limits, records
from vdkit.wire.nfc.assembly import Assembly
from vdkit.wire.nfc.classic import Run
from vdkit.wire.nfc.greeting import build_greeting, parse_greeting
from vdkit.wire.nfc.handshake import Message, ServerHandshake
from vdkit.wire.nfc.records import Direction, Io, OpenReply

ZLIB_15 = bytes.fromhex("789c6360646266616563e7e0e4e2e6e1e5e3070002b80079")
TWO = bytes.fromhex("1000000000000000000000000200000061620d0000000300000078797a")


def decode(code: int, wire: bytes, length: int) -> bytes:
    target = bytearray(b"\xee" * length)
    codecs.decode_into(code, memoryview(wire), memoryview(target))
    return bytes(target)


# -- codecs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "wire", "length"),
    [
        (0, bytes(511), 512),
        (0, bytes(513), 512),
        (1, b"\x00" + ZLIB_15[1:], 16),
        (1, ZLIB_15[:-1] + b"\x00", 16),
        (1, ZLIB_15[:-1], 16),
        (1, ZLIB_15 + b"\x00", 16),
        (1, ZLIB_15, 15),
        (1, ZLIB_15, 17),
        (3, bytes(range(15)), 16),
        (3, TWO[:6], 16),
        (3, TWO[:12], 16),
        (3, TWO[:17], 16),
        (3, TWO[:-1], 16),
        (3, struct.pack("<IIII", 16, 0, 4, 4) + b"abcd" + struct.pack("<II", 6, 1) + b"x", 16),
        (2, bytes(16), 16),
        (4, bytes(16), 16),
    ],
)
def test_damaged_chunks_are_refused(code: int, wire: bytes, length: int) -> None:
    with pytest.raises(ProtocolError):
        decode(code, wire, length)


def test_names_of_compressions() -> None:
    named = {name: codecs.compression_of(name) for name in ("none", "zlib", "fastlz", "skipz")}
    assert named == {"none": 0, "zlib": 1, "fastlz": 2, "skipz": 3}
    with pytest.raises(UsageError, match="lzma"):
        codecs.compression_of("lzma")


@pytest.mark.parametrize("wire", [bytes(range(16)), struct.pack("<I", 16) + b"\xff" * 12])
def test_stored_chunks_labelled_skipz_are_plain(wire: bytes) -> None:
    """The second one begins with its own length, but is no skipz stream."""
    assert decode(3, wire, 16) == wire


def test_short_plain_chunk_labelled_skipz() -> None:
    assert decode(3, b"abc", 3) == b"abc"


def test_segments_may_come_in_any_order() -> None:
    wire = struct.pack("<II", 16, 0)
    wire += struct.pack("<II", 12, 4) + b"tail" + struct.pack("<II", 0, 2) + b"ab"
    assert decode(3, wire, 16) == b"ab" + bytes(10) + b"tail"


@pytest.mark.parametrize("code", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "data",
    [
        bytes(65536),
        b"\x01" * 65536,
        bytes(4096) + b"x" * 4096 + bytes(8192) + b"y" * 100,
        bytes(range(256)) * 16,
        b"z",
    ],
)
def test_what_is_encoded_is_decoded(code: int, data: bytes) -> None:
    used, wire = codecs.encode(code, memoryview(data))
    assert used in (0, code)
    assert len(wire) <= len(data)
    assert decode(used, bytes(wire), len(data)) == data


def test_what_does_not_shrink_is_stored() -> None:
    data = bytes(i * 7919 % 251 + 1 for i in range(1000))
    assert codecs.encode(3, memoryview(data)) == (0, memoryview(data))
    noise = random.Random(1).randbytes(1000)
    assert codecs.encode(2, memoryview(noise)) == (0, memoryview(noise))
    with pytest.raises(NotSupported):
        codecs.encode(4, memoryview(data))


# -- assembly ------------------------------------------------------------------------------------------


def part(start: int, length: int, *, offset: int = 4096, total: int = 2048, **changed: int) -> Io:
    return Io(0, 1, 0, offset, total, start, length, length)._replace(**changed)


def take(request: Assembly, *parts: tuple[int, int]) -> None:
    for start, length in parts:
        request.check(part(start, length))
        request.note(start, length)


def test_chunks_complete_a_request_in_any_order() -> None:
    request = Assembly(Direction.READ, 4096, 2048)
    take(request, (1500, 548), (0, 700))
    assert not request.complete
    take(request, (700, 800))
    assert request.complete


@pytest.mark.parametrize(
    "chunk",
    [
        part(0, 512, offset=8192),
        part(0, 512, total=1024),
        part(1024, 1025),
        part(0xFFFFFFFF, 1),
        part(1023, 1),
        part(0, 513),
        part(600, 10),
        part(0, 2048),
        part(0, 0),
        part(0, 512, direction=0),
        part(0, 512, wire=511),
        part(0, 512, wire=513),
    ],
)
def test_foreign_chunks_are_refused(chunk: Io) -> None:
    request = Assembly(Direction.READ, 4096, 2048)
    take(request, (512, 512))
    with pytest.raises(ProtocolError):
        request.check(chunk)
    assert request.missing == 1536


@pytest.mark.parametrize(
    "reply",
    [
        Io(5, 0, 0, 0, 512, 0, 512, 0),
        Io(0, 1, 0, 0, 512, 0, 512, 0),
        Io(0, 0, 0, 0, 511, 0, 511, 0),
        Io(0, 0, 0, 0, 512, 0, 512, 512),
    ],
)
def test_foreign_replies_to_writes_are_refused(reply: Io) -> None:
    with pytest.raises(ProtocolError):
        assembly.check_write_reply(reply, 0, 512)


def test_requests_are_whole_sectors_within_the_disk() -> None:
    mib = 1 << 20

    def requests(capacity: int, offset: int, length: int) -> list[tuple[int, int]]:
        return list(assembly.split(*assembly.whole_sectors(offset, length, capacity), mib))

    assert requests(mib, 700, 100) == [(512, 512)]
    assert requests(mib, 511, 2) == [(0, 1024)]
    assert requests(10 * mib, mib - 100, 2 * mib + 200) == [
        (mib - 512, 512),
        (mib, mib),
        (2 * mib, mib),
        (3 * mib, 512),
    ]
    assert requests(mib + 100, mib - 512, 4096) == [(mib - 512, 512), (mib, 100)]
    assert list(assembly.fragments(66048, 65536)) == [(0, 65536), (65536, 512)]


# -- records -------------------------------------------------------------------------------------------


def test_every_announced_size_has_a_limit() -> None:
    refused: list[Callable[[], object]] = [
        lambda: records.parse_header(struct.pack("<IIII", records.MAGIC, 7, limits.MAX_PAYLOAD + 1, 0)),
        lambda: records.decode_error(struct.pack("<QII", 1, 0, limits.MAX_ERROR_TEXT + 1)),
        lambda: records.decode_ddb_get(struct.pack("<QII", 1, limits.MAX_DDB_KEY + 1, 0)),
        lambda: records.decode_ddb_reply(struct.pack("<QII", 0, 0, limits.MAX_DDB_VALUE + 1)),
        lambda: records.decode_map_reply(struct.pack("<QQQQQQ", 0, 0, 0, 0, limits.MAX_MAP_CHUNKS + 1, 0)),
        lambda: records.decode_open(struct.pack("<I12xII36x", limits.MAX_PATH + 1, 2, 0x1E)),
        lambda: handshake.parse_name(handshake.build(Message.NAME, limits.MAX_NAME + 1, 7)),
        lambda: handshake.parse_error(handshake.build(Message.ERROR, 1, 1, limits.MAX_ERROR_TEXT + 1)),
        lambda: parse_greeting(build_greeting() + bytes(limits.MAX_GREETING)),
        lambda: dialogue.parse_connect(b"200 " + b"x" * limits.MAX_LINE, tls=True),
        lambda: classic.decode_data_head(struct.pack("<II", classic.DATA_MAGIC, limits.MAX_FILE_DATA + 1)),
        lambda: classic.decode_put(struct.pack("<IIIIQQ", 1, 2, 0, limits.MAX_PATH + 1, 0, 0).ljust(264)),
        lambda: classic.decode_get(struct.pack("<IIII", 2, 2, limits.MAX_PATH + 1, 0).ljust(264)),
    ]
    for refuse in refused:
        with pytest.raises(ProtocolError):
            refuse()


@pytest.mark.parametrize(
    ("decoder", "size"),
    [
        (records.decode_hello, 16),
        (records.decode_sockopts, 12),
        (records.decode_respool, 4),
        (records.decode_open_reply, 60),
        (records.decode_close, 8),
        (records.decode_io, 44),
        (records.decode_error, 16),
        (records.decode_ddb_get, 16),
        (records.decode_ddb_reply, 16),
        (records.decode_map, 48),
        (records.decode_map_reply, 48),
    ],
)
def test_short_payloads_are_refused_and_long_ones_are_not(
    decoder: Callable[[bytes], object], size: int
) -> None:
    with pytest.raises(ProtocolError):
        decoder(bytes(size - 1))
    assert decoder(bytes(size)) == decoder(bytes(size + 20))


def test_unknown_open_requests_are_refused() -> None:
    for file_type, flags in ((3, 0x1E), (0, 0x1E), (2, 0x1F), (2, 0)):
        with pytest.raises(ProtocolError):
            records.decode_open(struct.pack("<I12xII36x", 4, file_type, flags))
    for path in ("", "x" * (limits.MAX_PATH + 1)):
        with pytest.raises(ProtocolError):
            records.encode_open(3, path)


def test_open_reply_keeps_all_bits_of_a_handle() -> None:
    reply = OpenReply(0, 0xFFFFFFFF80002A1F, 2, 0x1E, 62 << 40, 512, 1, 2, 3)
    assert records.decode_open_reply(records.encode_open_reply(0xFFFFFFFF, reply)[16:]) == reply


# -- text and handshake --------------------------------------------------------------------------------


def test_greetings() -> None:
    both = parse_greeting(build_greeting())
    assert both.tls_disk
    assert both.sha256
    assert not parse_greeting(build_greeting(tls_disk=False)).tls_disk
    assert parse_greeting(b"220 something without a list\r\n").capabilities == frozenset()
    assert "SHA256 Supported" not in both.capabilities
    for line in (b"", b"500 no\r\n", b"220", b"\xff220 x\r\n"):
        with pytest.raises(ProtocolError):
            parse_greeting(line)


@pytest.mark.parametrize(
    "line", [b"200 Connect ha-nfc\r\n", b"200 connect ha-nfcssl\r\n", b"\r\n", b"\xff\n"]
)
def test_only_the_exact_connect_line_is_taken(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        dialogue.parse_connect(line, tls=True)


def test_thumbprint_replies() -> None:
    plain = "AB" * 32
    colons = ":".join(["ab"] * 32)
    assert dialogue.parse_thumbprint(f"200 {plain}\r\n".encode()) == plain
    assert dialogue.parse_thumbprint(f"200 {colons}\r\n".encode()) == plain
    for text in ("200 ", "200 " + "AB" * 31, "501 Invalid arguments", "200 " + "XY" * 32):
        with pytest.raises(ProtocolError):
            dialogue.parse_thumbprint(text.encode() + b"\r\n")


def test_a_command_hides_its_argument() -> None:
    command = dialogue.parse_command(b"SESSION secret-ticket\r\n")
    assert "secret" not in repr(command)
    for ticket in ("", "two words", "line\nbreak", "bell\x07", "ü"):
        with pytest.raises(ProtocolError) as caught:
            dialogue.session_line(ticket)
        assert ticket == "" or ticket not in str(caught.value)


@pytest.mark.parametrize("line", [b"BANNER\r\n", b"BANNER \r\n", b"BANNER\n"])
def test_banner_with_and_without_the_blank(line: bytes) -> None:
    assert dialogue.parse_command(line).verb is dialogue.Verb.BANNER


def test_tags() -> None:
    for tag in ("", "x" * 65, "two words", "bell\x07x"):
        assert not dialogue.valid_tag(tag)
        if " " in tag or len(tag) > 64 or not tag:
            with pytest.raises(ProtocolError):
                dialogue.thumbprint_line(tag)
    assert dialogue.valid_tag("x" * 64)
    assert dialogue.parse_command(b"CONNECT_VPXA x\r\n").verb is dialogue.Verb.UNKNOWN
    assert dialogue.parse_command(b"\r\n").verb is dialogue.Verb.UNKNOWN


def test_the_handshake_in_both_orders() -> None:
    def replies(state: ServerHandshake) -> list[list[int]]:
        messages = [
            handshake.build_tag("PlainText"),
            handshake.build_probe(),
            handshake.build_version(12, 1),
            handshake.build_name("x")[:264],
            handshake.build_features(),
            handshake.build_ready(),
        ]
        return [[handshake.message_type(reply) for reply in state.feed(m)] for m in messages]

    assert replies(ServerHandshake()) == [[], [36], [51], [], [], [52]]
    assert replies(ServerHandshake(wait_for_version=True)) == [[], [], [36, 51], [], [], [52]]


def test_the_handshake_refuses_other_messages() -> None:
    with pytest.raises(ProtocolError, match="message 33 came where message 43"):
        ServerHandshake().feed(handshake.build_probe())
    with pytest.raises(ProtocolError, match="ended the session"):
        handshake.expect(handshake.build_session_complete(), Message.READY)
    with pytest.raises(ProtocolError, match="263"):
        handshake.message_type(bytes(263))
    for tag in (b"", b"a b", b"x" * 65):
        with pytest.raises(ProtocolError):
            handshake.parse_tag(struct.pack("<I", 43) + tag.ljust(260, b"\0"))


# -- classic -------------------------------------------------------------------------------------------


def test_classic_bodies_go_both_ways() -> None:
    runs = [Run(2, b"x" * 1024), Run(0x7FFF, None), Run(1, bytes(512))]
    assert classic.decode_body(classic.encode_runs(runs)) == runs
    assert classic.decode_get(classic.encode_get("[ds] a", file_type=classic.FileType.DISK)[:264])[1] == 7


@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack("<II", 0x87654321, 2),
        struct.pack("<II", 0x11111111, 0),
        struct.pack("<II", 0x87654321, 0) + b"\x78",
        struct.pack("<IIII", 0x87654321, 0, 0x12345678, 0),
        struct.pack("<IIII", 0x87654321, 0, 0x12345678, 0x10001),
        struct.pack("<IIII", 0x87654321, 0, 0x12345678, 0x8001),
        struct.pack("<II", 0x87654321, 1),
        struct.pack("<IIIII", 0x87654321, 1, 0xDEADBEEF, 9, 9),
        struct.pack("<IIIII", 0x87654321, 1, 0xDEADBEEF, 0, 0) + b"x",
        struct.pack("<IIIII", 0x87654321, 1, 0xDEADBEEF, 1, 1) + b"ab",
    ],
)
def test_damaged_classic_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        classic.decode_body(body)


def test_classic_refuses_what_does_not_fit() -> None:
    for run in (Run(0, None), Run(0x8000, None), Run(1, b"short")):
        with pytest.raises(ProtocolError):
            classic.encode_runs([run])
    with pytest.raises(ProtocolError):
        classic.encode_data(bytes(limits.MAX_FILE_DATA))
    with pytest.raises(ProtocolError):
        classic.decode_put(bytes(264))
