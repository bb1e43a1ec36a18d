"""Grains of streamOptimized extents: zlib streams (RFC 1950), made and opened.

libdeflate (module ``deflate``) makes the smallest and opens the fastest, isal makes them several times as
fast; the standard zlib opens them where libdeflate is not installed. All of them release the interpreter
lock.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from enum import Enum

from vdkit.errors import UsageError

#: Bytes of a grain that are tried to see whether it can shrink at all, and how much they must shrink.
_SAMPLE = 1 << 11
_SAMPLES = 3
_WORTH = 0.98


class Codec(Enum):
    DENSE = "dense"
    """libdeflate: the size of zlib at the same level or less."""
    FAST = "fast"
    """isal level 1: a few per cent larger, five times as fast."""


class InflateError(Exception):
    """The bytes are no zlib stream, or not one of the size that is allowed."""


def inflate(data: bytes | memoryview, size: int) -> bytes | bytearray:
    """At most ``size`` bytes; surplus input after the end of the stream is ignored (it is padding)."""
    return _inflate(data, size)


def _inflate_zlib(data: bytes | memoryview, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise InflateError(str(error)) from error
    if not stream.eof and len(plain) == size:
        # All bytes are out, but the checksum has not been seen.
        try:
            plain += stream.decompress(stream.unconsumed_tail, 1)
        except zlib.error as error:
            raise InflateError(str(error)) from error
    if len(plain) > size:
        raise InflateError(f"more than {size} bytes")
    if not stream.eof:
        raise InflateError("cut short")
    return plain


def _best_inflate() -> Callable[[bytes | memoryview, int], bytes | bytearray]:
    try:
        import deflate
    except ImportError:
        return _inflate_zlib

    def inflate_fast(data: bytes | memoryview, size: int) -> bytearray:
        try:
            plain: bytearray = deflate.zlib_decompress(data, size)
        except (deflate.DeflateError, ValueError) as error:
            raise InflateError(str(error)) from error
        return plain

    return inflate_fast


_inflate = _best_inflate()


def compressor(codec: Codec, level: int | None) -> Callable[[memoryview], bytes | bytearray]:
    """A function from a grain to its zlib stream.

    ``level`` None is the codec's own default: 6 for dense (1 to 12), 1 for fast (1 to 3). What cannot
    shrink is stored: trying hard on it would cost the most time for nothing.
    """
    match codec:
        case Codec.DENSE:
            shrink = _libdeflate(_checked(codec, level, 6, 12))
        case Codec.FAST:
            shrink = _isal(_checked(codec, level, 1, 3))
        case _:
            raise UsageError(f"unknown codec {codec!r}")
    quick = _isal(1)

    def compress(grain: memoryview) -> bytes | bytearray:
        if not _may_shrink(grain, quick) and len(quick(grain)) >= len(grain) * _WORTH:
            return zlib.compress(grain, 0)
        packed = shrink(grain)
        return packed if len(packed) < len(grain) else zlib.compress(grain, 0)

    return compress


def _checked(codec: Codec, level: int | None, default: int, most: int) -> int:
    if level is None:
        return default
    if not 1 <= level <= most:
        raise UsageError(f"compression level {level} of codec {codec.value!r} must be between 1 and {most}")
    return level


def _may_shrink(grain: memoryview, quick: Callable[[memoryview], bytes | bytearray]) -> bool:
    if len(grain) <= _SAMPLE * _SAMPLES * 2:
        return True
    stride = (len(grain) - _SAMPLE) // (_SAMPLES - 1)
    sample = b"".join(grain[i * stride : i * stride + _SAMPLE] for i in range(_SAMPLES))
    return len(quick(memoryview(sample))) < len(sample) * _WORTH


def _libdeflate(level: int) -> Callable[[memoryview], bytes | bytearray]:
    import deflate

    def shrink(grain: memoryview) -> bytearray:
        packed: bytearray = deflate.zlib_compress(grain, level)
        return packed

    return shrink


def _isal(level: int) -> Callable[[memoryview], bytes | bytearray]:
    from isal import isal_zlib

    def shrink(grain: memoryview) -> bytes:
        packed: bytes = isal_zlib.compress(grain, level)
        return packed

    return shrink
