"""VMware's volume manager below VMFS: members of a volume, and the volume that they make together.

Source of facts: our notes on VMFS, section 1 (checked on the sample images of dissect.vmfs).
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from vdkit.block.compose import Slice
from vdkit.block.device import BaseDevice, BlockDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.forward import close_all
from vdkit.errors import Ambiguous, CorruptDisk, LimitExceeded, MissingParent, NotADisk, UnsupportedVersion

MAGIC: Final = 0xC001D00D
#: Bytes from the start of a partition to the header of its member.
HEADER: Final = 0x100000
_HEADER_SIZE: Final = 512
#: From the end of a region's header to its first bitmap.
_BEFORE_BITMAP: Final = 0x80000
_TABLE_ENTRIES: Final = 8192
_ENTRY = struct.Struct("<BIIQQQI91x")
_TABLE_BYTES: Final = _TABLE_ENTRIES * _ENTRY.size
_NAME_BYTES: Final = 256
_NAMES: Final = 32
#: Entries of one member; 64 TiB have 262,144.
MAX_ENTRIES: Final = 1 << 19
MAX_REGIONS: Final = 64
MAX_MEMBERS: Final = 32
_VERSIONS: Final = (3, 4, 5, 6)
_ALIGNMENTS: Final = (512, 4096, 65536)
_NORMAL: Final = 1


class Piece(NamedTuple):
    """A run of the volume on one member, in bytes; ``physical`` counts from the partition's start."""

    logical: int
    physical: int
    length: int
    member: int


@dataclass(frozen=True, slots=True)
class Member:
    """One device of a volume, as its own header describes it."""

    device: BlockDevice
    """The partition, which begins at byte ``start`` of its LUN."""
    start: int
    version: int
    """Of the volume manager; 0 where there is none."""
    device_uuid: str
    disk_id: bytes
    volume_uuid: str
    snapshot_id: int
    label: str
    size: int
    """Of the whole volume, in bytes."""
    state: int
    first_extent: int
    members: int
    names: tuple[str, ...]
    """Of all the members, where this one knows them (the first does)."""
    runs: tuple[tuple[int, int, int], ...]
    """Logical offset, physical offset, length."""


def uuid_text(raw: bytes) -> str:
    """A UUID as VMware prints it: ``4e9ebbf0-09882c9b-0139-000c29bfa0e4``."""
    low, high, middle = struct.unpack_from("<IIH", raw)
    return f"{low:08x}-{high:08x}-{middle:04x}-{raw[10:16].hex()}"


def bare_member(device: BlockDevice, start: int) -> Member:
    """A partition that is all of a volume: a file system without a volume manager below it."""
    return Member(
        device=device,
        start=start,
        version=0,
        device_uuid="",
        disk_id=b"",
        volume_uuid="",
        snapshot_id=0,
        label="",
        size=device.capacity,
        state=_NORMAL,
        first_extent=0,
        members=1,
        names=(),
        runs=((0, 0, device.capacity),),
    )


def read_member(device: BlockDevice, start: int = 0) -> Member | None:
    """The member that a partition holds; None if it holds none. Raises CorruptDisk, UnsupportedVersion."""
    if device.capacity < HEADER + 0x1000:
        return None
    header = _read(device, HEADER, _HEADER_SIZE)
    magic, version = struct.unpack_from("<II", header)
    if magic != MAGIC:
        return None
    if version not in _VERSIONS:
        raise UnsupportedVersion(f"{device.name}: volume manager version {version}; 3 to 6 are known")
    (alignment,) = struct.unpack_from("<I", header, 0xCA)
    if version < 6:
        alignment = _HEADER_SIZE
    elif alignment not in _ALIGNMENTS:
        raise CorruptDisk(f"{device.name}: metadata aligned to {alignment} bytes")
    entry = _read(device, HEADER + alignment, 512)
    size, _, state = struct.unpack_from("<QQI", entry)
    snapshot_id = struct.unpack_from("<I", entry, 0x64)[0]
    index = struct.unpack_from("<I", entry, 0x70)[0]
    first = struct.unpack_from("<Q", entry, 0x78)[0]
    members = struct.unpack_from("<I", entry, 0x90)[0]
    if not 0 < members <= MAX_MEMBERS:
        raise CorruptDisk(f"{device.name}: a volume of {members} members")
    return Member(
        device=device,
        start=start,
        version=version,
        device_uuid=uuid_text(header[0x82:0x92]),
        disk_id=header[0x0C:0x5A],
        volume_uuid=uuid_text(entry[0x54:0x64]),
        snapshot_id=snapshot_id,
        label=entry[0x14:0x54].split(b"\0")[0].decode("utf-8", "replace"),
        size=size,
        state=state,
        first_extent=first,
        members=members,
        names=_names(device, alignment) if version >= 5 else (),
        runs=_checked_runs(device, _merged(sorted(_entries(device, header, alignment, index)))),
    )


