"""What each wrapper adds beyond the contract that the conformance suite holds it to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from vdkit.block.chain import MAX_LINKS, Chain
from vdkit.block.compose import Concat, Overlay, Slice, Unaligned
from vdkit.block.compose import ReadOnly as ReadOnlyView
from vdkit.block.copy import zero_test
from vdkit.block.device import BaseDevice, BlockDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.block.wrappers import Cache, Fault, Faults, RateLimit, Stats
from vdkit.errors import (
    ChainError,
    Closed,
    ConnectionLost,
    NotFound,
    NotSupported,
    OutOfRange,
    ReadOnly,
    StoreError,
    UsageError,
)
from vdkit.testing.devices import in_threads, read
from vdkit.testing.links import MemoryLink

DATA, ZERO = ExtentKind.DATA, ExtentKind.ZERO


def lost() -> ConnectionLost:
    return ConnectionLost("planned")


def test_stats_count() -> None:
    device = Stats(MemoryDevice(1 << 20))
    in_threads(lambda n: [device.write_from(n * 100, b"x" * 10) for _ in range(50)], 4)
    device.read_into(0, bytearray(7))
    device.read_many([(0, bytearray(3)), (50, bytearray(4))])
    device.write_many([(0, b"ab"), (9, b"c")])
    device.write_zeroes(0, 99)
    device.flush()
    assert (device.writes.calls, device.writes.pieces, device.writes.length) == (201, 202, 2003)
    assert (device.reads.calls, device.reads.pieces, device.reads.length) == (2, 3, 14)
    assert (device.zeroes.calls, device.zeroes.length, device.flushes.calls) == (1, 99, 1)
    assert "2 calls, 3 pieces, 14 bytes" in repr(device.reads)


def test_faults_strike_by_number_and_place() -> None:
    plan = [
        Fault("read", lost, nth=2),
        Fault("write", lost, within=(100, 10)),
        Fault("zero", lost),
        Fault("flush", lost, nth=1),
        Fault("read", nth=3, delay=0.001),
    ]
    inner = MemoryDevice(1000)
    device = Faults(inner, plan)
    read(device, 0, 5)
    with pytest.raises(ConnectionLost):
        device.read_many([(0, bytearray(5))])
    read(device, 0, 5)
    device.write_from(90, b"x" * 10)
    device.write_from(110, b"x")
    for offset, length in ((95, 10), (100, 1), (109, 1), (0, 1000)):
        with pytest.raises(ConnectionLost):
            device.write_many([(offset, b"y" * length)])
    assert b"y" not in read(inner, 0, 1000), "what fails has not reached the device"
    with pytest.raises(ConnectionLost):
        device.write_zeroes(0, 1)
    with pytest.raises(ConnectionLost):
        device.flush()
    device.flush()
    assert device.calls == {"read": 3, "write": 6, "zero": 1, "flush": 2}


def test_rate_limit_with_a_clock_of_its_own() -> None:
    now = 100.0
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    device = RateLimit(MemoryDevice(1 << 20), 1000, clock=lambda: now, sleep=sleep)
    read(device, 0, 500)
    device.write_from(0, b"x" * 250)
    device.read_many([(0, bytearray(100)), (0, bytearray(150))])
    device.write_many([(0, b"x" * 1000)])
    assert slept == pytest.approx([0.5, 0.25, 0.25, 1.0])
    now += 60  # a quiet minute buys one second
    read(device, 0, 3000)
    assert slept[-1] == pytest.approx(2.0)
    with pytest.raises(UsageError):
        RateLimit(MemoryDevice(1), 0)


def test_cache_saves_reads_and_stays_in_its_limit() -> None:
    inner = Stats(MemoryDevice(1 << 20))
    device = Cache(inner, limit=64 << 10, block=4096)
    for _ in range(5):
        read(device, 100, 5000)
    assert (inner.reads.calls, inner.reads.pieces) == (1, 2)
    for offset in range(0, 1 << 20, 4096):
        read(device, offset, 10)
        assert device.cached <= 64 << 10
    calls = inner.reads.calls
    read(device, (1 << 20) - 4096, 10)
    assert inner.reads.calls == calls, "the newest is kept"
    read(device, 0, 10)
    assert inner.reads.calls == calls + 1, "the oldest is gone"
    read(device, 0, 1 << 20)
    assert device.cached == 64 << 10, "a stream passes by"
    device.write_from(5, b"x")
    assert read(device, 0, 10) == b"\0\0\0\0\0x\0\0\0\0"
    device.write_zeroes(0, 100)
    assert read(device, 0, 10) == bytes(10)
    for bad in ({"limit": 10}, {"block": 0}):
        with pytest.raises(UsageError):
            Cache(MemoryDevice(10), **bad)


def test_cache_does_not_keep_what_was_read_before_a_write() -> None:
    """A reader that holds old bytes while a writer passes must not put them into the cache afterwards."""
    inner = MemoryDevice(8192)
    cache = Cache(Faults(inner), limit=8192, block=4096)
    real = cache._inner.read_many

    def read_then_be_overtaken(pieces: Any) -> None:
        real(pieces)
        cache.write_from(0, b"new")

    cache._inner.read_many = read_then_be_overtaken  # type: ignore[method-assign]  # the race, made certain
    read(cache, 0, 3)
    cache._inner.read_many = real  # type: ignore[method-assign]
    assert read(cache, 0, 3) == b"new"


class Slow(BaseDevice):
    """Blocks in a read until told to go on."""

    def __init__(self) -> None:
        super().__init__(name="slow", capacity=100)
        self.inside, self.go_on, self.released = threading.Event(), threading.Event(), threading.Event()

    def _read_into(self, offset: int, view: memoryview) -> None:
        self.inside.set()
        assert self.go_on.wait(30)
        assert not self.released.is_set()

    def _close(self) -> None:
        self.released.set()


@pytest.mark.parametrize("wrap", [lambda d: d, ReadOnlyView, Stats, lambda d: Slice(d, 0, 100)])
def test_close_waits_for_calls_in_progress(wrap: Callable[[BlockDevice], BlockDevice]) -> None:
    slow = Slow()
    device = wrap(slow)
    reader = threading.Thread(target=device.read_into, args=(0, bytearray(10)))
    closers = [threading.Thread(target=device.close) for _ in range(2)]
    reader.start()
    assert slow.inside.wait(30)
    for closer in closers:
        closer.start()
    while not device.closed:  # type: ignore[attr-defined]  # of BaseDevice
        pass
    with pytest.raises(Closed):
        device.read_into(0, bytearray(1))
    assert not slow.released.is_set()
    slow.go_on.set()
    for thread in (reader, *closers):
        thread.join()
    assert slow.released.is_set()


def test_wrappers_own_what_they_wrap() -> None:
    makers: list[Callable[[list[MemoryDevice]], BlockDevice]] = [
        Chain,
        Concat,
        lambda d: Overlay(d[0], d[1]),
        lambda d: Stats(Cache(Faults(RateLimit(ReadOnlyView(Unaligned(Slice(d[0], 0, 10))), 1 << 30)))),
    ]
    for make in makers:
        inner = [MemoryDevice(65536), MemoryDevice(65536)]
        with make(inner) as device:
            device.read_into(0, bytearray(1))
        assert inner[0].closed


def test_all_links_are_closed_though_one_fails() -> None:
    class Bad(MemoryDevice):
        def _close(self) -> None:
            raise StoreError("cannot close")

    links = [MemoryDevice(10), Bad(10), MemoryDevice(10)]
    chain = Chain(links)
    with pytest.raises(StoreError, match="cannot close"):
        chain.close()
    assert all(link.closed for link in links)
    chain.close()


def test_chain_refusals() -> None:
    with pytest.raises(UsageError):
        Chain([])
    with pytest.raises(ChainError, match="512 bytes"):
        Chain([MemoryDevice(1024), MemoryDevice(512)])
    with pytest.raises(ChainError, match="links"):
        Chain([MemoryDevice(10) for _ in range(MAX_LINKS + 1)])
    with pytest.raises(NotSupported):
        Chain([MemoryDevice(10)]).resize(20)
    with pytest.raises(ReadOnly):
        Chain([MemoryDevice(10, writable=False)]).write_from(0, b"x")


def test_chain_leaves_the_parents_alone_when_the_leaf_has_it() -> None:
    leaf, parent = MemoryLink(1 << 20, grain=4096), Stats(MemoryLink(1 << 20, grain=4096))
    leaf.write_from(0, b"x" * 65536)
    asked: list[tuple[int, int]] = []
    plain = parent.extents

    def extents(offset: int = 0, length: int | None = None) -> Any:
        asked.append((offset, length or 0))
        return plain(offset, length)

    parent.extents = extents  # type: ignore[method-assign]
    chain = Chain([leaf, parent])
    assert read(chain, 100, 60_000) == b"x" * 60_000
    assert asked == []
    assert parent.reads.calls == 0
    assert next(chain.extents()) == Extent(0, 65536, DATA)
    assert asked == [(65536, (1 << 20) - 65536)], "the map is walked only as far as it is looked at"


def test_chain_completes_grains_and_keeps_zeroes_apart() -> None:
    base = MemoryLink(65536, grain=4096)
    base.write_from(0, b"b" * 8192)
    leaf = MemoryLink(65536, grain=4096)
    chain = Chain([leaf, base])
    chain.write_many([(10, b"12"), (4000, b"34"), (4094, b"5678"), (20000, b"9")])
    assert sorted(leaf.grains) == [0, 1, 4]
    expected = bytearray(b"b" * 8192 + bytes(65536 - 8192))
    for offset, data in ((10, b"12"), (4000, b"34"), (4094, b"5678"), (20000, b"9")):
        expected[offset : offset + len(data)] = data
    assert read(chain, 0, 65536) == bytes(expected)
    chain.write_zeroes(0, 65536)
    assert read(chain, 0, 65536) == bytes(65536)
    assert sorted(leaf.grains) == [0, 1], "over zeroes the grain is given back, over data it is not"


def test_overlay_takes_every_write() -> None:
    base = MemoryDevice.from_bytes(b"b" * 1000, writable=False)
    overlay = Overlay(base)
    overlay.write_from(10, b"x" * 10)
    overlay.write_many([(20, b"y" * 5), (5, b"z" * 5)])
    overlay.write_zeroes(100, 50)
    assert overlay._written._borders == [5, 25, 100, 150]
    assert read(overlay, 0, 30) == b"bbbbbzzzzzxxxxxxxxxxyyyyybbbbb"
    assert read(base, 0, 1000) == b"b" * 1000
    with pytest.raises(UsageError):
        Overlay(MemoryDevice(10), MemoryDevice(11))


def test_unaligned_writers_do_not_lose_each_others_bytes() -> None:
    inner = MemoryDevice(4096)
    inner._alignment = 512
    device = Unaligned(inner)

    def work(number: int) -> None:
        for i in range(number, 4096, 4):
            device.write_from(i, bytes([number + 1]))

    in_threads(work, 4)
    assert read(device, 0, 4096) == bytes([1, 2, 3, 4]) * 1024
    device.write_zeroes(100, 2000)
    assert (
        read(device, 0, 4096) == (bytes([1, 2, 3, 4]) * 1024)[:100] + bytes(2000) + bytes([1, 2, 3, 4]) * 499
    )


def test_slices_and_rows_refuse_what_cannot_be() -> None:
    aligned = MemoryDevice(10_000)
    aligned._alignment = 512
    for offset, length in ((-1, 5), (0, 10_001), (5, -1)):
        with pytest.raises(OutOfRange):
            Slice(aligned, offset, length)
    for offset, length in ((1, 511), (0, 100)):
        with pytest.raises(UsageError):
            Slice(aligned, offset, length)
    assert Slice(aligned, 512, 10_000 - 512).capacity == 9488
    with pytest.raises(UsageError):
        Concat([aligned, MemoryDevice(5)])
    with pytest.raises(UsageError):
        Concat([])
    with pytest.raises(NotSupported):
        Slice(MemoryDevice(10), 0, 5).resize(6)
    row = Concat([MemoryDevice(10), MemoryDevice(10, writable=False)])
    assert not row.writable
    assert (row.io_batch, row.capacity) == (1 << 20, 20)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 300_000])
def test_zero_test(size: int) -> None:
    content = bytearray(size)
    assert zero_test(memoryview(content))
    for place in {0, size // 2, size - 1} if size else ():
        content[place] = 1
        assert not zero_test(memoryview(content))
        content[place] = 0


def test_memory_is_sparse() -> None:
    device = MemoryDevice(62 << 40)
    device.write_from(50 << 40, b"x")
    assert list(device.extents()) == [
        Extent(0, 50 << 40, ZERO),
        Extent(50 << 40, 65536, DATA),
        Extent((50 << 40) + 65536, (12 << 40) - 65536, ZERO),
    ]
    device.write_zeroes(0, 62 << 40)
    assert list(device.extents()) == [Extent(0, 62 << 40, ZERO)]
    assert next(MemoryDevice.from_bytes(bytes(100_000) + b"x").extents()) == Extent(0, 65536, ZERO)


def test_memory_store_corners() -> None:
    store = MemoryStore("ram")
    store.make_folder("a/b")
    store.create("a/b/c", 5).close()
    store.rename("a", "z")
    assert store.list("z/b") == ["c"]
    with pytest.raises(NotFound):
        store.list("a")
    with pytest.raises(StoreError):
        store.rename("z", "z/y")
    with pytest.raises(NotFound):
        store.rename("z/b/c", "no/c")
    assert "ram" in repr(store)


def test_chain_reads_while_grains_are_given_back() -> None:
    size = 64 * 4096
    chain = Chain([MemoryLink(size, grain=4096), MemoryLink(size, grain=4096)])

    def work(number: int) -> None:
        for i in range(300):
            grain = (i * 7) % 64 * 4096
            if number == 0:
                chain.write_from(grain, b"x" * 4096)
                chain.write_zeroes(grain, 4096)
            else:
                assert read(chain, grain, 4096) in (b"x" * 4096, bytes(4096))

    in_threads(work, 3)


def meanwhile(work: Callable[[], object]) -> threading.Thread:
    """Start ``work`` and give it time to do harm, which it must be kept from."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.05)
    return thread


