"""The disk that comes back: what fails for a passing reason is done again, nothing else is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vdkit.block.device import BaseWritableDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.memory import MemoryDevice
from vdkit.block.workers import CancelToken
from vdkit.disklib.resuming import (
    DEFAULT_ATTEMPTS,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    MAP_WINDOW,
    OPEN_ATTEMPTS,
    ResumingDisk,
)
from vdkit.errors import (
    Cancelled,
    ConnectionLost,
    ConnectionRefused,
    HostFileLocked,
    HostOutOfMemory,
    ProtocolError,
    TicketRefused,
    TrustError,
    VixError,
)
from vdkit.testing.devices import DeviceConformance

SIZE = 8 << 20
UNIT = 1 << 16


class Flaky(BaseWritableDevice):
    """A session on shared memory: it raises what ``failures`` holds for the next calls, then it is broken."""

    def __init__(
        self, memory: MemoryDevice, failures: deque[VixError | None], *, capacity: int = SIZE
    ) -> None:
        super().__init__(name="host:902 [ds] a.vmdk", capacity=capacity, writable=True)
        self._memory, self._failures = memory, failures
        self.broken: VixError | None = None

    def _step(self) -> None:
        if self.broken is None and self._failures:
            self.broken = self._failures.popleft()
        if self.broken is not None:
            raise self.broken

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._step()
        self._memory.read_into(offset, view)

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._step()
        self._memory.read_many(pieces)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._step()
        self._memory.write_from(offset, view)

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._step()
        self._memory.write_many(pieces)

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._step()
        self._memory.write_zeroes(offset, length)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length // 2, ExtentKind.DATA)
        self._step()
        yield Extent(offset + length // 2, length - length // 2, ExtentKind.ZERO)

    def _flush(self) -> None:
        self._step()


class Host:
    """Opens sessions on one memory; ``failures`` are shared by them all, ``opening`` fail the opening."""

    def __init__(
        self, failures: Sequence[VixError | None] = (), opening: Sequence[VixError | None] = ()
    ) -> None:
        self.memory = MemoryDevice(SIZE)
        self.failures, self.opening = deque(failures), deque(opening)
        self.opened: list[Flaky] = []
        self.pauses: list[float] = []

    def open(self) -> Flaky:
        if self.opening and (error := self.opening.popleft()) is not None:
            raise error
        self.opened.append(Flaky(self.memory, self.failures))
        return self.opened[-1]

    def disk(self, **options: object) -> ResumingDisk:
        settings: dict[str, object] = {"sleep": self.pauses.append, "jitter": lambda: 1.0, **options}
        return ResumingDisk(self.open, **settings)  # type: ignore[arg-type]


def lost() -> ConnectionLost:
    return ConnectionLost("host:902: gone")


def test_every_kind_of_call_is_resumed() -> None:
    host = Host(
        [lost(), None, HostOutOfMemory("full"), None, lost(), None, lost(), None, lost(), None, lost()]
    )
    with host.disk() as disk:
        data = bytes(range(256)) * 256
        disk.write_from(UNIT, data)
        disk.write_many([(0, data), (2 * UNIT, data)])
        found = bytearray(UNIT)
        disk.read_into(UNIT, found)
        assert found == data
        disk.read_many([(0, found)])
        disk.write_zeroes(0, UNIT)
        disk.flush()
        assert list(disk.extents()) == [
            Extent(0, SIZE // 2, ExtentKind.DATA),
            Extent(SIZE // 2, SIZE // 2, ExtentKind.ZERO),
        ]
        assert disk.reopened == 6
    assert all(device.closed for device in host.opened)


def test_refused_tickets_are_asked_for_again() -> None:
    host = Host(opening=[TicketRefused("no"), TicketRefused("no")])
    heard: list[tuple[str, float]] = []
    with host.disk(notify=lambda error, seconds: heard.append((error.message, seconds))):
        pass
    assert heard == [("no", FIRST_PAUSE), ("no", 2 * FIRST_PAUSE)]
    assert host.pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE]


def test_a_host_that_cannot_be_reached_at_all_is_told_soon() -> None:
    host = Host(opening=[ConnectionRefused("host:902: closed") for _ in range(99)])
    with pytest.raises(ConnectionRefused):
        host.disk()
    assert len(host.pauses) == OPEN_ATTEMPTS - 1
    # One that answers, and then breaks off, is given the usual time.
    host = Host(opening=[lost() for _ in range(DEFAULT_ATTEMPTS - 1)])
    with host.disk():
        assert len(host.pauses) == DEFAULT_ATTEMPTS - 1


@pytest.mark.parametrize("error", [TrustError("pin"), ProtocolError("broken")])
def test_what_does_not_pass_is_not_tried_again(error: VixError) -> None:
    with pytest.raises(type(error)):
        Host(opening=[error]).disk()
    host = Host([error])
    with host.disk() as disk, pytest.raises(type(error)):
        disk.read_into(0, bytearray(512))
    assert host.pauses == []


def test_it_gives_up_after_so_many_failures_in_a_row_and_pauses_are_bounded() -> None:
    host = Host([lost() for _ in range(99)])
    with host.disk(attempts=12) as disk:
        with pytest.raises(ConnectionLost):
            disk.read_into(0, bytearray(512))
        assert len(host.pauses) == 11
        assert max(host.pauses) == LONGEST_PAUSE
        assert host.pauses == sorted(host.pauses)
        # It is not lost for good: the host may be back later.
        host.failures.clear()
        disk.read_into(0, bytearray(512))


def test_failures_are_counted_afresh_after_a_success() -> None:
    host = Host([error for _ in range(20) for error in (lost(), None)])
    with host.disk(attempts=2) as disk:
        for _ in range(20):
            disk.read_into(0, bytearray(512))


def test_another_disk_in_its_place_is_refused() -> None:
    memory = MemoryDevice(SIZE)
    sizes = [SIZE, SIZE // 2]
    failures: deque[VixError | None] = deque([lost()])
    disk = ResumingDisk(lambda: Flaky(memory, failures, capacity=sizes.pop(0)), sleep=lambda seconds: None)
    with disk, pytest.raises(ProtocolError, match="another disk"):
        disk.read_into(0, bytearray(512))


def test_cancelling_ends_the_attempts() -> None:
    token = CancelToken()
    host = Host([lost() for _ in range(99)])
    with host.disk(cancel=token, sleep=lambda seconds: token.cancel()) as disk, pytest.raises(Cancelled):
        disk.read_into(0, bytearray(512))


def test_many_threads_share_one_new_session() -> None:
    host = Host()
    with host.disk(attempts=99) as disk:
        host.memory.write_from(0, bytes(range(256)) * 32)
        ready = threading.Barrier(8)
        wrong: list[int] = []

        def read(number: int) -> None:
            ready.wait(30)
            for _ in range(50):
                found = bytearray(256)
                disk.read_into(number * 256, found)
                if found != bytes(range(256)):
                    wrong.append(number)

        threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            host.failures.append(lost())
        for thread in threads:
            thread.join()
        assert not wrong
        assert all(device.closed for device in host.opened[:-1])


def test_the_map_of_a_huge_disk_is_asked_in_windows() -> None:
    asked: list[tuple[int, int]] = []

    class Huge(Flaky):
        def _extents(self, offset: int, length: int) -> Iterator[Extent]:
            asked.append((offset, length))
            yield Extent(offset, length, ExtentKind.ZERO)

    capacity = 2 * MAP_WINDOW + UNIT
    with ResumingDisk(lambda: Huge(MemoryDevice(UNIT), deque(), capacity=capacity)) as disk:
        assert list(disk.extents()) == [Extent(0, capacity, ExtentKind.ZERO)]
    assert asked == [(0, MAP_WINDOW), (MAP_WINDOW, MAP_WINDOW), (2 * MAP_WINDOW, UNIT)]


class EveryThird(deque[VixError | None]):
    """Never ends."""

    calls = 0

    def popleft(self) -> VixError | None:
        self.calls += 1
        return None if self.calls % 3 else lost()

    def __bool__(self) -> bool:
        return True


class TestContract(DeviceConformance):
    """It is a device like any other, also when every third call fails once."""

    def make(self, folder: Path, content: bytes) -> BaseWritableDevice:
        memory = MemoryDevice(len(content))
        memory.write_from(0, content)
        failures = EveryThird()
        return ResumingDisk(
            lambda: Mapped(memory, failures, capacity=len(content)), sleep=lambda seconds: None
        )


class Mapped(Flaky):
    """With the map of the memory."""

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._step()
        yield from self._memory.extents(offset, length)


def test_threads_that_waited_for_an_opening_share_its_failure() -> None:
    """A silent host costs its deadline once in a round, not once for each thread."""
    host = Host()
    disk = host.disk(attempts=2, sleep=lambda seconds: None)
    host.opened[-1].broken = lost()
    opening, tries = threading.Event(), 0
    others_wait = threading.Event()

    def silent() -> Flaky:
        nonlocal tries
        tries += 1
        opening.set()
        assert others_wait.wait(30)
        raise lost()

    disk._opener = silent
    ended: list[VixError] = []

    def read() -> None:
        try:
            disk._retrying(lambda device: device.read_into(0, bytearray(512)))
        except VixError as error:
            ended.append(error)

    class Watched:
        """The lock of the disk: all four are at it."""

        def __init__(self) -> None:
            self._lock, self._count, self._mutex = threading.Lock(), 0, threading.Lock()

        def __enter__(self) -> None:
            with self._mutex:
                self._count += 1
                if opening.is_set() and self._count >= 4:
                    others_wait.set()
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            with self._mutex:
                self._count -= 1
            self._lock.release()

    disk._drop(1)
    disk._lock = Watched()  # type: ignore[assignment]
    threads = [threading.Thread(target=read) for _ in range(4)]
    threads[0].start()
    assert opening.wait(30)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    disk.close()
    assert [type(error) for error in ended] == [ConnectionLost] * 4
    assert len({id(error) for error in ended}) == 4
    # Two attempts each: without sharing eight.
    assert tries < 8


def test_a_disk_that_its_lost_session_still_holds_is_tried_again() -> None:
    """Until a host has noticed that a connection is gone; one that was never open is somebody else's."""
    host = Host([lost()], [None, HostFileLocked("locked"), HostFileLocked("locked")])
    with host.disk() as disk:
        disk.read_into(0, bytearray(512))
        assert disk.reopened == 1
    with pytest.raises(HostFileLocked):
        Host(opening=[HostFileLocked("locked")]).disk()
