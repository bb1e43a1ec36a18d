"""The links of a disk, leaf to base, seen as one device.

A link says ``ABSENT`` for what it does not hold; the answer is then in the next link, and what not even the
base holds reads as zeroes. Only the leaf is written. A leaf that allocates in grains tells their size as
``write_unit``: where a write covers part of a grain that the leaf lacks, the rest is fetched from the parents
first, because once the grain exists the parents are not looked at any more.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vdkit.block.cursor import ExtentCursor
from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.forward import close_all
from vdkit.block.gate import Gate
from vdkit.block.merge import Placement, Reader, fill_with_zeroes, merged
from vdkit.errors import ChainError, FormatError, ReadOnly, UsageError

#: Links of one chain. VMware allows 32 snapshots; linked clones come on top.
MAX_LINKS = 64
_ZEROES = bytes(1 << 20)


class _Run(NamedTuple):
    """A stretch of the chain that one link answers for; ``link`` is None where all say absent."""

    offset: int
    length: int
    kind: ExtentKind
    link: int


class Chain(BaseWritableDevice):
    """``links``, leaf first, as one device. Owns and closes them; the leaf decides whether it is writable."""

    def __init__(self, links: Sequence[BlockDevice], *, name: str | None = None) -> None:
        if not links:
            raise UsageError("a chain needs at least one link")
        leaf = links[0]
        if len(links) > MAX_LINKS:
            raise ChainError(
                f"{leaf.name}: {len(links)} links, at most {MAX_LINKS} are allowed",
                remedy="consolidate the snapshots",
            )
        for link in links[1:]:
            if link.capacity != leaf.capacity:
                raise ChainError(
                    f"{link.name}: {link.capacity} bytes, but {leaf.name} above it has {leaf.capacity}"
                )
        super().__init__(
            name=leaf.name if name is None else name,
            capacity=leaf.capacity,
            sector_size=leaf.sector_size,
            alignment=math.lcm(*(link.alignment for link in links)),
            writable=leaf.writable,
        )
        self._links = tuple(links)
        self._leaf = leaf
        # What is read: links that cannot change are looked at as one.
        still = self._links[1:] if leaf.writable else self._links
        self._merged = merged(still) if len(still) > 1 or not leaf.writable else None
        self._top: WritableDevice | None = leaf if isinstance(leaf, WritableDevice) else None
        self._unit: int = getattr(leaf, "write_unit", 1)
        # Completing a grain is read, then write: no other write of that grain may come between.
        self._write_lock = threading.Lock()
        # A grain given back must not vanish between somebody's look at the map and the read that follows.
        self._grains = Gate()

    @property
    def links(self) -> tuple[BlockDevice, ...]:
        """Leaf first."""
        return self._links

    @property
    def io_batch(self) -> int:
        return max(link.io_batch for link in self._links)

    # -- reading ---------------------------------------------------------------------------------

    def _runs(self, offset: int, length: int, first: int = 0) -> Iterator[_Run]:
        """Who answers for what, looking from link ``first`` downwards; neighbours are not joined."""
        end = offset + length
        links = self._links
        cursors: list[ExtentCursor] = []
        while offset < end:
            stop = end
            for level in range(first, len(links)):
                if level - first == len(cursors):
                    cursors.append(ExtentCursor(links[level], end))
                extent = cursors[level - first].at(offset)
                stop = min(stop, extent.end)
                if extent.kind is not ExtentKind.ABSENT:
                    yield _Run(offset, stop - offset, extent.kind, level)
                    break
            else:
                yield _Run(offset, stop - offset, ExtentKind.ZERO, len(links))
            offset = stop

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        if len(self._links) == 1:
            return self._zero_where_absent(offset, length)
        return (Extent(run.offset, run.length, run.kind) for run, _ in self._layers(offset, length))

    def _zero_where_absent(self, offset: int, length: int) -> Iterator[Extent]:
        """The map of a leaf that is all there is."""
        for extent in self._leaf.extents(offset, length):
            if extent.kind is ExtentKind.ABSENT:
                yield Extent(extent.offset, extent.length, ExtentKind.ZERO)
            else:
                yield extent

    def layers(self) -> Iterator[tuple[Placement, int]]:
        """The map of the whole chain, each run with the number of the link that answers for it (0 is the
        leaf, the base also answers for what nobody holds) and, where that is known without asking the link,
        its place in a file; neighbours are not joined.
        """
        return self._layers(0, self._capacity)

    def _layers(self, offset: int, length: int) -> Iterator[tuple[Placement, int]]:
        end = offset + length
        if len(self._links) == 1:
            yield from ((Placement(*extent), 0) for extent in self._zero_where_absent(offset, length))
            return
        if self._merged is not None and not self._writable:
            # Where a table is damaged, the links are asked one by one: what does not need it is found.
            with contextlib.suppress(FormatError):
                for placed, level in self._merged.layers(offset, length):
                    yield placed, level
                    offset = placed.offset + placed.length
        base = len(self._links) - 1
        for run in self._runs(offset, end - offset):
            yield Placement(run.offset, run.length, run.kind), min(run.link, base)

    def quick_reader(self, otherwise: Reader) -> Reader | None:
        """See :meth:`MergedLinks.quick_reader`; None if the leaf may change."""
        if self._merged is None or self._writable:
            return None
        return self._merged.quick_reader(otherwise)

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_many([(offset, view)])

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        if self._writable:
            with self._grains.shared():
                self._gather(pieces)
            return
        if self._merged is not None:
            with contextlib.suppress(FormatError):
                self._merged.read_many(pieces)
                return
        self._gather(pieces)

    def _gather(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        if len(pieces) == 1:  # small reads of what the leaf holds are the most frequent of all
            offset, view = pieces[0]
            first = next(self._leaf.extents(offset, len(view)))
            if first.kind is ExtentKind.DATA and first.length == len(view):
                self._leaf.read_into(offset, view)
                return
        wanted: dict[int, list[tuple[int, memoryview]]] = {}
        for offset, view in pieces:
            for run in self._runs(offset, len(view)):
                part = view[run.offset - offset : run.offset - offset + run.length]
                if run.kind is ExtentKind.DATA:
                    wanted.setdefault(run.link, []).append((run.offset, part))
                else:
                    fill_with_zeroes(part)
        for level, parts in wanted.items():
            if len(parts) == 1:
                self._links[level].read_into(*parts[0])
            else:
                self._links[level].read_many(parts)

    # -- writing ---------------------------------------------------------------------------------

    def _writable_leaf(self) -> WritableDevice:
        if self._top is None:
            raise ReadOnly(f"{self._leaf.name}: opened read-only")
        return self._top

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._write_many([(offset, view)])

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        leaf = self._writable_leaf()
        if len(self._links) == 1:
            leaf.write_many(pieces)
            return
        with self._write_lock:
            if self._share_a_grain(pieces):  # the second must find the grain that the first one made
                for piece in pieces:
                    leaf.write_many(self._completed([piece]))
            else:
                leaf.write_many(self._completed(pieces))

    def _share_a_grain(self, pieces: Sequence[tuple[int, memoryview]]) -> bool:
        end = 0
        for offset, length in sorted((offset, len(view)) for offset, view in pieces):
            if offset // self._unit * self._unit < end:
                return True
            end = offset + length
        return False

    def _completed(self, pieces: Sequence[tuple[int, memoryview]]) -> list[tuple[int, memoryview]]:
        """The same writes with every grain that the leaf lacks made whole."""
        ready: list[tuple[int, memoryview]] = []
        for offset, view in pieces:
            for start, part in self._cut(offset, view):
                grain = start // self._unit * self._unit
                size = min(self._unit, self.capacity - grain)
                if len(part) >= size or not self._lacks(grain, size):
                    ready.append((start, part))
                else:
                    whole = memoryview(bytearray(size))
                    self._read_into(grain, whole)
                    whole[start - grain : start - grain + len(part)] = part
                    ready.append((grain, whole))
        return ready

    def _cut(self, offset: int, view: memoryview) -> Iterator[tuple[int, memoryview]]:
        """A partial grain at the head, whole grains in one piece, a partial grain at the tail."""
        end = offset + len(view)
        unit = self._unit
        head = min(end, -(-offset // unit) * unit)
        tail = max(head, end if end == self.capacity else end // unit * unit)
        for start, stop in ((offset, head), (head, tail), (tail, end)):
            if start < stop:
                yield start, view[start - offset : stop - offset]

    def _lacks(self, offset: int, length: int) -> bool:
        return any(e.kind is ExtentKind.ABSENT for e in self._leaf.extents(offset, length))

    def _write_zeroes(self, offset: int, length: int) -> None:
        leaf = self._writable_leaf()
        if len(self._links) == 1:
            with self._grains.alone():
                leaf.write_zeroes(offset, length)
            return
        with self._write_lock:
            # What is below decides: over its zeroes the leaf may give its grains back, over its data a
            # grain given back would let the old data show through.
            for run in self._runs(offset, length, first=1):
                for extent in list(self._leaf.extents(run.offset, run.length)):
                    if extent.kind is ExtentKind.ZERO:
                        continue
                    if run.kind is ExtentKind.DATA:
                        self._hide(leaf, extent.offset, extent.length)
                    elif extent.kind is ExtentKind.DATA:
                        with self._grains.alone():
                            leaf.write_zeroes(extent.offset, extent.length)

    def _hide(self, leaf: WritableDevice, offset: int, length: int) -> None:
        """Zeroes over a parent's data: a leaf that hides it under whole grains need not store them."""
        end = offset + length
        first = min(end, -(-offset // self._unit) * self._unit)
        last = max(first, end if end == self.capacity else end // self._unit * self._unit)
        if not getattr(leaf, "zeroes_hide_parent", False):
            first = last = end
        self._write_zero_bytes(leaf, offset, first - offset)
        if first < last:
            leaf.write_zeroes(first, last - first)
        self._write_zero_bytes(leaf, last, end - last)

    def _write_zero_bytes(self, leaf: WritableDevice, offset: int, length: int) -> None:
        end = offset + length
        zeroes = memoryview(_ZEROES)
        step = max(self._unit, len(zeroes) // self._unit * self._unit)
        while offset < end:
            stop = min(end, (offset // step + 1) * step)
            size = stop - offset
            view = zeroes[:size] if size <= len(zeroes) else memoryview(bytes(size))
            leaf.write_many(self._completed([(offset, view)]))
            offset = stop

    def _flush(self) -> None:
        self._writable_leaf().flush()

    def _close(self) -> None:
        if self._merged is not None:
            self._merged.close()
        close_all(self._links)
