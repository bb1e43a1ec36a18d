"""The resource files of fixture volumes: descriptors, sub-blocks and pointer blocks, and the bitmaps.

For :mod:`vdkit.testing.vmfsimage` alone. Source of facts: our notes on VMFS, sections 2.3 to 2.6.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Final, Literal

from vdkit.errors import UsageError
from vdkit.testing.vmfslayout import (
    ALIGNMENT,
    MIB,
    Geometry,
    Space,
    VmfsOptions,
    lock,
    resource_header,
)

#: Small blocks of a large one.
RATIO: Final = 512
_BITMAP_5: Final = Geometry(200, 64, 0, 1024, 0x10C00002)
_BITMAP_6: Final = Geometry(16, 8, 8192, 8192, 0x10C00008, flags=0x35)

#: How the blocks of one file follow each other: as they come, with one free in between, in any order.
Order = Literal["straight", "apart", "shuffled"]


class Blocks:
    """Gives out the blocks of the volume, from the first on, and remembers which."""

    def __init__(self, options: VmfsOptions) -> None:
        self._options = options
        self.count = options.volume_size // options.block_size
        self.used: set[int] = set()
        self.large: set[int] = set()
        self._next = 0
        self._end = self.count

    def take(self, count: int, order: Order = "straight") -> list[int]:
        step = 2 if order == "apart" else 1
        end = self._next + count * step
        if end > self._end:
            raise UsageError(f"the fixture's {self.count} blocks are all used")
        found = list(range(self._next, end, step))
        if order == "shuffled":
            random.Random(f"{self._options.seed}/{self._next}").shuffle(found)
        self._next = end
        self.used.update(found)
        return found

    def take_large(self) -> int:
        """The number of a large block; they come from the volume's end."""
        number = self._end // RATIO - 1
        if number * RATIO < self._next:
            raise UsageError("the fixture has no room for another large block")
        self._end = number * RATIO
        self.large.add(number)
        return number


