"""VMFS-5 and VMFS-6 from their LUNs: volumes, files as devices, folders as a read-only store.

Nothing here writes to a LUN, reserves it, or opens it for more than reading.
"""

from vdkit.vmfs.bulk import Run, State
from vdkit.vmfs.check import Checked, check_file
from vdkit.vmfs.descriptor import Descriptor, FileType
from vdkit.vmfs.discover import Candidate, open_volume, volumes_on
from vdkit.vmfs.file import VmfsFile
from vdkit.vmfs.lvm import LogicalVolume, Piece
from vdkit.vmfs.store import VmfsStore
from vdkit.vmfs.volume import Volume

__all__ = [
    "Candidate",
    "Checked",
    "Descriptor",
    "FileType",
    "LogicalVolume",
    "Piece",
    "Run",
    "State",
    "VmfsFile",
    "VmfsStore",
    "Volume",
    "check_file",
    "open_volume",
    "volumes_on",
]
