"""Records of the disk session (NFC specification, sections 8 to 12). Little-endian throughout.

A record is a header of 16 bytes, a payload whose length the header gives, and for some a trailer whose length
only the payload gives. ``encode`` functions return whole records; ``decode`` functions take a payload.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from vdkit.errors import ProtocolError
from vdkit.wire.nfc.limits import (
    DEFAULT_HELLO_BUFFER,
    MAX_DDB_KEY,
    MAX_DDB_VALUE,
    MAX_ERROR_TEXT,
    MAX_MAP_CHUNKS,
    MAX_PATH,
    MAX_PAYLOAD,
    bounded,
)

MAGIC = 0xA100DA7A
HEADER_SIZE = 16
IO_SIZE = 44
#: Header and payload of an IO record: what stands before the data.
IO_HEAD = HEADER_SIZE + IO_SIZE
OPEN_SIZE = 60
ERROR_SIZE = 16
MAP_SIZE = 48
DDB_SIZE = 16

FLAGS_READ_ONLY = 0x1E
FLAGS_READ_WRITE = 0x1A
FLAG_READ_ONLY = 0x04
FILE_TYPE_DISK = 2

_HEADER = struct.Struct("<IIII")
_IO = struct.Struct("<QIIQIIIII")
_IO_RECORD = struct.Struct("<IIIIQIIQIIIII")
_HELLO = struct.Struct("<IIII")
_SOCKOPTS = struct.Struct("<III")
_RESPOOL = struct.Struct("<I")
_OPEN = struct.Struct("<I12xII36x")
_OPEN_REPLY = struct.Struct("<QQIIIQIIII8x")
_CLOSE = struct.Struct("<QQ")
_ERROR = struct.Struct("<QII")
_DDB = struct.Struct("<QII")
_DDB_REPLY = struct.Struct("<12xI")
_MAP = struct.Struct("<QQQQQQ")


class Opcode(IntEnum):
    ERROR = 1
    HELLO = 2
    END = 3
    OPEN = 4
    CLOSE = 5
    IO = 7
    SOCKOPTS = 9
    DDB_GET = 11
    MAP = 13
    RESPOOL = 22


class Direction(IntEnum):
    WRITE = 0
    READ = 1


class Header(NamedTuple):
    opcode: int
    length: int
    sequence: int


def header(opcode: int, length: int, sequence: int) -> bytes:
    return _HEADER.pack(MAGIC, opcode, length, sequence)


def record(opcode: int, sequence: int, payload: bytes, trailer: bytes = b"") -> bytes:
    return header(opcode, len(payload), sequence) + payload + trailer


def parse_header(data: bytes | bytearray | memoryview) -> Header:
    magic, opcode, length, sequence = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ProtocolError(f"a record begins with 0x{magic:08X} instead of 0x{MAGIC:08X}")
    if length > MAX_PAYLOAD:
        bounded(length, MAX_PAYLOAD, f"a payload (opcode {opcode})")
    return Header(opcode, length, sequence)


def expect_size(payload: bytes | bytearray | memoryview, size: int, what: str) -> None:
    """Longer payloads are fine, what is behind the known part is ignored."""
    if len(payload) < size:
        raise ProtocolError(f"{what} has a payload of {len(payload)} bytes, at least {size} are needed")


# -- session opening ---------------------------------------------------------------------------------


class Hello(NamedTuple):
    """``buffer_size`` (bytes) bounds the data of one chunk, both ways; zeroes mean 64 KiB."""

    buffer_size: int
    buffer_count: int

    @property
    def effective_size(self) -> int:
        return self.buffer_size or DEFAULT_HELLO_BUFFER


def encode_hello(sequence: int, buffer_size: int = 0, buffer_count: int = 0) -> bytes:
    return record(Opcode.HELLO, sequence, _HELLO.pack(0, buffer_size, buffer_count, 0))


def decode_hello(payload: bytes | bytearray | memoryview) -> Hello:
    expect_size(payload, _HELLO.size, "a HELLO")
    _, size, count, _ = _HELLO.unpack_from(payload)
    return Hello(size, count)


class SockOpts(NamedTuple):
    send_buffer: int
    receive_buffer: int
    flag: int


def encode_sockopts(sequence: int, send_buffer: int = 0, receive_buffer: int = 0, flag: int = 0) -> bytes:
    return record(Opcode.SOCKOPTS, sequence, _SOCKOPTS.pack(send_buffer, receive_buffer, flag))


def decode_sockopts(payload: bytes | bytearray | memoryview) -> SockOpts:
    expect_size(payload, _SOCKOPTS.size, "a SOCKOPTS")
    return SockOpts(*_SOCKOPTS.unpack_from(payload))


def encode_respool(sequence: int, pool: int = 1) -> bytes:
    return record(Opcode.RESPOOL, sequence, _RESPOOL.pack(pool))


def decode_respool(payload: bytes | bytearray | memoryview) -> int:
    expect_size(payload, _RESPOOL.size, "a RESPOOL")
    return int(_RESPOOL.unpack_from(payload)[0])


# -- open, close, end ----------------------------------------------------------------------------------


class Open(NamedTuple):
    """The payload of an OPEN: the path of ``path_length`` bytes follows."""

    path_length: int
    file_type: int
    flags: int

    @property
    def writable(self) -> bool:
        return not self.flags & FLAG_READ_ONLY


class OpenReply(NamedTuple):
    """``capacity`` in bytes; ``cylinders`` x ``heads`` x ``sectors`` may understate it."""

    status: int
    handle: int
    file_type: int
    flags: int
    capacity: int
    sector_size: int
    cylinders: int
    heads: int
    sectors: int


def encode_open(sequence: int, path: str, *, writable: bool = False) -> bytes:
    data = path.encode("utf-8")
    if not 0 < len(data) <= MAX_PATH:
        raise ProtocolError(f"a datastore path must have 1 to {MAX_PATH} bytes, this one has {len(data)}")
    flags = FLAGS_READ_WRITE if writable else FLAGS_READ_ONLY
    return record(Opcode.OPEN, sequence, _OPEN.pack(len(data), FILE_TYPE_DISK, flags), data)


def decode_open(payload: bytes | bytearray | memoryview) -> Open:
    expect_size(payload, OPEN_SIZE, "an OPEN")
    length, file_type, flags = _OPEN.unpack_from(payload)
    if file_type != FILE_TYPE_DISK:
        raise ProtocolError(f"an OPEN asks for file type {file_type}; only {FILE_TYPE_DISK} (disk) is known")
    if flags not in (FLAGS_READ_ONLY, FLAGS_READ_WRITE):
        raise ProtocolError(f"an OPEN has the unknown flags 0x{flags:X}")
    return Open(bounded(length, MAX_PATH, "a path"), file_type, flags)


def encode_open_reply(sequence: int, reply: OpenReply) -> bytes:
    status, handle, file_type, flags, *rest = reply
    payload = _OPEN_REPLY.pack(status, handle, file_type, flags, 0, *rest)
    return record(Opcode.OPEN, sequence, payload)


def decode_open_reply(payload: bytes | bytearray | memoryview) -> OpenReply:
    expect_size(payload, OPEN_SIZE, "the reply to OPEN")
    status, handle, file_type, flags, _, *rest = _OPEN_REPLY.unpack_from(payload)
    return OpenReply(status, handle, file_type, flags, *rest)


def encode_close(sequence: int, handle: int, *, short: bool = False) -> bytes:
    """``short`` is the form of 8 bytes; hosts take both."""
    payload = _CLOSE.pack(handle, 0)
    return record(Opcode.CLOSE, sequence, payload[:8] if short else payload)


def decode_close(payload: bytes | bytearray | memoryview) -> int:
    """The handle, from either form."""
    expect_size(payload, 8, "a CLOSE")
    return int.from_bytes(payload[:8], "little")


def encode_end(sequence: int, *, short: bool = False) -> bytes:
    return record(Opcode.END, sequence, bytes(4 if short else 16))


# -- reads and writes ----------------------------------------------------------------------------------


class Io(NamedTuple):
    """The payload of an IO record: a read request, a chunk of a read, a fragment of a write, or its reply.

    ``handle`` is the status in what a host sends (0 = good). ``offset`` and ``total`` (bytes) are those of
    the whole request; ``start`` is where this part begins in it, ``length`` its bytes on the disk and
    ``wire`` the bytes that follow (none follow a read request).
    """

    handle: int
    direction: int
    compression: int
    offset: int
    total: int
    start: int
    length: int
    wire: int
    reserved: int = 0


def encode_read(sequence: int, handle: int, offset: int, length: int, compression: int = 0) -> bytes:
    return _IO_RECORD.pack(
        MAGIC, Opcode.IO, IO_SIZE, sequence, handle, 1, compression, offset, length, 0, length, length, 0
    )


def encode_io(sequence: int, io: Io) -> bytes:
    """Header and payload; the data, if any, goes behind."""
    return _IO_RECORD.pack(MAGIC, Opcode.IO, IO_SIZE, sequence, *io)


def pack_io_into(buffer: bytearray | memoryview, sequence: int, io: Io) -> None:
    """Like :func:`encode_io`, in place: a server keeps the head in front of the data in one buffer."""
    _IO_RECORD.pack_into(buffer, 0, MAGIC, Opcode.IO, IO_SIZE, sequence, *io)


def decode_io(payload: bytes | bytearray | memoryview) -> Io:
    expect_size(payload, IO_SIZE, "an IO record")
    return Io(*_IO.unpack_from(payload))


# -- errors --------------------------------------------------------------------------------------------


class ErrorHead(NamedTuple):
    code: int
    text_length: int


def encode_error(sequence: int, code: int, text: str) -> bytes:
    data = text.encode("utf-8")
    return record(Opcode.ERROR, sequence, _ERROR.pack(code, 0, len(data)), data)


def decode_error(payload: bytes | bytearray | memoryview) -> ErrorHead:
    expect_size(payload, ERROR_SIZE, "an ERROR record")
    code, _, length = _ERROR.unpack_from(payload)
    return ErrorHead(code, bounded(length, MAX_ERROR_TEXT, "an error text"))


# -- optional records ----------------------------------------------------------------------------------


class DdbGet(NamedTuple):
    handle: int
    key_length: int


def encode_ddb_get(sequence: int, handle: int, key: str) -> bytes:
    """``key`` without its ``ddb.`` prefix."""
    data = key.encode("ascii")
    return record(Opcode.DDB_GET, sequence, _DDB.pack(handle, len(data), 0), data)


def decode_ddb_get(payload: bytes | bytearray | memoryview) -> DdbGet:
    expect_size(payload, DDB_SIZE, "a DDB_GET")
    handle, length, _ = _DDB.unpack_from(payload)
    return DdbGet(handle, bounded(length, MAX_DDB_KEY, "a key"))


def encode_ddb_reply(sequence: int, value: str | None) -> bytes:
    """``value`` None (or empty): there is no such key."""
    data = (value or "").encode("utf-8")
    return record(Opcode.DDB_GET, sequence, _DDB_REPLY.pack(len(data)), data)


def decode_ddb_reply(payload: bytes | bytearray | memoryview) -> int:
    """Length of the value that follows; 0 means that there is no such key."""
    expect_size(payload, DDB_SIZE, "the reply to DDB_GET")
    return bounded(_DDB_REPLY.unpack_from(payload)[0], MAX_DDB_VALUE, "a value")


class MapRequest(NamedTuple):
    """Asks for the map of ``chunks`` chunks of ``chunk`` bytes from byte ``offset``, a multiple of it."""

    handle: int
    chunk: int
    offset: int
    chunks: int


def encode_map(sequence: int, request: MapRequest) -> bytes:
    handle, chunk, offset, count = request
    return record(Opcode.MAP, sequence, _MAP.pack(handle, 0, chunk, offset, count, 0))


def decode_map(payload: bytes | bytearray | memoryview) -> MapRequest:
    expect_size(payload, MAP_SIZE, "an allocation-map request")
    handle, _, chunk, offset, count, _ = _MAP.unpack_from(payload)
    return MapRequest(handle, chunk, offset, count)


def bitmap_size(count: int) -> int:
    """Bytes of the bitmap of ``count`` chunks: a bit each, rounded up to 4 bytes."""
    return (count + 31) // 32 * 4


def encode_map_reply(sequence: int, count: int, bitmap: bytes) -> bytes:
    """``bitmap``: bit 0 of byte 0 is the first chunk, 1 = allocated."""
    payload = _MAP.pack(0, 0, 0, 0, count, 0)
    return record(Opcode.MAP, sequence, payload, bitmap.ljust(bitmap_size(count), b"\0"))


def decode_map_reply(payload: bytes | bytearray | memoryview) -> int:
    """Count of the chunks whose bitmap follows."""
    expect_size(payload, MAP_SIZE, "the reply to an allocation-map request")
    count: int = _MAP.unpack_from(payload)[4]
    if count > MAX_MAP_CHUNKS:
        raise ProtocolError(f"the peer announced a map of {count} chunks, the limit is {MAX_MAP_CHUNKS}")
    return count
