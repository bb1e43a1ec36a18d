"""Writes at random among growing, shrinking, defragmenting and renaming: the content is a model's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admintools import SMALL_GRAIN, content, files_of, make_flat, make_small, make_split, make_split_flat
from vdkit.block.memory import MemoryStore
from vdkit.block.store import Store
from vdkit.vmdk import open_disk
from vdkit.vmdk.admin import defragment_disk, grow_disk, rename_disk, shrink_disk

START = 9 * SMALL_GRAIN + 3 * 512
MAKERS: dict[str, Callable[[Store], None]] = {
    "sparse": lambda store: make_small(store, "d.vmdk", START),
    "split": lambda store: make_split(store, "d.vmdk", [5 * SMALL_GRAIN, START - 5 * SMALL_GRAIN]),
    "flat": lambda store: make_flat(store, "d.vmdk", START),
    "split flat": lambda store: make_split_flat(store, "d.vmdk", [SMALL_GRAIN, START - SMALL_GRAIN]),
}

WRITES = st.tuples(
    st.just("write"), st.integers(0, 1 << 30), st.integers(1, 3 * SMALL_GRAIN), st.integers(0, 255)
)
GROWS = st.tuples(st.just("grow"), st.sampled_from([1, 7, 900, 5000]), st.just(0), st.just(0))
OTHERS = st.tuples(st.sampled_from(["shrink", "defragment", "rename"]), st.just(0), st.just(0), st.just(0))
STEPS = st.lists(st.one_of(WRITES, WRITES, GROWS, OTHERS), max_size=12)


def write(store: Store, name: str, model: bytearray, at: int, length: int, value: int) -> None:
    start = at % len(model)
    data = bytes([value]) * min(length, len(model) - start)
    with open_disk(store, name, writable=True) as disk:
        disk.write_from(start, data)
    model[start : start + len(data)] = data


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=40)
@given(steps=STEPS)
def test_administration_keeps_the_content(kind: str, steps: list[tuple[str, int, int, int]]) -> None:
    store = MemoryStore("m")
    MAKERS[kind](store)
    model = bytearray(START)
    name = "d.vmdk"
    for number, (act, one, two, three) in enumerate(steps):
        match act:
            case "write":
                write(store, name, model, one, two, three)
            case "grow":
                model.extend(bytes(one * 512))
                grow_disk(store, name, len(model))
            case "shrink" if "flat" not in kind:
                shrink_disk(store, name)
            case "rename":
                rename_disk(store, name, f"d{number}.vmdk")
                name = f"d{number}.vmdk"
            case _:
                defragment_disk(store, name)
        assert content(store, name) == model
    if "flat" not in kind:
        shrink_disk(store, name)
        packed = files_of(store)
        assert defragment_disk(store, name).before == sum(
            len(data) for file, data in packed.items() if file != name or kind == "sparse"
        )
        assert files_of(store) == packed  # nothing is left to do
        assert content(store, name) == model
