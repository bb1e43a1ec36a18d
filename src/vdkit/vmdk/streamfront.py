"""The front of a stream that is read in one pass: its bytes in order, and tables before the grains.

Source of facts: VMware's "Virtual Disk Format 5.0" and files of VMware Workstation, qemu and open-vmdk.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from vdkit.block.runs import run_end
from vdkit.errors import CorruptDisk, LimitExceeded, UsageError, from_os_error
from vdkit.vmdk.header import GD_AT_END, TABLE_SECTORS, SparseHeader
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.tables import u32s

#: Tables of a directory that is held in memory (16 MiB; 128 TiB of disk at the usual grain).
MAX_TABLES = 1 << 22
#: Bytes that are passed over to get to an area.
MAX_GAP = 64 << 20
_CHUNK = 1 << 18
#: Tables that are counted together.
_TOGETHER = 512


class Source(Protocol):
    """A binary file that need not be seekable; ``read`` may return less than asked for, b"" at the end."""

    def read(self, size: int, /) -> bytes | None: ...


class Input:
    """The bytes of a source in order, in pieces of any size."""

    def __init__(self, source: Source, name: str) -> None:
        self._source = source
        self._name = name
        self._held = b""
        self._at = 0
        self._ended = False
        #: Bytes handed out.
        self.position = 0

    def take(self, length: int) -> bytes:
        """``length`` bytes, fewer only at the end."""
        if len(self._held) - self._at < length:
            self._fill(length)
        piece = self._held[self._at : self._at + length]
        self._at += len(piece)
        self.position += len(piece)
        return piece

    def need(self, length: int) -> bytes:
        """``length`` bytes. Raises CorruptDisk if the source ends before."""
        piece = self.take(length)
        if len(piece) < length:
            raise CorruptDisk(
                f"{self._name}: the stream breaks off after {self.position} bytes, in front of its grains",
                remedy="send the stream again",
            )
        return piece

    def skip_to(self, position: int) -> None:
        if not 0 <= position - self.position <= MAX_GAP:
            raise CorruptDisk(
                f"{self._name}: something at sector {position // SECTOR} is expected in front of the grains, "
                f"but byte {self.position} has come already or that is too far away"
            )
        while self.position < position:
            self.need(min(_CHUNK, position - self.position))

    def at_end(self) -> bool:
        """True if nothing more comes; waits for the next bytes to tell."""
        if len(self._held) == self._at:
            self._fill(1)
        return len(self._held) == self._at

    def _fill(self, length: int) -> None:
        pieces = [self._held[self._at :]]
        have = len(pieces[0])
        while have < length and not self._ended:
            try:
                piece = self._source.read(max(_CHUNK, length - have))
            except OSError as error:
                raise from_os_error(error, f"{self._name}: reading at byte {self.position + have}") from error
            if piece is None:
                raise UsageError(f"{self._name}: the source does not wait for its bytes")
            self._ended = not piece
            pieces.append(piece)
            have += len(piece)
        self._held = b"".join(pieces)
        self._at = 0


class _Area(NamedTuple):
    """``tables`` that follow each other, or a directory where it is 0; what is ``primary`` is counted."""

    sector: int
    tables: int
    primary: bool


def count_front(source: Input, header: SparseHeader) -> int | None:
    """Pass over directories and tables that come before the grains; how many grains they name.

    None if there are none: then they come behind the grains.
    """
    done = header.descriptor + header.descriptor_sectors
    most = max(header.overhead, done)
    if header.directory == GD_AT_END or header.directory > most:
        return None
    if header.tables > MAX_TABLES:
        raise LimitExceeded(
            f"{header.tables} grain tables in front of a stream, over the limit of {MAX_TABLES}"
        )
    areas = [_Area(header.directory, 0, primary=True)]
    if header.redundant and done <= header.redundant_directory <= most:
        areas.append(_Area(header.redundant_directory, 0, primary=False))
    heapq.heapify(areas)
    named = 0
    while areas:
        sector, count, primary = heapq.heappop(areas)
        source.skip_to(sector * SECTOR)
        if not count:
            for area in _tables_of(source.need(header.directory_sectors * SECTOR), header.tables, primary):
                heapq.heappush(areas, area)
            continue
        for start in range(0, count, _TOGETHER):
            entries = u32s(source.need(min(_TOGETHER, count - start) * TABLE_SECTORS * SECTOR))
            if primary:
                named += len(entries) - entries.count(0) - entries.count(1)
    return named


def _tables_of(directory: bytes, tables: int, primary: bool) -> Iterator[_Area]:
    """The tables that a directory names, those that follow each other together."""
    entries = u32s(directory[: tables * 4])
    position = 0
    while position < tables:
        first = entries[position]
        end = run_end(entries, position, tables, TABLE_SECTORS if first else 0)
        if first:
            yield _Area(first, end - position, primary)
        position = end
