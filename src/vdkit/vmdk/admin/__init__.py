"""What is done to a disk as a whole: grow, shrink, defragment, rename, attach, metadata, space."""

from vdkit.vmdk.admin.compact import defragment_disk, shrink_disk
from vdkit.vmdk.admin.grow import grow_disk
from vdkit.vmdk.admin.subject import AdminResult

__all__ = ["AdminResult", "defragment_disk", "grow_disk", "shrink_disk"]
