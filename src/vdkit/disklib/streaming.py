"""Disks through pipes: a streamOptimized disk written to a binary file that cannot seek, or read from one.

The format was made for it: everything is known when it is written, and the tables come last. A reader that
gets only a part of it finds no footer, so that nothing half is ever taken for a disk.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from vdkit.block.copy import CopyProgress, CopyResult
from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.store import Store
from vdkit.block.workers import CancelToken
from vdkit.disklib.local import copy_to_stream, kind_of, new_disk
from vdkit.disklib.publish import publishing
from vdkit.errors import NotSupported, StoreError, from_os_error
from vdkit.vmdk import DiskType, receive_stream
from vdkit.vmdk.header import MAGIC, UNFINISHED_MAGIC
from vdkit.vmdk.stream_reader import StreamReader

#: What its descriptor calls a disk whose file has no name.
STREAM_NAME: Final = "disk.vmdk"


def save_stream(
    disk: BlockDevice,
    file: BinaryIO,
    *,
    name: str = STREAM_NAME,
    adapter: str = "lsilogic",
    hardware_version: int | None = None,
    fast: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> CopyResult:
    """Write a disk as a streamOptimized one to ``file``, a pipe for instance; nothing else is written there.

    ``file`` is flushed, not closed. What breaks off earlier is no disk. Raises what reading the disk and
    writing the file raise.
    """

    def tell(state: CopyProgress) -> None:
        if progress is not None:
            progress(state.done, state.total)

    return copy_to_stream(
        disk,
        _PipeStore(file, name),
        name,
        adapter=adapter,
        hardware_version=hardware_version,
        fast=fast,
        workers=workers,
        progress=tell,
        cancel=cancel,
        durable=False,
    )


def load_stream(
    file: BinaryIO,
    target: str | Path,
    *,
    to: str | DiskType,
    adapter: str = "lsilogic",
    hardware_version: int | None = None,
    split: int | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> CopyResult:
    """Make a disk of the streamOptimized one that arrives on ``file``, in one pass and a bounded memory.

    As :func:`~vdkit.disklib.local.save` otherwise: the disk has its name only once the stream has come to
    its end. Raises CorruptDisk if it breaks off, NotSupported for a delta and for a target that is a stream
    as well.
    """
    kind = kind_of(to)
    place = Path(target)
    if kind is DiskType.STREAM_OPTIMIZED:
        raise NotSupported(
            f"{place}: what arrives is a streamOptimized disk already",
            remedy="save it to the file as it is, and check it then",
        )
    began, seen = time.monotonic(), [0, 0]

    with publishing(place, overwrite=overwrite) as store:

        def make_target(reader: StreamReader) -> WritableDevice:
            seen[:] = reader.capacity, reader.grain
            return new_disk(
                store,
                place.name,
                reader.capacity,
                kind,
                adapter=adapter,
                hardware_version=hardware_version,
                split=split,
            )

        summary = receive_stream(
            file,
            make_target,
            name=str(getattr(file, "name", "stream")),
            workers=workers or 2,
            progress=progress,
            cancel=cancel,
        )
    capacity, grain = seen
    data = min(capacity, summary.grains * grain)
    return CopyResult(summary.bytes_read, data, 0, capacity - data, time.monotonic() - began)


class _PipeStore:
    """A store whose one file is the pipe."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._pipe = _Pipe(file, name)

    @property
    def name(self) -> str:
        return "(a stream)"

    def create(self, name: str, size: int = 0) -> WritableDevice:
        del name, size
        return self._pipe

    def open(self, name: str) -> BlockDevice:
        raise NotSupported(f"{name}: a stream cannot be read back")

    def open_writable(self, name: str) -> WritableDevice:
        raise NotSupported(f"{name}: a stream cannot be opened again")

    def exists(self, name: str) -> bool:
        del name
        return False

    def list(self, folder: str = "") -> list[str]:
        del folder
        return []

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        raise NotSupported(f"{old}: a stream has no name to change to {new} (replace={replace})")

    def remove(self, name: str) -> None:
        """What was written cannot be taken back; without its end it is no disk."""

    def make_folder(self, name: str) -> None:
        raise NotSupported(f"{name}: a stream has no folders")

    def substore(self, folder: str) -> Store:
        raise NotSupported(f"{folder}: a stream has no folders")


class _Pipe(BaseWritableDevice):
    """Ascending writes become one stream, gaps become zeroes.

    The writer marks a file as unfinished and puts the header right at the end. A stream cannot be changed
    later and needs no such mark: its header is right from the beginning, and the second one must be the same.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(name=f"{name} (a stream)", capacity=0, writable=True)
        self._file = file
        self._position = 0
        self._head = b""

    def _read_into(self, offset: int, view: memoryview) -> None:
        raise NotSupported(f"{self.name}: {len(view)} bytes at {offset} cannot be read back")

    def _write_from(self, offset: int, view: memoryview) -> None:
        data = bytes(view) if offset == 0 else view
        if offset == 0 and data[: len(UNFINISHED_MAGIC)] == UNFINISHED_MAGIC:
            data = MAGIC + bytes(data[len(MAGIC) :])
        if offset == 0 and self._head:
            if self._head[: len(data)] != data:
                raise StoreError(f"{self.name}: the header changed after it had been sent")
            return
        if offset < self._position:
            raise StoreError(f"{self.name}: cannot go back to offset {offset}")
        if offset == 0:
            self._head = bytes(data)
        if offset > self._position:
            self._send(memoryview(bytes(offset - self._position)))
        self._send(memoryview(data))

    def _send(self, data: memoryview) -> None:
        while data:
            try:
                count = self._file.write(data)
            except OSError as error:
                raise from_os_error(error, f"{self.name}: writing at offset {self._position}") from error
            if not count:  # None of a pipe that does not wait
                raise StoreError(f"{self.name}: writing at offset {self._position} made no progress")
            self._position += count
            data = data[count:]

    def _flush(self) -> None:
        """Nothing is durable in a pipe."""

    def _resize(self, capacity: int) -> None:
        """The end of the stream is where writing ends."""

    def _close(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise from_os_error(error, f"{self.name}: writing the last bytes") from error
