"""A new descriptor, in the form VMware products write.

Source of facts: VMware's "Virtual Disk Format 5.0" and descriptors written by VMware products. Single
blanks and no indentation, because other readers refuse anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vdkit.errors import LimitExceeded, UsageError
from vdkit.vmdk.cid import NO_PARENT, format_cid, new_long_id, new_uuid
from vdkit.vmdk.descriptor import SIGNATURE, Descriptor
from vdkit.vmdk.extentline import ExtentLine, check_text
from vdkit.vmdk.kinds import MAX_DISK_SECTORS, SECTOR, geometry_for

HARDWARE_VERSION = 10
#: Virtual hardware that a disk can be made for, and sizes of the sector that a guest can see.
MIN_HARDWARE_VERSION, MAX_HARDWARE_VERSION = 3, 99
SECTOR_SIZES = (512, 4096)


@dataclass(frozen=True, slots=True)
class Parent:
    """What a child records of its parent."""

    cid: int
    hint: str


def disk_sectors(capacity: int, where: str) -> int:
    """Sectors of a disk to be made of ``capacity`` bytes. Raises UsageError, LimitExceeded."""
    sectors = capacity // SECTOR
    if capacity % SECTOR or sectors <= 0:
        raise UsageError(f"{where}: a capacity of {capacity} bytes is not a positive multiple of {SECTOR}")
    if sectors > MAX_DISK_SECTORS:
        raise LimitExceeded(f"{where}: a disk of {capacity} bytes is over the limit of 62 TiB")
    return sectors


def new_descriptor(
    *,
    where: str,
    create_type: str,
    extents: Sequence[ExtentLine],
    cid: int,
    ddb: Mapping[str, str],
    parent: Parent | None = None,
) -> Descriptor:
    """``ddb`` keys come without the ``ddb.`` prefix."""
    lines = [
        SIGNATURE,
        "version=1",
        'encoding="UTF-8"',
        f"CID={format_cid(cid)}",
        f"parentCID={format_cid(NO_PARENT if parent is None else parent.cid)}",
        f'createType="{create_type}"',
    ]
    if parent is not None:
        check_text(parent.hint, "parent file name")
        lines.append(f'parentFileNameHint="{parent.hint}"')
    lines += ["", "# Extent description", *(str(extent) for extent in extents)]
    lines += ["", "# The Disk Data Base ", "#DDB", ""]
    for key, value in ddb.items():
        check_text(value, f"ddb.{key}")
        lines.append(f'ddb.{key} = "{value}"')
    text = "\n".join(lines) + "\n"
    return Descriptor.parse(text.encode("utf-8", "surrogateescape"), where)


def base_ddb(
    sectors: int,
    adapter: str,
    cid: int,
    *,
    hardware_version: int | None = None,
    sector_size: int = SECTOR,
    thin: bool = False,
) -> dict[str, str]:
    """The disk database of a new base disk. Raises UsageError for what no disk can have."""
    version = HARDWARE_VERSION if hardware_version is None else hardware_version
    if not MIN_HARDWARE_VERSION <= version <= MAX_HARDWARE_VERSION:
        raise UsageError(
            f"virtual hardware version {version} is not {MIN_HARDWARE_VERSION} to {MAX_HARDWARE_VERSION}"
        )
    if sector_size not in SECTOR_SIZES or sectors * SECTOR % sector_size:
        raise UsageError(
            f"a disk of {sectors * SECTOR} bytes cannot have sectors of {sector_size} bytes",
            remedy="sectors have 512 or 4096 bytes, and a disk is made of whole ones",
        )
    geometry = geometry_for(sectors, adapter)
    ddb = {
        "adapterType": adapter,
        "geometry.cylinders": str(geometry.cylinders),
        "geometry.heads": str(geometry.heads),
        "geometry.sectors": str(geometry.sectors),
        "longContentID": new_long_id(cid),
        "uuid": new_uuid(),
        "virtualHWVersion": str(version),
    }
    if sector_size != SECTOR:
        ddb["logicalSectorSize"] = ddb["physicalSectorSize"] = str(sector_size)
    if thin:
        ddb["thinProvisioned"] = "1"
    return ddb