def test_chain_holds_back_a_grain_under_a_reader() -> None:
    leaf = MemoryLink(65536, grain=4096)
    chain = Chain([leaf, MemoryLink(65536, grain=4096)])
    chain.write_from(0, b"x" * 4096)
    threads: list[threading.Thread] = []
    real = leaf.read_into

    def read_into(offset: int, buffer: Any) -> None:
        threads.append(meanwhile(lambda: chain.write_zeroes(0, 4096)))
        real(offset, buffer)

    leaf.read_into = read_into  # type: ignore[method-assign]  # the race, made certain
    assert read(chain, 0, 4096) == b"x" * 4096
    threads[0].join()
    assert leaf.grains == {}


def test_unaligned_keeps_others_out_of_a_sector_being_patched() -> None:
    inner = MemoryDevice(4096)
    inner._alignment = 512
    device = Unaligned(inner)
    threads: list[threading.Thread] = []
    real = inner.read_into

    def read_into(offset: int, buffer: Any) -> None:
        real(offset, buffer)
        if not threads:
            threads.append(meanwhile(lambda: device.write_from(0, b"y" * 512)))

    inner.read_into = read_into  # type: ignore[method-assign]  # the race, made certain
    device.write_from(5, b"x")
    threads[0].join()
    assert read(device, 0, 512) == b"y" * 512, "the later write is whole"
