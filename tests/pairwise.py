"""Rows of a matrix of tests that bring every two values together, in place of the whole product."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations

Row = dict[str, Hashable]
Pair = tuple[tuple[str, Hashable], tuple[str, Hashable]]


def pairs_of(row: Mapping[str, Hashable]) -> set[Pair]:
    """Every two fields of a row with their values, the fields in the row's order."""
    return set(combinations(row.items(), 2))


def all_pairs(
    fields: Mapping[str, Sequence[Hashable]], possible: Callable[[Row], bool] = lambda row: True
) -> list[Row]:
    """Rows such that any two values of different fields meet in one of them, unless no possible row has both.

    Greedy, and the same at every call: a row begins with the first pair that is still missing, and each
    further field takes the value that brings the most missing pairs. ``possible`` judges whole rows.
    """
    missing = dict.fromkeys(_wanted(fields))
    rows: list[Row] = []
    while missing:
        first = next(iter(missing))
        row = _complete(fields, dict(first), missing, possible)
        if row is None:
            del missing[first]  # nothing possible has it
            continue
        for pair in pairs_of(row):
            missing.pop(pair, None)
        rows.append(row)
    return rows


def _wanted(fields: Mapping[str, Sequence[Hashable]]) -> list[Pair]:
    return [
        ((one, a), (other, b))
        for one, other in combinations(fields, 2)
        for a in fields[one]
        for b in fields[other]
    ]


def _complete(
    fields: Mapping[str, Sequence[Hashable]],
    chosen: Row,
    missing: Mapping[Pair, None],
    possible: Callable[[Row], bool],
) -> Row | None:
    """``chosen`` with a value for every field, the best choices first, others if they must be."""
    name = next((field for field in fields if field not in chosen), None)
    if name is None:
        row = {field: chosen[field] for field in fields}
        return row if possible(row) else None

    def gain(value: Hashable) -> int:
        made = {**chosen, name: value}
        ordered = {field: made[field] for field in fields if field in made}
        return sum(pair in missing for pair in pairs_of(ordered))

    # Sorting is stable: among equals the value that was named first is taken, at every call.
    for value in sorted(fields[name], key=gain, reverse=True):
        row = _complete(fields, {**chosen, name: value}, missing, possible)
        if row is not None:
            return row
    return None
