"""VixDiskLib's numbers: disk types, adapters, hardware versions, flags of opening, limits.

Source of facts: the published VixDiskLib enumerations (VDDK programming guide).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final

from vdkit.errors import NotSupported, UsageError
from vdkit.vmdk import DiskType as VmdkType

if TYPE_CHECKING:
    from vdkit.transports.nfc import CompressionName

#: Bytes of a sector in every call of this API, on disks of 4096-byte sectors too.
SECTOR_SIZE: Final = 512
#: Sectors of a chunk that :meth:`DiskHandle.query_allocated_blocks` takes, and chunks in one question.
MIN_CHUNK_SIZE: Final = 128
MAX_CHUNK_SIZE: Final = 131072
MAX_CHUNK_NUMBER: Final = 524288


class DiskType(IntEnum):
    """Types of disks by VixDiskLib's number; :attr:`vmdk` is the type in vdkit's own words."""

    MONOLITHIC_SPARSE = 1
    MONOLITHIC_FLAT = 2
    SPLIT_SPARSE = 3
    SPLIT_FLAT = 4
    VMFS_FLAT = 5
    STREAM_OPTIMIZED = 6
    VMFS_THIN = 7
    VMFS_SPARSE = 8
    UNKNOWN = 256

    @property
    def vmdk(self) -> VmdkType:
        """Raises UsageError for UNKNOWN."""
        if self is DiskType.UNKNOWN:
            raise UsageError("the disk type UNKNOWN is none that can be made")
        return VmdkType[self.name]


class AdapterType(IntEnum):
    """What a disk was made to be attached to; :attr:`text` is the descriptor's word for it."""

    IDE = 1
    SCSI_BUSLOGIC = 2
    SCSI_LSILOGIC = 3
    UNKNOWN = 256

    @property
    def text(self) -> str:
        match self:
            case AdapterType.IDE:
                return "ide"
            case AdapterType.SCSI_BUSLOGIC:
                return "buslogic"
            case AdapterType.SCSI_LSILOGIC:
                return "lsilogic"
            case _:
                raise UsageError("the adapter type UNKNOWN is none that a disk can be made for")

    @classmethod
    def of(cls, text: str | None) -> AdapterType:
        """UNKNOWN for what has no number, ``legacyESX`` among them."""
        for kind in (cls.IDE, cls.SCSI_BUSLOGIC, cls.SCSI_LSILOGIC):
            if text is not None and kind.text == text.casefold():
                return kind
        return cls.UNKNOWN


class HwVersion(IntEnum):
    """Virtual hardware versions with a name; any number that a product writes is accepted."""

    WORKSTATION_4 = 3
    WORKSTATION_5 = 4
    ESX30 = 4
    WORKSTATION_6 = 6
    ESX4X = 7
    ESX50 = 8
    ESX51 = 9
    ESX55 = 10
    ESX60 = 11
    ESX65 = 13
    CURRENT = 13


class OpenFlags(IntFlag):
    """How to open a disk."""

    NONE = 0
    UNBUFFERED = 0x01
    SINGLE_LINK = 0x02
    READ_ONLY = 0x04
    COMPRESSION_ZLIB = 0x10
    COMPRESSION_FASTLZ = 0x20
    COMPRESSION_SKIPZ = 0x40


#: Every bit that stands for a compression.
COMPRESSION_MASK: Final = 0x3F0

_COMPRESSIONS: Final[dict[int, CompressionName]] = {
    0: "none",
    OpenFlags.COMPRESSION_ZLIB: "zlib",
    OpenFlags.COMPRESSION_FASTLZ: "fastlz",
    OpenFlags.COMPRESSION_SKIPZ: "skipz",
}


def compression_name(flags: int) -> CompressionName:
    """The compression that ``flags`` ask for. Raises NotSupported for one that nobody knows, or two."""
    asked = flags & COMPRESSION_MASK
    name = _COMPRESSIONS.get(asked)
    if name is None:
        raise NotSupported(
            f"open flags {flags:#x}: no known compression", remedy="ask for one of them at most"
        )
    return name


def check_flags(flags: int) -> None:
    """Refuse bits that mean nothing: a caller who set them expects something."""
    known = OpenFlags.UNBUFFERED | OpenFlags.SINGLE_LINK | OpenFlags.READ_ONLY | COMPRESSION_MASK
    if flags & ~int(known):
        raise UsageError(f"open flags {flags:#x}: {flags & ~int(known):#x} is not known")
