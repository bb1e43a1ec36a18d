"""A new descriptor, in the form VMware products write.

Source of facts: VMware's "Virtual Disk Format 5.0" and descriptors written by VMware products. Single
blanks and no indentation, because other readers refuse anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vdkit.vmdk.cid import NO_PARENT, format_cid, new_long_id, new_uuid
from vdkit.vmdk.descriptor import SIGNATURE, Descriptor
from vdkit.vmdk.extentline import ExtentLine, check_text
from vdkit.vmdk.kinds import geometry_for

HARDWARE_VERSION = "10"


@dataclass(frozen=True, slots=True)
class Parent:
    """What a child records of its parent."""

    cid: int
    hint: str


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


def base_ddb(sectors: int, adapter: str, cid: int, *, thin: bool = False) -> dict[str, str]:
    """The disk database of a new base disk."""
    geometry = geometry_for(sectors, adapter)
    ddb = {
        "adapterType": adapter,
        "geometry.cylinders": str(geometry.cylinders),
        "geometry.heads": str(geometry.heads),
        "geometry.sectors": str(geometry.sectors),
        "longContentID": new_long_id(cid),
        "uuid": new_uuid(),
        "virtualHWVersion": HARDWARE_VERSION,
    }
    if thin:
        ddb["thinProvisioned"] = "1"
    return ddb
