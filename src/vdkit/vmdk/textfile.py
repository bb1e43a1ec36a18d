"""Text descriptors as files: written once, changed so that a crash leaves a descriptor that opens.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

from vdkit.block.device import WritableDevice
from vdkit.block.store import replacing
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.names import Place


def write_text(file: WritableDevice, data: bytes, *, durable: bool = True) -> None:
    """Fill a new, empty file. Its first sector comes last: a text without its end would name fewer extents,
    one without its beginning is no descriptor.
    """
    file.resize(len(data))
    if len(data) > SECTOR:
        file.write_from(SECTOR, data[SECTOR:])
        if durable:
            file.flush()
    file.write_from(0, data[:SECTOR])
    if durable:
        file.flush()


def rewrite_text(place: Place, data: bytes) -> None:
    """Change a descriptor: in place where it keeps its length and no more than two neighbouring sectors
    change, else beside it and by renaming.

    Two sectors may come to the disk one without the other: then the long content id can lag behind the
    content id, and a value across their border be half old and half new. The lines themselves stay whole.
    """
    with place.open() as file:
        old = bytearray(file.capacity)
        file.read_into(0, old)
    kept = len(old.rstrip(b"\0"))
    if kept == len(data):
        if old[:kept] == data:
            return
        changed = [i for i, (a, b) in enumerate(zip(old, data, strict=False)) if a != b]
        sectors = range(changed[0] // SECTOR, changed[-1] // SECTOR + 1)
        if len(sectors) <= 2:
            _overwrite(place, data, sectors)
            return
    _replace(place, data)


def _overwrite(place: Place, data: bytes, sectors: range) -> None:
    with place.store.open_writable(place.name) as file:
        for sector in sectors:
            part = data[sector * SECTOR : (sector + 1) * SECTOR]
            file.write_from(sector * SECTOR, part)
        file.flush()


def _replace(place: Place, data: bytes) -> None:
    beside = f"{place.name}.new"
    with replacing(place.store, place.name, beside), place.store.create(beside) as file:
        write_text(file, data)
