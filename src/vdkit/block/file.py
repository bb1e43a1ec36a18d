"""An open file or block device as a device: holes kept, short reads and writes carried on."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence

from vdkit.block import punch
from vdkit.block.device import BaseWritableDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.errors import CorruptDisk, ReadOnly, StoreError, from_os_error

#: Runs of the map that are asked of the kernel per visit, so that a close need not wait long.
_EXTENTS_PER_VISIT = 256
#: The kernel's own limit on buffers per call (IOV_MAX).
_MAX_VECTORS = 1024
#: Bytes of zeroes written per call where no hole can be punched.
_ZEROES = bytes(1 << 20)

#: A buffer of this size stays in the second-level cache between being read and being written.
_IO_BATCH = 1 << 18


class Descriptor(int):
    """The number of an open file that closes with the last reference to it.

    Who reads without a lock passes it to the call itself, which then holds it: the number cannot be given to
    another file meanwhile.
    """

    gone: threading.Lock

    def __new__(cls, number: int) -> Descriptor:
        made = super().__new__(cls, number)
        made.gone = threading.Lock()
        made.gone.acquire()
        return made

    def __del__(self) -> None:
        # Nothing was written by it, so that closing has nothing to tell.
        with contextlib.suppress(OSError):
            os.close(self)
        self.gone.release()


class FileDevice(BaseWritableDevice):
    """An open file or block device; made by :class:`FolderStore` or :func:`open_file`."""

    def __init__(
        self,
        descriptor: int,
        *,
        name: str,
        capacity: int,
        sector_size: int = 1,
        writable: bool = False,
        is_file: bool = True,
        folder: int | None = None,
    ) -> None:
        """Takes over both descriptors; ``folder`` is a new file's: the first flush makes the name durable."""
        super().__init__(name=name, capacity=capacity, sector_size=sector_size, writable=writable)
        self._descriptor = descriptor if writable else Descriptor(descriptor)
        self._holders: list[Callable[[], None]] = []
        self._is_file = is_file
        self._folder = folder
        self._folder_lock = threading.Lock()

    @property
    def io_batch(self) -> int:
        return _IO_BATCH

    @property
    def identity(self) -> tuple[int, int]:
        """What two names of one file have in common."""
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def hold(self, let_go: Callable[[], None]) -> Descriptor | None:
        """The open file, for reads past this device; None if it is writable. ``let_go`` is called when the
        device closes, and must drop it; who keeps it while that may have begun asks ``closed`` afterwards."""
        self._holders.append(let_go)
        held = self._descriptor
        return held if isinstance(held, Descriptor) else None

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_vectors(offset, [view])

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        for offset, views in _adjacent(pieces):
            self._read_vectors(offset, views)

    def _read_vectors(self, offset: int, views: list[memoryview]) -> None:
        while views:
            try:
                count = os.preadv(self._descriptor, views, offset)
            except OSError as error:
                raise from_os_error(error, f"{self.name}: reading at offset {offset}") from error
            if count == 0:
                raise CorruptDisk(
                    f"{self.name}: the file ends at or before offset {offset}, "
                    f"{self.capacity} bytes were expected",
                    remedy="it was cut short after it was opened or made",
                )
            offset += count
            views = _rest(views, count)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._write_vectors(offset, [view])

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        for offset, views in _adjacent(pieces):
            self._write_vectors(offset, views)

    def _write_vectors(self, offset: int, views: list[memoryview]) -> None:
        while views:
            try:
                count = os.pwritev(self._descriptor, views, offset)
            except OSError as error:
                raise from_os_error(error, f"{self.name}: writing at offset {offset}") from error
            if count == 0:
                raise StoreError(f"{self.name}: writing at offset {offset} made no progress")
            offset += count
            views = _rest(views, count)

    def _write_zeroes(self, offset: int, length: int) -> None:
        for run in list(self._allocated(offset, length)):
            try:
                done = punch.punch_hole(self._descriptor, run.offset, run.length)
            except OSError as error:
                raise from_os_error(error, f"{self.name}: clearing at offset {run.offset}") from error
            if not done:
                self._write_zero_bytes(run.offset, run.length)

    def _allocated(self, offset: int, length: int) -> Iterator[Extent]:
        """What a punch must touch: a file's data, all of a block device."""
        if not self._is_file:
            yield Extent(offset, length, ExtentKind.DATA)
            return
        end = offset + length
        while offset < end:
            for run in self._some_extents(offset, end):
                if run.kind is ExtentKind.DATA:
                    yield run
                offset = run.end

    def _write_zero_bytes(self, offset: int, length: int) -> None:
        zeroes = memoryview(_ZEROES)
        end = offset + length
        while offset < end:
            step = min(end - offset, len(zeroes))
            self._write_vectors(offset, [zeroes[:step]])
            offset += step

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        if not self._is_file:
            yield Extent(offset, length, ExtentKind.DATA)
            return
        end = offset + length
        while offset < end:
            self._enter_call()
            try:
                some = self._some_extents(offset, end)
            finally:
                self._leave_call()
            yield from some
            offset = some[-1].end

    def _some_extents(self, offset: int, end: int) -> list[Extent]:
        """The next few runs of ``[offset, end)``, at least one."""
        found: list[Extent] = []
        while offset < end and len(found) < _EXTENTS_PER_VISIT:
            try:
                data = min(os.lseek(self._descriptor, offset, os.SEEK_DATA), end)
            except OSError as error:
                if error.errno != errno.ENXIO:  # a file system that cannot tell: all of it may be data
                    found.append(Extent(offset, end - offset, ExtentKind.DATA))
                    return found
                self._refuse_short(end)
                data = end
            if data > offset:
                found.append(Extent(offset, data - offset, ExtentKind.ZERO))
            if data == end:
                return found
            try:
                hole = min(os.lseek(self._descriptor, data, os.SEEK_HOLE), end)
            except OSError:  # changed under us
                hole = end
            found.append(Extent(data, hole - data, ExtentKind.DATA))
            offset = hole
        return found

    def _refuse_short(self, end: int) -> None:
        size = os.fstat(self._descriptor).st_size
        if size < end:
            raise CorruptDisk(
                f"{self.name}: the file ends at {size}, {self.capacity} bytes were expected",
                remedy="it was cut short after it was opened or made",
            )

    def reserve(self) -> None:
        """Take all of the file's space from the file system now; what it holds stays. Raises DiskFull."""
        if not self._writable:
            raise ReadOnly(f"{self.name}: opened read-only")
        self._enter_call()
        try:
            if self._is_file and self._capacity:
                os.posix_fallocate(self._descriptor, 0, self._capacity)
        except OSError as error:
            raise from_os_error(error, f"{self.name}: reserving {self._capacity} bytes") from error
        finally:
            self._leave_call()

    def _flush(self) -> None:
        try:
            os.fdatasync(self._descriptor)
            with self._folder_lock:
                if self._folder is not None:
                    os.fsync(self._folder)
                    os.close(self._folder)
                    self._folder = None
        except OSError as error:
            raise from_os_error(error, f"{self.name}: flushing") from error

    def _resize(self, capacity: int) -> None:
        if not self._is_file:
            super()._resize(capacity)
        try:
            os.ftruncate(self._descriptor, capacity)
        except OSError as error:
            raise from_os_error(error, f"{self.name}: resizing to {capacity} bytes") from error

    def _close(self) -> None:
        try:
            if self._folder is not None:
                os.close(self._folder)
        finally:
            self._close_descriptor()

    def _close_descriptor(self) -> None:
        if isinstance(self._descriptor, Descriptor):
            gone = self._descriptor.gone
            self._descriptor = -1
            for let_go in self._holders:
                let_go()
            self._holders.clear()  # they lead back here: what is closed must not wait for the collector
            gone.acquire()  # reads in progress hold it until they end
            return
        # A network file system may tell of a failed write only here.
        try:
            os.close(self._descriptor)
        except OSError as error:
            raise from_os_error(error, f"{self.name}: closing") from error


def _adjacent(pieces: Sequence[tuple[int, memoryview]]) -> Iterator[tuple[int, list[memoryview]]]:
    """Pieces that follow each other become one call."""
    start = end = -1
    views: list[memoryview] = []
    for offset, view in pieces:
        if offset != end or len(views) == _MAX_VECTORS:
            if views:
                yield start, views
            start, views = offset, []
            end = offset
        views.append(view)
        end += len(view)
    if views:
        yield start, views


def _rest(views: list[memoryview], count: int) -> list[memoryview]:
    """What is left after ``count`` bytes."""
    for i, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[i + 1 :]] if count else views[i:]
        count -= len(view)
    return []
