"""Defects of the data path that a review found, each shown by the smallest case: devices and tables."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator

import pytest

from vdkit.block.copy import copy
from vdkit.block.copyplan import Batch, Planner
from vdkit.block.device import BaseDevice, BaseWritableDevice, WritableBuffer
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.memory import MemoryDevice
from vdkit.disklib.resuming import ResumingDisk
from vdkit.errors import Closed, ConnectionLost
from vdkit.vmdk.tables import Tables, u32_bytes

SIZE = 1 << 20
PATIENCE = 30.0


def test_a_table_read_while_a_newer_one_is_written_does_not_stay_in_the_cache() -> None:
    """Else the grains of the newer one read as absent, and the next flush loses them for good."""
    old, new = array("I", [0] * 512), array("I", [128] * 512)

    class File(MemoryDevice):
        tables: Tables | None = None

        def read_into(self, offset: int, buffer: WritableBuffer) -> None:
            super().read_into(offset, buffer)
            if offset >= 1024 and self.tables is not None:  # a writer publishes while the reader is held up
                self.write_from(1024, u32_bytes(new))
                self.tables.put(0, new)

    file = File(SIZE)
    file.write_from(512, (2).to_bytes(4, "little"))
    file.write_from(1024, u32_bytes(old))
    file.tables = Tables(file, directory=512, count=1, entries=512, lowest=1, where="disk")
    file.tables.table(0)
    assert file.tables.table(0) == new


def test_leaving_out_zeroes_takes_no_step_for_every_mebibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thin disk of terabytes becomes a stream in the time that its data take."""

    class Empty(BaseDevice):
        def _read_into(self, offset: int, view: memoryview) -> None:
            raise AssertionError((offset, len(view)))

        def _extents(self, offset: int, length: int) -> Iterator[Extent]:
            yield Extent(offset, length, ExtentKind.ZERO)

    class Nothing:
        name, capacity, unit = "nothing", 4 << 40, 1 << 16

        def encode(self, offset: int, data: memoryview) -> None:
            raise AssertionError((offset, len(data)))

        def append(self, encoded: None) -> None:
            raise AssertionError(encoded)

        def finish(self) -> None: ...

        def abort(self) -> None: ...

    batches: list[Batch] = []
    take = Planner.take

    def counted(planner: Planner) -> Batch | None:
        batch = take(planner)
        if batch is not None:
            batches.append(batch)
        return batch

    monkeypatch.setattr(Planner, "take", counted)
    result = copy(Empty(name="empty", capacity=4 << 40), Nothing(), target_is_zero=True)
    assert result.skipped == 4 << 40
    assert len(batches) <= 1 << 14


class Session(BaseWritableDevice):
    """A connection that is lost at the first read; its map comes in two pages."""

    def __init__(self, *, broken: bool) -> None:
        super().__init__(name="host:902 [ds] a.vmdk", capacity=SIZE, writable=True)
        self.broken = broken
        self.walking, self.gone = threading.Event(), threading.Event()

    def _read_into(self, offset: int, view: memoryview) -> None:
        if self.broken:
            assert self.walking.wait(PATIENCE)
            raise ConnectionLost("host:902: gone")
        view[:] = bytes(len(view))

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length // 2, ExtentKind.DATA)
        if self.broken:
            self.walking.set()
            assert self.gone.wait(PATIENCE)
        self._enter_call()  # as a page that has to be asked for
        self._leave_call()
        yield Extent(offset + length // 2, length - length // 2, ExtentKind.ZERO)

    def _write_from(self, offset: int, view: memoryview) -> None:
        raise AssertionError((offset, len(view)))

    def _flush(self) -> None: ...

    def _close(self) -> None:
        self.gone.set()


def test_a_map_in_work_outlives_a_failure_that_another_thread_waits_out() -> None:
    """The session is closed at once, but a new one is opened only after the pause: not an error meanwhile."""
    sessions: list[Session] = []
    mapped = threading.Event()
    found: list[object] = []

    def opener() -> Session:
        sessions.append(Session(broken=not sessions))
        return sessions[-1]

    def walk(disk: ResumingDisk) -> None:
        try:
            found.extend(disk.extents())
        except Closed as error:
            found.append(error)
        mapped.set()

    def pause(_seconds: float) -> None:
        assert mapped.wait(PATIENCE)

    with ResumingDisk(opener, sleep=pause) as disk:
        walker = threading.Thread(target=walk, args=(disk,))
        walker.start()
        disk.read_into(0, bytearray(512))
        walker.join()
    assert found == [Extent(0, SIZE // 2, ExtentKind.DATA), Extent(SIZE // 2, SIZE // 2, ExtentKind.ZERO)]
    assert [session.closed for session in sessions] == [True, True]


def test_a_map_that_is_walked_after_the_disk_was_closed_opens_nothing() -> None:
    sessions: list[Session] = []

    def opener() -> Session:
        sessions.append(Session(broken=False))
        return sessions[-1]

    disk = ResumingDisk(opener)
    runs = disk.extents()
    disk.close()
    with pytest.raises(Closed):
        next(runs)
    assert len(sessions) == 1
