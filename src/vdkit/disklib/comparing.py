"""Comparing two disks as ``qemu-img compare`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vdkit.block.compare import compare
from vdkit.block.copy import CopyProgress
from vdkit.block.cursor import ExtentCursor
from vdkit.block.device import BlockDevice
from vdkit.block.extent import ExtentKind, RangeSet
from vdkit.block.workers import CancelToken
from vdkit.disklib.opening import open_local

#: Exit codes of ``qemu-img compare``; an error is more than one.
SAME: Final = 0
DIFFERENT: Final = 1
FAILED: Final = 2


@dataclass(frozen=True, slots=True)
class CompareResult:
    """Sizes in bytes. ``first_difference`` is the offset of the first byte that differs, None if none does.

    What one disk has beyond the other's end counts as equal where it is zero, except in strict mode.
    ``allocation_difference``, of strict mode only, is the first offset that one disk's map calls data and the
    other's zero.
    """

    first_capacity: int
    second_capacity: int
    first_difference: int | None
    allocation_difference: int | None
    compared: int
    strict: bool

    @property
    def same_size(self) -> bool:
        return self.first_capacity == self.second_capacity

    @property
    def same(self) -> bool:
        return (
            self.first_difference is None
            and self.allocation_difference is None
            and (self.same_size or not self.strict)
        )

    @property
    def exit_code(self) -> int:
        return SAME if self.same else DIFFERENT


def compare_disks(
    first: str | Path,
    second: str | Path,
    *,
    first_format: str | None = None,
    second_format: str | None = None,
    strict: bool = False,
    allow_paths: Sequence[str] = (),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> CompareResult:
    """Compare what two disks hold, all links of each as one. Raises what opening and reading raise.

    ``strict``: sizes must be equal, and so must the allocation, in a map that joins neighbours.
    """
    with ExitStack() as stack:
        one = stack.enter_context(open_local(first, source_format=first_format, allow_paths=allow_paths))
        two = stack.enter_context(open_local(second, source_format=second_format, allow_paths=allow_paths))
        return compare_devices(one, two, strict=strict, workers=workers, progress=progress, cancel=cancel)


def compare_devices(
    first: BlockDevice,
    second: BlockDevice,
    *,
    strict: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> CompareResult:
    """:func:`compare_disks` of open devices."""
    common = min(first.capacity, second.capacity)

    def tell(state: CopyProgress) -> None:
        if progress is not None:
            progress(state.done, state.total)

    def result(content: int | None, allocation: int | None, compared: int) -> CompareResult:
        return CompareResult(first.capacity, second.capacity, content, allocation, compared, strict)

    if strict and first.capacity != second.capacity:
        return result(None, None, 0)
    allocation = _allocation_difference(first, second, common) if strict else None
    found = compare(
        first, second, ranges=RangeSet([(0, common)]), workers=workers, progress=tell, cancel=cancel
    )
    if found is None:
        longer = first if first.capacity > second.capacity else second
        found = _first_byte(longer, common, cancel)
    return result(found, allocation, max(first.capacity, second.capacity) if found is None else found)


def _allocation_difference(first: BlockDevice, second: BlockDevice, end: int) -> int | None:
    cursors = ExtentCursor(first, end), ExtentCursor(second, end)
    position = 0
    while position < end:
        runs = [cursor.at(position) for cursor in cursors]
        if (runs[0].kind is ExtentKind.DATA) != (runs[1].kind is ExtentKind.DATA):
            return position
        position = min(run.end for run in runs)
    return None


def _first_byte(device: BlockDevice, start: int, cancel: CancelToken | None) -> int | None:
    """Offset of the first byte from ``start`` on that is not zero."""
    for offset, length in _data(device, start):
        if cancel is not None:
            cancel.check()
        buffer = bytearray(length)
        device.read_into(offset, buffer)
        rest = buffer.lstrip(b"\0")
        if rest:
            return offset + length - len(rest)
    return None


def _data(device: BlockDevice, start: int) -> Iterator[tuple[int, int]]:
    low = start // device.alignment * device.alignment
    wanted = RangeSet.from_extents(device.extents(low), ExtentKind.DATA)
    for offset, length in wanted.split(max(1 << 20, device.alignment)):
        if offset >= low:
            yield offset, length
