"""The FastLZ project's own code, as pyfastlz wraps it, reads what we write and writes what we read."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdkit.wire.nfc import fastlz

pytestmark = pytest.mark.witness("fastlz")
#: What pyfastlz puts in front of a block: the length of the data.
PREFIX = 4

#: Runs of zeroes, of noise, of a pattern, and repetitions of what came before, near and far.
RUNS = st.lists(
    st.tuples(st.sampled_from(["zero", "noise", "pattern", "again"]), st.integers(1, 40_000)),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def witness() -> Any:
    return importlib.import_module("fastlz")


def made(runs: list[tuple[str, int]]) -> bytes:
    data = bytes(range(fastlz.MIN_SIZE))
    for kind, count in runs:
        dice = random.Random(count)
        match kind:
            case "zero":
                data += bytes(count)
            case "noise":
                data += dice.randbytes(count)
            case "pattern":
                data += (b"abcdefg" * count)[:count]
            case _:
                data += (data[dice.randrange(len(data)) :] * 2)[:count]
    return data


def decoded(block: bytes, size: int) -> bytes:
    target = bytearray(size)
    fastlz.decode_into(memoryview(block), memoryview(target))
    return bytes(target)


@given(runs=RUNS)
def test_both_ways(witness: Any, runs: list[tuple[str, int]]) -> None:
    data = made(runs)
    block = fastlz.encode(memoryview(data))
    assert block[0] >> 5 == (1 if len(data) >= fastlz.LEVEL_2_SIZE else 0)
    assert witness.decompress(len(data).to_bytes(PREFIX, "little") + block) == data
    for level in (1, 2):
        theirs = witness.compress(data, level)
        assert int.from_bytes(theirs[:PREFIX], "little") == len(data)
        assert decoded(theirs[PREFIX:], len(data)) == data


@pytest.mark.parametrize("distance", [1, 8191, 8192, 8193, 65535, 73727])
@pytest.mark.parametrize("length", [4, 8, 9, 263, 264, 265, 519, 20_000])
def test_every_reach(witness: Any, distance: int, length: int) -> None:
    """Distances and lengths at which the form of an instruction changes."""
    front = random.Random(distance).randbytes(distance)
    data = front + (front * (length // distance + 1))[:length] + random.Random(1).randbytes(70_000)
    block = fastlz.encode(memoryview(data))
    assert witness.decompress(len(data).to_bytes(PREFIX, "little") + block) == data
    assert decoded(witness.compress(data, 2)[PREFIX:], len(data)) == data


def test_what_the_witness_refuses_we_refuse_too(witness: Any) -> None:
    """Damaged blocks: no answer of ours where the witness has none."""
    dice = random.Random(3)
    good = witness.compress(bytes(300) + dice.randbytes(200) + b"hello world " * 40, 2)
    refused = 0
    for _ in range(2000):
        block = bytearray(good[PREFIX:])
        for _ in range(dice.randrange(1, 4)):
            block[dice.randrange(len(block))] = dice.randrange(256)
        size = int.from_bytes(good[:PREFIX], "little")
        try:
            theirs = witness.decompress(good[:PREFIX] + bytes(block))
        except witness.FastlzError:
            theirs = None
        try:
            ours = decoded(bytes(block), size)
        except fastlz.ProtocolError:
            refused += 1
            continue
        assert theirs is None or theirs == ours
    assert refused > 100
