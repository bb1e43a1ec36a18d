"""How the data of one chunk is written: none, zlib, fastlz, skipz (NFC specification, section 9.3).

Each chunk is coded on its own and says how, so a sender may leave any of them as it is (code 0).
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from itertools import pairwise

from vdkit.errors import NotSupported, ProtocolError, UsageError
from vdkit.wire.nfc import fastlz
from vdkit.wire.nfc.limits import MAX_HELLO_BUFFER

_WORDS = struct.Struct("<II")
#: Granule of the search for zeroes when encoding skipz.
_GRANULE = 4096
_ZERO_GRANULE = bytes(_GRANULE)
_ZEROES = bytes(MAX_HELLO_BUFFER)
#: Hosts' streams begin with the two bytes of this level.
_ZLIB_LEVEL = 1


class Compression(IntEnum):
    NONE = 0
    ZLIB = 1
    FASTLZ = 2
    SKIPZ = 3


def compression_of(name: str) -> Compression:
    """``none``, ``zlib``, ``fastlz`` or ``skipz``."""
    match name:
        case "none":
            return Compression.NONE
        case "zlib":
            return Compression.ZLIB
        case "skipz":
            return Compression.SKIPZ
        case "fastlz":
            return Compression.FASTLZ
        case _:
            raise UsageError(
                f"NFC compression {name!r} is not known", remedy="use none, zlib, fastlz or skipz"
            )


def decode_into(code: int, wire: memoryview, target: memoryview) -> None:
    """Fill all of ``target`` from the bytes of one chunk, or refuse them."""
    match code:
        case Compression.NONE:
            _plain(wire, target)
        case Compression.ZLIB:
            _inflate(wire, target)
        case Compression.SKIPZ:
            _unskip(wire, target)
        case Compression.FASTLZ:
            fastlz.decode_into(wire, target)
        case _:
            raise ProtocolError(f"a chunk is compressed with the unknown code {code}")


def encode(code: int, data: memoryview) -> tuple[int, memoryview]:
    """``data`` compressed as asked, and the code that says so; what does not shrink stays plain (code 0)."""
    match code:
        case Compression.NONE:
            return Compression.NONE, data
        case Compression.ZLIB:
            packed = zlib.compress(data, _ZLIB_LEVEL)
        case Compression.SKIPZ:
            packed = skip_zeroes(data)
        case Compression.FASTLZ:
            packed = fastlz.encode(data) if len(data) >= fastlz.MIN_SIZE else bytes(data)
        case _:
            raise NotSupported(f"compression code {code} cannot be written")
    if len(packed) >= len(data):
        return Compression.NONE, data
    return code, memoryview(packed)


def skip_zeroes(data: memoryview) -> bytes:
    """The skipz form of ``data``: runs of whole zero granules left out."""
    parts: list[bytes | memoryview] = [_WORDS.pack(len(data), 0)]
    content = bytes(data)
    start = -1
    for offset in range(0, len(content), _GRANULE):
        granule = content[offset : offset + _GRANULE]
        zero = granule == _ZERO_GRANULE[: len(granule)]
        if zero and start >= 0:
            parts += (_WORDS.pack(start, offset - start), data[start:offset])
            start = -1
        elif not zero and start < 0:
            start = offset
    if start >= 0:
        parts += (_WORDS.pack(start, len(data) - start), data[start:])
    return b"".join(parts)


def _plain(wire: memoryview, target: memoryview) -> None:
    if len(wire) != len(target):
        raise ProtocolError(f"a stored chunk of {len(target)} bytes came as {len(wire)} bytes")
    target[:] = wire


def _inflate(wire: memoryview, target: memoryview) -> None:
    inflater = zlib.decompressobj()
    try:
        # One byte more than wanted, so that a longer stream shows without being inflated to its end.
        data = inflater.decompress(wire, len(target) + 1)
    except zlib.error as error:
        raise ProtocolError(f"a zlib chunk is damaged: {error}") from error
    if len(data) != len(target) or not inflater.eof or inflater.unused_data:
        raise ProtocolError(f"a zlib chunk does not inflate to exactly {len(target)} bytes")
    target[:] = data


def _unskip(wire: memoryview, target: memoryview) -> None:
    """A stored chunk may be labelled skipz too; it is known by not beginning with its own length."""
    if len(wire) < 4 or int.from_bytes(wire[:4], "little") != len(target):
        _plain(wire, target)
        return
    try:
        segments = _segments(wire, len(target))
    except ProtocolError:
        # Plain data may happen to begin with its own length; then it has exactly that length.
        if len(wire) != len(target):
            raise
        _plain(wire, target)
        return
    position = 0
    for offset, begin, count in segments:
        if offset > position:
            target[position:offset] = _ZEROES[: offset - position]
        target[offset : offset + count] = wire[begin : begin + count]
        position = offset + count
    if position < len(target):
        target[position:] = _ZEROES[: len(target) - position]


def _segments(wire: memoryview, length: int) -> list[tuple[int, int, int]]:
    """``(offset in the chunk, offset in the wire bytes, count)`` of every segment."""
    if len(wire) < _WORDS.size:
        raise ProtocolError("a skipz chunk ends inside its header")
    found: list[tuple[int, int, int]] = []
    position = _WORDS.size
    while position < len(wire):
        if len(wire) - position < _WORDS.size:
            raise ProtocolError("a skipz chunk ends inside the head of a segment")
        offset, count = _WORDS.unpack_from(wire, position)
        position += _WORDS.size
        if offset + count > length:
            raise ProtocolError(f"a skipz segment ends at {offset + count} in a chunk of {length} bytes")
        if count > len(wire) - position:
            raise ProtocolError("a skipz chunk ends inside the data of a segment")
        found.append((offset, position, count))
        position += count
    found.sort()
    for (before, _, n), (offset, _, _) in pairwise(found):
        if before + n > offset:
            raise ProtocolError(f"skipz segments overlap at {offset}")
    return found
