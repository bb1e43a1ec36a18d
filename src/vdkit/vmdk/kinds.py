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
    SESPARSE = "sesparse"
    ZERO = "zero"
    DEVICE = "device"


#: Extent types of a descriptor that can be opened.
EXTENT_FORMS = {
    "FLAT": ExtentForm.FLAT,
    "VMFS": ExtentForm.FLAT,
    "SPARSE": ExtentForm.SPARSE,
    "VMFSSPARSE": ExtentForm.COWD,
    "SESPARSE": ExtentForm.SESPARSE,
    "ZERO": ExtentForm.ZERO,
    "VMFSRAW": ExtentForm.DEVICE,
}

#: ``createType`` values of disks that hold all of themselves in files that can be changed in place,
#: case-folded.
BASE_TYPES = frozenset(
    name.casefold()
    for name in (
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "2GbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "2GbMaxExtentFlat",
        "vmfs",
        "vmfsPreallocated",
        "vmfsEagerZeroedThick",
        "vmfsThick",
        "vmfsThin",
    )
)
#: All that are made of those extents.
_OPENABLE = BASE_TYPES | {
    name.casefold() for name in ("streamOptimized", "vmfsSparse", "seSparse", "vmfsSeSparse", "custom")
}

#: Types whose extents may lie on devices; they are only read.
_ON_DEVICES = {name.casefold() for name in ("vmfsRaw", "fullDevice", "partitionedDevice")}

_VSAN = "a vSAN object, which lives in the host's object store; read it through the host"
_RDM = "a raw device mapping: the data is on the mapped LUN; read it through the host"
_RDMP = "a raw device mapping: the data is on the mapped LUN; read the LUN"
_CLOSED = {
    "vsansparse": _VSAN,
    "vmfsrawdevicemap": _RDM,
    "vmfsrdm": _RDM,
    "vmfspassthroughrawdevicemap": _RDMP,
    "vmfsrdmp": _RDMP,
}
#: The same by the type of an extent, for disks whose own type says nothing.
_CLOSED_EXTENTS = {"VSANSPARSE": _VSAN, "VMFSRDM": _RDM}


def check_create_type(create_type: str, where: str) -> str | None:
    """Refuse, by name, a disk whose type cannot be opened; a note on one whose extents have to tell."""
    folded = create_type.casefold()
    if folded in _OPENABLE or folded in _ON_DEVICES:
        return None
    reason = _CLOSED.get(folded)
    if reason is None:
        return f"{where}: unknown createType {create_type!r}; its extents tell what it is"
    raise NotSupported(
        f"{where}: createType {create_type!r} is {reason.split('; ')[0]}", remedy=reason.split("; ")[-1]
    )


def is_on_device(create_type: str) -> bool:
    """True for the types that describe a device or parts of one."""
    return create_type.casefold() in _ON_DEVICES


def extent_form(extent_type: str, where: str) -> ExtentForm:
    kind = extent_type.upper()
    form = EXTENT_FORMS.get(kind)
    if form is not None:
        return form
    reason = _CLOSED_EXTENTS.get(kind)
    if reason is not None:
        raise NotSupported(
            f"{where}: an extent of type {extent_type!r} is {reason.split('; ')[0]}",
            remedy=reason.split("; ")[-1],
        )
    raise NotSupported(
        f"{where}: extents of type {extent_type!r} cannot be opened",
        remedy=f"known types: {', '.join(EXTENT_FORMS)}",
    )


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
