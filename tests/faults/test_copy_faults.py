"""Every call of a copy failing in turn: the error surfaces, no thread is left, trying again succeeds."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from vdkit.block.compare import compare
from vdkit.block.copy import CopyProgress, copy
from vdkit.block.memory import MemoryDevice
from vdkit.block.workers import CancelToken
from vdkit.block.wrappers import Act, Fault, Faults
from vdkit.errors import Cancelled, ConnectionLost, ReadOnly, UsageError
from vdkit.testing.devices import read, sample

SIZE = 3 << 20
CONTENT = sample(SIZE)


@pytest.fixture(autouse=True)
def no_thread_left() -> Any:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def source() -> MemoryDevice:
    return MemoryDevice.from_bytes(CONTENT)


def dirty(size: int = SIZE) -> MemoryDevice:
    made = MemoryDevice(size)
    made.write_from(0, b"\xaa" * size)
    return made


def lost() -> ConnectionLost:
    return ConnectionLost("planned")


class List:
    """A sequential writer into a list that fails where it is told to."""

    name = "list"
    capacity = SIZE
    unit = 65536

    def __init__(self, fail_encode: int = -1, fail_append: int = -1) -> None:
        self.fail_encode, self.fail_append = fail_encode, fail_append
        self.encoded = 0
        self.lock = threading.Lock()
        self.parts: list[tuple[int, bytes]] = []

    def encode(self, offset: int, data: memoryview) -> tuple[int, bytes]:
        with self.lock:
            self.encoded += 1
            if self.encoded == self.fail_encode:
                raise lost()
        return offset, bytes(data)

    def append(self, encoded: tuple[int, bytes]) -> None:
        if len(self.parts) + 1 == self.fail_append:
            raise lost()
        assert not self.parts or encoded[0] >= self.parts[-1][0] + len(self.parts[-1][1])
        self.parts.append(encoded)

    def finish(self) -> None: ...

    def abort(self) -> None: ...

    def content(self) -> bytes:
        made = bytearray(SIZE)
        for offset, data in self.parts:
            made[offset : offset + len(data)] = data
        return bytes(made)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("act", ["read", "write", "zero"])
def test_each_call_failing_in_turn(act: Act, workers: int) -> None:
    nth = 1
    while True:
        plan = [Fault(act, lost, nth=nth)]
        origin = Faults(source(), plan if act == "read" else [])
        target = Faults(dirty(), plan if act != "read" else [])
        try:
            copy(origin, target, workers=workers, block=65536 * 4)
        except ConnectionLost:
            pass
        else:
            break
        # The same call does not fail again: trying once more is enough.
        copy(origin, target, workers=workers, block=65536 * 4)
        assert read(target, 0, SIZE) == CONTENT
        nth += 1
    assert nth > 2
    assert read(target, 0, SIZE) == CONTENT


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("which", ["fail_encode", "fail_append"])
def test_each_call_of_a_sequential_writer_failing(which: str, workers: int) -> None:
    nth = 1
    while True:
        writer = List(**{which: nth})
        try:
            copy(source(), writer, workers=workers, block=65536, target_is_zero=True)
        except ConnectionLost:
            nth += 1
            continue
        break
    assert nth > 20
    assert writer.content() == CONTENT


class SmallBatches(MemoryDevice):
    """Many batches out of little data, so that windows fill."""

    @property
    def io_batch(self) -> int:
        return 65536


def test_a_source_failing_behind_a_full_window() -> None:
    """Workers that wait for their turn are let go when the one whose turn it is fails."""
    inner = SmallBatches(SIZE)
    inner.write_from(0, b"x" * SIZE)
    origin = Faults(inner, [Fault("read", lost, within=(0, 1), delay=0.2)])
    writer = List()
    with pytest.raises(ConnectionLost):
        copy(origin, writer, workers=3, block=65536, target_is_zero=True)
    assert origin.calls["read"] <= 6, "no more batches are begun before the first one ends"
    assert writer.parts == []


def test_compare_tells_the_lowest_difference_though_it_is_found_last() -> None:
    a, b = SmallBatches(SIZE), SmallBatches(SIZE)
    for offset in (0, 70_000):
        a.write_from(offset, b"x")
    b.write_from(65536, b"\0" * 65536)
    late = Faults(b, [Fault("read", within=(0, 1), delay=0.2)])
    assert compare(a, late, workers=2, block=65536) == 0


def test_the_error_is_the_first_one_and_keeps_its_cause() -> None:
    cause = OSError("wire cut")

    def broken() -> ConnectionLost:
        error = ConnectionLost("planned")
        error.__cause__ = cause
        return error

    with pytest.raises(ConnectionLost) as caught:
        copy(Faults(source(), [Fault("read", broken)]), dirty(), workers=3)
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("act", ["read", "write"])
def test_compare_surfaces_errors(act: str) -> None:
    a, b = Faults(source(), [Fault("read", lost, nth=2)]), source()
    pair = (a, b) if act == "read" else (b, a)
    with pytest.raises(ConnectionLost):
        compare(*pair, block=65536)
    assert compare(*pair, block=65536) is None


@pytest.mark.parametrize("hook", ["observe", "progress"])
def test_a_failing_callback_ends_the_copy(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdkit.block.copy._PROGRESS_INTERVAL", 0.0)

    def fail(*_: object) -> None:
        raise ValueError("in the callback")

    hooks: dict[str, Callable[..., None]] = {hook: fail}
    with pytest.raises(ValueError, match="in the callback"):
        copy(source(), dirty(), **hooks)  # type: ignore[arg-type]  # one of two hooks


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("when", [1, 3, 7])
def test_cancelled_while_copying(when: int, sequential: bool) -> None:
    token, seen = CancelToken(), 0

    def observe(offset: int, view: memoryview) -> None:
        nonlocal seen
        seen += 1
        if seen == when:
            token.cancel()

    target = List() if sequential else dirty()
    with pytest.raises(Cancelled):
        copy(source(), target, block=65536, observe=observe, cancel=token)
    with pytest.raises(Cancelled):
        copy(source(), target, cancel=token)  # cancelled before it began
    assert not token._callbacks, "nothing piles up in a token that outlives its copies"


def test_interrupted_from_the_keyboard(monkeypatch: pytest.MonkeyPatch) -> None:
    fired = threading.Event()

    def observe(offset: int, view: memoryview) -> None:
        if not fired.is_set():
            fired.set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    slow = Faults(source(), [Fault("read", delay=0.01)])
    # A run in the background may have begun with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            copy(slow, dirty(), block=65536, observe=observe)
    finally:
        signal.signal(signal.SIGINT, before)


def test_progress_comes_from_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdkit.block.copy._PROGRESS_INTERVAL", 0.0)
    inside = threading.Lock()
    told: list[CopyProgress] = []

    def progress(state: CopyProgress) -> None:
        assert inside.acquire(blocking=False)
        told.append(state)
        inside.release()

    copy(source(), dirty(), workers=6, block=65536, progress=progress)
    assert [t.done for t in told] == sorted(t.done for t in told)
    assert told[-1].done == told[-1].total == SIZE


def test_refused_before_anything_is_written() -> None:
    target = dirty(SIZE - 1)
    aligned = dirty()
    aligned._alignment = 512
    closed = MemoryDevice(SIZE, writable=False)
    from vdkit.block.extent import RangeSet

    for call in (
        lambda: copy(source(), target),
        lambda: copy(source(), dirty(), ranges=RangeSet([(SIZE - 10, 11)])),
        lambda: copy(source(), aligned, ranges=RangeSet([(100, 512)])),
        lambda: copy(source(), aligned, block=1000),
        lambda: copy(source(), dirty(), workers=0),
    ):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(ReadOnly):
        copy(source(), closed)
    assert read(target, 0, SIZE - 1) == b"\xaa" * (SIZE - 1)
    assert read(aligned, 0, SIZE) == b"\xaa" * SIZE
