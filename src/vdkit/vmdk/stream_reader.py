"""Reading streamOptimized disks in one pass, from a pipe: what comes is checked as it comes.

Nothing is looked up in the tables, because they may come last; where they come first, or behind the grains of
each group, they tell how many grains there must be. So a stream that breaks off, or lacks a piece of its
middle, is noticed: at its end, when all that was whole has been handed out.

Source of facts: VMware's "Virtual Disk Format 5.0", streams exported by ESXi, and files of VMware
Workstation, qemu, open-vmdk and Xen Orchestra, whose markers do not tell how many sectors follow them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from vdkit.errors import CorruptDisk, LimitExceeded, NotADisk, NotSupported
from vdkit.vmdk import markers
from vdkit.vmdk.cid import NO_PARENT
from vdkit.vmdk.codec import InflateError, inflate
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.header import (
    ENTRIES_PER_TABLE,
    GD_AT_END,
    MAGIC,
    SparseHeader,
    check_descriptor_area,
)
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.link import check_openable, embedded_line
from vdkit.vmdk.streamfront import Input, Source, count_front
from vdkit.vmdk.streamscan import MAX_PADDING, MAX_SKIPPED
from vdkit.vmdk.tables import u32s

#: Groups of 512 grains of which it is remembered which grains came (32 TiB of data at the usual grain).
MAX_GROUPS = 1 << 20

_REMEDY = "send the stream again"


class Record(NamedTuple):
    """A grain as it came; ``sector`` is where in the stream."""

    number: int
    packed: bytes
    sector: int


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """What came; ``trailing`` are the bytes behind the end marker, ``notes`` what is unusual."""

    grains: int
    bytes_read: int
    end_marker: bool
    trailing: int
    notes: tuple[str, ...]


class StreamReader:
    """A streamOptimized disk that arrives on ``source``: standard input, a socket's file, an HTTP body.

    Making one reads header and descriptor. Iterating over it, once, yields ``(offset, bytes)`` of every grain
    that the stream holds, the last one cut to the disk's capacity, in the order of the stream; what does not
    come is zeroes, or the parent's. Then :attr:`summary` is set. Grains that come twice are refused, and with
    ``ordered`` those that come after a later one.

    Raises NotADisk, NotSupported, FormatError and its kinds: at the end, after every whole grain has been
    handed out, CorruptDisk if the stream breaks off.
    """

    def __init__(self, source: Source, *, name: str = "stream", ordered: bool = False) -> None:
        self.name = name
        self._in = Input(source, name)
        self._ordered = ordered
        self.header = _header(self._in, name)
        offset, length = check_descriptor_area(self.header, name)
        self._in.skip_to(offset)
        self.descriptor = Descriptor.parse(self._in.need(length), name)
        self._notes = check_openable(self.descriptor, name)
        sectors = embedded_line(self.descriptor, name).sectors
        if sectors > self.header.capacity:
            raise CorruptDisk(
                f"{name}: the descriptor gives this extent {sectors} sectors, "
                f"its header only {self.header.capacity}"
            )
        #: Size of the disk in bytes.
        self.capacity = sectors * SECTOR
        self.grain = self.header.grain * SECTOR
        self.summary: StreamSummary | None = None
        self._largest = markers.largest_size(self.grain)
        self._begun = False
        self._grains = 0
        self._reach = 0
        self._seen: dict[int, int] = {}
        self._highest = -1
        #: Grains that the tables name; None where they do not tell.
        self._named: int | None = None
        self._behind: int | None = 0
        #: Where the grains came, and where the tables behind them say that they are: sums of sectors.
        self._places = self._named_places = 0
        self._tables_came = False
        self._in_tables = False
        self._skipped = 0

    @property
    def has_parent(self) -> bool:
        """The stream is a delta: what does not come is the parent's."""
        return self.descriptor.parent_cid != NO_PARENT

    def __iter__(self) -> Iterator[tuple[int, bytes | bytearray]]:
        for record in self.records():
            yield record.number * self.grain, self.opened(record)

    def opened(self, record: Record) -> bytes | bytearray:
        """The plain bytes of a grain, cut to the disk's capacity; may be called from any thread."""
        place = f"{self.name}: grain {record.number} at sector {record.sector}"
        try:
            plain = inflate(record.packed, self.grain)
        except InflateError as error:
            raise CorruptDisk(f"{place}: its compressed data is damaged ({error})", remedy=_REMEDY) from error
        size = min(self.grain, self.capacity - record.number * self.grain)
        if len(plain) < size:
            raise CorruptDisk(f"{place}: only {len(plain)} bytes came out of it", remedy=_REMEDY)
        return plain if len(plain) == size else plain[:size]

    def records(self) -> Iterator[Record]:
        """The grains as they come, still compressed; see :meth:`opened`."""
        if self._begun:
            raise NotSupported(f"{self.name}: a stream can be read only once")
        self._begun = True
        self._named = count_front(self._in, self.header)
        while True:
            place = self._in.position
            sector = self._in.take(SECTOR)
            if len(sector) < SECTOR:
                self._finish(end=None)
                return
            marker = markers.parse(sector)
            if self._in_tables and not self._leaves_tables(marker, sector):
                self._skip()
            elif marker.size:
                record = self._record(marker, sector, place)
                if record is not None:
                    yield record
            elif any(sector):
                self._metadata(marker, place)
            elif self._grains or self._tables_came:
                if self._is_end(place):
                    return
            elif self._in.at_end():
                self._finish(
                    end=place
                )  # nothing but zeroes behind the front: an empty disk and its end marker
                return
            else:
                self._skip()

    # -- grains ------------------------------------------------------------------------------------

    def _record(self, marker: markers.Marker, sector: bytes, place: int) -> Record | None:
        number, rest = divmod(marker.value, self.header.grain)
        fits = not rest and marker.value * SECTOR < self.capacity and marker.size <= self._largest
        if not fits or not markers.is_zlib(sector, markers.GRAIN_HEAD):
            if place < self.header.overhead * SECTOR and not self._grains:
                self._skip()  # tables or text in front of the grains, for other readers
                return None
            raise CorruptDisk(
                f"{self.name}: sector {place // SECTOR} of the stream is no grain (its marker says sector "
                f"{marker.value}, size {marker.size})",
                remedy=_REMEDY,
            )
        packed = sector[markers.GRAIN_HEAD : markers.GRAIN_HEAD + marker.size]
        left = marker.size - len(packed)
        if left > 0:
            more = self._in.take(-(-left // SECTOR) * SECTOR)
            if len(more) < left:
                self._break_off()
            packed += more[:left]
        self._note(number, place)
        self._in_tables = False
        return Record(number, packed, place // SECTOR)

    def _note(self, number: int, place: int) -> None:
        where = f"{self.name}: grain {number} at sector {place // SECTOR}"
        if self._ordered and number <= self._highest:
            raise CorruptDisk(f"{where} comes after grain {self._highest}")
        if not self._ordered:
            group, at = divmod(number, ENTRIES_PER_TABLE)
            seen = self._seen.get(group, 0)
            if seen >> at & 1:
                raise CorruptDisk(f"{where} comes a second time")
            if not seen and len(self._seen) == MAX_GROUPS:
                raise LimitExceeded(f"{self.name}: grains of more than {MAX_GROUPS} grain tables")
            self._seen[group] = seen | 1 << at
        self._highest = max(self._highest, number)
        self._grains += 1
        self._places += place // SECTOR
        self._reach = max(self._reach, min(self.capacity, (number + 1) * self.grain))

    # -- metadata ----------------------------------------------------------------------------------

    def _metadata(self, marker: markers.Marker, place: int) -> None:
        count = marker.value
        match marker.kind:
            case markers.GT if count <= self.header.tables * 4:
                self._count(self._payload(count))
                self._in_tables = count == 0
            case markers.GD if count <= self.header.directory_sectors:
                self._payload(count)
                self._tables_came = True
                self._in_tables = count == 0
            case markers.FOOTER if count <= 1:
                self._check_footer(self._payload(1))
                self._tables_came = True
                self._in_tables = False
            case markers.PROGRESS:
                self._skip()
            case _:
                if place < self.header.overhead * SECTOR and not self._grains:
                    self._skip()
                    return
                raise CorruptDisk(
                    f"{self.name}: sector {place // SECTOR} is no part of a stream", remedy=_REMEDY
                )

    def _payload(self, sectors: int) -> bytes:
        data = self._in.take(sectors * SECTOR)
        if len(data) < sectors * SECTOR:
            self._break_off()
        return data

    def _leaves_tables(self, marker: markers.Marker, sector: bytes) -> bool:
        """True if a sector behind a marker that does not tell its length is the next marker."""
        if marker.size:
            fits = marker.size <= self._largest and marker.value % self.header.grain == 0
            return fits and marker.value * SECTOR < self.capacity and markers.is_zlib(sector, 12)
        return marker.kind in (markers.GT, markers.GD, markers.FOOTER) and not any(sector[16:])

    def _count(self, tables: bytes) -> None:
        if not tables:
            self._behind = None
        elif self._behind is not None:
            entries = u32s(tables)
            zeroed = entries.count(1)
            self._behind += len(entries) - entries.count(0) - zeroed
            self._named_places += sum(entries) - zeroed

    def _check_footer(self, data: bytes) -> None:
        where = f"{self.name}, footer"
        if data[:4] != MAGIC or not self.header.same_disk(SparseHeader.parse(data, where)):
            raise CorruptDisk(f"{self.name}: the footer contradicts the header", remedy=_REMEDY)

    def _skip(self) -> None:
        self._skipped += 1
        if self._skipped > MAX_SKIPPED:
            raise CorruptDisk(f"{self.name}: more than {MAX_SKIPPED} sectors are no part of a stream")

    # -- the end -----------------------------------------------------------------------------------

    def _is_end(self, place: int) -> bool:
        """A zero sector is the end marker, unless grains that the tables name are still to come."""
        if self._named is None:
            told = self.header.directory != GD_AT_END and not self._tables_came
            early = told and not self._is_past_directory(place)
        else:
            early = self._grains < self._named
        if early and not self._in.at_end():
            self._skip()
            return False
        self._finish(end=place)
        return True

    def _is_past_directory(self, position: int) -> bool:
        """Never so where the header does not say where it is."""
        return position >= (self.header.directory + self.header.directory_sectors) * SECTOR

    def _finish(self, end: int | None) -> None:
        """``end`` is where the end marker was, if there was one."""
        if self._named is not None:
            whole = self._grains == self._named
        else:
            whole = self._tables_came or (end is not None and self._is_past_directory(self._in.position))
        if not whole or not self._tables_agree():
            self._break_off()
        trailing = 0
        if end is None:
            self._notes.append(f"{self.name}: there is no end marker; every grain came")
        else:
            trailing = self._trailing()
        self.summary = StreamSummary(
            self._grains, self._in.position, end is not None, trailing, tuple(self._notes)
        )

    def _tables_agree(self) -> bool:
        """The tables behind the grains, if their length was told, name those that came and where they came:
        whoever reads by them must see the same disk."""
        if self._named is not None or self._behind is None or not self._tables_came:
            return True
        # Xen Orchestra writes every table twice.
        came = (self._grains, self._places)
        return (self._behind, self._named_places) in (came, (came[0] * 2, came[1] * 2))

    def _break_off(self) -> NoReturn:
        named = "" if self._named is None else f" of {self._named}"
        raise CorruptDisk(
            f"{self.name}: the stream breaks off or lacks a part: {self._in.position} bytes came, with "
            f"{self._grains}{named} grains, up to offset {self._reach} of the disk's {self.capacity} bytes",
            remedy=_REMEDY,
        )

    def _trailing(self) -> int:
        """Bytes behind the end marker; what is not zero there is told."""
        count, zero = 0, True
        while piece := self._in.take(1 << 16):
            count += len(piece)
            zero = zero and not any(piece)
            if count > MAX_PADDING:
                raise LimitExceeded(f"{self.name}: more than {MAX_PADDING} bytes behind the end marker")
        if count:
            what = "zero bytes" if zero else "bytes, not all of them zero,"
            self._notes.append(f"{self.name}: {count} {what} behind the end marker")
        return count


def _header(source: Input, name: str) -> SparseHeader:
    data = source.take(SECTOR)
    if data[:2] == b"\x1f\x8b":
        raise NotADisk(f"{name}: compressed with gzip", remedy="unpack it first")
    if data[:4] != MAGIC:
        raise NotADisk(f"{name}: not a streamOptimized disk (it starts with {data[:4]!r})")
    header = SparseHeader.parse(data, name)
    if not header.compressed:
        raise NotSupported(
            f"{name}: only streamOptimized disks can be read in one pass",
            remedy="save it to a file and open that",
        )
    return header