def _checked_runs(
    device: BlockDevice, runs: Iterator[tuple[int, int, int]]
) -> tuple[tuple[int, int, int], ...]:
    """The runs; refused if two of them share bytes of the device."""
    found = tuple(runs)
    end = 0
    for logical, physical, length in sorted(found, key=lambda run: run[1]):
        if physical < end:
            raise CorruptDisk(f"{device.name}: volume offset {logical} lies on bytes of another one")
        end = physical + length
    return found


def _names(device: BlockDevice, alignment: int) -> tuple[str, ...]:
    """Names of all members (``naa...:1``), in order; for messages only."""
    offset = HEADER + alignment + _BEFORE_BITMAP - _NAMES * _NAME_BYTES
    if offset + _NAMES * _NAME_BYTES > device.capacity:
        return ()
    data = _read(device, offset, _NAMES * _NAME_BYTES)
    found = []
    for start in range(0, len(data), _NAME_BYTES):
        name = data[start : start + _NAME_BYTES].split(b"\0")[0]
        if not name:
            break
        found.append(name.decode("ascii", "replace"))
    return tuple(found)


def _entries(
    device: BlockDevice, header: bytes, alignment: int, index: int
) -> Iterator[tuple[int, int, int]]:
    """Used entries of this volume in all the tables of all regions."""
    (left,) = struct.unpack_from("<I", header, 0x6A)
    (maps,) = struct.unpack_from("<I", header, 0xBE)
    (following,) = struct.unpack_from("<Q", header, 0xC2)
    if left > MAX_ENTRIES:
        raise LimitExceeded(f"{device.name}: {left} physical extents; up to {MAX_ENTRIES} are believed")
    bitmap = 1024 if alignment == _HEADER_SIZE else max(alignment, 1024)
    region = HEADER
    for _ in range(MAX_REGIONS):
        first = region + alignment + _BEFORE_BITMAP
        for number in range(max(1, maps)):
            count = min(left, _TABLE_ENTRIES)
            if not count:
                return
            left -= count
            table = first + number * (bitmap + _TABLE_BYTES) + bitmap
            yield from _table(device, table, count, index)
        if not left or not following:
            return
        region = following
        magic, maps, _, following = struct.unpack("<IIQQ", _read(device, region, 24))
        if magic != MAGIC:
            raise CorruptDisk(f"{device.name}: no metadata region at offset {region}")
    raise LimitExceeded(f"{device.name}: more than {MAX_REGIONS} metadata regions")


def _table(device: BlockDevice, offset: int, count: int, index: int) -> Iterator[tuple[int, int, int]]:
    data = _read(device, offset, count * _ENTRY.size)
    for used, _, volume, physical, logical, length, _ in _ENTRY.iter_unpack(data):
        if used and volume == index:
            if physical + length > device.capacity:
                raise CorruptDisk(
                    f"{device.name}: volume offset {logical} is said to be at {physical} to "
                    f"{physical + length}, outside the partition's {device.capacity} bytes"
                )
            yield logical, physical, length


