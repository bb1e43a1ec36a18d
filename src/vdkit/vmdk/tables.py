"""Two-level tables of grains, read lazily: a directory of tables, a table of entries, 32 bits each.

Nothing is ever loaded whole: the directory comes in pieces, tables one at a time into a bounded cache, and
the walk over the whole disk skips what is absent or lies in a hole of the file. So a 62 TiB disk opens at
once.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

import contextlib
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Protocol

from vdkit.block.device import BlockDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.runs import run_end
from vdkit.errors import CorruptDisk, VixError
from vdkit.vmdk.kinds import SECTOR

#: Entries of the directory that are read together (64 KiB).
PIECE = 1 << 14
#: Pieces of the directory and bytes of tables that are kept.
_MAX_PIECES = 16
_MAX_TABLE_BYTES = 4 << 20
#: Bytes of tables that are read together where they lie together.
_READ_AHEAD = 1 << 15
#: Entries that are looked at together when absent ones are skipped.
_STRIDE = 1 << 10
_NONE = {code: array(code, bytes(_STRIDE * array(code).itemsize)) for code in ("I", "Q")}


def u32s(data: bytes | bytearray | memoryview) -> array[int]:
    """Little-endian 32-bit numbers."""
    made = array("I")
    made.frombytes(data)
    if sys.byteorder == "big":
        made.byteswap()
    return made


def u32_bytes(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


class Tables:
    """The tables of one extent file. ``directory`` is its offset in bytes.

    Whatever the format stores, what is kept and handed out are sector numbers (0 absent, 1 zeroes): a format
    of another width or encoding says how long its entries are and how they are read.
    """

    #: Bytes of an entry of a table or of the directory.
    width = 4

    def __init__(
        self,
        file: BlockDevice,
        *,
        directory: int,
        count: int,
        entries: int,
        lowest: int,
        where: str,
    ) -> None:
        """``count`` tables of ``entries`` entries; no table may lie below sector ``lowest``."""
        self._file = file
        self._directory = directory
        self.count = count
        self.entries = entries
        self._lowest = lowest
        self._where = where
        self._lock = threading.Lock()
        self._pieces: OrderedDict[int, array[int]] = OrderedDict()
        self._changed: dict[int, array[int]] = {}
        self._tables: OrderedDict[int, array[int]] = OrderedDict()
        self._max_tables = max(16, _MAX_TABLE_BYTES // (entries * self.width))
        self._puts = 0
        self._last = -2
        self._ahead = 1

    # -- what the formats differ in ---------------------------------------------------------------

    def _directory_piece(self, data: bytearray, first: int) -> array[int]:  # noqa: ARG002  for those that check
        """Sectors of the tables from number ``first`` on."""
        return u32s(data)

    def _table(self, data: bytearray, index: int) -> array[int]:  # noqa: ARG002  for those that check
        """Sectors of the grains of table ``index``."""
        return u32s(data)

    # -- one at a time ---------------------------------------------------------------------------

    def sector(self, index: int) -> int:
        """Where table ``index`` lies, in sectors; 0 if there is none."""
        number, within = divmod(index, PIECE)
        return self._piece(number)[within]

    def set_sector(self, index: int, sector: int) -> None:
        """Change the directory in memory, where it then stays; the caller writes it."""
        number, within = divmod(index, PIECE)
        piece = self._piece(number)
        with self._lock:
            self._changed[number] = piece
        piece[within] = sector

    def table(self, index: int) -> array[int] | None:
        """The entries of table ``index``; None if it does not exist. Not to be changed by the caller."""
        with self._lock:
            known = self._tables.get(index)
            if known is not None:
                self._tables.move_to_end(index)
                return known
            puts = self._puts
        tables = self._read_tables(index)
        if not tables:
            return None
        with self._lock:
            if puts != self._puts:
                # Tables were written meanwhile: what was read may be older than they are, and whoever found
                # it here later would lose the grains that are new. The caller began before, and may have it.
                return tables[0]
            for number, table in enumerate(tables, index):
                self._tables.setdefault(number, table)
            while len(self._tables) > self._max_tables:
                self._tables.popitem(last=False)
        return tables[0]

    def _read_tables(self, index: int) -> list[array[int]]:
        """Table ``index`` and some that follow it in the disk and in the file; none if it does not exist."""
        number, within = divmod(index, PIECE)
        piece = self._piece(number)
        sector = piece[within]
        if sector == 0:
            return []
        length = self.entries * self.width
        start, count = self._checked(index, sector), 1
        # More and more of them for who walks; elsewhere none is likelier than others to be asked for.
        follows, self._last = index == self._last + 1, index
        self._ahead = min(self._ahead * 2, _READ_AHEAD // length) if follows else 1
        if self._ahead > 1 and length % SECTOR == 0:
            stop = min(len(piece), within + self._ahead)
            count = min(
                run_end(piece, within, stop, length // SECTOR) - within,
                (self._file.capacity - start) // length,
            )
        self._last = index + count - 1
        if count > 1:
            # What is wrong with a table further on is said to whoever asks for that one.
            with contextlib.suppress(VixError):
                data = self._read(start, count * length)
                return [self._table(data[i * length : (i + 1) * length], index + i) for i in range(count)]
        return [self._table(self._read(start, length), index)]

    def place(self, index: int) -> int:
        """Offset in bytes of table ``index``, for writing it; raises CorruptDisk if it cannot lie there."""
        return self._checked(index, self.sector(index))

    def put(self, index: int, table: array[int]) -> None:
        """Remember a table that has been written."""
        with self._lock:
            self._puts += 1
            self._tables[index] = table
            self._tables.move_to_end(index)

    def _piece(self, number: int) -> array[int]:
        with self._lock:
            known = self._changed.get(number)
            if known is not None:
                return known
            known = self._pieces.get(number)
            if known is not None:
                self._pieces.move_to_end(number)
                return known
        first = number * PIECE
        length = min(PIECE, self.count - first) * self.width
        piece = self._directory_piece(self._read(self._directory + first * self.width, length), first)
        with self._lock:
            piece = self._pieces.setdefault(number, piece)
            while len(self._pieces) > _MAX_PIECES:
                self._pieces.popitem(last=False)
        return piece

    def _read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        self._file.read_into(offset, data)
        return data

    def _checked(self, index: int, sector: int) -> int:
        if sector < self._lowest or sector * SECTOR + self.entries * self.width > self._file.capacity:
            raise CorruptDisk(
                f"{self._where}: grain table {index} at sector {sector} is outside the file's "
                f"{self._file.capacity // SECTOR} sectors or inside its header"
            )
        return sector * SECTOR

    # -- walking ---------------------------------------------------------------------------------

    def present(self, first: int, last: int) -> Iterator[int]:
        """Numbers of the tables in ``[first, last)`` that exist and may hold something, ascending."""
        position = first
        while position < last:
            number, within = divmod(position, PIECE)
            stop = min(last, (number + 1) * PIECE)
            piece = self._piece(number)
            yield from self._present_in_piece(piece, number * PIECE, within, within + stop - position)
            position = stop

    def _present_in_piece(self, piece: array[int], base: int, start: int, stop: int) -> Iterator[int]:
        table_sectors = -(-self.entries * self.width // SECTOR)
        none = _NONE[piece.typecode]
        position = start
        while position < stop:
            end = min(stop, position + _STRIDE)
            if piece[position:end] == none[: end - position]:
                position = end
                continue
            while piece[position] == 0:
                position += 1
            first = piece[position]
            end = run_end(piece, position, stop, table_sectors)
            yield from self._with_data(base + position, first, end - position)
            position = end

    def _with_data(self, index: int, sector: int, count: int) -> Iterator[int]:
        """Of ``count`` tables that follow each other in the file, those that are not in one of its holes."""
        size = -(-self.entries * self.width // SECTOR) * SECTOR
        if count < 4:
            yield from range(index, index + count)
            return
        self._checked(index, sector)
        self._checked(index + count - 1, sector + (count - 1) * size // SECTOR)
        start = sector * SECTOR
        done = 0
        for run in self._file.extents(start, count * size):
            if run.kind is ExtentKind.ZERO:
                continue
            begin = max(done, (run.offset - start) // size)
            done = -(-(run.end - start) // size)
            yield from range(index + begin, index + done)


def runs(entries: array[int], start: int, stop: int, step: int) -> Iterator[tuple[int, int, int]]:
    """``(position, count, entry)`` of the runs of ``entries[start:stop]``.

    In a run of ordinary entries each is ``step`` more than the one before; entries 0 and 1 (absent, zero)
    form runs of their own.
    """
    position = start
    while position < stop:
        first = entries[position]
        end = run_end(entries, position, stop, step if first > 1 else 0)
        yield position, end - position, first
        position = end


class TableSource(Protocol):
    """Where the grain tables come from: the file, or a scan of it."""

    entries: int

    def table(self, index: int) -> array[int] | None: ...

    def present(self, first: int, last: int) -> Iterator[int]: ...


def map_runs(
    tables: TableSource,
    offset: int,
    length: int,
    grain: int,
    lookup: Callable[[int], array[int] | None],
    touched: Callable[[int, int], list[int]] | None = None,
) -> Iterator[tuple[int, int, int]]:
    """``(offset, length, entry)`` of the runs of a range of an extent; ``grain`` in bytes.

    ``entry`` is that of the grain in which the run begins, 0 where there is no table. ``touched`` lists the
    tables of a range that exist in memory only.
    """
    end = offset + length
    span = tables.entries * grain
    position = offset
    first, last = offset // span, -(-end // span)
    for index in _merged(tables.present(first, last), touched(first, last) if touched else []):
        start = max(offset, index * span)
        if start > position:
            yield position, start - position, 0
        position = start
        table = lookup(index)
        if table is None:
            continue
        low = (start - index * span) // grain
        high = -(-min(end - index * span, span) // grain)
        for at, count, entry in runs(table, low, high, grain // SECTOR):
            begin = max(start, index * span + at * grain)
            stop = min(end, index * span + (at + count) * grain)
            yield begin, stop - begin, entry
        position = min(end, (index + 1) * span)
    if position < end:
        yield position, end - position, 0


def map_extents(
    runs_of_tables: Iterator[tuple[int, int, int]], kind_of: Callable[[int], ExtentKind]
) -> Iterator[Extent]:
    """The allocation map of :func:`map_runs`; ``kind_of`` says what entries 0, 1 and 2 (any other) mean."""
    absent, data = kind_of(0), ExtentKind.DATA
    for offset, length, entry in runs_of_tables:
        yield Extent(offset, length, data if entry > 1 else absent if entry == 0 else kind_of(1))


def _merged(present: Iterator[int], touched: list[int]) -> Iterator[int]:
    waiting = iter(touched)
    other = next(waiting, None)
    for index in present:
        while other is not None and other < index:
            yield other
            other = next(waiting, None)
        if other == index:
            other = next(waiting, None)
        yield index
    while other is not None:
        yield other
        other = next(waiting, None)
