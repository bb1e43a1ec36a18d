"""Inputs that fuzzing found worth keeping, replayed: every parser keeps its promises, in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import targets

import smallimages
from vdkit.vmdk.check import repair_disk

CORPUS = Path(__file__).parent / "corpus"
#: Memory that looking at an input of at most 32 KiB may take: caches of tables and grains, not what a header
#: claims.
MAX_MEMORY = 24 << 20
#: All of the committed inputs.
MAX_CORPUS = 2 << 20


def inputs(name: str) -> list[Path]:
    return sorted((CORPUS / name).iterdir())


@pytest.mark.parametrize("name", targets.TARGETS)
def test_corpus(name: str) -> None:
    committed = inputs(name)
    assert committed, "scripts/fuzz --keep fills the corpus"
    tracemalloc.start()
    try:
        for path in committed:
            data = path.read_bytes()
            assert len(data) <= targets.MAX_INPUT
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            targets.TARGETS[name](data)
            used = tracemalloc.get_traced_memory()[1] - before
            assert used < MAX_MEMORY, f"{path.name} takes {used} bytes"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds(name: str) -> None:
    for seed in targets.seeds()[name]:
        targets.TARGETS[name](seed)


def test_seeds_reach_the_data() -> None:
    """What the fuzzers start from are disks that open, or they would only ever try the front door."""
    for name in ("sparse", "stream", "sparse_write"):
        for seed in targets.seeds()[name][:2]:
            store = targets.CountingStore({"d.vmdk": seed})
            targets.opened(store, "d.vmdk", write=name == "sparse_write")
            assert store.reads > 3


def test_corpus_is_small() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_CORPUS
    assert {path.parent.name for path in files} == set(targets.TARGETS)


def test_a_repair_leaves_no_error_that_it_says_it_mended() -> None:
    """Found by fuzzing: a stream with its tables up front, cut off inside its only table."""
    head = smallimages.header(
        version=3, flags=0x30001, capacity=32, grain=1, compression=1, directory=2, overhead=2
    )
    text = smallimages.sector(smallimages.text("streamOptimized", 'RW 32 SPARSE "d.vmdk"'))
    image = head + text + smallimages.sector(smallimages.numbers(3)) + smallimages.numbers(7, 0, 8, 9)
    store = targets.CountingStore({"d.vmdk": image.ljust(3015, b"\0")})
    report = repair_disk(store, "d.vmdk", target="n.vmdk", accept_loss=True)
    assert report.blocked == ()
    assert report.after.errors == 0
