"""How a copy asks: in batches of many pieces, once for what lies together, and lazily."""

from __future__ import annotations

import tracemalloc

from vdkit.block.copy import copy
from vdkit.block.copyplan import Planner, planned_extents
from vdkit.block.extent import Extent, ExtentKind, RangeSet
from vdkit.block.memory import MemoryDevice
from vdkit.block.wrappers import Stats
from vdkit.testing.devices import read

PAGE = 65536


def test_small_extents_share_a_batch() -> None:
    inner = MemoryDevice(64 * PAGE)
    for i in range(0, 64, 2):
        inner.write_from(i * PAGE, b"x" * PAGE)
    source, target = Stats(inner), Stats(MemoryDevice(64 * PAGE))
    copy(source, target, target_is_zero=True, block=PAGE)
    assert (source.reads.calls, source.reads.pieces) == (2, 32), "16 pieces of 64 KiB are one batch of 1 MiB"
    assert (target.writes.calls, target.writes.pieces) == (2, 32)
    assert target.zeroes.calls == 0


def test_what_lies_together_is_one_read_and_one_write() -> None:
    inner = MemoryDevice(16 * PAGE)
    inner.write_from(0, b"x" * 16 * PAGE)
    source, target = Stats(inner), Stats(MemoryDevice(16 * PAGE))
    seen: list[int] = []
    copy(source, target, block=PAGE, observe=lambda offset, view: seen.append(len(view)))
    assert (source.reads.calls, source.reads.pieces) == (1, 1)
    assert (target.writes.calls, target.writes.pieces) == (1, 1)
    assert seen == [PAGE] * 16


def test_zeroes_in_the_data_are_found_and_holes_are_not_read() -> None:
    inner = MemoryDevice(64 * PAGE)
    inner.write_from(0, b"x" * PAGE + bytes(2 * PAGE) + b"y" * PAGE)
    source, target = Stats(inner), Stats(MemoryDevice(64 * PAGE))
    result = copy(source, target)
    assert (result.read, result.written, result.zeroed) == (4 * PAGE, 2 * PAGE, 62 * PAGE)
    assert source.reads.length == 4 * PAGE
    kept = copy(inner, MemoryDevice(64 * PAGE), skip_zeroes=False, target_is_zero=True)
    assert (kept.written, kept.skipped) == (4 * PAGE, 60 * PAGE)


def test_a_source_that_ends_inside_a_sector_of_the_target() -> None:
    source = MemoryDevice.from_bytes(b"s" * 1000)
    target = MemoryDevice(2048)
    target.write_from(0, b"t" * 2048)
    target._alignment = 512
    copy(source, target)
    assert read(target, 0, 2048) == b"s" * 1000 + b"t" * 1048
    copy(MemoryDevice(1000), target)
    assert read(target, 0, 2048) == bytes(1000) + b"t" * 1048


def test_planning_is_lazy() -> None:
    """A disk of 62 TiB with a grain in every other 64 KiB is planned batch by batch."""
    size = 62 << 40

    class Endless(MemoryDevice):
        def _extents(self, offset: int, length: int):  # type: ignore[no-untyped-def]  # as the base class
            end = offset + length
            while offset < end:
                kind = ExtentKind.DATA if offset // PAGE % 2 else ExtentKind.ZERO
                stop = min(end, (offset // PAGE + 1) * PAGE)
                yield Extent(offset, stop - offset, kind)
                offset = stop

    source = Endless(size)
    tracemalloc.start()
    planner = Planner(planned_extents(source, RangeSet([(0, size)]), 512), batch=8 << 20, block=1 << 20)
    for ticket in range(20):
        batch = planner.take()
        assert batch is not None
        assert batch.ticket == ticket
        assert sum(p.length for p in batch.pieces) == 8 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_borders_off_the_unit_are_data() -> None:
    source = MemoryDevice(4 * PAGE)
    source.write_from(PAGE, b"x")
    wide = list(planned_extents(source, RangeSet([(0, 4 * PAGE)]), 100_000))
    assert [(e.offset, e.end, e.kind.value) for e in wide] == [
        (0, 100_000, "data"),
        (100_000, 200_000, "data"),
        (200_000, 4 * PAGE, "zero"),
    ]
