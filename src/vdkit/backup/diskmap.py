"""The map of one disk in a restore point: which ranges it covers, and hashes to check them by.

A map is a JSON file beside the VMDK, apart from the manifest so that listing points stays cheap: a terabyte
of scattered changes has megabytes of map. Hashes are in two steps, so that they do not depend on the order
or the threads in which pieces are read:

* a *piece* is the part of one covered range inside one block of ``BLOCK`` bytes;
* the hash of a *window* (a power of two of blocks) is the SHA-256 of the SHA-256 digests of its pieces,
  ascending by offset.

Windows without a covered byte have no hash.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from vdkit.backup import names
from vdkit.backup.document import Fields, parse
from vdkit.block.extent import RangeSet
from vdkit.errors import PointInvalid, UsageError

SCHEMA = 1
#: Grain of the VMDKs, in bytes: covered ranges start and end at its multiples (or at the end of the disk).
GRAIN = 1 << 16
#: Bytes of a block: no piece is longer.
BLOCK = 1 << 20
#: Windows of a disk; larger disks have larger windows.
MAX_WINDOWS = 1 << 16
#: Ranges of a map; a more scattered set is widened until it fits.
MAX_RANGES = 1 << 18
#: Bytes of a map: all windows at 70 bytes and all ranges at 44.
MAX_MAP = 24 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")


def window_size(capacity: int) -> int:
    """Bytes of a window of a disk of ``capacity`` bytes."""
    size = BLOCK
    while -(-capacity // size) > MAX_WINDOWS:
        size *= 2
    return size


def covering(ranges: RangeSet, capacity: int) -> RangeSet:
    """``ranges`` widened to whole grains, and further if there are too many of them for a map."""
    grain = GRAIN
    widened = ranges.aligned(grain, capacity)
    while len(widened) > MAX_RANGES:
        grain *= 2
        widened = widened.aligned(grain, capacity)
    return widened


@dataclass(frozen=True)
class DiskMap:
    """See the module. ``hashes`` belong to the windows that ``ranges`` touch, ascending."""

    capacity: int
    ranges: RangeSet
    hashes: tuple[bytes, ...]

    def windows(self) -> Iterator[tuple[RangeSet, bytes]]:
        """The covered ranges inside each window, and its hash."""
        size = window_size(self.capacity)
        for number, digest in zip(window_numbers(self.ranges, self.capacity), self.hashes, strict=True):
            yield self.ranges.clip(number * size, size), digest


def window_numbers(ranges: RangeSet, capacity: int) -> Iterator[int]:
    """Numbers of the windows that ``ranges`` touch, ascending."""
    size = window_size(capacity)
    for offset, length in ranges.aligned(size, capacity):
        yield from range(offset // size, -(-(offset + length) // size))


class WindowHasher:
    """Hashes pieces as they come, in any order and from any thread; memory is that of windows in progress."""

    def __init__(self, ranges: RangeSet, capacity: int) -> None:
        self._ranges = ranges
        self._capacity = capacity
        self._window = window_size(capacity)
        self._lock = threading.Lock()
        self._open: dict[int, dict[int, bytes]] = {}
        self._missing: dict[int, int] = {}
        self._done: dict[int, bytes] = {}

    def observe(self, offset: int, data: memoryview) -> None:
        """One piece: inside one block, and a whole piece of the covered ranges."""
        digest = hashlib.sha256(data).digest()
        number = offset // self._window
        with self._lock:
            if number not in self._missing:
                window = self._ranges.clip(number * self._window, self._window)
                self._missing[number] = sum(1 for _ in window.split(BLOCK))
                self._open[number] = {}
            self._open[number][offset] = digest
            if len(self._open[number]) == self._missing[number]:
                pieces = self._open.pop(number)
                self._done[number] = window_hash(pieces[start] for start in sorted(pieces))

    def finish(self) -> DiskMap:
        """The map. Raises UsageError if pieces never came: then the bytes were not all read."""
        expected = list(window_numbers(self._ranges, self._capacity))
        if self._open or len(expected) != len(self._done):
            raise UsageError(f"{len(expected) - len(self._done)} windows of the disk were not read in full")
        return DiskMap(self._capacity, self._ranges, tuple(self._done[number] for number in expected))


def window_hash(digests: Iterator[bytes]) -> bytes:
    total = hashlib.sha256()
    for digest in digests:
        total.update(digest)
    return total.digest()


def encode(disk_map: DiskMap, *, point_id: str, key: int) -> bytes:
    document = {
        "schema": SCHEMA,
        "point": point_id,
        "key": key,
        "capacity": disk_map.capacity,
        "block": BLOCK,
        "window": window_size(disk_map.capacity),
        "ranges": [list(pair) for pair in disk_map.ranges],
        "hashes": [digest.hex() for digest in disk_map.hashes],
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def decode(data: bytes, where: str, *, point_id: str, key: int, capacity: int) -> DiskMap:
    """The map in ``data``; it must belong to the point, disk and capacity that the manifest names."""
    if len(data) > MAX_MAP:
        raise PointInvalid(f"{where}: {len(data)} bytes, more than the {MAX_MAP} of a map")
    fields = Fields(parse(data, where), where)
    if fields.integer("schema") != SCHEMA:
        fields.refuse("schema", f"is not {SCHEMA}, the one this version knows")
    if fields.matching("point", names.is_point_id, "a point's id") != point_id:
        fields.refuse("point", f"is not {point_id}")
    for member, expected in (
        ("key", key),
        ("capacity", capacity),
        ("block", BLOCK),
        ("window", window_size(capacity)),
    ):
        if fields.integer(member) != expected:
            fields.refuse(member, f"is not {expected}")
    ranges = _ranges(fields, capacity)
    hashes = _hashes(fields)
    fields.done()
    if len(hashes) != sum(1 for _ in window_numbers(ranges, capacity)):
        fields.refuse("hashes", "has not one hash for each window that the ranges touch")
    return DiskMap(capacity, ranges, hashes)


def _ranges(fields: Fields, capacity: int) -> RangeSet:
    pairs: list[tuple[int, int]] = []
    end = -1
    for item in fields.items("ranges", MAX_RANGES):
        if not (isinstance(item, list) and len(item) == 2 and all(type(n) is int for n in item)):
            fields.refuse("ranges", "holds something other than pairs of whole numbers")
        offset, length = item
        aligned = offset % GRAIN == 0 and (length % GRAIN == 0 or offset + length == capacity)
        if not (end < offset and 0 < length <= capacity - offset and aligned):
            fields.refuse(
                "ranges", f"holds ({offset}, {length}), which is out of order, outside the disk or not whole"
            )
        end = offset + length
        pairs.append((offset, length))
    return RangeSet(pairs)


def _hashes(fields: Fields) -> tuple[bytes, ...]:
    hashes: list[bytes] = []
    for item in fields.items("hashes", MAX_WINDOWS):
        if not (isinstance(item, str) and _SHA256.fullmatch(item)):
            fields.refuse("hashes", "holds something other than 64 hexadecimal digits")
        hashes.append(bytes.fromhex(item))
    return tuple(hashes)
