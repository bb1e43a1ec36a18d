"""An open disk in VixDiskLib's shape: sectors, completions, metadata, allocated blocks.

It is a :class:`~vdkit.block.device.WritableDevice` too, so that whatever takes a device takes a handle. Calls
may come from any thread, and calls with and without a completion may be mixed (VixDiskLib answers 26000 to
that). Requests that overlap in the disk have no order among each other; ``wait`` or ``flush`` makes one.

Source of the shape: the published VDDK programming guide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Self

from vdkit.block.device import BlockDevice, ReadableBuffer, WritableBuffer, WritableDevice
from vdkit.block.extent import ExtentKind, RangeSet
from vdkit.block.forward import Forwarding
from vdkit.block.local import FolderStore
from vdkit.block.workers import CancelToken
from vdkit.disklib.constants import (
    MAX_CHUNK_NUMBER,
    MAX_CHUNK_SIZE,
    MIN_CHUNK_SIZE,
    SECTOR_SIZE,
    DiskType,
)
from vdkit.disklib.info import Info, local_info
from vdkit.disklib.requests import LOCAL_WORKERS, REMOTE_WORKERS, Completion, Request, Requests
from vdkit.disklib.resuming import ResumingDisk
from vdkit.errors import Closed, KeyNotFound, NotSupported, OutOfRange, ReadOnly, UsageError
from vdkit.vmdk import Disk

#: Bytes done, and bytes in all.
Progress = Callable[[int, int], None]


class Block(NamedTuple):
    """An allocated area, in sectors."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a local disk was opened, so that it can be opened again after its files were rewritten."""

    store: FolderStore
    name: str
    reopen: Callable[[], BlockDevice]
    allow_paths: tuple[str, ...] = ()


