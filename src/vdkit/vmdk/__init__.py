"""The VMDK formats: a function from a store to a block device."""

from vdkit.vmdk.codec import Codec
from vdkit.vmdk.create import create_child, create_disk
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.disk import Disk
from vdkit.vmdk.files import delete_disk, is_child, list_files
from vdkit.vmdk.info import DiskInfo, LinkInfo, describe_only
from vdkit.vmdk.kinds import DiskType, Geometry
from vdkit.vmdk.open import open_disk
from vdkit.vmdk.receive import receive_stream
from vdkit.vmdk.stream_reader import StreamReader, StreamSummary
from vdkit.vmdk.stream_writer import StreamWriter

__all__ = [
    "Codec",
    "Descriptor",
    "Disk",
    "DiskInfo",
    "DiskType",
    "Geometry",
    "LinkInfo",
    "StreamReader",
    "StreamSummary",
    "StreamWriter",
    "create_child",
    "create_disk",
    "delete_disk",
    "describe_only",
    "is_child",
    "list_files",
    "open_disk",
    "receive_stream",
]
