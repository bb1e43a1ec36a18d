"""Random changes of a disk, and of a model that says what it must hold afterwards."""

from __future__ import annotations

import random

from vdkit.vmdk import Disk

GRAIN = 65536


def change(disk: Disk, model: bytearray, seed: int, *, times: int) -> None:
    """``times`` writes of data or zeroes, at any offset and of any length up to two grains."""
    rnd = random.Random(seed)
    for _ in range(times):
        start = rnd.randrange(len(model))
        length = min(len(model) - start, rnd.randrange(1, 2 * GRAIN))
        if rnd.random() < 0.3:
            disk.write_zeroes(start, length)
            model[start : start + length] = bytes(length)
        else:
            data = rnd.randbytes(length)
            disk.write_from(start, data)
            model[start : start + length] = data
