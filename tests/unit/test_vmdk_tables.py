"""Runs of table entries, against the plain way of finding them."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from vdkit.vmdk.tables import runs


def plainly(entries: list[int], step: int) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    for position, entry in enumerate(entries):
        if found:
            start, count, first = found[-1]
            if entry == (first if first <= 1 else first + count * step):
                found[-1] = (start, count + 1, first)
                continue
        found.append((position, 1, entry))
    return found


PARTS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 128, 4096, 0xFFFFFF00, 0xFFFFFFFF]), st.integers(1, 70), st.booleans()
    ),
    max_size=12,
)


@given(PARTS, st.sampled_from([1, 128]))
def test_runs(parts: list[tuple[int, int, bool]], step: int) -> None:
    entries: list[int] = []
    for first, count, rising in parts:
        for i in range(count):
            entries.append(min(first + i * step, 0xFFFFFFFF) if rising and first > 1 else first)
    assert list(runs(array("I", entries), 0, len(entries), step)) == plainly(entries, step)
    if len(entries) > 4:
        low, high = len(entries) // 3, len(entries) - 1
        inner = [(p + low, n, e) for p, n, e in plainly(entries[low:high], step)]
        assert list(runs(array("I", entries), low, high, step)) == inner
