"""A session that may have little in flight still makes progress, whatever the sizes of its requests."""

from __future__ import annotations

import random

import pytest

from nfctools import Office, opened

KIB = 1 << 10
CONTENT = random.Random(3).randbytes(2048 * KIB)


@pytest.mark.parametrize("limit", [1, 300 * KIB, 330 * KIB, 520 * KIB])
def test_requests_of_different_sizes(limit: int) -> None:
    """A small one in flight may leave the window three quarters empty and yet no room for a large one."""
    with opened(Office(CONTENT), request_size=256 * KIB) as disk:
        disk._session.limit_in_flight(limit)
        found = bytearray(len(CONTENT))
        view, pieces, offset = memoryview(found), [], 0
        for length in (64, 192, 256, 128, 384, 256, 32, 480, 256):
            pieces.append((offset, view[offset : offset + length * KIB]))
            offset += length * KIB
        assert offset == len(CONTENT)
        disk.read_many(pieces)
        assert found == CONTENT
