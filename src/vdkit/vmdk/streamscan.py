"""Finding the tables of a streamOptimized extent: by its footer, else by reading the whole stream.

Source of facts: VMware's "Virtual Disk Format 5.0" and streams with cut or padded ends found in the wild.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from vdkit.block.device import BlockDevice
from vdkit.errors import CorruptDisk, FormatError, LimitExceeded
from vdkit.vmdk import markers
from vdkit.vmdk.codec import InflateError, inflate
from vdkit.vmdk.header import ENTRIES_PER_TABLE, GD_AT_END, MAGIC, SparseHeader
from vdkit.vmdk.kinds import SECTOR

#: Zero bytes behind the footer that are looked over.
MAX_PADDING = 16 << 20
#: Tables that a scan may build (256 MiB of memory, 4 TiB of data at the usual grain).
MAX_SCANNED_TABLES = 1 << 17
#: Damaged grains and unknown sectors that a scan looks over before it gives up.
MAX_BAD_GRAINS = 1024
MAX_SKIPPED = 1 << 20

_CHUNK = 1 << 20
REMEDY = (
    "fetch the file again; for what is left of it: vdkit check --repair --accept-loss --to NEW "
    "(in the library recover=True)"
)


def find_footer(file: BlockDevice, header: SparseHeader, *, recover: bool) -> SparseHeader | None:
    """The footer, checked against the header; None if there is none. Raises CorruptDisk if it contradicts."""
    position = _last_used_sector(file)
    if position is None or position < 2 * SECTOR:
        return None
    data = bytearray(2 * SECTOR)
    file.read_into(position - SECTOR, data)
    marker = markers.parse(data)
    if marker.size != 0 or marker.kind != markers.FOOTER:
        return None
    if data[SECTOR : SECTOR + 4] != MAGIC:
        return None
    try:
        footer = SparseHeader.parse(bytes(data[SECTOR:]), f"{file.name}, footer")
        _check_footer(footer, header, position, file.name)
    except FormatError:
        if recover:
            return None
        raise
    return footer


def _check_footer(footer: SparseHeader, header: SparseHeader, position: int, where: str) -> None:
    if not header.same_disk(footer):
        raise CorruptDisk(f"{where}: the footer contradicts the header", remedy=REMEDY)
    end = (footer.directory + footer.directory_sectors) * SECTOR
    if footer.directory == GD_AT_END or footer.directory == 0 or end > position:
        raise CorruptDisk(
            f"{where}: the footer puts the grain directory at sector {footer.directory}, outside the file",
            remedy=REMEDY,
        )


def _last_used_sector(file: BlockDevice) -> int | None:
    """Offset of the last sector that is not all zero, looking over a bounded number of bytes."""
    end = file.capacity
    lowest = max(0, end - MAX_PADDING)
    while end > lowest:
        start = max(lowest, (end - 1) // _CHUNK * _CHUNK)
        data = bytearray(end - start)
        file.read_into(start, data)
        used = len(data.rstrip(b"\0"))
        if used:
            position: int = (start + used - 1) // SECTOR * SECTOR
            return position if position + SECTOR <= file.capacity else None
        end = start
    return None


class ScannedTables:
    """Tables built in memory by a scan."""

    entries = ENTRIES_PER_TABLE

    def __init__(self, note: str, tables: dict[int, array[int]]) -> None:
        self.note = note
        self._tables = tables

    def table(self, index: int) -> array[int] | None:
        return self._tables.get(index)

    def present(self, first: int, last: int) -> Iterator[int]:
        return iter(sorted(index for index in self._tables if first <= index < last))


def scan(file: BlockDevice, header: SparseHeader, *, recover: bool) -> ScannedTables:
    """Read the stream from its start and note every grain that opens.

    Raises CorruptDisk if the stream breaks off before its end marker, because then grains may be missing that
    would read as zeroes; ``recover`` takes what there is.
    """
    scanner = _Scanner(file, header)
    scanner.run()
    if not scanner.complete and not recover:
        raise CorruptDisk(
            f"{file.name}: the stream breaks off after {scanner.grains} grains, before its tables",
            remedy=REMEDY,
        )
    state = "its end is missing, data may be lost" if not scanner.complete else "it is complete"
    bad = f", {scanner.bad} damaged grains left out" if scanner.bad else ""
    if scanner.bad and not recover:
        raise CorruptDisk(
            f"{file.name}: the footer is unusable and {scanner.bad} grains are damaged", remedy=REMEDY
        )
    note = f"no usable footer: {scanner.grains} grains found by reading the stream; {state}{bad}"
    return ScannedTables(note, scanner.tables)


class _Scanner:
    """One pass over a stream."""

    def __init__(self, file: BlockDevice, header: SparseHeader) -> None:
        self._file = file
        self._header = header
        self._grain = header.grain * SECTOR
        self._largest = markers.largest_size(self._grain)
        self._data = memoryview(b"")
        self._start = 0
        self.tables: dict[int, array[int]] = {}
        self.grains = 0
        self.bad = 0
        self.complete = False
        self._skipped = 0

    def run(self) -> None:
        position = max(self._header.descriptor + self._header.descriptor_sectors, 1) * SECTOR
        while position + SECTOR <= self._file.capacity:
            position += self._step(position)

    def _step(self, position: int) -> int:
        """Look at one sector; how many bytes to go on."""
        sector = self._window(position, SECTOR)
        marker = markers.parse(sector)
        if marker.size == 0:
            if marker.value == 0 and marker.kind == markers.EOS:
                return self._zero_run(position)
            return self._metadata(marker)
        lba, grain = marker.value, self._header.grain
        if (
            marker.size <= self._largest
            and lba % grain == 0
            and lba < self._header.capacity
            and markers.is_zlib(sector, markers.GRAIN_HEAD)
        ):
            length = markers.GRAIN_HEAD + marker.size
            if position + length <= self._file.capacity and self._opens(position, marker):
                self._note(lba // grain, position // SECTOR)
                return markers.record_sectors(marker.size) * SECTOR
            self.bad += 1
            if self.bad > MAX_BAD_GRAINS:
                raise CorruptDisk(f"{self._file.name}: more than {MAX_BAD_GRAINS} grains are damaged")
        return self._skip()

    def _metadata(self, marker: markers.Marker) -> int:
        most = {
            markers.GT: 4,
            markers.GD: self._header.directory_sectors,
            markers.FOOTER: 1,
            markers.PROGRESS: 0,
        }
        if marker.kind not in most:
            return self._skip()
        if marker.kind in (markers.GD, markers.FOOTER):
            self.complete = True
        return SECTOR + (marker.value * SECTOR if marker.value <= most[marker.kind] else 0)

    def _skip(self) -> int:
        self._skipped += 1
        if self._skipped > MAX_SKIPPED:
            raise CorruptDisk(f"{self._file.name}: more than {MAX_SKIPPED} sectors are no part of a stream")
        return SECTOR

    def _zero_run(self, position: int) -> int:
        """The end marker is a zero sector, and so is padding: pass over all of them."""
        data = self._data[position - self._start :][: 1 << 16]
        used = len(data) - len(bytes(data).lstrip(b"\0"))
        return max(SECTOR, used // SECTOR * SECTOR)

    def _opens(self, position: int, marker: markers.Marker) -> bool:
        data = self._window(position, markers.GRAIN_HEAD + marker.size)
        try:
            plain = inflate(data[markers.GRAIN_HEAD :], self._grain)
        except InflateError:
            return False
        return len(plain) >= min(self._grain, (self._header.capacity - marker.value) * SECTOR)

    def _note(self, number: int, sector: int) -> None:
        index, at = divmod(number, ENTRIES_PER_TABLE)
        table = self.tables.get(index)
        if table is None:
            if len(self.tables) >= MAX_SCANNED_TABLES:
                raise LimitExceeded(
                    f"{self._file.name}: more than {MAX_SCANNED_TABLES} grain tables without a footer"
                )
            table = self.tables[index] = array("I", bytes(ENTRIES_PER_TABLE * 4))
        table[at] = sector
        self.grains += 1

    def _window(self, position: int, length: int) -> memoryview:
        inside = position - self._start
        if inside < 0 or inside + length > len(self._data):
            size = min(max(_CHUNK, length), self._file.capacity - position)
            buffer = bytearray(size)
            self._file.read_into(position, buffer)
            self._data, self._start, inside = memoryview(buffer), position, 0
        return self._data[inside : inside + length]
