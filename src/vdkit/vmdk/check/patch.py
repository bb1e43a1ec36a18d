"""Changes to files that are kept in memory until all of them are known and have been checked.

A repair is worked out on this view. Only when a check of the view is content is anything written.

Source of facts: none; nothing here knows a format.
"""

from __future__ import annotations

from collections.abc import Iterator

from vdkit.block.device import BaseDevice, BaseWritableDevice, BlockDevice
from vdkit.block.extent import Extent, ExtentKind, RangeSet
from vdkit.block.forward import close_all
from vdkit.block.memory import MemoryDevice
from vdkit.errors import LimitExceeded
from vdkit.vmdk.check.context import Files
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.names import Place

#: Sectors that one repair may change (512 MiB), grains that are copied whole not counted.
MAX_SECTORS = 1 << 20


class Patch(BaseWritableDevice):
    """``base`` with changed sectors, another size, and runs that are copies of other runs of it."""

    def __init__(self, base: BlockDevice, name: str, *, created: bool = False) -> None:
        super().__init__(name=name, capacity=base.capacity, writable=True, sector_size=1)
        self.base = base
        self.created = created
        self._kept = base.capacity
        self._sectors: dict[int, bytearray] = {}
        self._copies: dict[int, tuple[int, int]] = {}

    def copy_run(self, source: int, target: int, length: int) -> None:
        """Make ``[target, target + length)``, behind the base's end, what ``source`` in the base is now."""
        self._copies[target] = (source, length)

    def changes(self) -> RangeSet:
        """Bytes that may differ from the base, those behind its end included."""
        return RangeSet(
            [(number * SECTOR, SECTOR) for number in self._sectors]
            + [(target, length) for target, (_, length) in self._copies.items()]
            # What was cut off and made again reads as zeroes, whatever the base has there.
            + [(self._kept, max(0, self.base.capacity - self._kept))]
        ).clip(0, self.capacity)

    @property
    def is_changed(self) -> bool:
        if self.created or self.capacity != self.base.capacity or self._copies:
            return True
        for number, data in self._sectors.items():
            old = bytearray(SECTOR)
            self._read_base(number * SECTOR, memoryview(old))
            if old != data:
                return True
        return False

    # -- the device --------------------------------------------------------------------------------

    def _read_base(self, offset: int, view: memoryview) -> None:
        inside = max(0, min(len(view), self._kept - offset))
        if inside:
            self.base.read_into(offset, view[:inside])
        if inside < len(view):
            view[inside:] = bytes(len(view) - inside)

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_base(offset, view)
        end = offset + len(view)
        for target, (source, length) in self._copies_in(offset, end):
            low, high = max(offset, target), min(end, target + length)
            self._read_into(source + low - target, view[low - offset : high - offset])
        for number in self._changed_in(offset, end):
            start = number * SECTOR
            low, high = max(offset, start), min(end, start + SECTOR)
            view[low - offset : high - offset] = self._sectors[number][low - start : high - start]

    def _copies_in(self, offset: int, end: int) -> list[tuple[int, tuple[int, int]]]:
        if end <= self.base.capacity or not self._copies:
            return []
        return [(t, c) for t, c in self._copies.items() if t < end and offset < t + c[1]]

    def _changed_in(self, offset: int, end: int) -> list[int]:
        if not self._sectors:
            return []
        first, last = offset // SECTOR, -(-end // SECTOR)
        if last - first < len(self._sectors):
            return [number for number in range(first, last) if number in self._sectors]
        return [number for number in self._sectors if first <= number < last]

    def _write_from(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            number, start = divmod(offset + done, SECTOR)
            step = min(len(view) - done, SECTOR - start)
            sector = self._sectors.get(number)
            if sector is None:
                if len(self._sectors) >= MAX_SECTORS:
                    raise LimitExceeded(
                        f"{self.name}: a repair would change more than {MAX_SECTORS} sectors",
                        remedy="convert what can be read to a new disk",
                    )
                sector = bytearray(SECTOR)
                have = min(SECTOR, self.capacity - number * SECTOR)
                self._read_into(number * SECTOR, memoryview(sector)[:have])
                self._sectors[number] = sector
            sector[start : start + step] = view[done : done + step]
            done += step

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        if self._copies_in(offset, end) or self._changed_in(offset, end):
            yield Extent(offset, length, ExtentKind.DATA)
            return
        inside = max(0, min(length, self._kept - offset))
        if inside:
            yield from self.base.extents(offset, inside)
        yield Extent(offset + inside, length - inside, ExtentKind.ZERO)

    def _flush(self) -> None:
        """Nothing is durable here."""

    def _resize(self, capacity: int) -> None:
        self._kept = min(self._kept, capacity)
        last = -(-capacity // SECTOR)
        self._sectors = {number: data for number, data in self._sectors.items() if number < last}
        self._copies = {t: c for t, c in self._copies.items() if t < capacity}

    def _close(self) -> None:
        self.base.close()


class _View(BaseDevice):
    """A patch that somebody may close."""

    def __init__(self, patch: Patch) -> None:
        super().__init__(name=patch.name, capacity=patch.capacity)
        self._patch = patch

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._patch.read_into(offset, view)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._patch.extents(offset, length)

    def _close(self) -> None:
        """The patch lives on."""


class PatchedFiles(Files):
    """The files of a disk with the changes of a repair; closes what it has opened."""

    def __init__(self) -> None:
        self.patches: dict[Place, Patch] = {}

    def open(self, place: Place) -> BlockDevice:
        patch = self.patches.get(place)
        return place.open() if patch is None else _View(patch)

    def exists(self, place: Place) -> bool:
        return place in self.patches or place.store.exists(place.name)

    def change(self, place: Place) -> Patch:
        """For changing; one that does not exist is begun empty."""
        patch = self.patches.get(place)
        if patch is None:
            exists = place.store.exists(place.name)
            base: BlockDevice = place.open() if exists else MemoryDevice(0, name=str(place))
            patch = self.patches[place] = Patch(base, str(place), created=not exists)
        return patch

    def rebase(self, place: Place, base: BlockDevice) -> None:
        """Work on other bytes in the place of a file."""
        self.patches[place] = Patch(base, str(place))

    def changed(self) -> dict[Place, Patch]:
        return {place: patch for place, patch in self.patches.items() if patch.is_changed}

    def close(self) -> None:
        close_all(list(self.patches.values()))
