"""Where the bytes of a file lie in the volume: holes, allocated but zero, data.

Source of facts: our notes on VMFS, sections 2.8, 2.9 and 3.1.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from vdkit.errors import CorruptDisk, UnsupportedVersion
from vdkit.vmfs.addresses import Address, Kind
from vdkit.vmfs.bulk import LEAST, Run, Scale, State, runs_of
from vdkit.vmfs.descriptor import Descriptor, Layout, addresses
from vdkit.vmfs.superblock import Superblock

#: Blocks of addresses that one open file keeps.
MAX_TABLES: Final = 64
_LEVELS: Final = {
    Layout.BLOCKS: 0,
    Layout.SUB_BLOCKS: 0,
    Layout.ONE_LEVEL: 1,
    Layout.ONE_LEVEL_POOL_2: 1,
    Layout.TWO_LEVELS: 2,
}


class _Leaf(NamedTuple):
    """Addresses of the blocks from ``first`` on; without a table, ``blocks`` of them that are holes."""

    table: array[int] | None
    first: int
    blocks: int


class Places(NamedTuple):
    """How a volume turns addresses into places.

    ``locate``: the offset in the volume of what an address means, and how many bytes that is.
    """

    super_block: Superblock
    decode: Callable[[int], Address]
    locate: Callable[[Address, str], tuple[int, int]]
    read: Callable[[int, int], bytes]
    large_ratio: int
    """Small blocks of a large one; 1 in VMFS-5."""
    small_blocks: int
    """Of a cluster."""
    capacity: int
    """Of the volume, in bytes."""


class BlockMap:
    """The map of one file. Any thread may ask."""

    def __init__(self, places: Places, descriptor: Descriptor, where: str) -> None:
        levels = _LEVELS.get(descriptor.layout)
        if levels is None:
            raise UnsupportedVersion(
                f"{where}: it has no blocks to map (layout {descriptor.layout:#x}): its data is in its "
                "descriptor, or on another LUN"
            )
        self._places = places
        self._where = where
        self._levels = levels
        self._block = descriptor.block_size
        self._length = descriptor.length
        self._unit = descriptor.zeroed_unit
        self._top = descriptor.pointers(places.super_block)
        self._fan = places.super_block.pointer_block // places.super_block.address_size
        self._lock = threading.Lock()
        self._tables: OrderedDict[int, array[int]] = OrderedDict()
        self._scale = Scale(
            places.super_block.six,
            self._block,
            places.small_blocks,
            places.large_ratio,
            self._unit,
            places.capacity,
        )
        self._bulk = levels > 0 or descriptor.layout is Layout.BLOCKS
        self._bulk = self._bulk and self._block == places.super_block.block_size
        if -(-self._length // self._block) > len(self._top) * self._fan**levels:
            raise CorruptDisk(f"{where}: {self._length} bytes are more than its descriptor can lead to")

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Ascending runs that cover exactly the question, neighbours joined. Raises CorruptDisk."""
        current: Run | None = None
        for runs in self._chunks(offset, min(offset + length, self._length)):
            if current is not None and _joins(current, runs[0]):
                runs[0] = current._replace(length=current.length + runs[0].length)
            elif current is not None:
                yield current
            current = runs.pop()
            yield from runs
        if current is not None:
            yield current

    def _chunks(self, position: int, end: int) -> Iterator[list[Run]]:
        """Lists of runs, none of them empty; only neighbours in two lists have yet to be joined."""
        while position < end:
            index = position // self._block
            leaf = self._leaf(index)
            stop = min(end, (leaf.first + leaf.blocks) * self._block)
            if leaf.table is None:
                yield [Run(position, stop - position, State.HOLE, None)]
                position = stop
                continue
            whole = (stop - position) // self._block
            if self._bulk and whole >= LEAST and position % self._block == 0:
                slot = index - leaf.first
                runs = runs_of(leaf.table, slot, slot + whole, index, self._scale)
                if runs:
                    yield runs
                    position += whole * self._block
            while position < stop:
                index, inside = divmod(position, self._block)
                part = min(self._block - inside, stop - position)
                yield [self._slot(leaf.table, index - leaf.first, index, position, inside, part)]
                position += part

    def _slot(self, table: array[int], slot: int, index: int, position: int, inside: int, part: int) -> Run:
        address = self._places.decode(table[slot])
        ratio = self._places.large_ratio
        match address.kind:
            case Kind.NONE if not table[slot]:
                small = self._block == self._places.super_block.block_size
                if (
                    small
                    and ratio > 1
                    and self._places.decode(table[slot - slot % ratio]).kind is Kind.LARGE_BLOCK
                ):
                    raise UnsupportedVersion(
                        f"{self._where}: block {index} has no address, but the large block around it has",
                        remedy="read this disk through the host",
                    )
                return Run(position, part, State.HOLE, None)
            case Kind.BLOCK | Kind.SUB_BLOCK | Kind.LARGE_BLOCK:
                start, size = self._places.locate(address, self._where)
            case _:
                raise CorruptDisk(
                    f"{self._where}: block {index} has the address {table[slot]:#x}, which is no block's"
                )
        if size != self._block and (size < self._block or address.kind is not Kind.LARGE_BLOCK):
            raise CorruptDisk(f"{self._where}: block {index} of {self._block} bytes lies in one of {size}")
        # Every slot of a large block says where that begins.
        inside += (index % (size // self._block)) * self._block
        return Run(position, part, self._state(address), start + inside, address.shared)

    def _state(self, address: Address) -> State:
        if not address.zeroed:
            return State.DATA
        if address.zeroed == 0xFF or (self._unit == self._block and address.zeroed & 1):
            return State.ZERO
        return State.PARTIAL

    def _leaf(self, index: int) -> _Leaf:
        table = self._top
        first = 0
        for level in range(self._levels, 0, -1):
            reach = self._fan**level
            slot = (index - first) // reach
            value = table[slot]
            first += slot * reach
            if not value:
                return _Leaf(None, first, reach)
            table = self._table(value)
        return _Leaf(table, first, len(table))

    def _table(self, value: int) -> array[int]:
        with self._lock:
            found = self._tables.get(value)
            if found is not None:
                self._tables.move_to_end(value)
                return found
        address = self._places.decode(value)
        if address.kind not in (Kind.POINTERS, Kind.POINTERS_2, Kind.SUB_BLOCK):
            raise CorruptDisk(f"{self._where}: {value:#x} is no address of a pointer block")
        start, size = self._places.locate(address, self._where)
        wanted = self._places.super_block.pointer_block
        if size < wanted:
            raise CorruptDisk(f"{self._where}: a pointer block of {wanted} bytes in a resource of {size}")
        made = addresses(self._places.read(start, wanted), self._places.super_block)
        with self._lock:
            self._tables[value] = made
            while len(self._tables) > MAX_TABLES:
                self._tables.popitem(last=False)
        return made


def _joins(first: Run, second: Run) -> bool:
    if first.state is not second.state or first.shared != second.shared:
        return False
    if first.volume_offset is None or second.volume_offset is None:
        return first.volume_offset is second.volume_offset
    return first.volume_offset + first.length == second.volume_offset
