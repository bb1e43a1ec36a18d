"""The descriptor inside a sparse extent, changed so that a crash leaves the old one or the new one.

A change inside one sector is one write. A longer one is done with a copy of the old text at the end of the
area: the header is pointed to it, the new text is written, and the header is pointed back, each time with
one write into one sector.

Source of facts: VMware's "Virtual Disk Format 5.0" (the header's descriptorOffset and descriptorSize).
"""

from __future__ import annotations

import struct
from dataclasses import replace

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.errors import LimitExceeded
from vdkit.vmdk.descriptor import looks_like_descriptor
from vdkit.vmdk.header import DESCRIPTOR_FIELDS_OFFSET, GD_AT_END, SparseHeader, check_descriptor_area
from vdkit.vmdk.kinds import SECTOR


def home_header(file: BlockDevice, header: SparseHeader) -> SparseHeader:
    """The header with the whole area of the descriptor: a crash may have left it pointing to the copy.

    Every product puts the descriptor behind the header, so one that is further back, behind something that
    begins like a descriptor, is the copy.
    """
    directories = [header.directory] if header.directory != GD_AT_END else []
    if header.redundant and header.redundant_directory:
        directories.append(header.redundant_directory)
    if header.descriptor <= 1 or any(place <= header.descriptor for place in directories):
        return header
    first = bytearray(SECTOR)
    file.read_into(SECTOR, first)
    if not looks_like_descriptor(bytes(first)):
        return header
    end = header.descriptor + header.descriptor_sectors
    return replace(header, descriptor=1, descriptor_sectors=end - 1)


def descriptor_room(file: BlockDevice, header: SparseHeader) -> int:
    """Bytes that a descriptor may have."""
    return check_descriptor_area(home_header(file, header), file.name)[1]


def rewrite_embedded(
    file: WritableDevice, header: SparseHeader, data: bytes, *, final: SparseHeader | None = None
) -> SparseHeader:
    """Change the descriptor to ``data``; returns the header that is in force then.

    ``final`` replaces the header in the same instant. Raises LimitExceeded before anything is written if
    there is no room.
    """
    home = home_header(file, header)
    offset, room = check_descriptor_area(home, file.name)
    if len(data) > room:
        raise LimitExceeded(f"{file.name}: descriptor of {len(data)} bytes does not fit its {room} bytes")
    last = home if final is None else final
    old = bytearray(room)
    file.read_into(offset, old)
    new = data.ljust(room, b"\0")
    changed = [at for at in range(0, room, SECTOR) if old[at : at + SECTOR] != new[at : at + SECTOR]]
    parked = header != home
    if not parked and final is None and len(changed) <= 1:
        for at in changed:
            file.write_from(offset + at, new[at : at + SECTOR])
            file.flush()
        return home
    copy = header.descriptor * SECTOR if parked else _park(file, home, old, len(data))
    if copy is None:
        # Two copies do not fit: the one change that a crash can tear.
        file.write_from(offset, new)
    else:
        if offset + _whole(len(data)) > copy:
            raise LimitExceeded(
                f"{file.name}: descriptor of {len(data)} bytes does not fit the {copy - offset} bytes "
                "in front of the copy that an interrupted change left"
            )
        file.write_from(offset, new[: copy - offset])
    file.flush()
    _point(file, last, whole=final is not None)
    if copy is not None:
        file.write_from(copy, bytes(offset + room - copy))
        file.flush()
    return last


def _park(file: WritableDevice, home: SparseHeader, old: bytearray, needed: int) -> int | None:
    """Put a copy of the old text at the end of the area; None if it would be in the new one's way."""
    text = bytes(old).partition(b"\0")[0]
    sectors = max(1, _whole(len(text)) // SECTOR)
    place = home.descriptor + home.descriptor_sectors - sectors
    if (place - home.descriptor) * SECTOR < max(_whole(needed), _whole(len(text))):
        return None
    file.write_from(place * SECTOR, text.ljust(sectors * SECTOR, b"\0"))
    file.flush()
    _point(file, replace(home, descriptor=place, descriptor_sectors=sectors), whole=False)
    return place * SECTOR


def _point(file: WritableDevice, header: SparseHeader, *, whole: bool) -> None:
    """One write into the header's sector; of the whole of it only when more than two fields change, since
    somebody else may hold the mark of an unclean shutdown."""
    if whole:
        file.write_from(0, header.pack())
    else:
        fields = struct.pack("<QQ", header.descriptor, header.descriptor_sectors)
        file.write_from(DESCRIPTOR_FIELDS_OFFSET, fields)
    file.flush()


def _whole(length: int) -> int:
    return -(-length // SECTOR) * SECTOR
