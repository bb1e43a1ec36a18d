"""Runs in arrays of numbers: where each is a step more than the one before.

Tables of grains are such arrays, millions of entries long; a run is found by comparing slices, so that the
interpreter's work is by the run and not by the entry.
"""

from __future__ import annotations

from array import array

#: Entries that are looked at one by one before slices are compared.
_NEAR = 8


def run_end(entries: array[int], start: int, stop: int, step: int) -> int:
    """End of the run from ``start`` in which every entry is ``step`` more than the one before.

    Compared in stretches that grow while they match and are halved once they do not: a run of thousands
    takes a handful of steps.
    """
    first = entries[start]
    if step == 0 and (stop - start == 1 or _follows(entries, start + 1, stop - start - 1, first, 0)):
        return stop  # an empty table: the most frequent of all
    # Most runs of a fragmented disk are short: a slice is not worth its making.
    position, near, expected = start + 1, min(stop, start + _NEAR), first + step
    while position < near and entries[position] == expected:
        position += 1
        expected += step
    if position < near or near == stop:
        return position
    low = high = position - start
    while start + low < stop:
        high = min(low * 2, stop - start)
        if not _follows(entries, start + low, high - low, first + low * step, step):
            break
        low = high
    while low < high:
        middle = (low + high + 1) // 2
        if _follows(entries, start + low, middle - low, first + low * step, step):
            low = middle
        else:
            high = middle - 1
    return start + low


def _follows(entries: array[int], start: int, count: int, first: int, step: int) -> bool:
    """True if ``count`` entries from ``start`` on are ``first``, ``first + step``, ..."""
    last = first + (count - 1) * step
    if entries[start] != first or entries[start + count - 1] != last:
        return False
    if step == 0:
        return count < 3 or entries[start : start + count - 1] == entries[start + 1 : start + count]
    return entries[start : start + count] == array(entries.typecode, range(first, last + 1, step))
