"""Copying and comparing over random maps, ranges, alignments and batch sizes."""

from __future__ import annotations

import threading
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from vdkit.block.chain import Chain
from vdkit.block.compare import compare
from vdkit.block.copy import CopyProgress, copy
from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.block.memory import MemoryDevice
from vdkit.testing.devices import read
from vdkit.testing.links import MemoryLink

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
UNIT = 512
SIZE = 3 * (1 << 20) + 5 * UNIT


def no_workers_left() -> bool:
    return not [t for t in threading.enumerate() if t.name.startswith("vdkit-")]


class Case(NamedTuple):
    capacity: int
    writes: list[tuple[int, int, int]]
    ranges: list[tuple[int, int]] | None
    workers: int
    block: int
    alignment: int
    skip_zeroes: bool
    target_is_zero: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    alignment = draw(st.sampled_from([1, 512, 4096]))
    units = SIZE // alignment
    place = st.integers(0, units - 1)
    length = st.one_of(st.integers(1, 300), st.integers(1, units))
    spans = st.tuples(place, length)
    ranges = draw(st.none() | st.lists(spans.map(lambda s: (s[0] * alignment, s[1] * alignment)), max_size=6))
    capacity = draw(st.sampled_from([SIZE, SIZE // 4096 * 4096, SIZE - 1, 70_001]))
    if ranges is not None:
        top = capacity // alignment * alignment
        ranges = [(o, min(n, top - o)) for o, n in ranges if o < top]
    return Case(
        capacity,
        draw(
            st.lists(st.tuples(st.integers(0, SIZE), st.integers(1, 200_000), st.integers(0, 3)), max_size=8)
        ),
        ranges,
        draw(st.integers(1, 4)),
        draw(st.sampled_from([4096, 65536, 1 << 20])),
        alignment,
        draw(st.booleans()),
        draw(st.booleans()),
    )


def source_of(case: Case) -> MemoryDevice:
    made = MemoryDevice(case.capacity)
    made._alignment = case.alignment
    for offset, length, fill in case.writes:
        start = offset % case.capacity // case.alignment * case.alignment
        stop = min(start + -(-length // case.alignment) * case.alignment, case.capacity)
        made.write_from(start, bytes([fill]) * (stop - start))
    return made


@quick
@given(cases())
def test_copy_to_a_device(case: Case) -> None:
    source = source_of(case)
    content = read(source, 0, case.capacity)
    target = MemoryDevice(case.capacity + 1000)
    if not case.target_is_zero:
        target.write_from(0, b"\xaa" * target.capacity)
    expected = bytearray(read(target, 0, target.capacity))
    ranges = RangeSet([(0, case.capacity)] if case.ranges is None else case.ranges)
    for offset, length in ranges:
        expected[offset : offset + length] = content[offset : offset + length]
    seen: list[tuple[int, int]] = []
    told: list[CopyProgress] = []

    def observe(offset: int, view: memoryview) -> None:
        assert bytes(view) == content[offset : offset + len(view)]
        assert offset // case.block == (offset + len(view) - 1) // case.block
        seen.append((offset, len(view)))

    result = copy(
        source,
        target,
        ranges=None if case.ranges is None else RangeSet(case.ranges),
        workers=case.workers,
        block=case.block,
        skip_zeroes=case.skip_zeroes,
        target_is_zero=case.target_is_zero,
        observe=observe,
        progress=told.append,
    )
    assert read(target, 0, target.capacity) == bytes(expected)
    assert result.read == sum(n for _, n in seen) == RangeSet(seen).total, "nothing is seen twice"
    assert result.written + result.zeroed + result.skipped == ranges.total
    assert (result.zeroed == 0) if case.target_is_zero else (result.skipped == 0)
    assert RangeSet(seen) == RangeSet.from_extents(source.extents()) & ranges
    assert told[-1].done == told[-1].total == ranges.total
    assert no_workers_left()


class Recorder:
    """A sequential writer that keeps its rules."""

    name = "recorder"

    def __init__(self, capacity: int, unit: int) -> None:
        self.capacity = capacity
        self.unit = unit
        self.content = bytearray(b"\xbb" * capacity)
        self.end = 0
        self.stored: list[tuple[int, int]] = []

    def encode(self, offset: int, data: memoryview) -> tuple[int, bytes]:
        assert offset % self.unit == 0
        assert len(data) % self.unit == 0 or offset + len(data) == self.capacity
        return offset, bytes(data)

    def append(self, encoded: tuple[int, bytes]) -> None:
        offset, data = encoded
        assert offset >= self.end
        self.end = offset + len(data)
        self.content[offset : self.end] = data
        self.stored.append((offset, len(data)))

    def finish(self) -> None:
        raise AssertionError("finishing is the caller's")

    def abort(self) -> None:
        raise AssertionError("giving up is the caller's")


@quick
@given(cases(), st.sampled_from([4096, 65536]))
def test_copy_to_a_sequential_writer(case: Case, unit: int) -> None:
    source = source_of(case)
    rounded = -(-case.capacity // 4096) * 4096
    content = read(source, 0, case.capacity).ljust(rounded, b"\0")
    writer = Recorder(rounded, unit)
    block = max(case.block, unit)
    ranges = None if case.ranges is None else RangeSet(case.ranges)
    copy(
        source,
        writer,
        ranges=ranges,
        workers=case.workers,
        block=block,
        skip_zeroes=case.skip_zeroes,
        target_is_zero=case.target_is_zero,
    )
    wanted = RangeSet([(0, case.capacity)] if ranges is None else ranges)
    wanted = wanted.aligned(unit, rounded)
    stored = RangeSet(writer.stored)
    assert (stored - wanted).total == 0
    if not case.target_is_zero:
        assert stored == wanted
    for offset, length in wanted:
        for at in range(offset, offset + length, unit):
            grain = bytes(writer.content[at : min(at + unit, offset + length)])
            if stored.overlaps(at, len(grain)):
                assert grain == content[at : at + len(grain)]
            else:
                assert not any(content[at : at + len(grain)]), "only zeroes are left out"
    assert no_workers_left()


@quick
@given(cases(), st.integers(0, SIZE), st.integers(1, 3), st.booleans())
def test_compare(case: Case, place: int, count: int, differ: bool) -> None:
    first = source_of(case)
    content = bytearray(read(first, 0, case.capacity))
    changed: list[int] = []
    if differ:
        changed = sorted({(place + i * 65_537) % case.capacity for i in range(count)})
    for at in changed:
        content[at] ^= 0x55
    second = MemoryDevice.from_bytes(bytes(content))
    ranges = None if case.ranges is None else RangeSet(case.ranges)
    found = compare(first, second, ranges=ranges, workers=case.workers, block=case.block)
    inside = [at for at in changed if ranges is None or at in ranges]
    assert found == (inside[0] if inside else None)
    assert compare(second, first, ranges=ranges) == found
    assert no_workers_left()


def test_compare_lengths() -> None:
    long, short = MemoryDevice(100_000), MemoryDevice(70_000)
    assert compare(long, short) == compare(short, long) == 70_000
    long.write_from(69_999, b"x")
    assert compare(long, short) == 69_999
    assert compare(long, short, ranges=RangeSet([(0, 60_000)])) is None


@st.composite
def chains(draw: st.DrawFn) -> tuple[int, list[tuple[int, list[tuple[int, int]]]]]:
    """Capacity, and for each link a grain and its writes as (grain number, fill)."""
    capacity = draw(st.integers(1, 40)) * 4096 + draw(st.sampled_from([0, 512]))
    links = draw(
        st.lists(
            st.tuples(
                st.sampled_from([512, 4096, 16384]),
                st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=20),
            ),
            min_size=1,
            max_size=6,
        )
    )
    return capacity, links


@quick
@given(
    chains(), st.lists(st.tuples(st.integers(0, 170_000), st.integers(1, 9000), st.booleans()), max_size=8)
)
def test_chain(
    made: tuple[int, list[tuple[int, list[tuple[int, int]]]]], changes: list[tuple[int, int, bool]]
) -> None:
    capacity, plan = made
    model, links = bytearray(capacity), []
    for grain, writes in reversed(plan):
        link = MemoryLink(capacity, grain=grain)
        for number, fill in writes:
            offset = number % -(-capacity // grain) * grain
            size = min(grain, capacity - offset)
            link.write_from(offset, bytes([fill]) * size)
            model[offset : offset + size] = bytes([fill]) * size
        links.insert(0, link)
    parents = [dict(link.grains) for link in links[1:]]
    chain: BlockDevice = Chain(links)
    assert read(chain, 0, capacity) == bytes(model)
    for offset, length, zero in changes:
        start = offset % capacity
        length = min(length, capacity - start)
        if zero:
            chain.write_zeroes(start, length)
        else:
            chain.write_from(start, b"\xee" * length)
        model[start : start + length] = (b"\0" if zero else b"\xee") * length
        assert read(chain, 0, capacity) == bytes(model)
    assert [dict(link.grains) for link in links[1:]] == parents, "only the leaf is written"
    zeroes = [e for e in chain.extents() if e.kind.value == "zero"]
    assert not any(any(model[e.offset : e.end]) for e in zeroes)
