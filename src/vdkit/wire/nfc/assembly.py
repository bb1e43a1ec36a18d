"""Which parts of one request have come: chunks of a read at the client, fragments of a write at the host.

Parts come in any order; a part outside the request, or over one that came before, is refused (NFC
specification, sections 9.2 and 10).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from vdkit.errors import ProtocolError
from vdkit.wire.nfc.limits import MAX_HELLO_BUFFER
from vdkit.wire.nfc.records import Direction, Io


class Assembly:
    """One request of ``total`` bytes at disk ``offset``."""

    __slots__ = ("_direction", "_ends", "_starts", "missing", "offset", "total")

    def __init__(self, direction: Direction, offset: int, total: int) -> None:
        self._direction = direction
        self.offset = offset
        self.total = total
        self.missing = total
        # Ranges that have come, ascending, neighbours joined: one entry as long as parts come in order.
        self._starts: list[int] = []
        self._ends: list[int] = []

    @property
    def complete(self) -> bool:
        return self.missing == 0

    def check(self, part: Io) -> None:
        """Refuse a part that does not belong here; nothing is noted yet."""
        if part.direction != self._direction:
            raise ProtocolError(f"an IO record has direction {part.direction} instead of {self._direction:d}")
        if part.offset != self.offset or part.total != self.total:
            raise ProtocolError(
                f"an IO record is about {part.total} bytes at {part.offset}, "
                f"the request was for {self.total} at {self.offset}"
            )
        start, end = part.start, part.start + part.length
        if part.length == 0:
            raise ProtocolError("an IO record carries a chunk of no bytes")
        if end > self.total:
            raise ProtocolError(f"a chunk [{start}, {end}) is outside the request of {self.total} bytes")
        index = bisect.bisect_left(self._starts, end) - 1
        if index >= 0 and self._ends[index] > start:
            raise ProtocolError(f"a chunk [{start}, {end}) overlaps one that came before")
        if part.compression == 0 and part.wire != part.length:
            raise ProtocolError(f"a stored chunk of {part.length} bytes is announced as {part.wire} bytes")
        if part.length > MAX_HELLO_BUFFER:
            raise ProtocolError(f"a chunk of {part.length} bytes, the limit is {MAX_HELLO_BUFFER}")

    def note(self, start: int, length: int) -> None:
        """The checked part has come."""
        end = start + length
        self.missing -= length
        i = bisect.bisect_left(self._starts, start)
        joins_before = i > 0 and self._ends[i - 1] == start
        joins_after = i < len(self._starts) and self._starts[i] == end
        if joins_before and joins_after:
            self._ends[i - 1] = self._ends.pop(i)
            self._starts.pop(i)
        elif joins_before:
            self._ends[i - 1] = end
        elif joins_after:
            self._starts[i] = start
        else:
            self._starts.insert(i, start)
            self._ends.insert(i, end)


def check_status(part: Io) -> None:
    """Refuse a reply whose first field, the status, is not 0."""
    if part.handle != 0:
        raise ProtocolError(f"the host answered with status {part.handle}")


def check_write_reply(reply: Io, offset: int, total: int) -> None:
    """The reply to a whole write: only its total is on record (section 10), the offset is not looked at."""
    check_status(reply)
    if reply.direction != Direction.WRITE:
        raise ProtocolError(f"the reply to a write at {offset} has direction {reply.direction}")
    if reply.total != total:
        raise ProtocolError(f"the reply to a write of {total} bytes at {offset} is about {reply.total} bytes")
    if reply.wire != 0:
        raise ProtocolError(f"the reply to a write at {offset} announces {reply.wire} bytes of data")


def split(offset: int, length: int, size: int) -> Iterator[tuple[int, int]]:
    """``(offset, length)`` requests that never cross a multiple of ``size``, ascending."""
    end = offset + length
    while offset < end:
        stop = min(end, (offset // size + 1) * size)
        yield offset, stop - offset
        offset = stop


def whole_sectors(offset: int, length: int, capacity: int, sector: int = 512) -> tuple[int, int]:
    """The range widened to whole sectors and cut at the capacity, as ``(offset, length)``."""
    start = offset // sector * sector
    end = min(capacity, -(-(offset + length) // sector) * sector)
    return start, max(0, end - start)


def fragments(total: int, size: int) -> Iterator[tuple[int, int]]:
    """``(start, length)`` of the fragments of one write, each at most ``size`` bytes."""
    for start in range(0, total, size):
        yield start, min(size, total - start)
