"""The waist: a block device is bytes by offset, a fixed capacity and an allocation map.

Rules that every implementation keeps (``vdkit.testing.devices`` holds the suite that shows it):

* Offsets, lengths and capacities are bytes.
* ``read_into`` fills the whole buffer or raises; nothing is returned, nothing is short.
* Any call may come from any thread at any time; there is no position. A device that cannot locks inside.
* ``extents`` yields ascending, contiguous, coalesced runs that cover exactly the question.
* ``read_many`` and ``write_many`` take a batch of pieces; a device behind a network keeps them all in flight.
* ``close`` waits for calls in progress; later calls raise :class:`~vdkit.errors.Closed`; twice is fine.

Implementers subclass :class:`BaseDevice` or :class:`BaseWritableDevice` and write only the underscore
methods: arguments have been checked, the device is open, buffers are flat byte views of length > 0.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from mmap import mmap
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from vdkit.block.extent import Extent, ExtentKind, coalesce
from vdkit.errors import Closed, NotSupported, OutOfRange, ReadOnly, UsageError

WritableBuffer = bytearray | memoryview | mmap
ReadableBuffer = bytes | bytearray | memoryview | mmap

#: No disk that any VMware product documents is larger; a bound on what a header may claim.
MAX_CAPACITY = 1 << 62
#: Bytes per call at which a local file is at full speed.
DEFAULT_IO_BATCH = 1 << 20
#: Zeroes for devices that have no better way to write them.
_ZERO_CHUNK = bytes(1 << 20)


@runtime_checkable
class BlockDevice(Protocol):
    """Bytes by offset. See the module's rules."""

    @property
    def name(self) -> str:
        """What to call it in a message: a path, ``host:port [ds] vm/vm.vmdk``."""

    @property
    def capacity(self) -> int:
        """Size in bytes."""

    @property
    def sector_size(self) -> int:
        """Logical sector size in bytes that the disk shows to a guest (1 for a plain byte object)."""

    @property
    def alignment(self) -> int:
        """Offsets and lengths must be multiples of this (the tail at ``capacity`` excepted); 1 = any."""

    @property
    def io_batch(self) -> int:
        """Bytes that one ``read_many`` or ``write_many`` should carry to go at full speed: a hint."""

    @property
    def writable(self) -> bool: ...

    def read_into(self, offset: int, buffer: WritableBuffer) -> None: ...

    def read_many(self, pieces: Sequence[tuple[int, WritableBuffer]]) -> None: ...

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class WritableDevice(BlockDevice, Protocol):
    """A :class:`BlockDevice` that can be changed."""

    def write_from(self, offset: int, buffer: ReadableBuffer) -> None: ...

    def write_many(self, pieces: Sequence[tuple[int, ReadableBuffer]]) -> None: ...

    def write_zeroes(self, offset: int, length: int) -> None: ...

    def flush(self) -> None:
        """Returns once everything written before is durable."""

    def resize(self, capacity: int) -> None: ...


