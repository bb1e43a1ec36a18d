"""Writing streamOptimized disks in one pass: full ones, and deltas of a parent.

Source of facts: VMware's "Virtual Disk Format 5.0" and the shape that ESXi exports, which every reader
tried takes: header, descriptor, ascending grains with each group's table behind it, directory, footer, and
exactly one end marker as the last sector. Every grain is stored at its full length. Until it is finished
the file starts with letters that no reader takes for a disk.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self

from vdkit.block.copy import zero_test
from vdkit.block.device import WritableDevice
from vdkit.block.store import Store
from vdkit.errors import Closed, LimitExceeded, UsageError, VixError
from vdkit.vmdk import markers
from vdkit.vmdk.cid import new_cid, new_long_id
from vdkit.vmdk.codec import Codec, compressor
from vdkit.vmdk.extentline import Access, ExtentLine
from vdkit.vmdk.header import (
    COMPRESS_DEFLATE,
    ENTRIES_PER_TABLE,
    FLAG_COMPRESSED,
    FLAG_MARKERS,
    FLAG_NEWLINES,
    GD_AT_END,
    UNFINISHED_MAGIC,
    SparseHeader,
)
from vdkit.vmdk.kinds import SECTOR, DiskType
from vdkit.vmdk.names import base_name
from vdkit.vmdk.sparse import DESCRIPTOR_SECTORS
from vdkit.vmdk.tables import u32_bytes
from vdkit.vmdk.template import Parent, base_ddb, disk_sectors, new_descriptor

GRAIN_SECTORS = 128
GRAIN = GRAIN_SECTORS * SECTOR
#: Sector at which the grains begin.
_FIRST_SECTOR = 128
_GROWTH = 64 << 20
_MAX_SECTOR = 0xFFFFFFFF


class Part(NamedTuple):
    """Grains of one group: ``(index in the group, sector in the blob)`` and their records, joined."""

    group: int
    grains: list[tuple[int, int]]
    blob: bytes


class StreamWriter:
    """A :class:`~vdkit.block.sequential.SequentialWriter` that makes ``name`` in ``store``.

    It never replaces a file.

    ``codec`` and ``level``: see :func:`~vdkit.vmdk.codec.compressor`. With ``parent_cid`` and
    ``parent_hint`` the disk is a delta: what is not written is the parent's, and zeroes are stored.
    Without, zero grains are left out. Not ``durable``: finishing leaves writing out to the operating
    system.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        capacity: int,
        *,
        codec: Codec = Codec.DENSE,
        level: int | None = None,
        parent_cid: int | None = None,
        parent_hint: str | None = None,
        adapter: str = "lsilogic",
        hardware_version: int | None = None,
        sector_size: int = SECTOR,
        cid: int | None = None,
        ddb: Mapping[str, str] | None = None,
        durable: bool = True,
    ) -> None:
        """``capacity`` in bytes, a multiple of 512; ``ddb`` adds to or replaces entries of the disk
        database.
        """
        self.name = f"{store.name}/{name}"
        self.capacity = capacity
        self.unit = GRAIN
        self._header = _header(capacity, self.name)
        self._parent = _parent(parent_cid, parent_hint, self.name)
        self.cid = new_cid() if cid is None else cid
        self._compress = compressor(codec, level)
        self._zero_record = b"".join(self._record(0, memoryview(bytes(GRAIN)))) if self._parent else b""
        if self._parent is None:
            base = base_ddb(
                self._header.capacity,
                adapter,
                self.cid,
                hardware_version=hardware_version,
                sector_size=sector_size,
            )
        else:
            base = {"longContentID": new_long_id(self.cid)}
        descriptor = self._descriptor(name, {**base, **(ddb or {})})
        self._directory = array("I", bytes(self._header.tables * 4))
        self._group = -1
        self._table = array("I", bytes(ENTRIES_PER_TABLE * 4))
        self._last_grain = -1
        self._sector = _FIRST_SECTOR
        self._done = False
        self._durable = durable
        self._store = store
        self._short_name = name
        self._file: WritableDevice = store.create(name)
        try:
            self._grow(_FIRST_SECTOR)
            self._file.write_from(0, self._header.pack(UNFINISHED_MAGIC) + descriptor)
        except BaseException:
            self.abort()
            raise

    def _descriptor(self, name: str, ddb: Mapping[str, str]) -> bytes:
        made = new_descriptor(
            where=self.name,
            create_type=DiskType.STREAM_OPTIMIZED.value,
            extents=[ExtentLine(Access.RW, self._header.capacity, "SPARSE", base_name(name))],
            cid=self.cid,
            ddb=ddb,
            parent=self._parent,
        ).to_bytes()
        room = DESCRIPTOR_SECTORS * SECTOR
        if len(made) > room:
            raise LimitExceeded(f"{self.name}: descriptor of {len(made)} bytes does not fit its {room} bytes")
        return made

    # -- the two halves ----------------------------------------------------------------------------

    def encode(self, offset: int, data: memoryview) -> list[Part]:
        """Compress the grains of a piece; any thread, at any time."""
        end = offset + len(data)
        if (
            offset % GRAIN
            or (end % GRAIN and end != self.capacity)
            or end > self.capacity + -self.capacity % GRAIN
        ):
            raise UsageError(
                f"{self.name}: a piece of {len(data)} bytes at {offset} is not made of whole grains"
            )
        parts: list[Part] = []
        pieces: list[bytes | bytearray] = []
        grains: list[tuple[int, int]] = []
        sector = 0
        for position in range(0, len(data), GRAIN):
            number = (offset + position) // GRAIN
            record = self._grain_record(number, data[position : position + GRAIN])
            if record:
                grains.append((number % ENTRIES_PER_TABLE, sector))
                pieces += record
                sector += sum(len(piece) for piece in record) // SECTOR
            if grains and (
                number % ENTRIES_PER_TABLE == ENTRIES_PER_TABLE - 1 or position + GRAIN >= len(data)
            ):
                parts.append(Part(number // ENTRIES_PER_TABLE, grains, b"".join(pieces)))
                pieces, grains, sector = [], [], 0
        return parts

    def _grain_record(self, number: int, grain: memoryview) -> list[bytes | bytearray]:
        """Empty for zeroes that need not be stored."""
        if zero_test(grain):
            if not self._parent:
                return []
            return [(number * GRAIN_SECTORS).to_bytes(8, "little"), self._zero_record[8:]]
        if len(grain) < GRAIN:  # other readers fail on a short last grain
            grain = memoryview(bytes(grain).ljust(GRAIN, b"\0"))
        return self._record(number, grain)

    def _record(self, number: int, grain: memoryview) -> list[bytes | bytearray]:
        return markers.grain_record(number * GRAIN_SECTORS, self._compress(grain))

    def append(self, encoded: list[Part]) -> None:
        """Write a piece; one thread at a time, ascending."""
        self._check_open()
        for part in encoded:
            first = part.group * ENTRIES_PER_TABLE + part.grains[0][0]
            if first <= self._last_grain:
                raise UsageError(f"{self.name}: grain {first} comes after grain {self._last_grain}")
            if part.group != self._group:
                self._end_group()
                self._group = part.group
            for index, sector in part.grains:
                self._table[index] = self._sector + sector
            self._last_grain = part.group * ENTRIES_PER_TABLE + part.grains[-1][0]
            self._put(part.blob)

    def finish(self) -> None:
        """Write tables, footer and end marker, make it durable, and only then a disk."""
        self._check_open()
        self._end_group()
        header = self._header
        directory = u32_bytes(self._directory).ljust(header.directory_sectors * SECTOR, b"\0")
        self._put(markers.metadata(markers.GD, header.directory_sectors))
        place = self._sector
        self._put(directory)
        footer = SparseHeader(
            header.version,
            header.flags,
            header.capacity,
            header.grain,
            header.descriptor,
            header.descriptor_sectors,
            0,
            place,
            header.overhead,
            compression=header.compression,
        )
        self._put(markers.metadata(markers.FOOTER, 1) + footer.pack() + markers.metadata(markers.EOS, 0))
        self._file.resize(self._sector * SECTOR)
        if self._durable:
            self._file.flush()
        self._file.write_from(0, header.pack())
        if self._durable:
            self._file.flush()
        self._done = True
        self._file.close()

    def abort(self) -> None:
        """Close and remove the file; after :meth:`finish` it does nothing."""
        if self._done:
            return
        self._done = True
        try:
            self._file.close()
        finally:
            self._store.remove(self._short_name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Without :meth:`finish` before, the file is removed."""
        try:
            self.abort()
        except VixError:
            if error is None:
                raise

    # -- parts of the stream -----------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._done:
            raise Closed(f"{self.name}: finished or given up already")

    def _end_group(self) -> None:
        if self._group < 0:
            return
        self._put(markers.metadata(markers.GT, 4))
        self._directory[self._group] = self._sector
        self._put(u32_bytes(self._table))
        self._table = array("I", bytes(ENTRIES_PER_TABLE * 4))
        self._group = -1

    def _put(self, data: bytes) -> None:
        end = self._sector + len(data) // SECTOR
        self._grow(end)
        self._file.write_from(self._sector * SECTOR, data)
        self._sector = end

    def _grow(self, sector: int) -> None:
        if sector > _MAX_SECTOR:
            raise LimitExceeded(
                f"{self.name}: the file would grow past 2 TiB, which its tables cannot address"
            )
        if sector * SECTOR > self._file.capacity:
            self._file.resize(max(sector * SECTOR, self._file.capacity + _GROWTH))


def _header(capacity: int, where: str) -> SparseHeader:
    return SparseHeader(
        version=3,
        flags=FLAG_NEWLINES | FLAG_COMPRESSED | FLAG_MARKERS,
        capacity=disk_sectors(capacity, where),
        grain=GRAIN_SECTORS,
        descriptor=1,
        descriptor_sectors=DESCRIPTOR_SECTORS,
        redundant_directory=0,
        directory=GD_AT_END,
        overhead=_FIRST_SECTOR,
        compression=COMPRESS_DEFLATE,
    )


def _parent(cid: int | None, hint: str | None, where: str) -> Parent | None:
    if cid is None and hint is None:
        return None
    if cid is None or hint is None:
        raise UsageError(f"{where}: a delta needs both the content id and the file name of its parent")
    return Parent(cid, hint)