def _merged(runs: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    current: tuple[int, int, int] | None = None
    for logical, physical, length in runs:
        if current is not None and (current[0] + current[2], current[1] + current[2]) == (logical, physical):
            current = (current[0], current[1], current[2] + length)
            continue
        if current is not None:
            yield current
        current = (logical, physical, length)
    if current is not None:
        yield current


class LogicalVolume(BaseDevice):
    """The volume that members make together. Owns and closes their devices."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Raises NotADisk, MissingParent for members that are not there, CorruptDisk for gaps."""
        self.members = _complete(members)
        # Of two paths to one LUN, one is read and both are ours.
        self._devices = [member.device for member in members]
        first = self.members[0]
        self._pieces = sorted(
            Piece(logical, physical, length, number)
            for number, member in enumerate(self.members)
            for logical, physical, length in member.runs
        )
        self._starts = [piece.logical for piece in self._pieces]
        super().__init__(
            name=", ".join(member.device.name for member in self.members),
            capacity=self._checked(first.size),
            sector_size=512,
            alignment=max(member.device.alignment for member in self.members),
        )

    def _checked(self, size: int) -> int:
        position = 0
        for piece in self._pieces:
            if piece.logical != position or not piece.length:
                where = self.members[piece.member].device.name
                raise CorruptDisk(
                    f"{where}: the volume has {'a gap' if piece.logical > position else 'two places'} "
                    f"at offset {min(piece.logical, position)}"
                )
            position += piece.length
        if position < size:
            raise CorruptDisk(
                f"{self.members[0].device.name}: the volume's {size} bytes end at {position} in its tables"
            )
        return size

    @property
    def uuid(self) -> str:
        return self.members[0].volume_uuid

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """Where ``[offset, offset + length)`` of the volume lies."""
        self._check_range(offset, length, aligned=False)
        end = offset + length
        index = bisect.bisect_right(self._starts, offset) - 1
        while offset < end:
            piece = self._pieces[index]
            inside = offset - piece.logical
            part = min(end - offset, piece.length - inside)
            yield Piece(offset, piece.physical + inside, part, piece.member)
            offset += part
            index += 1

    def places(self, offset: int, length: int) -> Iterator[tuple[str, int, int]]:
        """The same as the LUN's name, the offset on the whole LUN, and a length."""
        for piece in self.pieces(offset, length):
            member = self.members[piece.member]
            yield member.device.name, member.start + piece.physical, piece.length

    def _read_into(self, offset: int, view: memoryview) -> None:
        for piece in self.pieces(offset, len(view)):
            at = piece.logical - offset
            self.members[piece.member].device.read_into(piece.physical, view[at : at + piece.length])

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, ExtentKind.DATA)

    def _close(self) -> None:
        close_all(self._devices)


def _complete(members: Sequence[Member]) -> tuple[Member, ...]:
    """The members in order, one for each device. Raises for what is missing or does not belong together."""
    if not members:
        raise NotADisk("no device of a VMFS volume")
    first = members[0]
    unique: dict[str, Member] = {}
    for member in members:
        if (member.volume_uuid, member.snapshot_id) != (first.volume_uuid, first.snapshot_id):
            raise NotADisk(
                f"{member.device.name}: belongs to volume {member.volume_uuid}, "
                f"{first.device.name} to {first.volume_uuid}"
            )
        if member.state != _NORMAL:
            raise NotADisk(
                f"{member.device.name}: the volume is in state {member.state}: a copy that waits for a new "
                "signature",
                remedy="mount and resignature it on a host first",
            )
        # Two paths to one LUN show the same device.
        other = unique.setdefault(member.device_uuid, member)
        if (other.runs, other.disk_id) != (member.runs, member.disk_id):
            raise Ambiguous(
                f"{member.device.name} and {other.device.name} both say that they are device "
                f"{member.device_uuid}, with different tables",
                remedy="name one of them: the other is a copy",
            )
        if (member.size, member.members) != (first.size, first.members):
            raise CorruptDisk(
                f"{member.device.name}: a volume of {member.size} bytes on {member.members} members; "
                f"{first.device.name} says {first.size} and {first.members}"
            )
    ordered = tuple(sorted(unique.values(), key=lambda member: member.first_extent))
    if len(ordered) > first.members:
        raise CorruptDisk(
            f"{first.device.name}: volume {first.volume_uuid} has {first.members} members, "
            f"{len(ordered)} say that they are"
        )
    if len(ordered) < first.members:
        names = next((m.names for m in ordered if len(m.names) == first.members), ())
        told = f" (its members are {', '.join(names)})" if names else ""
        raise MissingParent(
            f"{first.device.name}: volume {first.volume_uuid} has {first.members} members, "
            f"{len(ordered)} are here{told}",
            remedy="name all the LUNs of the datastore",
        )
    return ordered


def partition(device: BlockDevice, offset: int, length: int) -> BlockDevice:
    """The part of a device that is a partition; the device itself if that is all of it."""
    if offset == 0 and length == device.capacity:
        return device
    return Slice(device, offset, length)


def _read(device: BlockDevice, offset: int, length: int) -> bytes:
    if offset + length > device.capacity:
        raise CorruptDisk(
            f"{device.name}: a table at {offset} is outside the partition's {device.capacity} bytes"
        )
    data = bytearray(length)
    device.read_into(offset, data)
    return bytes(data)
