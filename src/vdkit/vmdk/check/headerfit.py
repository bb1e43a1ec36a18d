"""Whether the header of a hosted sparse extent fits the file: what it points to is really there.

Source of facts: VMware's "Virtual Disk Format 5.0" and the layouts that VMware products, qemu and VirtualBox
write. Tables may also lie behind the grains: where a footer says so, and while a disk is grown.
"""

from __future__ import annotations

from dataclasses import replace

from vdkit.block.device import BlockDevice
from vdkit.errors import FormatError
from vdkit.vmdk.check.context import read
from vdkit.vmdk.header import FLAG_REDUNDANT, GD_AT_END, TABLE_SECTORS, SparseHeader
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.streamscan import find_footer
from vdkit.vmdk.tables import u32s

#: Entries of a directory that are looked at to tell whether it is one.
_SAMPLE = 64


def is_sound(file: BlockDevice, raw: bytes, sectors: int | None, *, embedded: bool) -> bool:
    """Nothing contradicts anything, and the directories are directories."""
    try:
        header = SparseHeader.parse(raw, file.name)
        header.check_layout(file.capacity, file.name)
    except FormatError:
        return False
    if sectors is not None and not _has_room(header, sectors, embedded=embedded):
        return False
    if header.compressed:
        return True
    if header.directory == GD_AT_END:
        return _has_footer(file, header)
    if header.redundant and not header.redundant_directory:
        return False
    twin = replace(header, flags=header.flags | FLAG_REDUNDANT)
    if twin != header and follows_layout(twin) and worth_of(file, twin, twin.redundant_directory) == 2:
        return False  # there is a redundant directory: it is the flag that has been lost
    worth = [worth_of(file, header, directory) for directory in directories_of(header)]
    if 0 in worth and not follows_layout(header):
        return False
    return header.overhead >= metadata_end(header) or 2 not in worth or _is_behind(header)


def _has_room(header: SparseHeader, sectors: int, *, embedded: bool) -> bool:
    """The extent line fits. A piece of a split disk may be larger than its line says: growing makes it so
    before the line follows."""
    if sectors > header.capacity:
        return False
    return header.capacity - sectors < header.grain or (not embedded and follows_layout(header))


def _is_behind(header: SparseHeader) -> bool:
    """The tables, and the descriptor with them, may lie behind the grains: growing parks them there."""
    end = header.descriptor + header.descriptor_sectors
    if follows_layout(header) and header.descriptor < header.overhead:
        return False  # in front: it is the overhead that is wrong
    apart = not header.descriptor or header.descriptor >= header.overhead or end <= header.overhead
    return apart and min(directories_of(header)) >= header.overhead


def _has_footer(file: BlockDevice, header: SparseHeader) -> bool:
    """The tables of a plain extent may be behind its grains, where a footer tells of them."""
    try:
        return find_footer(file, header, recover=False) is not None
    except FormatError:
        return False


def follows_layout(header: SparseHeader) -> bool:
    """The directories are where the products put them: if one is none, it is not the header that is wrong."""
    area = header.directory_sectors + header.tables * TABLE_SECTORS
    first = max(1, header.descriptor + header.descriptor_sectors)
    if not header.redundant:
        return header.directory == first
    return header.redundant_directory == first and header.directory == first + area


def directories_of(header: SparseHeader) -> list[int]:
    return [header.directory, *([header.redundant_directory] if header.redundant else [])]


def worth_of(file: BlockDevice, header: SparseHeader, sector: int) -> int:
    """2: a directory with its tables behind it; 1: it may be one; 0: it is none."""
    count = min(header.tables, _SAMPLE)
    data = read(file, sector * SECTOR, count * 4) if sector < 1 << 53 else b""
    if sector < 1 or len(data) < count * 4:
        return 0
    entries = u32s(data)
    end = file.capacity // SECTOR
    first = sector + header.directory_sectors
    right = sum(entry == first + i * TABLE_SECTORS for i, entry in enumerate(entries))
    if right * 2 > count:
        return 2
    inside = sum(entry == 0 or 0 < entry <= end - TABLE_SECTORS for entry in entries)
    return 1 if inside * 2 > count or not header.tables else 0


def metadata_end(header: SparseHeader) -> int:
    """Behind everything that the layout puts before the grains."""
    area = header.directory_sectors + header.tables * TABLE_SECTORS
    ends = [directory + area for directory in directories_of(header)]
    return max(1, header.descriptor + header.descriptor_sectors, *ends)


def with_overhead(file: BlockDevice, header: SparseHeader) -> SparseHeader:
    """The first sector of the grains may be too high: then grains lie below it, behind the tables."""
    if header.compressed:
        return header
    if any(worth_of(file, header, directory) != 2 for directory in directories_of(header)):
        return _with_overhead_by_entries(file, header)
    expected = -(-metadata_end(header) // header.grain) * header.grain
    if header.overhead <= expected:
        return header
    lowest = _lowest_entry(file, header)
    if lowest is not None and metadata_end(header) <= lowest < header.overhead:
        return replace(header, overhead=min(expected, lowest))
    return header


def _with_overhead_by_entries(file: BlockDevice, header: SparseHeader) -> SparseHeader:
    """Where the tables lie anywhere: most grains are below what the header calls the first one."""
    ends = [directory + header.directory_sectors for directory in directories_of(header)]
    front = max(1, header.descriptor + header.descriptor_sectors, *ends)
    places = u32s(read(file, header.directory * SECTOR, min(header.tables, _SAMPLE) * 4))
    entries = [
        entry
        for place in places
        if place
        for entry in u32s(read(file, place * SECTOR, TABLE_SECTORS * SECTOR))
        if entry > 1
    ]
    below = [entry for entry in entries if front <= entry < header.overhead]
    return replace(header, overhead=min(below)) if 2 * len(below) > len(entries) else header


def _lowest_entry(file: BlockDevice, header: SparseHeader) -> int | None:
    """Of the first tables."""
    first = header.directory + header.directory_sectors
    count = min(header.tables, _SAMPLE)
    entries = u32s(read(file, first * SECTOR, count * TABLE_SECTORS * SECTOR))
    return min((entry for entry in entries if entry > 1), default=None)


def can_have_moved(said: SparseHeader, candidate: SparseHeader, worth: list[int]) -> bool:
    """A directory is believed to be elsewhere than the header says only if one is there beyond doubt: zeroes
    may be an empty directory, but they may as well be grains."""
    said_places = (said.directory, said.redundant_directory)
    moved = [
        value
        for value, place in zip(worth, directories_of(candidate), strict=True)
        if place not in said_places
    ]
    return not moved or min(moved) == 2 or (max(worth) == 2 and follows_layout(candidate))
