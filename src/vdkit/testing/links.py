"""Links of a chain in memory: what a chain is tested with, and a model for a format's own links."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

from vdkit.block.device import BaseWritableDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.errors import UsageError


class MemoryLink(BaseWritableDevice):
    """A sparse link that allocates in grains and has no way to say "zero": as strict as a COWD delta.

    Reading what is absent is refused; clearing a whole grain gives it back, so that the parent shows through.
    """

    def __init__(self, capacity: int, *, grain: int = 65536, name: str = "link") -> None:
        super().__init__(name=name, capacity=capacity, writable=True)
        self.write_unit = grain
        self.grains: dict[int, bytearray] = {}
        self._grains_lock = threading.Lock()

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """``(grain, offset in it, length)``."""
        end = offset + length
        while offset < end:
            number, start = divmod(offset, self.write_unit)
            step = min(end - offset, self.write_unit - start)
            yield number, start, step
            offset += step

    def _read_into(self, offset: int, view: memoryview) -> None:
        done = 0
        with self._grains_lock:
            for number, start, step in self._parts(offset, len(view)):
                if number not in self.grains:
                    raise UsageError(f"{self.name}: grain {number} is absent and cannot be read")
                view[done : done + step] = self.grains[number][start : start + step]
                done += step

    def _write_from(self, offset: int, view: memoryview) -> None:
        done = 0
        with self._grains_lock:
            for number, start, step in self._parts(offset, len(view)):
                grain = self.grains.setdefault(number, bytearray(self.write_unit))
                grain[start : start + step] = view[done : done + step]
                done += step

    def _write_zeroes(self, offset: int, length: int) -> None:
        with self._grains_lock:
            for number, start, step in self._parts(offset, length):
                if number not in self.grains:
                    continue
                if step == self.write_unit or number * self.write_unit + step == self.capacity:
                    del self.grains[number]
                else:
                    self.grains[number][start : start + step] = bytes(step)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for number, start, step in self._parts(offset, length):
            kind = ExtentKind.DATA if number in self.grains else ExtentKind.ABSENT
            yield Extent(number * self.write_unit + start, step, kind)

    def _flush(self) -> None:
        """Memory is as durable as it will ever be."""


def deal(content: bytes, *, links: int, grain: int, seed: int = 5) -> list[MemoryLink]:
    """``content`` spread over ``links`` links, leaf first; deeper links hold old bytes under newer grains."""
    dice = random.Random(seed)
    made = [MemoryLink(len(content), grain=grain, name=f"link {i}") for i in range(links)]
    for offset in range(0, len(content), grain):
        piece = content[offset : offset + grain]
        if not any(piece):
            continue
        holder = dice.randrange(links)
        made[holder].write_from(offset, piece)
        for deeper in made[holder + 1 :]:
            if dice.random() < 0.3:
                deeper.write_from(offset, dice.randbytes(len(piece)))
    return made
