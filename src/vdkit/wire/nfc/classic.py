"""Classic NFC: whole files put and got as a stream (NFC specification, section 15).

Facts are from a client that VMware published under Apache-2.0 in 2015; untested against a host. Messages are
264 bytes as in ``handshake``; paths follow them and here carry a terminating NUL that their length counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import NamedTuple

from vdkit.errors import ProtocolError
from vdkit.wire.nfc.handshake import SIZE
from vdkit.wire.nfc.limits import MAX_FILE_DATA, MAX_PATH, bounded

DATA_MAGIC = 0xABCDEFAB
BODY_MAGIC = 0x87654321
ENTRY_MAGIC = 0xDEADBEEF
RUN_MAGIC = 0x12345678
SECTOR = 512
#: Sectors of one run; the bit above says that they are stored.
MAX_RUN = 0x7FFF
_STORED = 0x8000

_PUT = struct.Struct("<IIIIQQ")
_GET = struct.Struct("<IIII")
_DATA = struct.Struct("<II")
_ENTRY = struct.Struct("<III")


class ClassicMessage(IntEnum):
    FILE_PUT = 1
    FILE_GET = 2
    FILE_DATA = 7
    PUTFILE_DONE = 27


class FileType(IntEnum):
    RAW = 0
    TEXT = 1
    DISK = 2
    DELTA_DISK = 3


class PutFlag(IntFlag):
    NONE = 0
    VMFS = 1 << 3
    OVERWRITE = 1 << 4
    THIN = 1 << 7
    LSILOGIC = 1 << 8
    IDE = 1 << 13


class FilePut(NamedTuple):
    """``size`` and ``space`` in bytes; the path of ``path_length`` bytes (NUL included) follows."""

    file_type: int
    flags: int
    path_length: int
    size: int
    space: int


class FileGet(NamedTuple):
    file_type: int
    path_length: int
    flags: int


class Run(NamedTuple):
    """``sectors`` of 512 bytes; ``data`` None means zeroes."""

    sectors: int
    data: bytes | memoryview | None


def encode_put(path: str, *, file_type: FileType, flags: PutFlag, size: int, space: int = 0) -> bytes:
    data = path.encode("utf-8") + b"\0"
    head = _PUT.pack(ClassicMessage.FILE_PUT, file_type, flags, len(data), size, space)
    return head.ljust(SIZE, b"\0") + data


def decode_put(message: bytes | bytearray) -> FilePut:
    _, *fields = _unpack(_PUT, message, ClassicMessage.FILE_PUT)
    put = FilePut(*fields)
    bounded(put.path_length, MAX_PATH, "a path")
    return put


def encode_get(path: str, *, file_type: FileType, flags: PutFlag = PutFlag.NONE) -> bytes:
    data = path.encode("utf-8") + b"\0"
    head = _GET.pack(ClassicMessage.FILE_GET, file_type, len(data), flags)
    return head.ljust(SIZE, b"\0") + data


def decode_get(message: bytes | bytearray) -> FileGet:
    _, *fields = _unpack(_GET, message, ClassicMessage.FILE_GET)
    get = FileGet(*fields)
    bounded(get.path_length, MAX_PATH, "a path")
    return get


def encode_data(body: bytes) -> bytes:
    """A FILE_DATA message with its body; an empty body ends the file."""
    bounded(len(body) + _DATA.size + SIZE, MAX_FILE_DATA, "a FILE_DATA body")
    head = struct.pack("<I", ClassicMessage.FILE_DATA).ljust(SIZE, b"\0")
    return head + _DATA.pack(DATA_MAGIC, len(body)) + body


def decode_data_head(head: bytes | bytearray | memoryview) -> int:
    """Length of the body, from the 8 bytes behind the FILE_DATA message."""
    if len(head) < _DATA.size:
        raise ProtocolError("a FILE_DATA header is cut short")
    magic, length = _DATA.unpack_from(head)
    if magic != DATA_MAGIC:
        raise ProtocolError(f"a FILE_DATA header begins with 0x{magic:08X}")
    return bounded(length, MAX_FILE_DATA, "a FILE_DATA body")


def encode_metadata(entries: Iterable[tuple[str, str]]) -> bytes:
    """The metadata body of a disk: descriptor entries, closed by an empty one."""
    parts = [_DATA.pack(BODY_MAGIC, 1)]
    for key, value in entries:
        k, v = key.encode("utf-8") + b"\0", value.encode("utf-8") + b"\0"
        parts.append(_ENTRY.pack(ENTRY_MAGIC, len(k), len(v)) + k + v)
    parts.append(_ENTRY.pack(ENTRY_MAGIC, 0, 0))
    return b"".join(parts)


def encode_runs(runs: Iterable[Run]) -> bytes:
    """A data body of a disk: consecutive runs of stored and zero sectors."""
    parts = [_DATA.pack(BODY_MAGIC, 0)]
    for count, data in runs:
        if not 0 < count <= MAX_RUN:
            raise ProtocolError(f"a run of {count} sectors, 1 to {MAX_RUN} are allowed")
        if data is None:
            parts.append(_DATA.pack(RUN_MAGIC, count))
        elif len(data) != count * SECTOR:
            raise ProtocolError(f"a run of {count} sectors with {len(data)} bytes of data")
        else:
            parts.append(_DATA.pack(RUN_MAGIC, count | _STORED) + bytes(data))
    return b"".join(parts)


def decode_body(body: bytes | bytearray | memoryview) -> list[tuple[str, str]] | list[Run]:
    """The entries of a metadata body, or the runs of a data body."""
    view = memoryview(body)
    if len(view) < _DATA.size:
        raise ProtocolError("the body of a FILE_DATA is cut short")
    magic, is_metadata = _DATA.unpack_from(view)
    if magic != BODY_MAGIC or is_metadata not in (0, 1):
        raise ProtocolError(f"the body of a FILE_DATA begins with 0x{magic:08X}, {is_metadata}")
    rest = view[_DATA.size :]
    return _entries(rest) if is_metadata else _runs(rest)


def _entries(view: memoryview) -> list[tuple[str, str]]:
    entries: list[tuple[str, str]] = []
    position = 0
    while True:
        if len(view) - position < _ENTRY.size:
            raise ProtocolError("a metadata body has no closing entry")
        magic, key_length, value_length = _ENTRY.unpack_from(view, position)
        position += _ENTRY.size
        if magic != ENTRY_MAGIC:
            raise ProtocolError(f"a metadata entry begins with 0x{magic:08X}")
        if key_length == value_length == 0:
            if position != len(view):
                raise ProtocolError("bytes follow the closing entry of a metadata body")
            return entries
        if key_length + value_length > len(view) - position:
            raise ProtocolError("a metadata entry is cut short")
        key = _text(view[position : position + key_length])
        position += key_length
        entries.append((key, _text(view[position : position + value_length])))
        position += value_length


def _runs(view: memoryview) -> list[Run]:
    runs: list[Run] = []
    position = 0
    while position < len(view):
        if len(view) - position < _DATA.size:
            raise ProtocolError("the head of a run is cut short")
        magic, word = _DATA.unpack_from(view, position)
        position += _DATA.size
        count = word & MAX_RUN
        if magic != RUN_MAGIC or word > (MAX_RUN | _STORED) or count == 0:
            raise ProtocolError(f"a run begins with 0x{magic:08X}, 0x{word:X}")
        if not word & _STORED:
            runs.append(Run(count, None))
            continue
        if count * SECTOR > len(view) - position:
            raise ProtocolError("the data of a run is cut short")
        runs.append(Run(count, view[position : position + count * SECTOR]))
        position += count * SECTOR
    return runs


def _text(data: memoryview) -> str:
    raw = bytes(data)
    if not raw.endswith(b"\0") or b"\0" in raw[:-1]:
        raise ProtocolError("a metadata text does not end with its NUL")
    try:
        return raw[:-1].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError("a metadata text is not UTF-8") from error


def _unpack(layout: struct.Struct, message: bytes | bytearray, wanted: ClassicMessage) -> tuple[int, ...]:
    if len(message) != SIZE:
        raise ProtocolError(f"a classic message of {len(message)} bytes instead of {SIZE}")
    fields = layout.unpack_from(message)
    if fields[0] != wanted:
        raise ProtocolError(f"message {fields[0]} came where {wanted} was expected")
    return fields
