"""The generator of the matrix tests leaves no pair out and makes no impossible row."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from pairwise import Row, all_pairs, pairs_of

FIELDS = st.lists(st.integers(1, 4), min_size=2, max_size=5).map(
    lambda sizes: {f"f{number}": tuple(range(size)) for number, size in enumerate(sizes)}
)


@given(FIELDS, st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=4))
def test_every_possible_pair_is_there(
    fields: dict[str, tuple[int, ...]], forbidden: set[tuple[int, int]]
) -> None:
    def possible(row: Row) -> bool:
        return (row["f0"], row["f1"]) not in forbidden

    product_rows = [dict(zip(fields, values, strict=True)) for values in product(*fields.values())]
    wanted = set().union(*(pairs_of(row) for row in product_rows if possible(row)))
    rows = all_pairs(fields, possible)
    assert all(possible(row) for row in rows)
    assert set().union(*(pairs_of(row) for row in rows)) == wanted
    assert rows == all_pairs(fields, possible)


def test_far_fewer_than_the_product() -> None:
    rows = all_pairs({name: range(5) for name in "abcdef"})
    assert 25 <= len(rows) <= 50
