"""FastLZ blocks by hand: what each instruction means, and every bound that a damaged one can break."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdkit.errors import ProtocolError
from vdkit.wire.nfc import codecs, fastlz


def decode(block: bytes, size: int) -> bytes:
    target = bytearray(size)
    fastlz.decode_into(memoryview(block), memoryview(target))
    return bytes(target)


@pytest.mark.parametrize(
    ("block", "plain"),
    [
        (b"\x02abc", b"abc"),
        (b"\x22abc", b"abc"),
        # 3 bytes from 3 back; 5 from 1 back, which overlaps what it makes.
        (b"\x02abc\x20\x02", b"abcabc"),
        (b"\x02abc\x60\x00", b"abcccccc"),
        # The long form: 9 + 255 at level 1, 9 + 255 + 1 at level 2.
        (b"\x00z\xe0\xff\x00", b"z" * 265),
        (b"\x20z\xe0\xff\x01\x00", b"z" * 266),
        # Level 1 has no far form: two more bytes are the next instruction.
        (b"\x1f" + b"x" * 32, b"x" * 32),
    ],
)
def test_instructions(block: bytes, plain: bytes) -> None:
    assert decode(block, len(plain)) == plain


def test_the_far_form() -> None:
    data = random.Random(1).randbytes(9000)
    literals = b"".join(
        bytes([len(data[i : i + 32]) - 1]) + data[i : i + 32] for i in range(0, len(data), 32)
    )
    block = bytes([literals[0] | 0x20]) + literals[1:]
    # 8192 + 0x0102 bytes back.
    far = block + b"\x3f\xff\x01\x02"
    start = 9000 - 8192 - 0x0102
    assert decode(far, 9003) == data + data[start : start + 3]
    with pytest.raises(ProtocolError, match="inside an instruction"):
        decode(far[:-1], 9003)
    with pytest.raises(ProtocolError, match="reaches 73727 bytes back"):
        decode(block + b"\x3f\xff\xff\xff", 9003)


@pytest.mark.parametrize(
    ("block", "size", "text"),
    [
        (b"", 1, "does not begin"),
        (b"\x42abc", 3, "does not begin"),
        (b"\x03abc", 4, "inside a literal run"),
        (b"\x02abc", 2, "more than 2"),
        (b"\x02abc", 4, "3 bytes instead of 4"),
        (b"\x02abc\x20", 6, "inside an instruction"),
        (b"\x02abc\x20\x03", 6, "reaches 4 bytes back, 3 are there"),
        (b"\x02abc\x60\x00", 6, "more than 6"),
        (b"\x00z\xe0", 265, "inside an instruction"),
        (b"\x20z\xe0\xff\xff", 1000, "inside an instruction"),
        # A bomb: a mebibyte from a few bytes, where 16 were announced.
        (b"\x20z\xe0" + b"\xff" * 4200 + b"\x00\x00", 16, "more than 16"),
    ],
)
def test_damaged_blocks(block: bytes, size: int, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        decode(block, size)


@given(st.binary(max_size=300), st.integers(1, 4096))
def test_any_bytes_are_decoded_or_refused(block: bytes, size: int) -> None:
    try:
        assert len(decode(block, size)) == size
    except ProtocolError:
        return


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 3000)), min_size=1, max_size=6))
def test_round_trip(runs: list[tuple[bytes, int]]) -> None:
    data = b"".join((part * count)[:70_000] for part, count in runs)
    assert decode(fastlz.encode(memoryview(data)), len(data)) == data


def test_short_chunks_are_stored() -> None:
    data = memoryview(bytes(fastlz.MIN_SIZE - 1))
    assert codecs.encode(codecs.Compression.FASTLZ, data) == (0, data)
    assert codecs.encode(codecs.Compression.FASTLZ, memoryview(bytes(64)))[0] == 2
