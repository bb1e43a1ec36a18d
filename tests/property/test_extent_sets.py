"""RangeSet behaves as a set of ints, coalesce as a run-length code."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdkit.block.extent import Extent, ExtentKind, RangeSet, coalesce
from vdkit.errors import UsageError

LIMIT = 120
quick = settings(max_examples=200, deadline=None, derandomize=True, database=None)

pairs = st.lists(st.tuples(st.integers(0, LIMIT - 20), st.integers(0, 20)), max_size=12)
spots = st.integers(0, LIMIT + 5)
lengths = st.integers(0, LIMIT)


def ints(ranges: list[tuple[int, int]]) -> set[int]:
    return {i for offset, length in ranges for i in range(offset, offset + length)}


def check(made: RangeSet, expected: set[int]) -> None:
    found = list(made)
    assert ints(found) == expected
    assert all(length > 0 for _, length in found)
    for (a, n), (b, _) in itertools.pairwise(found):
        assert a + n < b, "ascending, disjoint and not touching"
    assert made.total == len(expected)
    assert made.end == max(expected, default=-1) + 1
    assert len(made) == len(found)
    assert bool(made) == bool(expected)
    assert made == RangeSet(found)
    assert hash(made) == hash(RangeSet(found))


@quick
@given(pairs)
def test_construction(a: list[tuple[int, int]]) -> None:
    check(RangeSet(a), ints(a))
    assert RangeSet(a) == RangeSet(reversed(a))
    assert RangeSet(a) != RangeSet([*a, (LIMIT + 1, 1)])


@quick
@given(pairs, pairs)
def test_operators(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    x, y = RangeSet(a), RangeSet(b)
    check(x | y, ints(a) | ints(b))
    check(x & y, ints(a) & ints(b))
    check(x - y, ints(a) - ints(b))
    check(x, ints(a))  # operands do not change


@quick
@given(pairs, spots, lengths)
def test_questions(a: list[tuple[int, int]], offset: int, length: int) -> None:
    made, asked = RangeSet(a), set(range(offset, offset + length))
    assert (offset in made) == (offset in ints(a))
    assert made.covers(offset, length) == (asked <= ints(a))
    assert made.overlaps(offset, length) == bool(asked & ints(a))
    check(made.clip(offset, length), ints(a) & asked)


@quick
@given(pairs, st.integers(1, 40), st.integers(0, LIMIT))
def test_aligned(a: list[tuple[int, int]], granularity: int, limit: int) -> None:
    touched = {i // granularity for i in ints(a)}
    expected = {i for g in touched for i in range(g * granularity, (g + 1) * granularity) if i < limit}
    check(RangeSet(a).aligned(granularity, limit), expected)


@quick
@given(pairs, st.integers(1, 40))
def test_split(a: list[tuple[int, int]], length: int) -> None:
    pieces = list(RangeSet(a).split(length))
    assert ints(pieces) == ints(a)
    assert sum(n for _, n in pieces) == len(ints(a))
    assert pieces == sorted(pieces)
    assert all(o // length == (o + n - 1) // length for o, n in pieces)


kinds = st.sampled_from(list(ExtentKind))


@quick
@given(st.lists(st.tuples(st.integers(0, 5), kinds), max_size=30))
def test_coalesce(runs: list[tuple[int, ExtentKind]]) -> None:
    extents, offset = [], 7
    for length, kind in runs:
        extents.append(Extent(offset, length, kind))
        offset += length
    joined = list(coalesce(extents))
    assert [e.kind for e in joined for _ in range(e.length)] == [k for n, k in runs for _ in range(n)]
    assert all(a.kind is not b.kind and a.end == b.offset for a, b in itertools.pairwise(joined))
    assert all(e.length for e in joined)
    for kind in ExtentKind:
        expected = ints([(e.offset, e.length) for e in extents if e.kind is kind])
        check(RangeSet.from_extents(extents, kind), expected)


def test_refusals() -> None:
    for bad in ([(-1, 5)], [(5, -1)]):
        with pytest.raises(UsageError):
            RangeSet(bad)
    with pytest.raises(UsageError):
        RangeSet([(0, 5)]).aligned(0, 10)
    with pytest.raises(UsageError):
        list(RangeSet([(0, 5)]).split(0))
    assert RangeSet() != 5
    assert "..." in repr(RangeSet((i * 3, 1) for i in range(20)))