class BaseDevice(ABC):
    """Checks once for every device: range, alignment, closed, read-only; counts calls in progress."""

    def __init__(
        self, *, name: str, capacity: int, sector_size: int = 512, alignment: int = 1, writable: bool = False
    ) -> None:
        if not 0 <= capacity <= MAX_CAPACITY:
            raise UsageError(f"{name}: capacity {capacity} is not between 0 and {MAX_CAPACITY}")
        self._name = name
        self._capacity = capacity
        self._sector_size = sector_size
        self._alignment = alignment
        self._writable = writable
        self._idle = threading.Condition()
        self._in_progress = 0
        self._closing = False
        self._closed = False

    # -- what it is ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def sector_size(self) -> int:
        return self._sector_size

    @property
    def alignment(self) -> int:
        return self._alignment

    @property
    def io_batch(self) -> int:
        return DEFAULT_IO_BATCH

    @property
    def writable(self) -> bool:
        return self._writable

    @property
    def closed(self) -> bool:
        return self._closing

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {self._capacity} bytes>"

    # -- calls -----------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: WritableBuffer) -> None:
        """Fill ``buffer`` with the bytes at ``offset``."""
        view = _flat(buffer)
        if view.readonly:
            raise UsageError(f"{self._name}: read_into needs a writable buffer")
        self._check_range(offset, len(view))
        self._enter_call()
        try:
            if len(view):
                self._read_into(offset, view)
        finally:
            self._leave_call()

    def read_many(self, pieces: Sequence[tuple[int, WritableBuffer]]) -> None:
        """Fill every ``(offset, buffer)``; on an error the content of all the buffers is undefined."""
        checked: list[tuple[int, memoryview]] = []
        for offset, buffer in pieces:
            view = _flat(buffer)
            if view.readonly:
                raise UsageError(f"{self._name}: read_many needs writable buffers")
            self._check_range(offset, len(view))
            if len(view):
                checked.append((offset, view))
        self._enter_call()
        try:
            if checked:
                self._read_many(checked)
        finally:
            self._leave_call()

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The allocation map of ``[offset, offset + length)``; ``length`` None means up to the end."""
        if length is None:
            length = self._capacity - offset
        self._check_range(offset, length, aligned=False)
        if self._closing:
            raise Closed(f"{self._name}: closed")
        if length == 0:
            return iter(())
        return coalesce(self._extents(offset, length))

    def close(self) -> None:
        with self._idle:
            already = self._closing
            self._closing = True
            self._idle.wait_for(lambda: self._in_progress == 0 and (not already or self._closed))
            if already:
                return
        try:
            self._close()
        finally:
            with self._idle:
                self._closed = True
                self._idle.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- for implementers ------------------------------------------------------------------------

    @abstractmethod
    def _read_into(self, offset: int, view: memoryview) -> None: ...

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Override where requests can be in flight together."""
        for offset, view in pieces:
            self._read_into(offset, view)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Runs that cover exactly the question; neighbours of one kind are joined by the caller."""
        yield Extent(offset, length, ExtentKind.DATA)

    def _close(self) -> None:
        """Release what is held; called once, with no other call in progress."""

    # -- checks ----------------------------------------------------------------------------------

    def _enter_call(self) -> None:
        with self._idle:
            if self._closing:
                raise Closed(f"{self._name}: closed")
            self._in_progress += 1

    def _leave_call(self) -> None:
        with self._idle:
            self._in_progress -= 1
            if self._closing and self._in_progress == 0:
                self._idle.notify_all()

    def _check_range(self, offset: int, length: int, *, aligned: bool = True) -> None:
        end = offset + length
        if offset < 0 or length < 0 or end > self._capacity:
            raise OutOfRange(
                f"{self._name}: bytes {offset} to {end} are outside the {self._capacity} bytes of the disk"
            )
        unit = self._alignment
        if unit > 1 and aligned and (offset % unit or (length % unit and end != self._capacity)):
            raise UsageError(
                f"{self._name}: offset {offset} and length {length} must be multiples of {unit} bytes",
                remedy="wrap it in vdkit.block.compose.Unaligned",
            )


class BaseWritableDevice(BaseDevice):
    """A :class:`BaseDevice` with the writing half; ``writable=False`` refuses every change."""

    def write_from(self, offset: int, buffer: ReadableBuffer) -> None:
        """Write all of ``buffer`` at ``offset``."""
        view = _flat(buffer)
        self._check_write(offset, len(view))
        self._enter_call()
        try:
            if len(view):
                self._write_from(offset, view)
        finally:
            self._leave_call()

    def write_many(self, pieces: Sequence[tuple[int, ReadableBuffer]]) -> None:
        """Write every ``(offset, buffer)``; after an error any of them may or may not have been written."""
        checked: list[tuple[int, memoryview]] = []
        for offset, buffer in pieces:
            view = _flat(buffer)
            self._check_write(offset, len(view))
            if len(view):
                checked.append((offset, view))
        self._enter_call()
        try:
            if checked:
                self._write_many(checked)
        finally:
            self._leave_call()

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zeroes, giving space back where the format can."""
        self._check_write(offset, length)
        self._enter_call()
        try:
            if length:
                self._write_zeroes(offset, length)
        finally:
            self._leave_call()

    def flush(self) -> None:
        """Return once everything written before is durable."""
        self._enter_call()
        try:
            if self._writable:
                self._flush()
        finally:
            self._leave_call()

    def resize(self, capacity: int) -> None:
        """Change the capacity, in bytes; new space reads as zeroes."""
        if not self._writable:
            raise ReadOnly(f"{self._name}: opened read-only")
        if not 0 <= capacity <= MAX_CAPACITY:
            raise UsageError(f"{self._name}: capacity {capacity} is not between 0 and {MAX_CAPACITY}")
        self._enter_call()
        try:
            self._resize(capacity)
            self._capacity = capacity
        finally:
            self._leave_call()

    def _check_write(self, offset: int, length: int) -> None:
        if not self._writable:
            raise ReadOnly(f"{self._name}: opened read-only")
        self._check_range(offset, length)

    @abstractmethod
    def _write_from(self, offset: int, view: memoryview) -> None: ...

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Override where requests can be in flight together."""
        for offset, view in pieces:
            self._write_from(offset, view)

    def _write_zeroes(self, offset: int, length: int) -> None:
        zeroes = memoryview(_ZERO_CHUNK)
        while length:
            step = min(length, len(zeroes))
            self._write_from(offset, zeroes[:step])
            offset += step
            length -= step

    @abstractmethod
    def _flush(self) -> None: ...

    def _resize(self, capacity: int) -> None:
        raise NotSupported(f"{self._name}: this device has a fixed size and cannot become {capacity} bytes")


def _flat(buffer: ReadableBuffer) -> memoryview:
    view = memoryview(buffer)
    if view.ndim == 1 and view.itemsize == 1 and view.format == "B":
        return view
    if not view.c_contiguous:
        raise UsageError("the buffer must be contiguous")
    return view.cast("B")
