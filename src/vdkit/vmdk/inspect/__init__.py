"""What is written in the files of a VMDK, field by field, for people who mend disks.

Nothing here decides whether a disk can be opened: whatever can be read is shown, and what is wrong is said
beside it. Sizes are bounded, so that a damaged header costs no more than a sound one.
"""

from vdkit.vmdk.inspect.file import inspect_file
from vdkit.vmdk.inspect.locate import Location, grain_bytes, locate
from vdkit.vmdk.inspect.model import (
    DescriptorDump,
    DescriptorLine,
    Difference,
    ExtentFile,
    Field,
    Inspection,
    MarkerDump,
    Section,
    StreamDump,
    TableDump,
)

__all__ = [
    "DescriptorDump",
    "DescriptorLine",
    "Difference",
    "ExtentFile",
    "Field",
    "Inspection",
    "Location",
    "MarkerDump",
    "Section",
    "StreamDump",
    "TableDump",
    "grain_bytes",
    "inspect_file",
    "locate",
]
