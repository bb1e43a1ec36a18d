"""What VixDiskLib's GetInfo tells of a disk.

Source of the shape: the published VixDiskLib information structure. Capacities are in sectors of 512 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdkit.block.device import BlockDevice
from vdkit.disklib.constants import SECTOR_SIZE, AdapterType
from vdkit.vmdk import Disk, Geometry
from vdkit.vmdk.kinds import geometry_for
from vdkit.vsphere.model import VirtualDisk

NO_GEOMETRY = Geometry(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Info:
    """``num_links`` counts the files of the chain, 1 is a disk without a parent. ``bios_geometry`` is the
    physical one where the disk names no other; both are zeroes where nothing is known.
    """

    bios_geometry: Geometry
    physical_geometry: Geometry
    capacity_sectors: int
    adapter_type: AdapterType
    num_links: int
    parent_file_name_hint: str | None
    uuid: str | None
    logical_sector_size: int
    physical_sector_size: int


def local_info(device: BlockDevice) -> Info:
    """Of a VMDK, or of a raw image: that gets the geometry which a disk made of it would have."""
    sectors = device.capacity // SECTOR_SIZE
    if not isinstance(device, Disk):
        geometry = geometry_for(sectors, "lsilogic")
        return Info(geometry, geometry, sectors, AdapterType.UNKNOWN, 1, None, None, SECTOR_SIZE, SECTOR_SIZE)
    known = device.info
    physical = known.geometry or NO_GEOMETRY
    return Info(
        bios_geometry=known.bios_geometry or physical,
        physical_geometry=physical,
        capacity_sectors=sectors,
        adapter_type=AdapterType.of(known.adapter),
        num_links=len(known.links),
        parent_file_name_hint=known.parent,
        uuid=known.uuid,
        logical_sector_size=known.sector_size,
        physical_sector_size=_physical(device),
    )


def _physical(disk: Disk) -> int:
    text = disk.descriptor.get("ddb.physicalSectorSize") or ""
    return int(text) if text in ("512", "4096") else disk.sector_size


def remote_info(device: BlockDevice, disk: VirtualDisk | None, path: str) -> Info:
    """Of a disk behind a host: ``disk`` is what the machine's configuration says of it, if it is there."""
    chain = () if disk is None else (disk.file, *disk.parents)
    below = chain[chain.index(path) :] if path in chain else ()
    return Info(
        bios_geometry=NO_GEOMETRY,
        physical_geometry=NO_GEOMETRY,
        capacity_sectors=device.capacity // SECTOR_SIZE,
        adapter_type=AdapterType.UNKNOWN,
        num_links=max(1, len(below)),
        parent_file_name_hint=below[1] if len(below) > 1 else None,
        uuid=None if disk is None else disk.uuid,
        logical_sector_size=max(SECTOR_SIZE, device.sector_size),
        physical_sector_size=max(SECTOR_SIZE, device.sector_size),
    )
