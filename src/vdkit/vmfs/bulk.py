"""Maps of many blocks at once: what :mod:`vdkit.vmfs.blockmap` does slot by slot, for whole tables.

A file of a terabyte has a million addresses. Only what is in order is done here: where anything is not, the
answer is None, and the slow way finds out what to say.

Source of facts: our notes on VMFS, sections 2.6, 2.8 and 2.9.
"""

from __future__ import annotations

from array import array
from enum import Enum
from typing import Final, NamedTuple

#: Fewer addresses are not worth it.
LEAST: Final = 64
_HOLE, _DATA, _ZERO, _PARTIAL = range(4)


class State(Enum):
    """``PARTIAL``: some of the block reads as zeroes, in a way that only a host can tell."""

    HOLE = "hole"
    ZERO = "zero"
    DATA = "data"
    PARTIAL = "partial"


class Run(NamedTuple):
    """``length`` bytes of a file; ``volume_offset`` is None for a hole. ``shared``: copy on write."""

    offset: int
    length: int
    state: State
    volume_offset: int | None
    shared: bool = False


class Scale(NamedTuple):
    """What addresses are counted in: bytes, but for the two numbers of small blocks.

    ``small_blocks`` are those of a cluster, ``ratio`` those of a large block.
    """

    six: bool
    block: int
    small_blocks: int
    ratio: int
    zeroed_unit: int
    capacity: int


_STATES: Final = (State.HOLE, State.DATA, State.ZERO, State.PARTIAL)


def runs_of(table: array[int], start: int, stop: int, index: int, scale: Scale) -> list[Run] | None:
    """Runs of the slots ``[start, stop)``, of which the first is block ``index`` of the file."""
    import numpy as np

    values = np.frombuffer(table, dtype=np.uint64 if scale.six else np.uint32)[start:stop].astype(np.int64)
    kinds = values & 7
    holes = values == 0
    large = (kinds == 7) if scale.six else np.zeros(len(values), dtype=bool)
    if not bool((holes | (kinds == 1) | large).all()) or bool(large.any() and holes.any()):
        return None
    if scale.six:
        # Shifts of signed numbers keep the sign, which the masks take away again.
        resources = values >> 51 & 0x1FFF
        numbers = (values >> 15 & 0x7FFFFFFF) * scale.small_blocks + resources
        if bool((resources[kinds == 1] >= scale.small_blocks).any()):
            return None
        numbers = np.where(large, (values >> 15 & 0x7FFFFFFF) * scale.ratio, numbers)
        masks, shared = values >> 7 & 0xFF, values >> 5 & 1
    else:
        numbers, masks, shared = values >> 6, (values >> 5 & 1) * 0xFF, values >> 4 & 1
    if bool((numbers[~holes] > scale.capacity // scale.block).any()):
        return None
    ends = numbers + np.where(large, scale.ratio, 1)
    if bool((ends * scale.block > scale.capacity)[~holes].any()):
        return None
    whole = masks == 0xFF
    if scale.zeroed_unit == scale.block:
        whole |= masks & 1 == 1
    states = np.where(holes, _HOLE, np.where(masks == 0, _DATA, np.where(whole, _ZERO, _PARTIAL)))
    inside = np.where(large, np.arange(index, index + len(values)) % scale.ratio, 0)
    places = np.where(holes, 0, (numbers + inside) * scale.block)
    marks = states * 2 + np.where(holes, 0, shared)
    follows = (marks[1:] == marks[:-1]) & (holes[1:] | (places[1:] == places[:-1] + scale.block))
    firsts = np.concatenate(([0], np.flatnonzero(~follows) + 1))
    counts = np.diff(np.append(firsts, len(values)))
    return [
        Run(offset, length, _STATES[mark >> 1], place if mark >> 1 else None, bool(mark & 1))
        for offset, length, mark, place in zip(
            ((firsts + index) * scale.block).tolist(),
            (counts * scale.block).tolist(),
            marks[firsts].tolist(),
            places[firsts].tolist(),
            strict=True,
        )
    ]