class DiskHandle(Forwarding):
    """Made by :meth:`Connection.open`. Close it before its connection."""

    def __init__(
        self,
        inner: BlockDevice,
        transport_mode: str,
        path: str,
        *,
        local: bool = False,
        origin: Origin | None = None,
        describe: Callable[[BlockDevice], Info] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(inner)
        self._transport_mode, self._path = transport_mode, path
        self._local, self._origin = local, origin
        self._describe = describe or local_info
        self._requests = Requests(self._name, LOCAL_WORKERS if local else REMOTE_WORKERS)
        self.notes = notes

    @property
    def transport_mode(self) -> str:
        """``file``, ``nbd`` or ``nbdssl``: the one in use, whatever was asked for."""
        return self._transport_mode

    def get_transport_mode(self) -> str:
        """The same, by VixDiskLib's name."""
        return self._transport_mode

    @property
    def path(self) -> str:
        return self._path

    @property
    def origin(self) -> Origin | None:
        """None for a raw image and for a remote disk."""
        return self._origin

    # -- reading and writing ---------------------------------------------------------------------

    def read(self, start_sector: int, num_sectors: int, buffer: WritableBuffer | None = None) -> memoryview:
        """The bytes of the sectors, in ``buffer`` if given. Raises OutOfRange, Closed, read errors."""
        view = self._room(start_sector, num_sectors, buffer)
        self.read_into(start_sector * SECTOR_SIZE, view)
        return view

    def write(self, start_sector: int, data: ReadableBuffer) -> None:
        """Write whole sectors. Raises ReadOnly, OutOfRange, Closed, write errors."""
        self.write_from(start_sector * SECTOR_SIZE, self._sectors_of(start_sector, data))

    def read_async(
        self,
        start_sector: int,
        num_sectors: int,
        buffer: WritableBuffer,
        completion: Completion | None = None,
    ) -> Request:
        """Begin to read into ``buffer``, which is the disk's until ``completion`` is called with the result.

        The request that is returned can be cancelled as long as it has not begun. The completion is called in
        a thread of the disk, perhaps before this call returns. Without one, an error is raised by the next
        :meth:`wait`, :meth:`flush` or :meth:`close`. Errors of the arguments are raised here, and no
        completion follows.
        """
        view = self._room(start_sector, num_sectors, buffer)
        return self._requests.submit(lambda: self.read_into(start_sector * SECTOR_SIZE, view), completion)

    def write_async(
        self, start_sector: int, data: ReadableBuffer, completion: Completion | None = None
    ) -> Request:
        """Begin to write; as :meth:`read_async`. ``data`` must not change until the completion."""
        view = self._sectors_of(start_sector, data)
        return self._requests.submit(lambda: self.write_from(start_sector * SECTOR_SIZE, view), completion)

    def cancel(self) -> int:
        """Cancel the requests that have not begun; how many those were. Their completions get Cancelled.

        What has begun goes on, and :meth:`wait` waits for it.
        """
        return self._requests.cancel()

    def wait(self) -> None:
        """Until every request begun before has ended; raises the error that no completion was told of."""
        self._requests.wait()

    def flush(self) -> None:
        """Wait, then make everything written durable."""
        self._requests.wait()
        super().flush()

    def close(self) -> None:
        """Wait for requests that are under way, join their threads, close the disk. Twice is fine."""
        self._requests.refuse_own_thread("close")
        try:
            self._requests.close()
        finally:
            super().close()

    def __enter__(self) -> Self:
        return self

    def _room(self, start: int, count: int, buffer: WritableBuffer | None) -> memoryview:
        self._check_sectors(start, count)
        size = count * SECTOR_SIZE
        view = memoryview(bytearray(size) if buffer is None else buffer)
        if not view.c_contiguous:
            raise UsageError(f"{self._name}: the buffer must be contiguous")
        view = view.cast("B")
        if view.readonly or len(view) < size:
            raise UsageError(
                f"{self._name}: {count} sectors need a writable buffer of {size} bytes, not {len(view)}"
            )
        return view[:size]

    def _sectors_of(self, start: int, data: ReadableBuffer) -> memoryview:
        view = memoryview(data)
        if not view.c_contiguous or view.nbytes % SECTOR_SIZE:
            raise UsageError(
                f"{self._name}: {view.nbytes} bytes are not whole sectors of {SECTOR_SIZE}",
                remedy="pad them",
            )
        if not self._writable:
            raise ReadOnly(f"{self._name}: opened read-only", remedy="open it without READ_ONLY")
        self._check_sectors(start, view.nbytes // SECTOR_SIZE)
        return view.cast("B")

    def _check_sectors(self, start: int, count: int) -> None:
        if self._closing:
            raise Closed(f"{self._name}: closed")
        whole = self._capacity // SECTOR_SIZE
        if start < 0 or count < 0 or start + count > whole:
            raise OutOfRange(
                f"{self._name}: sectors {start} to {start + count} are outside the {whole} of the disk"
            )

    # -- what it is ------------------------------------------------------------------------------

    def get_info(self) -> Info:
        """Geometry, capacity, adapter, links, identity."""
        self._check_open()
        return self._describe(self._inner)

    def query_allocated_blocks(
        self, start_sector: int = 0, num_sectors: int | None = None, chunk_sectors: int = MIN_CHUNK_SIZE
    ) -> list[Block]:
        """The areas in which something is allocated, widened to multiples of ``chunk_sectors``.

        ``num_sectors`` None, or more than there are, means up to the end of the disk (VixDiskLib refuses
        what reaches past it). What is not in the answer reads as zeroes; of a single link, it may be in the
        parent. Raises UsageError for a chunk below 128 or above 131072, and for more than 524288 chunks.
        """
        self._check_open()
        whole = self._capacity // SECTOR_SIZE
        if not MIN_CHUNK_SIZE <= chunk_sectors <= MAX_CHUNK_SIZE:
            raise UsageError(
                f"{self._name}: a chunk of {chunk_sectors} sectors is not between {MIN_CHUNK_SIZE} "
                f"and {MAX_CHUNK_SIZE}"
            )
        count = whole - start_sector if num_sectors is None else num_sectors
        if start_sector < 0 or count < 0 or start_sector > whole:
            raise UsageError(
                f"{self._name}: sectors {start_sector} to {start_sector + count} are outside the {whole} "
                "of the disk"
            )
        count = min(count, whole - start_sector)
        if count // chunk_sectors > MAX_CHUNK_NUMBER:
            raise UsageError(
                f"{self._name}: {count // chunk_sectors} chunks are over the limit of {MAX_CHUNK_NUMBER}",
                remedy="ask for a part at a time or in larger chunks",
            )
        start, length = start_sector * SECTOR_SIZE, count * SECTOR_SIZE
        data = RangeSet.from_extents(self.extents(start, length), ExtentKind.DATA)
        widened = data.aligned(chunk_sectors * SECTOR_SIZE, whole * SECTOR_SIZE).clip(start, length)
        return [Block(offset // SECTOR_SIZE, size // SECTOR_SIZE) for offset, size in widened]

    # -- metadata --------------------------------------------------------------------------------

    def get_metadata_keys(self) -> list[str]:
        """The keys of the disk database, without ``ddb.``."""
        from vdkit.vmdk.admin import read_metadata

        return list(read_metadata(self._local_disk("list the metadata of")))

    def read_metadata(self, key: str) -> str:
        """One value. Raises an error of code 16052 if there is no such key."""
        from vdkit.vmdk.admin import read_metadata_key

        if not self._local:
            return self._remote_metadata(key)
        return read_metadata_key(self._local_disk("read the metadata of"), key)

    def write_metadata(self, key: str, value: str) -> None:
        """Set one value. Raises ReadOnly, NotSupported where the disk is remote."""
        from vdkit.vmdk.admin import write_metadata

        disk = self._local_disk("write the metadata of")
        if not self._writable:
            raise ReadOnly(f"{self._name}: opened read-only", remedy="open it without READ_ONLY")
        write_metadata(disk, key, value)

    def _remote_metadata(self, key: str) -> str:
        self._check_open()
        if not isinstance(self._inner, ResumingDisk):
            raise NotSupported(f"{self._name}: it has no metadata that can be read")
        value = self._inner.metadata(key)
        if value is None:
            raise KeyNotFound(f"{self._name}: the disk has no metadata key {key!r}")
        return value

    # -- the whole disk --------------------------------------------------------------------------

    def space_needed_for_clone(self, disk_type: DiskType = DiskType.UNKNOWN) -> int:
        """Bytes that a full copy of that type takes at most; UNKNOWN is the disk's own type.

        Raises NotSupported for the own type of a disk that has none: a raw image, or one behind a host.
        """
        from vdkit.vmdk.admin import space_needed

        wanted = None if disk_type is DiskType.UNKNOWN else disk_type.vmdk
        self._check_open()
        return space_needed(self._inner, wanted)

    def shrink(self, progress: Progress | None = None, cancel: CancelToken | None = None) -> None:
        """Give grains that are all zero back. The handle must be idle; it goes on afterwards."""
        from vdkit.vmdk.admin import shrink_disk

        with self.set_aside("shrink") as (store, name, allow):
            shrink_disk(store, name, allow_paths=allow, progress=progress, cancel=cancel)

    def defragment(self, progress: Progress | None = None, cancel: CancelToken | None = None) -> None:
        """Bring grains into the order of the disk. As :meth:`shrink`; of a flat disk it does nothing."""
        from vdkit.vmdk.admin import defragment_disk

        with self.set_aside("defragment") as (store, name, allow):
            defragment_disk(store, name, allow_paths=allow, progress=progress, cancel=cancel)

    @contextmanager
    def set_aside(
        self, what: str, *, writing: bool = True
    ) -> Iterator[tuple[FolderStore, str, tuple[str, ...]]]:
        """The disk closed for a while, so that its files can be rewritten; nobody else gets in."""
        self._local_disk(what)
        origin = self._origin
        assert origin is not None
        if writing and not self._writable:
            raise ReadOnly(f"{self._name}: opened read-only", remedy="open it without READ_ONLY")
        self._requests.wait()
        with self._idle:
            if self._closing:
                raise Closed(f"{self._name}: closed")
            if self._in_progress:
                raise UsageError(f"{self._name}: another thread is using the disk, which must be idle")
            self._inner.close()
            try:
                yield origin.store, origin.name, origin.allow_paths
            finally:
                self._go_on_with(origin.reopen())

    def _go_on_with(self, device: BlockDevice) -> None:
        self._inner = device
        self._target = device if isinstance(device, WritableDevice) else None
        self._capacity = device.capacity

    def _local_disk(self, what: str) -> Disk:
        self._check_open()
        if self._origin is None or not isinstance(self._inner, Disk):
            kind = "a raw image" if self._local else f"open over {self._transport_mode}"
            raise NotSupported(f"{self._name}: cannot {what} it: it is {kind}, not a local VMDK")
        return self._inner

    def _check_open(self) -> None:
        if self._closing:
            raise Closed(f"{self._name}: closed")
