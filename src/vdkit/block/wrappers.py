"""Behaviour as wrappers: count calls, plant faults, limit the rate, keep blocks.

A wrapper owns and closes the device inside.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vdkit.block.device import BlockDevice
from vdkit.block.forward import Forwarding
from vdkit.errors import UsageError

Act = Literal["read", "write", "zero", "flush"]


class Counts:
    """Calls, pieces, bytes and seconds of one sort of act. Times of calls in parallel add up."""

    __slots__ = ("calls", "length", "pieces", "seconds")

    def __init__(self) -> None:
        self.calls = self.pieces = self.length = 0
        self.seconds = 0.0

    def __repr__(self) -> str:
        return f"<{self.calls} calls, {self.pieces} pieces, {self.length} bytes, {self.seconds:.3f} s>"


class Stats(Forwarding):
    """Counts what passes: :attr:`reads`, :attr:`writes`, :attr:`zeroes`, :attr:`flushes`."""

    def __init__(self, device: BlockDevice) -> None:
        super().__init__(device)
        self._counting = threading.Lock()
        self.reads = Counts()
        self.writes = Counts()
        self.zeroes = Counts()
        self.flushes = Counts()

    def _count(self, counts: Counts, pieces: int, length: int, began: float) -> None:
        seconds = time.monotonic() - began
        with self._counting:
            counts.calls += 1
            counts.pieces += pieces
            counts.length += length
            counts.seconds += seconds

    def _read_into(self, offset: int, view: memoryview) -> None:
        began = time.monotonic()
        self._inner.read_into(offset, view)
        self._count(self.reads, 1, len(view), began)

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        began = time.monotonic()
        self._inner.read_many(pieces)
        self._count(self.reads, len(pieces), _total(pieces), began)

    def _write_from(self, offset: int, view: memoryview) -> None:
        began = time.monotonic()
        self._writer().write_from(offset, view)
        self._count(self.writes, 1, len(view), began)

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        began = time.monotonic()
        self._writer().write_many(pieces)
        self._count(self.writes, len(pieces), _total(pieces), began)

    def _write_zeroes(self, offset: int, length: int) -> None:
        began = time.monotonic()
        self._writer().write_zeroes(offset, length)
        self._count(self.zeroes, 1, length, began)

    def _flush(self) -> None:
        began = time.monotonic()
        self._writer().flush()
        self._count(self.flushes, 1, 0, began)


def _total(pieces: Sequence[tuple[int, memoryview]]) -> int:
    return sum(len(view) for _, view in pieces)


@dataclass(frozen=True)
class Fault:
    """One planned fault: what happens to which calls.

    ``nth`` counts the calls of the act from 1; None means every call. ``within`` is ``(offset, length)``:
    only calls that touch it. ``error`` makes the exception to raise; None only delays. ``delay`` is in
    seconds.
    """

    act: Act
    error: Callable[[], Exception] | None = None
    nth: int | None = None
    within: tuple[int, int] | None = None
    delay: float = 0.0

    def strikes(self, count: int, ranges: Sequence[tuple[int, int]]) -> bool:
        if self.nth is not None and self.nth != count:
            return False
        if self.within is None:
            return True
        low, high = self.within[0], sum(self.within)
        return any(offset < high and low < offset + length for offset, length in ranges)


class Faults(Forwarding):
    """Fails or delays calls by a plan; a call that fails has not reached the device inside."""

    def __init__(self, device: BlockDevice, plan: Sequence[Fault] = ()) -> None:
        super().__init__(device)
        self._plan = tuple(plan)
        self._counting = threading.Lock()
        self._calls: dict[Act, int] = {"read": 0, "write": 0, "zero": 0, "flush": 0}

    @property
    def calls(self) -> dict[Act, int]:
        """How many calls of each sort there have been."""
        with self._counting:
            return dict(self._calls)

    def _strike(self, act: Act, ranges: Sequence[tuple[int, int]]) -> None:
        with self._counting:
            self._calls[act] += 1
            count = self._calls[act]
        for fault in self._plan:
            if fault.act == act and fault.strikes(count, ranges):
                if fault.delay:
                    time.sleep(fault.delay)
                if fault.error is not None:
                    raise fault.error()

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._strike("read", [(offset, len(view))])
        self._inner.read_into(offset, view)

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._strike("read", [(offset, len(view)) for offset, view in pieces])
        self._inner.read_many(pieces)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._strike("write", [(offset, len(view))])
        self._writer().write_from(offset, view)

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._strike("write", [(offset, len(view)) for offset, view in pieces])
        self._writer().write_many(pieces)

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._strike("zero", [(offset, length)])
        self._writer().write_zeroes(offset, length)

    def _flush(self) -> None:
        self._strike("flush", [])
        self._writer().flush()


class RateLimit(Forwarding):
    """At most ``rate`` bytes of reads and writes per second, over all threads together.

    A call waits for its turn before it starts; a quiet time is not saved up beyond a second.
    """

    def __init__(
        self,
        device: BlockDevice,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate < 1:
            raise UsageError(f"{device.name}: a rate of {rate} bytes per second would never finish")
        super().__init__(device)
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._turn = threading.Lock()
        self._free_at = clock()

    def _wait(self, length: int) -> None:
        with self._turn:
            now = self._clock()
            start = max(self._free_at, now - 1.0)
            self._free_at = start + length / self._rate
            pause = self._free_at - now
        if pause > 0:
            self._sleep(pause)

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._wait(len(view))
        self._inner.read_into(offset, view)

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._wait(_total(pieces))
        self._inner.read_many(pieces)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._wait(len(view))
        self._writer().write_from(offset, view)

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._wait(_total(pieces))
        self._writer().write_many(pieces)


@dataclass
class _Kept:
    """Blocks by number, the least recently used first."""

    blocks: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    length: int = 0


class Cache(Forwarding):
    """Keeps the blocks read last, ``limit`` bytes at most; writes go through. For small reads that return."""

    def __init__(self, device: BlockDevice, *, limit: int = 16 << 20, block: int = 1 << 16) -> None:
        if block < 1 or block % device.alignment or limit < block:
            raise UsageError(
                f"{device.name}: a cache of {limit} bytes in blocks of {block} does not fit its "
                f"alignment of {device.alignment}"
            )
        super().__init__(device)
        self._block = block
        self._limit = limit
        self._lock = threading.Lock()
        self._kept = _Kept()
        # Counts the writes begun and ended: a block read while one was going on must not be kept.
        self._epoch = 0
        self._writing = 0

    @property
    def cached(self) -> int:
        """Bytes kept at present."""
        with self._lock:
            return self._kept.length

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_many([(offset, view)])

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        if _total(pieces) > self._limit // 4:  # a stream would only push out what is worth keeping
            self._inner.read_many(pieces)
            return
        spans = [(offset // self._block, -(-(offset + len(view)) // self._block)) for offset, view in pieces]
        wanted = {index for low, high in spans for index in range(low, high)}
        have = self._blocks(wanted)
        for offset, view in pieces:
            self._assemble(offset, view, have)

    def _assemble(self, offset: int, view: memoryview, have: dict[int, bytes]) -> None:
        done = 0
        while done < len(view):
            index, start = divmod(offset + done, self._block)
            part = memoryview(have[index])[start : start + len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)

    def _blocks(self, wanted: set[int]) -> dict[int, bytes]:
        have: dict[int, bytes] = {}
        with self._lock:
            epoch = self._epoch
            for index in wanted:
                block = self._kept.blocks.get(index)
                if block is not None:
                    self._kept.blocks.move_to_end(index)
                    have[index] = block
        missing = {
            index: bytearray(min(self._block, self.capacity - index * self._block))
            for index in sorted(wanted - have.keys())
        }
        if missing:
            self._inner.read_many([(index * self._block, buffer) for index, buffer in missing.items()])
            fresh = {index: bytes(buffer) for index, buffer in missing.items()}
            have.update(fresh)
            with self._lock:
                if epoch == self._epoch and not self._writing:
                    self._keep(fresh)
        return have

    def _keep(self, fresh: dict[int, bytes]) -> None:
        for index, block in fresh.items():
            if index not in self._kept.blocks:
                self._kept.blocks[index] = block
                self._kept.length += len(block)
        while self._kept.length > self._limit:
            _, oldest = self._kept.blocks.popitem(last=False)
            self._kept.length -= len(oldest)

    def _changing(self, ranges: Sequence[tuple[int, int]], write: Callable[[], None]) -> None:
        with self._lock:
            self._epoch += 1
            self._writing += 1
        try:
            write()
        finally:
            with self._lock:
                self._writing -= 1
                self._epoch += 1
                for offset, length in ranges:
                    self._drop(offset // self._block, -(-(offset + length) // self._block))

    def _drop(self, low: int, high: int) -> None:
        blocks = self._kept.blocks
        if high - low < len(blocks):
            dropped = [index for index in range(low, high) if index in blocks]
        else:
            dropped = [index for index in blocks if low <= index < high]
        for index in dropped:
            self._kept.length -= len(blocks.pop(index))

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._write_many([(offset, view)])

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        writer = self._writer()
        self._changing([(o, len(v)) for o, v in pieces], lambda: writer.write_many(pieces))

    def _write_zeroes(self, offset: int, length: int) -> None:
        writer = self._writer()
        self._changing([(offset, length)], lambda: writer.write_zeroes(offset, length))

    def _resize(self, capacity: int) -> None:
        low = min(capacity, self.capacity)
        length = max(capacity, self.capacity) - low
        self._changing([(low, length)], lambda: self._writer().resize(capacity))