class Pool:
    """One resource file, whose resources are given out in order."""

    def __init__(
        self, name: str, geometry: Geometry, blocks: Sequence[int], options: VmfsOptions, space: Space
    ) -> None:
        self.name = name
        self.geometry = geometry
        self.blocks = tuple(blocks)
        self._options = options
        self._space = space
        self.length = len(blocks) * options.block_size
        self.count = geometry.count_in(self.length)
        self.used = 0

    def place(self, offset: int) -> int:
        """The volume offset of a byte of the file."""
        index, inside = divmod(offset, self._options.block_size)
        return self.blocks[index] * self._options.block_size + inside

    def take(self) -> tuple[int, int, int]:
        """Cluster, resource and volume offset of the next one."""
        if self.used == self.count:
            raise UsageError(f"the fixture's .{self.name}.sf has only {self.count} resources")
        at = self.place(self.geometry.offset(self.used))
        cluster, resource = divmod(self.used, self.geometry.per_cluster)
        self.used += 1
        return cluster, resource, at

    def write_tables(self) -> None:
        """The header, and a header with its bitmap for every cluster."""
        geometry = self.geometry
        self._space.write(self.place(0), resource_header(geometry, self.count))
        for cluster in range(-(-self.count // geometry.per_cluster) if self.count else 0):
            at = self.place(geometry.header_at(cluster))
            first = cluster * geometry.per_cluster
            total = min(geometry.per_cluster, self.count - first)
            taken = [i < self.used - first for i in range(total)]
            self._space.write(at, _cluster(self._options, geometry.lock_type, at, cluster, taken))


def _cluster(options: VmfsOptions, lock_type: int, at: int, cluster: int, taken: Sequence[bool]) -> bytearray:
    """A cluster's header: lock, counts, and a bitmap in which ones are free."""
    bitmap = sum(1 << i for i, used in enumerate(taken) if not used)
    free = taken.count(False)
    if not options.six:
        raw = lock(lock_type, at) + bytearray(512)
        struct.pack_into("<IIII", raw, 512, cluster, len(taken), free, 0)
        size = -(-len(taken) // 8)
        raw[528 : 528 + size] = bitmap.to_bytes(size, "little")
        return raw
    raw = lock(lock_type, at) + bytearray(2 * ALIGNMENT - 512)
    struct.pack_into("<I4xQHH", raw, ALIGNMENT + 0x10, 0x72636D64, cluster, len(taken), free)
    raw[ALIGNMENT + 0x80 : ALIGNMENT + 0x80 + 64] = bitmap.to_bytes(64, "little")
    return raw


def bitmap_length(options: VmfsOptions, blocks: int) -> int:
    """Bytes of ``.fbb.sf`` for a volume of so many blocks."""
    if not options.six:
        clusters = -(-blocks // 200)
        return 0x20000 + -(-clusters // 64) * 0x10000
    large = -(-blocks // RATIO)
    if large > _BITMAP_6.per_cluster * _BITMAP_6.clusters:
        raise UsageError("a fixture of VMFS-6 has up to 64 GiB")
    return _BITMAP_6.offset(large - 1) + _BITMAP_6.size


def write_bitmap(options: VmfsOptions, space: Space, pool: Sequence[int], blocks: Blocks) -> None:
    """``.fbb.sf``, which lies in the blocks ``pool``."""

    def put(offset: int, raw: bytes | bytearray) -> None:
        index, inside = divmod(offset, options.block_size)
        space.write(pool[index] * options.block_size + inside, raw)

    def at(offset: int) -> int:
        index, inside = divmod(offset, options.block_size)
        return pool[index] * options.block_size + inside

    if not options.six:
        put(0, resource_header(_BITMAP_5, blocks.count))
        for cluster in range(-(-blocks.count // 200)):
            numbers = range(cluster * 200, min(blocks.count, cluster * 200 + 200))
            where = _BITMAP_5.header_at(cluster)
            put(
                where,
                _cluster(options, 0x10C00002, at(where), cluster, [n in blocks.used for n in numbers]),
            )
        return
    large = -(-blocks.count // RATIO)
    put(0, resource_header(_BITMAP_6, large, bits=3, child=0x1000))
    child = resource_header(
        Geometry(RATIO, 8, 0, 8192, 0x10C00002, flags=0x2A), blocks.count, bits=2, group=8 * 8192
    )
    struct.pack_into("<III", child, 0x38, _BITMAP_6.per_cluster, _BITMAP_6.clusters, _BITMAP_6.group)
    struct.pack_into("<I", child, 0x54, large - len(blocks.large))
    put(0x1000, child)
    for cluster in range(-(-large // _BITMAP_6.per_cluster)):
        where = _BITMAP_6.header_at(cluster)
        put(where, _large_cluster(at(where), cluster, large, blocks.large))
    for number in range(large):
        where = _BITMAP_6.offset(number)
        put(where, _small_cluster(at(where), number, blocks))


def _large_cluster(at: int, cluster: int, count: int, used: set[int]) -> bytearray:
    """Three bits for a large block: 4 is given to small blocks, the only value that was ever seen; 0 used."""
    raw = lock(0x10C00008, at) + bytearray(2 * ALIGNMENT - 512)
    first = cluster * 16
    total = min(16, count - first)
    bits = sum((0 if first + i in used else 4) << 3 * i for i in range(total))
    struct.pack_into("<I4xQHH", raw, ALIGNMENT + 0x10, 0x72636D64, cluster, total, 0)
    raw[ALIGNMENT + 0x80 : ALIGNMENT + 0x88] = bits.to_bytes(8, "little")
    return raw


def _small_cluster(at: int, number: int, blocks: Blocks) -> bytearray:
    """Two bits for a small block: 1 is free, 0 used."""
    raw = lock(0x10C00002, at) + bytearray(2 * ALIGNMENT - 512)
    first = number * RATIO
    total = min(RATIO, blocks.count - first)
    free = [number not in blocks.large and first + i not in blocks.used for i in range(total)]
    struct.pack_into("<I4xQHH", raw, ALIGNMENT + 0x10, 0x72636D64, number, total, sum(free))
    for half, where in ((0, 0x80), (256, 0x180)):
        bits = sum(1 << 2 * i for i, is_free in enumerate(free[half : half + 256]) if is_free)
        raw[ALIGNMENT + where : ALIGNMENT + where + 64] = bits.to_bytes(64, "little")
    return raw


def pool_blocks(options: VmfsOptions, length: int) -> int:
    return -(-length // options.block_size)


#: Bytes of the resource files; enough for some hundred files.
POOL_BYTES: Final = {
    5: {"fdc": 2 * MIB, "sbc": 2 * MIB, "pbc": MIB, "pb2": MIB},
    6: {"fdc": 6 * MIB, "sbc": 16 * MIB, "pbc": MIB, "pb2": MIB, "jbc": 3 * MIB},
}
