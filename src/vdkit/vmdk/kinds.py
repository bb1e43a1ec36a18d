"""What disks there are: types, extent types, adapters, geometry.

Source of facts: VMware's "Virtual Disk Format 5.0" (create types, extent types), the published VixDiskLib
enumerations, descriptors written by VMware products (which geometry goes with which adapter).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vdkit.errors import NotSupported, UsageError

SECTOR = 512
#: VMware's largest disk: 62 TiB.
MAX_DISK_SECTORS = (62 << 40) // SECTOR


class DiskType(Enum):
    """Types that can be created; the value is what users and ``vdkit convert -O`` call them."""

    MONOLITHIC_SPARSE = "monolithicSparse"
    MONOLITHIC_FLAT = "monolithicFlat"
    SPLIT_SPARSE = "twoGbMaxExtentSparse"
    SPLIT_FLAT = "twoGbMaxExtentFlat"
    VMFS_FLAT = "vmfs"
    VMFS_THIN = "vmfsThin"
    VMFS_SPARSE = "vmfsSparse"
    STREAM_OPTIMIZED = "streamOptimized"

    @classmethod
    def named(cls, text: str) -> DiskType:
        """By value, in any case. Raises UsageError that lists what there is."""
        for kind in cls:
            if kind.value.casefold() == text.casefold():
                return kind
        raise UsageError(
            f"unknown disk type {text!r}", remedy=f"choose one of {', '.join(k.value for k in cls)}"
        )


class ExtentForm(Enum):
    """How an extent file holds its bytes."""

    FLAT = "flat"
    SPARSE = "sparse"
    COWD = "cowd"
    ZERO = "zero"


#: Extent types of a descriptor that can be opened.
EXTENT_FORMS = {
    "FLAT": ExtentForm.FLAT,
    "VMFS": ExtentForm.FLAT,
    "SPARSE": ExtentForm.SPARSE,
    "VMFSSPARSE": ExtentForm.COWD,
    "ZERO": ExtentForm.ZERO,
}

#: ``createType`` values that are made of those extents, case-folded.
_OPENABLE = {
    name.casefold()
    for name in (
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "2GbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "2GbMaxExtentFlat",
        "streamOptimized",
        "vmfs",
        "vmfsPreallocated",
        "vmfsEagerZeroedThick",
        "vmfsThick",
        "vmfsThin",
        "vmfsSparse",
        "custom",
    )
}

_CLOSED = {
    "sesparse": "a seSparse delta; consolidate it on the host or read it through the host",
    "vmfssesparse": "a seSparse delta; consolidate it on the host or read it through the host",
    "vsansparse": "a vSAN object, which lives in the host's object store; read it through the host",
    "vmfsrawdevicemap": "a raw device mapping: the data is on the mapped LUN; read it through the host",
    "vmfsrdm": "a raw device mapping: the data is on the mapped LUN; read it through the host",
    "vmfspassthroughrawdevicemap": "a raw device mapping: the data is on the mapped LUN; read the LUN",
    "vmfsrdmp": "a raw device mapping: the data is on the mapped LUN; read the LUN",
    "vmfsraw": "a raw device of the host; read the device",
    "fulldevice": "a whole physical device; read the device itself as a raw image",
    "partitioneddevice": "made of partitions of a physical device; read the device itself as a raw image",
}


def check_create_type(create_type: str, where: str) -> None:
    """Refuse, by name, a disk whose type cannot be opened."""
    folded = create_type.casefold()
    if folded in _OPENABLE:
        return
    reason = _CLOSED.get(folded)
    if reason is None:
        raise NotSupported(f"{where}: unknown createType {create_type!r}")
    raise NotSupported(
        f"{where}: createType {create_type!r} is {reason.split(';')[0]}", remedy=reason.split("; ")[-1]
    )


def extent_form(extent_type: str, where: str) -> ExtentForm:
    form = EXTENT_FORMS.get(extent_type.upper())
    if form is None:
        raise NotSupported(
            f"{where}: extents of type {extent_type!r} cannot be opened",
            remedy=f"known types: {', '.join(EXTENT_FORMS)}",
        )
    return form


@dataclass(frozen=True, slots=True)
class Geometry:
    cylinders: int
    heads: int
    sectors: int


ADAPTERS = ("ide", "buslogic", "lsilogic", "legacyESX")

_GIB_SECTORS = 1 << 21


def geometry_for(sectors: int, adapter: str) -> Geometry:
    """The geometry VMware writes for a disk of ``sectors`` sectors behind ``adapter``."""
    match adapter:
        case "ide":
            heads, per_track, most = 16, 63, 16383
        case "buslogic" | "lsilogic" | "legacyESX" if sectors < _GIB_SECTORS:
            heads, per_track, most = 64, 32, 65535
        case "buslogic" | "lsilogic" | "legacyESX" if sectors < 2 * _GIB_SECTORS:
            heads, per_track, most = 128, 32, 65535
        case "buslogic" | "lsilogic" | "legacyESX":
            heads, per_track, most = 255, 63, 65535
        case _:
            raise UsageError(f"unknown adapter {adapter!r}", remedy=f"choose one of {', '.join(ADAPTERS)}")
    return Geometry(max(1, min(most, sectors // (heads * per_track))), heads, per_track)
