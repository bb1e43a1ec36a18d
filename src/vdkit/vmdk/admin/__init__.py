"""What is done to a disk as a whole: grow, shrink, defragment, rename, attach, metadata, space."""

from vdkit.vmdk.admin.attach import attach_disk, check_attach
from vdkit.vmdk.admin.compact import defragment_disk, shrink_disk
from vdkit.vmdk.admin.grow import grow_disk
from vdkit.vmdk.admin.metadata import read_metadata, read_metadata_key, write_metadata
from vdkit.vmdk.admin.rename import rename_disk
from vdkit.vmdk.admin.space import space_needed
from vdkit.vmdk.admin.subject import AdminResult

__all__ = [
    "AdminResult",
    "attach_disk",
    "check_attach",
    "defragment_disk",
    "grow_disk",
    "read_metadata",
    "read_metadata_key",
    "rename_disk",
    "shrink_disk",
    "space_needed",
    "write_metadata",
]
